"""Which parameters are trained: in which stage, in which group of the optimizer, and under PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lerobot_policy_multismolvla.checkpoints import FROZEN_PREFIX, TRAINED_PREFIX
from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from multismolvla.objectives.registry import PREFIX, modules_to_save


def freeze_for_stage(policy: nn.Module, cfg: MultiSmolVLAConfig) -> None:
    """The tower is frozen but for the map of soft rows; stage 1 trains bridge and fusion alone."""
    for name, parameter in policy.named_parameters():
        if name.startswith(FROZEN_PREFIX) or cfg.stage == "connector":
            trained = ("model.bridge.", "model.fourm_gate.", TRAINED_PREFIX, PREFIX)
            parameter.requires_grad_(name.startswith(trained))


def optimizer_groups(policy: nn.Module, cfg: MultiSmolVLAConfig) -> list[Any]:
    """Trainable parameters; bridge, soft rows' map and objectives in a group of their own, if it differs."""
    if not cfg.uses_fourm or cfg.bridge_lr_scale == 1.0:
        return [p for p in policy.parameters() if p.requires_grad]
    bridge: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            new = any(part in f".{name}" for part in (".bridge.", f".{TRAINED_PREFIX}", f".{PREFIX}"))
            (bridge if new else rest).append(parameter)
    groups = [{"params": bridge, "lr": cfg.optimizer_lr * cfg.bridge_lr_scale}]
    return [*groups, {"params": rest}] if rest else groups


def peft_targets(cfg: MultiSmolVLAConfig, soft_domains: Sequence[str]) -> dict[str, Any]:
    """LoRA on language model, expert and state/action projections; what is new is trained in full and saved.

    Args:
        cfg: the configuration.
        soft_domains: encoder domains that take rows of numbers, whose maps are new.
    """
    projections = "state_proj|action_in_proj|action_out_proj|action_time_mlp_in|action_time_mlp_out"
    layers = r"(q|k|v|o|gate|up|down)_proj"
    targets = (
        rf"(model\.vlm_with_expert\.(lm_expert|vlm\.model\.text_model)\..*\.{layers}|model\.({projections}))"
    )
    saved = ["bridge"] if cfg.uses_fourm else []
    saved += ["fourm_gate"] if cfg.vision_tower == "siglip+fourm" else []
    saved += [f"encoder_embeddings.{name}" for name in soft_domains]
    saved += modules_to_save(cfg.active_objectives)
    return {"target_modules": targets, "modules_to_save": saved}

"""Which parameters are trained: in which stage, in which group of the optimizer, and under PEFT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lerobot_policy_multismolvla.checkpoints import FROZEN_PREFIX, TRAINED_PREFIX, is_frozen_key
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


def peft_targets(
    cfg: MultiSmolVLAConfig, soft_domains: Sequence[str] = (), encoder_blocks: int = 0
) -> dict[str, Any]:
    """LoRA on language model, expert and state/action projections; what is new is trained in full and saved.

    Args:
        cfg: the configuration; ``encoder_lora_blocks`` adds the encoder's last blocks.
        soft_domains: encoder domains that take rows of numbers, whose maps are new.
        encoder_blocks: how many the encoder has.

    Raises:
        ValueError: the configuration asks for more of them.
    """
    adapted = cfg.encoder_lora_blocks
    if adapted > encoder_blocks:
        raise ValueError(
            f"--policy.encoder_lora_blocks={adapted}, but the encoder at {cfg.encoder!r} has "
            f"{encoder_blocks}."
        )
    projections = "state_proj|action_in_proj|action_out_proj|action_time_mlp_in|action_time_mlp_out"
    layers = r"(q|k|v|o|gate|up|down)_proj"
    targets = (
        rf"(model\.vlm_with_expert\.(lm_expert|vlm\.model\.text_model)\..*\.{layers}|model\.({projections}))"
    )
    if adapted > 0:
        numbers = "|".join(map(str, range(encoder_blocks - adapted, encoder_blocks)))
        targets += rf"|model\.tower\.encoder\.encoder\.({numbers})\.(attn\.(qkv|proj)|mlp\.fc[123])"
    saved = ["bridge"] if cfg.uses_fourm else []
    saved += ["fourm_gate"] if cfg.vision_tower == "siglip+fourm" else []
    saved += [f"encoder_embeddings.{name}" for name in soft_domains]
    saved += modules_to_save(cfg.active_objectives)
    return {"target_modules": targets, "modules_to_save": saved}


def check_encoder_adapters(policy: nn.Module, cfg: MultiSmolVLAConfig) -> None:
    """See that training adapts the encoder where it is asked to.

    Raises:
        ValueError: no adapter is trained there.
    """
    if cfg.encoder_lora_blocks > 0 and not any(
        p.requires_grad and is_frozen_key(n) for n, p in policy.named_parameters()
    ):
        raise ValueError(
            f"--policy.encoder_lora_blocks={cfg.encoder_lora_blocks}, but this training puts no adapters on "
            "the encoder. Set --peft.method_type=LORA and leave --peft.target_modules out, or begin from a "
            "checkpoint without adapters (merge them with multismolvla-export)."
        )


def has_adapters(module: nn.Module) -> bool:
    """Whether PEFT has put adapters on a module."""
    return any(isinstance(part, BaseTunerLayer) for part in module.modules())


@contextmanager
def without_adapters(module: nn.Module) -> Iterator[None]:
    """Inside it a module computes as it did before PEFT put adapters on it."""
    adapted = [part for part in module.modules() if isinstance(part, BaseTunerLayer)]
    for part in adapted:
        part.enable_adapters(False)
    try:
        yield
    finally:
        for part in adapted:
            part.enable_adapters(True)

"""The MultiSmolVLA policy: SmolVLA with the 4M-21 tower, two training stages and the modality-dropout curriculum.

Built by *adopting*: upstream constructs its own SmolVLA, the base checkpoint is loaded into it strictly, and only then is the
vision path replaced. No constructor is copied and nothing upstream is patched, so published SmolVLA weights load and
``vision_tower=siglip`` is vanilla SmolVLA bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel
from lerobot.utils.constants import OBS_STATE
from torch import Tensor, nn

from lerobot_policy_multismolvla import training_faults
from lerobot_policy_multismolvla.adoption import AdoptedVLM
from lerobot_policy_multismolvla.checkpoints import (
    check_restored_keys,
    is_frozen_key,
    load_base_checkpoint,
    read_weights,
)
from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from lerobot_policy_multismolvla.flow import draw_noise_and_time, many_flows
from lerobot_policy_multismolvla.observation import SensorWatch, available_sensors, streams_of
from lerobot_policy_multismolvla.teacher import Teacher
from lerobot_policy_multismolvla.trainable import freeze_for_stage, optimizer_groups, peft_targets
from lerobot_policy_multismolvla.vision import build_bridge, build_tower
from multismolvla.connector import ZeroGate
from multismolvla.inspection import LastLook
from multismolvla.modalities import MODALITIES, Modality
from multismolvla.objectives.alignment import alignment_loss, consistency_loss
from multismolvla.tower import tokenize_view

logger = logging.getLogger(__name__)


class MultiSmolVLAPolicy(SmolVLAPolicy):
    """SmolVLA fed by the multimodal tower. See :class:`MultiSmolVLAConfig` for the options.

    Args:
        config: the configuration.
        restoring: weights will be loaded right after construction, so ``base_checkpoint`` need not be read
            (stage 1 reads the teacher from it, but only once it is trained further).
        kwargs: ``dataset_stats`` and ``dataset_meta``, passed by LeRobot's factory and not needed.
    """

    config_class = MultiSmolVLAConfig
    name = "multismolvla"

    def __init__(self, config: MultiSmolVLAConfig, *, restoring: bool = False, **kwargs: Any):
        super().__init__(config)
        self.config: MultiSmolVLAConfig = config
        self._teacher: Teacher | None = None
        self._sensors = SensorWatch()
        self._last_look: LastLook | None = None
        restoring = restoring or config.pretrained_path is not None
        needs_teacher = (
            config.vision_tower == "fourm" and config.stage == "connector" and config.align_weight > 0
        )
        if config.base_checkpoint and not restoring:
            load_base_checkpoint(self.model, config.base_checkpoint)
        elif needs_teacher and not config.base_checkpoint:
            raise ValueError(
                "Stage 1 (--policy.stage=connector) distils from the base checkpoint's SigLIP, but --policy.base_checkpoint "
                "is not set. Name a SmolVLA checkpoint (folder or hub id), or set --policy.align_weight=0."
            )
        if config.uses_fourm:
            self._adopt(needs_teacher, loaded=not restoring)
        self._reset_curriculum_on_new_stage()

    # -- construction --------------------------------------------------------------------------------------------

    def _adopt(self, keep_teacher: bool, *, loaded: bool) -> None:
        """Replace SigLIP (``fourm``), or stand beside it (``siglip+fourm``)."""
        vlm = self.model.vlm_with_expert.vlm.model
        if self.config.vision_tower == "fourm":
            if keep_teacher:
                self._teacher = Teacher(vlm.vision_model, vlm.connector, loaded=loaded)
            del vlm.vision_model, vlm.connector
        self.model.vlm_with_expert = AdoptedVLM.adopt(self.model.vlm_with_expert)
        self.model.tower = build_tower(self.config)
        self.model.text_width = vlm.text_model.config.hidden_size
        self.model.bridge = build_bridge(self.config, self.model.tower, self.model.text_width)
        self.model.bridge_tokens = self.model.bridge.connector.num_tokens
        if self.config.vision_tower == "siglip+fourm":
            self.model.fourm_gate = ZeroGate()
        freeze_for_stage(self, self.config)

    def _reset_curriculum_on_new_stage(self) -> None:
        """A stage-1 counter arrives in stage 2 through the checkpoint's config; another stage starts at zero."""
        cfg = self.config
        if cfg.curriculum_stage != cfg.stage:
            cfg.curriculum_stage, cfg.curriculum_step = cfg.stage, 0
        drops = cfg.uses_fourm and cfg.stage == "robust" and cfg.dropout_mode != "none"
        if (drops or cfg.corrupts) and cfg.curriculum_steps <= 0:
            logger.warning(
                "--policy.curriculum_steps is not set: training this stage will fail. Set it to --steps, or "
                "--policy.dropout_mode=none and corruption_probability=0."
            )

    def train(self, mode: bool = True) -> MultiSmolVLAPolicy:
        """Train or evaluation mode; the frozen tower stays in evaluation mode."""
        nn.Module.train(self, mode)
        if self.config.uses_fourm:
            self.model.tower.eval()
        return self

    def eval(self) -> MultiSmolVLAPolicy:
        """Evaluation mode; free when already in it, because upstream asks for it at every ``select_action``."""
        return self if not self.training else super().eval()

    def get_optim_params(self) -> Any:
        """Trainable parameters; the bridge (and the map of soft rows) in a group of its own when its learning rate differs."""
        return optimizer_groups(self, self.config)

    # -- from pictures to visual tokens ------------------------------------------------------------------------------

    def prepare_images(self, batch: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per view: visual tokens (B, N, D) and whether anything of the view is left, bool (B,).

        With ``vision_tower=siglip``: upstream's pictures and masks, restricted to the declared RGB streams.
        """
        if isinstance(batch, _Prepared):
            return batch.visual
        if not self.config.uses_fourm:
            return super().prepare_images(
                _without(batch, set(self.config.image_features) - set(self.config.rgb_keys))
            )
        available = self.availability(batch)
        return self.visual_tokens(batch, self._drop(available))

    def availability(self, batch: dict[str, Tensor]) -> Tensor:
        """Which sensors each sample has, bool (B, V, M); in evaluation also says what was lost."""
        there = available_sensors(self.config, batch)
        if not self.training:
            self._sensors.look(self.config, there)
        return there

    def last_look(self) -> LastLook | None:
        """What the last forward pass saw; ``None`` before the first one, and with ``vision_tower=siglip``."""
        return self._last_look

    def _drop(self, available: Tensor) -> Tensor:
        """Apply the dropout curriculum; the identity in evaluation and in stage 1."""
        cfg = self.config
        if not self.training or cfg.stage != "robust" or cfg.dropout_mode == "none":
            return available
        return training_faults.drop_sensors(cfg, available, _rank())

    @property
    def dropout_p(self) -> float:
        """Current probability of losing a modality."""
        return training_faults.dropout_p(self.config)

    def _tokenize(self, view: str, modality: str, streams: dict[str, Tensor]) -> Tensor:
        tower = self.model.tower
        return tokenize_view(modality, streams, tower.tokenizers[modality], tower.image_size, tower.square)

    def visual_tokens(
        self, batch: dict[str, Tensor], presence: Tensor, drawn: training_faults.Corruption | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run tower and bridge for given presence (B, V, M) and faults; result as :meth:`prepare_images`."""
        tower = self.model.tower
        if drawn is not None:
            batch = training_faults.corrupt_pictures(self.config, batch, drawn, self._tokenize)
        inputs = tower.encoder_inputs(
            [streams_of(self.config, batch, view) for view in self.config.views], presence
        )
        if drawn is not None:
            inputs = training_faults.corrupt_inputs(self.config, inputs, drawn, tower.vocabularies)
        weights: dict[str, Tensor] = {}
        num_views = len(self.config.views)
        extra, extra_alive = [], []  # global tokens, masked apart from the grid tokens of their view
        if not inputs.values:
            shape = (len(presence), num_views, self.model.bridge_tokens, self.model.text_width)
            tokens = torch.zeros(shape, device=presence.device)
            alive = torch.zeros(shape[:2], dtype=torch.bool, device=presence.device)
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and tower.wants_gradient(inputs)):
                encoded = tower.encode(inputs)
            tokens, alive, global_tokens, weights = self.model.bridge(
                encoded.tokens, encoded.present, encoded.globals
            )
            tokens = tokens.unflatten(0, (-1, num_views))  # (B, V, N, D)
            alive = alive.unflatten(0, (-1, num_views))  # (B, V)
            for domain, rows in global_tokens.items():
                extra += rows.unflatten(0, (-1, num_views)).unbind(1)
                extra_alive += encoded.globals_present[domain].unflatten(0, (-1, num_views)).unbind(1)
        self._last_look = LastLook(inputs, weights)
        if self.config.vision_tower == "siglip+fourm":
            tokens, alive = self._beside_siglip(batch, tokens, alive, presence)
        return [*tokens.unbind(1), *extra], [*alive.unbind(1), *extra_alive]

    def _siglip_tokens(self, batch: dict[str, Tensor]) -> dict[int, Tensor]:
        """``siglip+fourm``: SigLIP's tokens (B, N, D) per view number; empty when no camera delivers RGB."""
        views = [v for v, s in enumerate(self.config.views.values()) if s.get("rgb") in batch]
        if not views:
            return {}
        images, _ = super().prepare_images(
            _without(batch, set(self.config.image_features) - set(self.config.rgb_keys))
        )
        embed = SmolVLMWithExpertModel.embed_image
        return {v: embed(self.model.vlm_with_expert, image) for v, image in zip(views, images, strict=True)}

    def _beside_siglip(
        self, batch: dict[str, Tensor], tokens: Tensor, alive: Tensor, presence: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``siglip+fourm``: SigLIP's tokens plus gated 4M tokens; 4M alone where RGB is gone."""
        seen = presence[:, :, MODALITIES.index(Modality.RGB)]
        out = tokens.clone()
        for v, siglip in self._siglip_tokens(batch).items():
            both = siglip + self.model.fourm_gate(tokens[:, v])
            out[:, v] = torch.where(seen[:, v, None, None], both, tokens[:, v])
        return out, alive

    # -- losses ---------------------------------------------------------------------------------------------------

    def forward(
        self,
        batch: dict[str, Tensor],
        noise: Tensor | None = None,
        time: Tensor | None = None,
        reduction: str = "mean",
    ) -> tuple[Tensor, dict[str, Any]]:
        """Training loss of the current stage; arguments and result as upstream's.

        Stage ``connector``: ``flow_weight`` x flow matching through the frozen rest + ``align_weight`` x distillation.
        Stage ``robust``: flow matching under the dropout curriculum, optionally with consistency to the complete sample.
        """
        if not self.config.uses_fourm:
            if self._draws_many(noise, time):
                return many_flows(self, batch, *self.prepare_images(batch), reduction, _rank())
            return super().forward(batch, noise, time, reduction)
        if self.config.stage == "robust":
            loss, logs = self._robust_loss(batch, noise, time, reduction)
        else:
            loss, logs = self._connector_loss(batch, noise, time, reduction)
        return loss, logs

    def _connector_loss(self, batch, noise, time, reduction):
        loss = torch.zeros((), device=batch[OBS_STATE].device)
        logs: dict[str, Any] = {}
        seeing = any(key in batch for key in self.config.rgb_keys)
        teacher = self.teacher_tokens(batch) if seeing and self._teacher is not None else None
        if self.training and self.config.curriculum_step == 0:
            self._match_norm(batch, teacher)
        tokens, alive = self.prepare_images(batch)
        if teacher is not None:
            align, align_logs = self._alignment(batch, tokens, alive, teacher)
            loss = loss + self.config.align_weight * align
            logs |= align_logs
        if self.config.flow_weight > 0:
            flow, flow_logs = self._flow(batch, tokens, alive, noise, time, reduction)
            loss = loss + self.config.flow_weight * flow
            logs |= flow_logs
        return loss, logs

    @torch.no_grad()
    def _match_norm(self, batch, teacher) -> None:
        """Start the connector at the norm of the tokens it stands in for; before the first forward, as it writes in place."""
        if teacher is not None:
            reference = teacher[0]
        elif self.config.vision_tower == "siglip+fourm":
            reference = torch.cat(list(self._siglip_tokens(batch).values()) or [torch.ones(1)])
        else:
            return
        self.model.bridge.connector.match_norm(reference)
        _average_over_ranks(
            self.model.bridge.connector.gain
        )  # each rank saw other pictures; DDP never compares weights

    def _robust_loss(self, batch, noise, time, reduction):
        available = self.availability(batch)
        presence = self._drop(available)
        drawn = None
        if self.training and self.config.corrupts:
            drawn = training_faults.draw_corruption(self.config, presence, _rank())
        tokens, alive = self.visual_tokens(batch, presence, drawn)
        if self.config.consistency_weight == 0:
            loss, logs = self._flow(batch, tokens, alive, noise, time, reduction)
        else:
            loss, logs = self._consistent_flow(batch, (tokens, alive), available, noise, time, reduction)
        if self.training and self.config.dropout_mode != "none":
            logs["dropout_p"] = self.dropout_p
            declared = available.float().sum().clamp_min(1)
            logs["modalities_kept"] = (presence.float().sum() / declared).item()
        if self.training and self.config.corrupts:
            logs["corruption_p"] = training_faults.corruption_p(self.config)
            logs["pictures_disturbed"] = 0.0 if drawn is None else (drawn.severity > 0).float().mean().item()
        return loss, logs

    def _flow(self, batch, tokens, alive, noise, time, reduction):
        """Upstream's flow-matching loss on given visual tokens."""
        if self._draws_many(noise, time):
            return many_flows(self, batch, tokens, alive, reduction, _rank())
        if self.training and noise is None and time is None:
            noise, time = draw_noise_and_time(self, self.prepare_action(batch), _rank())
        ready = _Prepared(batch, tokens, alive)
        return super().forward(ready, noise, time, reduction)

    def _draws_many(self, noise, time) -> bool:
        return self.training and self.config.flow_samples > 1 and noise is None and time is None

    def _consistent_flow(self, batch, dropped, available, noise, time, reduction):
        """Flow matching with the dropped sensors, plus the distance to the complete sample's velocity."""
        actions = self.prepare_action(batch)
        if noise is None or time is None:
            noise, time = draw_noise_and_time(self, actions, _rank())
        with torch.no_grad():
            clean, _, _ = self._velocity(batch, self.visual_tokens(batch, available), noise, time, reduction)
        velocity, loss, logs = self._velocity(batch, dropped, noise, time, reduction)
        real = batch.get("action_is_pad")
        weight = torch.ones_like(velocity[..., :1]) if real is None else (~real)[..., None].to(velocity.dtype)
        width = self.config.action_feature.shape[0]
        distance = consistency_loss(velocity[..., :width], clean[..., :width], weight)
        logs["consistency"] = distance.item()
        return loss + self.config.consistency_weight * distance, logs

    def _velocity(self, batch, visual, noise, time, reduction):
        """Upstream's ``forward`` returns only squared errors; the predicted velocity is what leaves its last layer."""
        seen: list[Tensor] = []
        handle = self.model.action_out_proj.register_forward_hook(lambda _m, _i, out: seen.append(out))
        try:
            tokens, alive = visual
            loss, logs = self._flow(batch, tokens, alive, noise, time, reduction)
        finally:
            handle.remove()
        return seen[-1], loss, logs

    @torch.no_grad()
    def teacher_tokens(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """SigLIP-after-connector of the clean pictures: (B, V_rgb, N, D) and masks bool (B, V_rgb)."""
        if self._teacher is None:
            raise RuntimeError(
                "There is no teacher: it exists in stage 'connector' with align_weight > 0 only."
            )
        self._teacher.load(str(self.config.base_checkpoint))
        clean = _without(batch, set(self.config.image_features) - set(self.config.rgb_keys))
        images, masks = SmolVLAPolicy.prepare_images(self, clean)
        return self._teacher.tokens(images), torch.stack(masks, 1)

    def _alignment(self, batch, tokens, alive, target):
        teacher, seen = target
        rgb_views = [v for v, s in enumerate(self.config.views.values()) if s.get("rgb") in batch]
        student = torch.stack([tokens[v] for v in rgb_views], 1)[:, :, : teacher.shape[2]]
        mask = seen & torch.stack([alive[v] for v in rgb_views], 1)
        return alignment_loss(student.flatten(0, 1), teacher.flatten(0, 1), mask.flatten())

    def update(self) -> None:
        """Advance the curriculum; called by ``lerobot-train`` after every optimizer step."""
        self.config.curriculum_step += 1

    # -- PEFT -------------------------------------------------------------------------------------------------------

    def _get_default_peft_targets(self) -> dict[str, Any] | None:
        """LoRA on language model, expert and state/action projections; what is new is trained in full and saved."""
        soft = self.model.tower.soft_domains if self.config.uses_fourm else ()
        return peft_targets(self.config, soft)

    def _validate_peft_config(self, peft_config: Any) -> None:
        """Upstream warns unless SmolVLM2's own weights were loaded; here the base checkpoint supplies them."""
        super(SmolVLAPolicy, self)._validate_peft_config(peft_config)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Everything but the frozen tower, which ``config.json`` names by repository, revision and hash."""
        state = self.state_dict() if state_dict is None else state_dict
        super()._save_pretrained(save_directory, {k: v for k, v in state.items() if not is_frozen_key(k)})

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **kwargs: Any
    ):
        """Load strictly: the frozen tower must be the only thing the file does not hold.

        Raises:
            ValueError: missing or unexpected keys, or a tower other than the one the checkpoint was trained with.
        """
        if config is None:
            config = PreTrainedConfig.from_pretrained(
                pretrained_name_or_path, revision=kwargs.get("revision")
            )
        return super().from_pretrained(pretrained_name_or_path, config=config, restoring=True, **kwargs)

    @classmethod
    def _load_as_safetensor(cls, model, model_file: str, map_location: str, strict: bool):
        state = read_weights(model_file)
        missing, unexpected = model.load_state_dict(state, strict=False)
        check_restored_keys(model_file, missing, unexpected)
        return model


class _Prepared(dict):
    """A batch whose visual tokens are ready, so that upstream's ``forward`` can be reused as it is."""

    def __init__(self, batch: dict[str, Tensor], tokens: list[Tensor], alive: list[Tensor]):
        super().__init__(batch)
        self.visual = (tokens, alive)


def _without(batch: dict[str, Tensor], keys: Iterable[str]) -> dict[str, Tensor]:
    drop = set(keys)
    return {k: v for k, v in batch.items() if k not in drop}


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


@torch.no_grad()
def _average_over_ranks(x: Tensor) -> None:
    """Make a tensor the same on all ranks, in place."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(x)
        x /= distributed.get_world_size()

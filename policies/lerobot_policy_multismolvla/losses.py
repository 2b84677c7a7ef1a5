"""The losses of the two training stages."""

from __future__ import annotations

from dataclasses import replace

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_policy_multismolvla import training_faults
from lerobot_policy_multismolvla.flow import (
    FlowDraw,
    Loss,
    draw_noise_and_time,
    flow_loss,
    flow_velocity,
    wants_many_flows,
)
from lerobot_policy_multismolvla.objectives.step import Sensors, TrainingStep, add_objectives, draw_sensors
from lerobot_policy_multismolvla.visual import (
    RGB,
    VisualPrefix,
    rgb_pictures,
    rgb_views,
    siglip_tokens,
)
from multismolvla.objectives.alignment import alignment_loss


def connector_loss(policy: SmolVLAPolicy, batch: dict[str, Tensor], draw: FlowDraw) -> Loss:
    """``flow_weight`` x flow matching through the frozen rest + ``align_weight`` x distillation.

    With ``connector_dropout`` both see what is left of the modalities; the teacher sees the whole pictures.
    """
    cfg = policy.config
    loss = torch.zeros((), device=batch[OBS_STATE].device)
    logs: dict[str, float] = {}
    target = teacher_tokens(policy, batch) if policy.teacher is not None and rgb_views(cfg, batch) else None
    if policy.training and cfg.curriculum_step == 0 and cfg.pretrained_path is None:  # else it is trained
        _match_norm(policy, batch, None if target is None else target[0])
    if policy.training:
        sensors = draw_sensors(policy, policy.availability(batch), policy.curriculum_seed)
        if cfg.drops:
            logs["modalities_kept"] = _kept(sensors)
        visual = policy.visual_tokens(batch, sensors.presence)
    else:
        visual = policy.prepare_images(batch)
    if target is not None:
        views = rgb_views(cfg, batch)
        align, align_logs = _alignment(views, visual, policy.last_look().seen[:, views], *target)
        loss = loss + cfg.align_weight * align
        logs |= align_logs
    if cfg.flow_weight > 0:
        flow, flow_logs = flow_loss(policy, batch, visual, draw)
        loss = loss + cfg.flow_weight * flow
        logs |= flow_logs
    if policy.training and cfg.active_objectives:
        step = TrainingStep(policy, batch, sensors, visual, draw)
        loss, logs = add_objectives(step, policy, loss, logs)
    return loss, logs


@torch.no_grad()
def teacher_tokens(policy: SmolVLAPolicy, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """SigLIP-after-connector of the clean pictures: (B, V_rgb, N, D) and masks bool (B, V_rgb)."""
    policy.teacher.load(str(policy.config.base_checkpoint))
    images, masks = rgb_pictures(policy, batch)
    return policy.teacher.tokens(images), torch.stack(masks, 1)


def _alignment(views: list[int], visual: VisualPrefix, seen: Tensor, teacher: Tensor, taught: Tensor) -> Loss:
    """Distance of the views that both have seen."""
    student = torch.stack([visual.tokens[v] for v in views], 1)[:, :, : teacher.shape[2]]
    return alignment_loss(student.flatten(0, 1), teacher.flatten(0, 1), (seen & taught).flatten())


@torch.no_grad()
def _match_norm(policy: SmolVLAPolicy, batch: dict[str, Tensor], teacher: Tensor | None) -> None:
    """Start the connector at the norm of the tokens it replaces; before the first forward (in place)."""
    if teacher is not None:
        reference = teacher
    elif policy.config.vision_tower == "siglip+fourm":
        reference = torch.cat(list(siglip_tokens(policy, batch).values()) or [torch.ones(1)])
    else:
        return
    connector = policy.model.bridge.connector
    connector.match_norm(reference)
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        # each rank saw other pictures, and DDP never compares weights
        distributed.all_reduce(connector.gain)
        connector.gain /= distributed.get_world_size()


def robust_loss(policy: SmolVLAPolicy, batch: dict[str, Tensor], draw: FlowDraw) -> Loss:
    """Flow matching under both curricula, and the objectives that are on."""
    cfg = policy.config
    drops = policy.training and cfg.drops
    corrupts = policy.training and cfg.corrupts
    batch, available = policy.observed(batch)
    sensors = draw_sensors(policy, available, policy.curriculum_seed)
    if cfg.uses_fourm:
        visual = policy.visual_tokens(batch, sensors.presence, sensors.faults)
    else:
        visual = _masked_cameras(policy, batch, sensors.presence)
    velocity = None
    if policy.training and "consistency" in cfg.active_objectives:
        if not wants_many_flows(policy, draw) and (draw.noise is None or draw.time is None):
            noise, time = draw_noise_and_time(policy, policy.prepare_action(batch))
            draw = replace(draw, noise=noise, time=time)
        velocity, loss, logs = flow_velocity(policy, batch, visual, draw)
    else:
        loss, logs = flow_loss(policy, batch, visual, draw)
    if drops:
        logs["dropout_p"] = training_faults.dropout_p(cfg)
        logs["modalities_kept"] = _kept(sensors)
    if corrupts:
        faults = sensors.faults
        logs["corruption_p"] = training_faults.corruption_p(cfg)
        logs["pictures_disturbed"] = 0.0 if faults is None else (faults.severity > 0).float().mean().item()
    if policy.training and cfg.active_objectives:
        # After the pass with gradients: autocast keeps the weights' casts, and casts made without gradients
        # would carry none into the next pass (pytorch issue 112583).
        step = TrainingStep(policy, batch, sensors, visual, draw, velocity)
        loss, logs = add_objectives(step, policy, loss, logs)
    return loss, logs


def _kept(sensors: Sensors) -> float:
    """Share of the available streams that are left."""
    return (sensors.presence.float().sum() / sensors.available.float().sum().clamp_min(1)).item()


def _masked_cameras(policy: SmolVLAPolicy, batch: dict[str, Tensor], presence: Tensor) -> VisualPrefix:
    """Vanilla SmolVLA's pictures, lost cameras masked as its own padding masks do."""
    images, masks = rgb_pictures(policy, batch)
    views = rgb_views(policy.config, batch)
    return VisualPrefix(images, [m & presence[:, v, RGB] for v, m in zip(views, masks, strict=True)])

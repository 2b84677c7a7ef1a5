"""Flow matching with draws that survive a resume, and with several of them per observation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from lerobot.policies.common.vla_utils import make_att_2d_masks
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor

from lerobot_policy_multismolvla.visual import PreparedBatch, VisualPrefix
from multismolvla.dropout import step_generator

#: Loss, a scalar or one number per sample (B,), and numbers for the log.
Loss = tuple[Tensor, dict[str, float]]


@dataclass(frozen=True)
class FlowDraw:
    """Noise and time of a flow-matching loss and its reduction, as LeRobot's ``forward`` takes them.

    Attributes:
        noise: float (B, T, max_action_dim); ``None`` = still to be drawn.
        time: float (B,) in (0, 1]; ``None`` = still to be drawn.
        reduction: ``mean``, or ``none`` for one loss per sample.
    """

    noise: Tensor | None = None
    time: Tensor | None = None
    reduction: str = "mean"

    @property
    def is_open(self) -> bool:
        """Whether nothing is given."""
        return self.noise is None and self.time is None


def rank() -> int:
    """This process's rank; 0 outside of distributed training."""
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def draw_noise_and_time(policy: SmolVLAPolicy, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Noise like ``actions`` (B, T, A) and time (B,); in training a function of (seed, step, rank).

    LeRobot 0.6.1 restores the global generators and then draws from them before the loop, so that a resumed
    run would draw something else.
    """
    cfg, model = policy.config, policy.model
    devices = [actions.device] if actions.is_cuda else []
    with torch.random.fork_rng(devices=devices, enabled=policy.training):
        if policy.training:
            generator = step_generator(policy.curriculum_seed, cfg.curriculum_step, rank(), "flow")
            torch.manual_seed(generator.initial_seed())
        noise = model.sample_noise(actions.shape, actions.device)
        return noise, model.sample_time(len(actions), actions.device)


def wants_many_flows(policy: SmolVLAPolicy, draw: FlowDraw) -> bool:
    """Whether the loss is over several draws of noise and time."""
    return policy.training and draw.is_open and policy.config.flow_samples > 1


def flow_loss(policy: SmolVLAPolicy, batch: dict[str, Tensor], visual: VisualPrefix, draw: FlowDraw) -> Loss:
    """Upstream's flow-matching loss on given visual tokens."""
    if wants_many_flows(policy, draw):
        return many_flows(policy, batch, visual, draw)
    if policy.training and draw.is_open:
        noise, time = draw_noise_and_time(policy, policy.prepare_action(batch))
        draw = replace(draw, noise=noise, time=time)
    return SmolVLAPolicy.forward(policy, PreparedBatch(batch, visual), draw.noise, draw.time, draw.reduction)


def flow_velocity(
    policy: SmolVLAPolicy, batch: dict[str, Tensor], visual: VisualPrefix, draw: FlowDraw
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Velocity field (B, T, A), loss and logs of `flow_loss`.

    The velocity is taken from upstream's last layer; upstream returns none.
    """
    seen: list[Tensor] = []
    handle = policy.model.action_out_proj.register_forward_hook(lambda _m, _i, out: seen.append(out))
    try:
        loss, logs = flow_loss(policy, batch, visual, draw)
    finally:
        handle.remove()
    return seen[-1], loss, logs


def many_flows(policy: SmolVLAPolicy, batch: dict[str, Tensor], visual: VisualPrefix, draw: FlowDraw) -> Loss:
    """Flow-matching loss with several draws of noise and time per observation.

    The gradient is that of upstream's loss with less variance, at little more than the expert's share of the
    price.
    """
    actions = policy.prepare_action(batch).repeat_interleave(policy.config.flow_samples, 0)
    velocity, target = velocities(policy, batch, visual, *draw_noise_and_time(policy, actions))
    losses = (target - velocity).pow(2).mean(1)  # (B, T, A)
    real = batch.get("action_is_pad")
    real = torch.ones_like(losses[..., 0], dtype=torch.bool) if real is None else ~real
    losses = losses * real[..., None]
    count = real.sum(1) * losses.shape[-1]
    logs = {"losses_after_forward": losses.mean().item()}
    if draw.reduction == "none":
        return losses.sum((1, 2)) / count.clamp_min(1), logs
    return losses.sum() / count.sum().clamp_min(1), logs


def velocities(
    policy: SmolVLAPolicy, batch: dict[str, Tensor], visual: VisualPrefix, noise: Tensor, time: Tensor
) -> tuple[Tensor, Tensor]:
    """Velocities at K draws of noise and time per observation, and what flow matching wants them to be.

    The prefix does not see the action tokens, so it is computed once and its cache shared by all draws.

    Args:
        policy: vanilla SmolVLA, or ours.
        batch: prepared, with B actions.
        visual: of its pictures.
        noise: float (B * K, T, max_action_dim), the draws of an observation side by side.
        time: float (B * K,).

    Returns:
        Two float (B, K, T, A), of the A numbers that actions have.
    """
    model, draws = policy.model, len(noise) // len(batch[OBS_LANGUAGE_TOKENS])
    embs, pad, att = model.embed_prefix(
        visual.tokens,
        visual.attended,
        batch[OBS_LANGUAGE_TOKENS],
        batch[OBS_LANGUAGE_ATTENTION_MASK],
        state=policy.prepare_state(batch),
    )
    _, cache = model.vlm_with_expert.forward(
        attention_mask=make_att_2d_masks(pad, att),
        position_ids=torch.cumsum(pad, dim=1) - 1,
        past_key_values=None,
        inputs_embeds=[embs, None],
        use_cache=True,
    )
    cache.batch_repeat_interleave(draws)
    actions = policy.prepare_action(batch).repeat_interleave(draws, 0)
    x_t = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
    velocity = model.denoise_step(pad.repeat_interleave(draws, 0), cache, x_t, time)
    width = policy.config.action_feature.shape[0]
    return (
        velocity[..., :width].unflatten(0, (-1, draws)),
        (noise - actions)[..., :width].unflatten(0, (-1, draws)),
    )

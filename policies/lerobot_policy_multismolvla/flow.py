"""Flow matching with draws that survive a resume, and with several draws of noise and time per observation."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.policies.common.vla_utils import make_att_2d_masks
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor

from multismolvla.dropout import step_generator


def draw_noise_and_time(policy: SmolVLAPolicy, actions: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Noise like ``actions`` (B, T, A) and time (B,), a function of (seed, step, rank): a resumed run draws what it missed.

    LeRobot 0.6.1 restores the global generators and then draws from them before the loop, so they cannot be relied on.
    """
    if not policy.training:
        return policy.model.sample_noise(actions.shape, actions.device), policy.model.sample_time(
            len(actions), actions.device
        )
    cfg = policy.config
    devices = [actions.device] if actions.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(step_generator(cfg.curriculum_seed, cfg.curriculum_step, rank).initial_seed())
        return policy.model.sample_noise(actions.shape, actions.device), policy.model.sample_time(
            len(actions), actions.device
        )


def many_flows(
    policy: SmolVLAPolicy,
    batch: dict[str, Tensor],
    images: list[Tensor],
    masks: list[Tensor],
    reduction: str,
    rank: int,
) -> tuple[Tensor, dict[str, Any]]:
    """Flow-matching loss with several draws of noise and time per observation.

    The prefix does not see the action tokens, so it is computed once and its cache shared by all draws: the gradient
    is that of upstream's loss with less variance, at little more than the expert's share of the price.
    """
    draws, model = policy.config.flow_samples, policy.model
    embs, pad, att = model.embed_prefix(
        images,
        masks,
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
    noise, time = draw_noise_and_time(policy, actions, rank)
    x_t = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
    velocity = model.denoise_step(pad.repeat_interleave(draws, 0), cache, x_t, time)
    width = policy.config.action_feature.shape[0]
    losses = (noise - actions - velocity).pow(2)[..., :width].unflatten(0, (-1, draws)).mean(1)  # (B, T, A)
    real = batch.get("action_is_pad")
    real = torch.ones_like(losses[..., 0], dtype=torch.bool) if real is None else ~real
    losses = losses * real[..., None]
    count = real.sum(1) * width
    logs = {"losses_after_forward": losses.mean().item()}
    if reduction == "none":
        return losses.sum((1, 2)) / count.clamp_min(1), logs
    return losses.sum() / count.sum().clamp_min(1), logs

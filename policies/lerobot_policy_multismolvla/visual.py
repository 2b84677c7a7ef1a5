"""What a batch holds of the declared sensors, and the visual tokens that the language model reads of it."""

from __future__ import annotations

import logging
from functools import cache
from typing import NamedTuple

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from lerobot_policy_multismolvla.training_faults import Corruption, corrupt_inputs, corrupt_pictures
from multismolvla.health import MARKS, Cause, health_key
from multismolvla.inspection import LastLook
from multismolvla.modalities import (
    DEPTH_VALID,
    MODALITIES,
    Modality,
    captured_key,
    ids_name,
    padding_mask_key,
    token_key,
    valid_key,
)
from multismolvla.tower import EncoderInputs, TowerOutput

logger = logging.getLogger(__name__)

RGB = MODALITIES.index(Modality.RGB)


class VisualPrefix(NamedTuple):
    """What the prefix holds of the pictures: an entry per view, then one per view of each gridless domain.

    Attributes:
        tokens: float (B, N, D) each; upstream's own pictures (B, 3, H, W) with ``vision_tower=siglip``.
        attended: bool (B,) each, whether the language model reads it. With a 4M tower always: tokens of what
            is not there say so themselves, see `multismolvla.connector.VisualBridge`.
    """

    tokens: list[Tensor]
    attended: list[Tensor]


class PreparedBatch(dict[str, Tensor]):
    """A batch whose visual tokens are ready, so that upstream's ``forward`` can be used as it is."""

    def __init__(self, batch: dict[str, Tensor], visual: VisualPrefix):
        super().__init__(batch)
        self.visual = visual


# -- the batch ----------------------------------------------------------------------------------------------


def available_sensors(cfg: MultiSmolVLAConfig, batch: dict[str, Tensor]) -> Tensor:
    """Which sensors each sample has, bool (B, V, M): by keys, presence flags, and provenance."""
    state = batch[OBS_STATE]
    there = torch.zeros(len(state), len(cfg.views), len(MODALITIES), dtype=torch.bool, device=state.device)
    for v, (view, streams) in enumerate(cfg.views.items()):
        for modality, key in streams.items():
            if key in batch or token_key(view, modality) in batch:
                mask = batch.get(padding_mask_key(key))
                there[:, v, MODALITIES.index(modality)] = True if mask is None else mask.bool()
    return cfg.provenance_map.drop_with_rgb(there)


def streams_of(cfg: MultiSmolVLAConfig, batch: dict[str, Tensor], view: str) -> dict[str, Tensor]:
    """Canonical pictures of a view, and cached ids where the batch has them instead."""
    streams = cfg.views[view]
    out = {m: batch[key] for m, key in streams.items() if key in batch}
    for modality in streams:
        ids = batch.get(token_key(view, modality))
        if ids is not None and not cfg.is_soft(modality):
            out[ids_name(modality)] = ids.flatten(1).to(torch.int64)
    depth = streams.get(Modality.DEPTH)
    if depth in batch:
        valid = batch.get(valid_key(depth))
        if valid is None:
            raise KeyError(
                f"{valid_key(depth)} is missing: the batch did not pass the policy's pre-processor (step "
                "'multismolvla_sensors'). Build it with make_pre_post_processors and call it on every "
                "observation."
            )
        out[DEPTH_VALID] = valid
    return out


def health_marks(cfg: MultiSmolVLAConfig, batch: dict[str, Tensor]) -> Tensor | None:
    """The pre-processor's marks of all streams, float (B, V, M, MARKS); ``None`` if it made none.

    Streams without marks have the cause -1.

    Raises:
        ValueError: the pre-processor marks pictures, but not all of the policy's.
    """
    state = batch[OBS_STATE]
    marks = state.new_zeros(len(state), len(cfg.views), len(MODALITIES), MARKS, dtype=torch.float32)
    marks[..., 0] = -1
    found = False
    for v, streams in enumerate(cfg.views.values()):
        for modality, key in streams.items():
            if health_key(key) in batch:
                marks[:, v, MODALITIES.index(modality)] = batch[health_key(key)]
                found = True
    unmarked = tuple(key for key in cfg.stream_keys() if key in batch and health_key(key) not in batch)
    if unmarked and any(key.endswith(health_key("")) for key in batch):
        raise ValueError(
            f"The pre-processor has other views than the policy: it marks no {', '.join(unmarked)}. Take the "
            "processors of the policy's own checkpoint."
        )
    if unmarked:
        _warn_of_unmarked(unmarked)
    if not found:
        return None
    marks[..., 0].clamp_(max=float(max(Cause)))
    # an empty segmentation picture is usual by itself, and what a dead camera gives beside a black one
    seg = marks[:, :, MODALITIES.index(Modality.SEG)]
    empty = (seg[..., 0] == Cause.FIT) & (seg[..., 3:] == 0).all(-1)
    dead = marks[:, :, RGB, 0] >= Cause.CONSTANT
    seg[..., 0] = torch.where(empty & dead, float(Cause.ZERO), seg[..., 0])
    return marks


@cache  # once for all looks
def _warn_of_unmarked(keys: tuple[str, ...]) -> None:
    logger.warning(
        "Nothing looks at whether %s are fit to be used: the pre-processor has no step for health, or is of "
        "other views. multismolvla-health fit adds the step.",
        ", ".join(keys),
    )


def with_skew(cfg: MultiSmolVLAConfig, batch: dict[str, Tensor], there: Tensor, cause: Tensor) -> Tensor:
    """The causes of a look, and `Cause.SKEW` where a stream was taken at another moment than its view's RGB.

    Streams that are not there or have no time are not compared, and neither is anything with RGB that is not
    fit itself.

    Args:
        cfg: ``max_skew_ms`` is how far apart they may be.
        batch: with the times, where the source has them.
        there: bool (B, V, M), which streams are there.
        cause: (B, V, M), what else is wrong with them.

    Raises:
        ValueError: the times' number format has no such milliseconds.
    """
    if cfg.max_skew_ms is None:
        return cause
    found = cause.clone()
    for v, streams in enumerate(cfg.views.values()):
        times = {m: batch[captured_key(key)] for m, key in streams.items() if captured_key(key) in batch}
        if Modality.RGB not in times:
            continue
        usable = there[:, v, RGB] & (cause[:, v, RGB] <= Cause.FIT)
        for modality, taken in times.items():
            _check_resolution(captured_key(streams[modality]), taken, cfg.max_skew_ms)
            apart = (taken - times[Modality.RGB]).abs() * 1000 > cfg.max_skew_ms
            m = MODALITIES.index(modality)
            own = found[:, v, m]
            own.copy_(torch.where(usable & there[:, v, m] & apart, own.clamp_min(int(Cause.SKEW)), own))
    return found


def _check_resolution(key: str, taken: Tensor, limit_ms: float) -> None:
    """See that capture times can be told apart; LeRobot reads those of a dataset as float32."""
    reach = taken.abs().nan_to_num(0.0, 0.0).amax().item()
    step_ms = 1000 * torch.finfo(taken.dtype).eps * reach
    if step_ms > limit_ms / 4:
        raise ValueError(
            f"{key} reaches {reach:.0f} s, where {taken.dtype} has steps of {step_ms:.3g} ms: too coarse for "
            f"--policy.max_skew_ms={limit_ms}. Count seconds from the episode's start (LeRobot reads all "
            "numbers of a dataset as float32), or deliver float64."
        )


def check_training_health(cfg: MultiSmolVLAConfig, batch: dict[str, Tensor]) -> None:
    """See that no picture of a training batch is marked.

    Raises:
        ValueError: one is; the message names stream, cause, episode and time.
    """
    marks = health_marks(cfg, batch)
    if marks is None or (cfg.max_skew_ms is None and not (marks[..., 0] > 0).any()):
        return
    there = available_sensors(cfg, batch)
    cause = torch.where(there, with_skew(cfg, batch, there, marks[..., 0]), 0.0)
    if (cause > 0).any():
        what, row = first_unfit(cfg, cause)
        where = {k: batch[k][row].item() for k in ("episode_index", "timestamp") if k in batch}
        place = f"episode {where.get('episode_index', '?')}, {where.get('timestamp', float('nan')):.2f} s"
        raise ValueError(
            f"{what} in the dataset ({place}). Leave that episode out (--dataset.episodes), set the "
            "picture's _padding_mask to false, or count such pictures as absent: --policy.health=act."
        )


def first_unfit(cfg: MultiSmolVLAConfig, cause: Tensor) -> tuple[str, int]:
    """What is wrong with the first stream that has a cause (B, V, M), in words, and its row."""
    b, v, m = (cause > 0).nonzero()[0].tolist()
    key = list(cfg.views.values())[v][MODALITIES[m]]
    return f"{key} is {Cause(int(cause[b, v, m])).label}", b


# -- the tokens ---------------------------------------------------------------------------------------------


def rgb_pictures(policy: SmolVLAPolicy, batch: dict[str, Tensor]) -> VisualPrefix:
    """Upstream's pictures and masks of the declared RGB streams that the batch has, at least one."""
    others = set(policy.config.image_features) - set(policy.config.rgb_keys)
    pictures = {k: v for k, v in batch.items() if k not in others}
    return VisualPrefix(*SmolVLAPolicy.prepare_images(policy, pictures))


def rgb_views(cfg: MultiSmolVLAConfig, batch: dict[str, Tensor]) -> list[int]:
    """Numbers of the views whose RGB is in the batch."""
    return [v for v, streams in enumerate(cfg.views.values()) if streams.get("rgb") in batch]


class Pass(NamedTuple):
    """What tower and bridge make of encoder inputs.

    Attributes:
        prefix: grid tokens of the views, then global ones.
        seen: see `multismolvla.inspection.LastLook.seen`.
        encoded: tokens of the encoder; empty if nothing was there in the whole batch.
        weights: see `multismolvla.connector.VisualTokens.modality_weights`.
    """

    prefix: VisualPrefix
    seen: Tensor
    encoded: TowerOutput
    weights: dict[str, Tensor]


def visual_tokens(
    policy: SmolVLAPolicy, batch: dict[str, Tensor], presence: Tensor, faults: Corruption | None
) -> tuple[VisualPrefix, LastLook]:
    """What the language model reads; arguments as :func:`encoder_inputs`."""
    inputs = encoder_inputs(policy, batch, presence, faults)
    made = run_tower(policy, inputs, presence)
    visual, seen = made.prefix, made.seen
    if policy.config.vision_tower == "siglip+fourm":
        visual, seen = _beside_siglip(policy, batch, visual, seen, presence)
    return visual, LastLook(inputs, seen, made.weights)


def encoder_inputs(
    policy: SmolVLAPolicy, batch: dict[str, Tensor], presence: Tensor, faults: Corruption | None
) -> EncoderInputs:
    """What enters the encoder.

    Args:
        policy: with a 4M tower.
        batch: canonical.
        presence: bool (B, V, M), what may be looked at.
        faults: what is disturbed before that.
    """
    cfg, tower = policy.config, policy.model.tower
    if faults is not None:
        batch = corrupt_pictures(cfg, batch, faults, tower)
    inputs: EncoderInputs = tower.encoder_inputs(
        [streams_of(cfg, batch, view) for view in cfg.views], presence
    )
    return inputs if faults is None else corrupt_inputs(cfg, inputs, faults, tower.vocabularies)


def run_tower(policy: SmolVLAPolicy, inputs: EncoderInputs, presence: Tensor) -> Pass:
    """Run tower and bridge.

    Args:
        policy: with a 4M tower.
        inputs: of the encoder.
        presence: bool (B, V, M), of which only the shape is read.
    """
    tower, views = policy.model.tower, presence.shape[:2]
    with torch.set_grad_enabled(torch.is_grad_enabled() and tower.wants_gradient(inputs)):
        encoded = tower.encode(inputs) if inputs.values else TowerOutput({}, {})
    made = policy.model.bridge(
        encoded.tokens,
        encoded.present,
        encoded.globals,
        encoded.globals_present,
        views[0] * views[1],
    )
    entries = list(made.tokens.unflatten(0, views).unbind(1))  # (B, N, D) each
    seen = [made.seen.unflatten(0, views)]
    for domain, rows in made.global_tokens.items():
        entries += rows.unflatten(0, views).unbind(1)
        there = encoded.globals_present.get(domain, torch.zeros_like(made.seen))
        seen.append(there.unflatten(0, views))
    prefix = VisualPrefix(entries, [torch.ones_like(seen[0][:, 0])] * len(entries))
    return Pass(prefix, torch.cat(seen, 1), encoded, made.modality_weights)


def siglip_tokens(policy: SmolVLAPolicy, batch: dict[str, Tensor]) -> dict[int, Tensor]:
    """``siglip+fourm``: SigLIP's tokens (B, N, D) by the view's number; empty when no camera delivers RGB."""
    views = rgb_views(policy.config, batch)
    if not views:
        return {}
    vlm = policy.model.vlm_with_expert
    images = rgb_pictures(policy, batch).tokens
    return {v: SmolVLMWithExpertModel.embed_image(vlm, i) for v, i in zip(views, images, strict=True)}


def _beside_siglip(
    policy: SmolVLAPolicy, batch: dict[str, Tensor], fourm: VisualPrefix, seen: Tensor, presence: Tensor
) -> tuple[VisualPrefix, Tensor]:
    """``siglip+fourm``: SigLIP's tokens plus gated 4M tokens; 4M alone where RGB is gone.

    A view is seen when either tower has seen something of it: 4M need not read RGB.
    """
    tokens, there = list(fourm.tokens), seen.clone()
    for v, siglip in siglip_tokens(policy, batch).items():
        rgb = presence[:, v, RGB]
        both = siglip + policy.model.fourm_gate(tokens[v] * seen[:, v, None, None])
        tokens[v] = torch.where(rgb[:, None, None], both, tokens[v])
        there[:, v] |= rgb
    return VisualPrefix(tokens, fourm.attended), there

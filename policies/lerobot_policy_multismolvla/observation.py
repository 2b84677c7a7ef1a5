"""What a batch holds of the declared sensors: presence, pictures and cached ids per view."""

from __future__ import annotations

import logging

import torch
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from multismolvla.modalities import MODALITIES, Modality, padding_mask_key, token_key, valid_key
from multismolvla.tower import ids_name

logger = logging.getLogger(__name__)


def available_sensors(cfg: MultiSmolVLAConfig, batch: dict[str, Tensor]) -> Tensor:
    """Which sensors each sample has, bool (B, V, M).

    From key presence, the ``<key>_padding_mask`` flags, and provenance: a derived modality dies with its view's RGB.
    """
    state = batch[OBS_STATE]
    there = torch.zeros(len(state), len(cfg.views), len(MODALITIES), dtype=torch.bool, device=state.device)
    for v, (view, streams) in enumerate(cfg.views.items()):
        for modality, key in streams.items():
            if key in batch or token_key(view, modality) in batch:
                mask = batch.get(padding_mask_key(key))
                there[:, v, MODALITIES.index(modality)] = True if mask is None else mask.bool()
    return kill_derived(cfg, there)


def kill_derived(cfg: MultiSmolVLAConfig, presence: Tensor) -> Tensor:
    """Presence (B, V, M) without the derived modalities whose RGB is gone; in place."""
    rgb = MODALITIES.index(Modality.RGB)
    for v, (view, streams) in enumerate(cfg.views.items()):
        for modality in streams:
            if cfg.is_derived(view, modality):
                presence[:, v, MODALITIES.index(modality)] &= presence[:, v, rgb]
    return presence


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
                "'multismolvla_sensors'). Build it with make_pre_post_processors and call it on every observation."
            )
        out["depth_valid"] = valid
    return out


class SensorWatch:
    """Says when a sensor that was there is gone, and when it is back: an operator must not learn it from the arm."""

    def __init__(self) -> None:
        self._seen: set[str] | None = None  # what the last observation had

    def look(self, cfg: MultiSmolVLAConfig, there: Tensor) -> None:
        """Compare presence (B, V, M) with that of the last observation."""
        now = there.any(0).tolist()
        names = {
            f"{view}.{m}" for v, view in enumerate(cfg.views) for i, m in enumerate(MODALITIES) if now[v][i]
        }
        if self._seen is not None and names != self._seen:
            for lost in sorted(self._seen - names):
                logger.warning("Sensor lost: %s. The policy goes on without it.", lost)
            for back in sorted(names - self._seen):
                logger.warning("Sensor back: %s.", back)
        self._seen = names

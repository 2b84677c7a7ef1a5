"""Checks a finished dataset the way a reader sees it: decode again with LeRobot, tokenize again, compare ids."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multismolvla.system.command import CommandError
from multismolvla_data.annotate.annotator import Annotator
from multismolvla_data.annotate.config import AnnotateConfig
from multismolvla_data.annotate.streams import Plan

logger = logging.getLogger(__name__)


class VerificationError(CommandError):
    """The new dataset's ids are not those of its pictures."""


@dataclass(frozen=True)
class Verification:
    """What a check found.

    Attributes:
        frames: frames that were decoded again.
        ids: ids that were compared.
        mismatches: how many differed.
        worst: stream with most of them, ``None`` without any.
    """

    frames: int
    ids: int
    mismatches: int
    worst: str | None

    @property
    def share(self) -> float:
        """Differing ids / compared ids."""
        return self.mismatches / max(1, self.ids)

    def __str__(self) -> str:
        return (
            f"{self.mismatches} of {self.ids} ids differ ({self.frames} frames decoded and tokenized again)"
        )


def verify(
    cfg: AnnotateConfig,
    plan: Plan,
    annotator: Annotator,
    root: Path,
    lengths: Sequence[int],
    episodes: Sequence[int],
) -> Verification:
    """Compare a sample's stored ids with those of its pictures.

    Streams whose pictures are in the dataset are tokenized from there. Streams kept as ids only are estimated again,
    from the same frames in the same batches as before, because networks round differently in other batches.

    Args:
        cfg: the options; ``verify_frames`` frames are rounded up to whole batches.
        plan: what was made.
        annotator: how.
        root: the finished dataset.
        lengths: frames of its episodes.
        episodes: their indices in the source, which decide the estimators' noise.

    Raises:
        VerificationError: more than ``max_mismatch`` of the ids differ.
    """
    if not any(s.tokenize for s in plan.streams) or not cfg.verify_frames:
        return Verification(0, 0, 0, None)
    chosen = _choose(lengths, cfg.batch_size, cfg.verify_frames)
    data = open_dataset(root, sorted({e for e, _ in chosen}))
    wrong: dict[str, int] = {}
    frames = compared = 0
    for episode, start in chosen:
        stop = min(start + cfg.batch_size, lengths[episode])
        items = frames_of(data, episode, start, stop)
        ids = _ids_again(plan, annotator, items, [(episodes[episode], t) for t in range(start, stop)])
        for stream in (s for s in plan.streams if s.tokenize):
            stored = torch.stack([item[stream.token_key] for item in items]).numpy()
            wrong[stream.token_key] = wrong.get(stream.token_key, 0) + int(
                (stored != ids[stream.token_key]).sum()
            )
            compared += stored.size
        frames += stop - start
    worst = max(wrong, key=lambda k: wrong[k])
    result = Verification(frames, compared, sum(wrong.values()), worst if wrong[worst] else None)
    logger.info("verified: %s", result)
    if result.share > cfg.max_mismatch:
        raise VerificationError(
            f"{root}: {result}, most in {result.worst}; at most {cfg.max_mismatch:.2%} is let pass (--max_mismatch). Ids and "
            "pictures do not belong together: was it made on another machine, in other batches, or was a file damaged? "
            "The finished episodes are kept; remove that folder's parent to start anew."
        )
    return result


def open_dataset(root: Path, episodes: list[int]) -> Any:
    """LeRobot's own view of some episodes, depth in metres."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset(
        f"local/{root.name}", root=root, episodes=episodes, depth_output_unit="m", return_uint8=True
    )


def frames_of(data: Any, episode: int, start: int, stop: int) -> list[dict[str, Any]]:
    """Frames of one episode of a dataset that may hold only some of the episodes."""
    first = int(data.meta.episodes[episode]["dataset_from_index"])
    places = data.absolute_to_relative_idx
    return [data[places[first + t] if places else first + t] for t in range(start, stop)]


def pictures_of(items: Sequence[dict[str, Any]], keys: Sequence[str]) -> dict[str, torch.Tensor]:
    """Stack pictures of frames: key -> (B, C, H, W)."""
    return {key: torch.stack([item[key] for item in items]) for key in keys if key in items[0]}


def _ids_again(
    plan: Plan, annotator: Annotator, items: Sequence[dict[str, Any]], frames: Sequence[tuple[int, int]]
) -> dict[str, np.ndarray]:
    keys = [s.key for s in plan.streams]
    found = pictures_of(items, keys)
    missing = [s for s in plan.streams if s.key not in found]
    if missing:
        rgb = pictures_of(items, sorted({plan.rgb_key(s.view) for s in missing}))
        found |= annotator.derive(missing, rgb, frames)
    return annotator.ids(found)[0]


def _choose(lengths: Sequence[int], size: int, frames: int) -> list[tuple[int, int]]:
    """(episode, first frame) of batches spread evenly over the dataset, at least ``frames`` frames of them."""
    batches = [(e, start) for e, n in enumerate(lengths) for start in range(0, n, size)]
    count = min(len(batches), max(1, -(-frames // size)))
    places = np.linspace(0, len(batches) - 1, count).round().astype(int)
    return [batches[i] for i in sorted(set(places.tolist()))]


def sample_frames(lengths: Sequence[int], count: int) -> list[tuple[int, int]]:
    """(episode, frame) of ``count`` frames spread evenly over the dataset."""
    ends = np.cumsum(lengths)
    places = np.linspace(0, ends[-1] - 1, min(count, int(ends[-1]))).round().astype(int)
    episodes = np.searchsorted(ends, places, side="right")
    return [(int(e), int(p - (ends[e] - lengths[e]))) for e, p in zip(episodes, places, strict=True)]

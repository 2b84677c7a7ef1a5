"""Checks a finished data set as a reader sees it: decode with LeRobot, tokenize again, compare ids."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch import Tensor

from multismolvla.modalities import padding_mask_key
from multismolvla.system.command import CommandError
from multismolvla_data.annotate.annotator import Annotator
from multismolvla_data.annotate.setup import AnnotationSetup
from multismolvla_data.annotate.tokenizing import FramePlace
from multismolvla_data.formats.metadata import Verification

logger = logging.getLogger(__name__)

#: Frames as LeRobotDataset delivers them.
Items = Sequence[Mapping[str, Any]]


class VerificationError(CommandError):
    """The new data set's ids are not those of its pictures."""


@dataclass(frozen=True)
class FinishedDataset:
    """An annotated data set before it is published."""

    setup: AnnotationSetup
    annotator: Annotator
    root: Path

    def open(self, episodes: set[int]) -> LeRobotDataset:
        """LeRobot's own view of some episodes, depth in metres."""
        return LeRobotDataset(
            f"local/{self.root.name}",
            root=self.root,
            episodes=sorted(episodes),
            depth_output_unit="m",
            return_uint8=True,
        )

    def pictures(self, items: Items, episode: int, start: int) -> dict[str, Tensor]:
        """Pictures of consecutive frames of an episode, as `.source.SourceDataset.pictures`.

        Recorded streams that are kept as ids only come from the source, derived ones are estimated again.
        """
        plan, source = self.setup.plan, self.setup.source
        number = self.setup.episodes[episode]
        keys = [key for streams in plan.views.values() for key in streams.values()]
        keys += [padding_mask_key(key) for key in keys]
        found = {key: torch.stack([item[key] for item in items]) for key in keys if key in items[0]}
        missing = [stream for stream in plan.streams if stream.key not in found]
        recorded: dict[str, Tensor] = {}
        if plan.dropped:
            rows, stop = source.table(number), start + len(items)
            recorded = source.pictures(rows, number, start, stop, sorted(plan.dropped))
        return found | self.annotator.unstored(missing, found | recorded)


def frames_of(data: LeRobotDataset, episode: int, start: int, stop: int) -> list[dict[str, Any]]:
    """Frames of one episode of a data set that may hold only some of the episodes."""
    first = int(data.meta.episodes[episode]["dataset_from_index"])
    places = data.absolute_to_relative_idx
    return [data[places[first + t] if places else first + t] for t in range(start, stop)]


def verify(dataset: FinishedDataset) -> Verification:
    """Compare stored ids with those of the pictures, in a sample of whole batches.

    Networks round differently in other batches than those that were annotated at once.

    Raises:
        VerificationError: more ids differ than ``--max_mismatch`` lets pass.
    """
    cfg, lengths, tokenized = dataset.setup.cfg, dataset.setup.lengths, dataset.setup.tokenizers.tokenized
    if not tokenized or not cfg.verify_frames:
        return Verification()
    chosen = _spread_batches(lengths, cfg.batch_size, cfg.verify_frames)
    data = dataset.open({episode for episode, _ in chosen})
    wrong: Counter[str] = Counter()
    seen = compared = 0
    for episode, start in chosen:
        stop = min(start + cfg.batch_size, lengths[episode])
        items = frames_of(data, episode, start, stop)
        place = FramePlace(dataset.setup.episodes[episode], start)
        ids, _ = dataset.annotator.id_maker.ids(dataset.pictures(items, episode, start), place)
        for stream in tokenized:
            stored = torch.stack([item[stream.token_key] for item in items]).numpy()
            wrong[stream.token_key] += int((stored != ids[stream.token_key]).sum())
            compared += stored.size
        seen += stop - start
    result = Verification(seen, compared, wrong.total())
    found = f"{result.mismatches} of {compared} ids differ ({seen} frames decoded and tokenized again)"
    logger.info("verified: %s", found)
    if result.mismatches > cfg.max_mismatch * compared:
        worst = wrong.most_common(1)[0][0]
        raise VerificationError(
            f"{dataset.root}: {found}, most in {worst}; at most {cfg.max_mismatch:.2%} is let pass "
            "(--max_mismatch). Ids and pictures do not belong together: was it made on another machine, in "
            "other batches, or was a file damaged? The finished episodes are kept; remove that folder's "
            "parent to start anew."
        )
    return result


def _spread_batches(lengths: Sequence[int], size: int, frames: int) -> list[tuple[int, int]]:
    """(episode, first frame) of batches spread evenly over the data set, at least ``frames`` frames."""
    batches = [(e, start) for e, length in enumerate(lengths) for start in range(0, length, size)]
    count = min(len(batches), max(1, -(-frames // size)))
    places = np.linspace(0, len(batches) - 1, count).round().astype(int)
    return [batches[i] for i in sorted(set(places.tolist()))]

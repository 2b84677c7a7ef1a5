"""Frames of a second data set, of which nothing but what the tower reads is known.

LeRobot's trainer loads one data set. The policy reads the second one itself, in processes of its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from copy import copy
from pathlib import Path

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import OBS_STATE
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from lerobot_policy_multismolvla.flow import rank
from lerobot_policy_multismolvla.processor_multismolvla import HealthStep, sensor_step
from lerobot_policy_multismolvla.training_data import Features
from lerobot_policy_multismolvla.visual import check_training_health
from multismolvla.dropout import step_generator
from multismolvla.modalities import captured_key, padding_mask_key, token_key
from multismolvla.objectives.ranks import world

logger = logging.getLogger(__name__)

#: What a frame says besides its sensors: which one it is.
_PLACE = ("episode_index", "index", "timestamp")


def reads_unlabelled(cfg: MultiSmolVLAConfig) -> bool:
    """Whether an active objective reads a second data set."""
    return "robult" in cfg.active_objectives and cfg.objectives.robult.unlabelled is not None


def warn_of_unread(cfg: MultiSmolVLAConfig) -> None:
    """Say that a second data set is named which nothing reads.

    No error: a stage that switches the objective off has the option from the checkpoint before it.
    """
    options = cfg.objectives.robult
    if options.unlabelled is not None and not reads_unlabelled(cfg):
        logger.warning(
            "--policy.objectives.robult.unlabelled=%s is not read: --policy.objectives.robult.weight=0.",
            options.unlabelled,
        )


class UnlabelledFrames:
    """The frames of ``policy.objectives.robult.unlabelled``, a few at each step.

    Which ones depends on (seed, step) alone, and each rank takes its share of them: two processes look at
    what one with the whole batch would.

    Args:
        cfg: of the policy, with what it adopted from the training data.
        seed: of the draws.

    Raises:
        FileNotFoundError: there is no such data set, or a part of it is missing.
        ValueError: it is empty, shows other views, or its streams were made in another way.
    """

    def __init__(self, cfg: MultiSmolVLAConfig, seed: int):
        options = cfg.objectives.robult
        assert options.unlabelled is not None
        self._cfg, self._seed, self._ratio = cfg, seed, options.unlabelled_ratio
        self._said = f"--policy.objectives.robult.unlabelled={options.unlabelled}"
        folder = Path(options.unlabelled)
        info = folder / "meta/info.json"
        if not info.is_file():
            raise FileNotFoundError(
                f"{self._said} is not the folder of a LeRobotDataset (no meta/info.json). Name one, or leave "
                "the option out."
            )
        if not json.loads(info.read_text())["total_frames"]:
            raise ValueError(f"{self._said} has no frames. Name a data set that has some.")
        data = self._open(folder)
        self._pictures = {*data.meta.camera_keys}
        self._frames = _Frames(data, self._keys(data.features))
        logger.info("%s: %d frames; what the tower reads of them is used.", self._said, len(data))
        self._sensors, self._health = sensor_step(cfg), HealthStep(views=cfg.views)
        self._workers = options.unlabelled_workers
        self._reader: Iterator[dict[str, Tensor]] = iter(())
        self._size, self._at, self._read = 0, -1, dict[str, Tensor]()

    def _open(self, folder: Path) -> LeRobotDataset:
        name, unit = f"local/{folder.name}", self._cfg.depth_unit
        try:
            return LeRobotDataset(name, folder, return_uint8=True, depth_output_unit=unit)
        except OSError as error:  # it asks the hub for what is missing
            raise FileNotFoundError(
                f"{self._said} lacks some of its own files in meta/, data/ or videos/. Copy it anew."
            ) from error

    def _keys(self, features: Features) -> list[str]:
        """What is read of a frame.

        Raises:
            ValueError: see the class.
        """
        cfg = self._cfg
        lost = {k for k, (v, m) in cfg.stream_keys().items() if {k, f"{v}.{m}"} & {*cfg.absent_streams}}
        lacking = sorted({*cfg.rgb_keys} - lost - features.keys())
        streams = [
            (key, token_key(view, m))
            for key, (view, m) in cfg.stream_keys().items()
            if m in cfg.tower_modalities and {key, token_key(view, m)} & features.keys()
        ]
        if lacking or not streams:
            pictures = sorted(k for k, f in features.items() if f["dtype"] in ("image", "video"))
            raise ValueError(
                f"{self._said} shows other views than --policy.views: it lacks "
                f"{lacking or 'all that the tower reads'}, its pictures are {pictures}. Name a data set of "
                "the same cameras, whose features are called as in --policy.views."
            )
        try:
            alike = copy(cfg)
            alike.pretrained_path = None
            alike.set_dataset_feature_metadata(features)
        except ValueError as error:
            raise ValueError(f"{self._said}: {error}") from error
        said = [(key, ids, padding_mask_key(key), captured_key(key)) for key, ids in streams]
        return [key for keys in said for key in keys if key in features] + list(_PLACE)

    def batch(self, step: int, state: Tensor) -> dict[str, Tensor]:
        """The frames of a step as the policy's pre-processor would pass them on.

        Args:
            step: number of the step; reading goes on where the last one ended, or begins anew.
            state: of the training batch, (B, ...), of which size and device count.
        """
        count = max(1, round(self._ratio * len(state)))
        if count > self._size or step not in (self._at, self._at + 1):
            self._size = max(count, self._size)
            self._reader, self._at = self._reading(step), step - 1
        if step != self._at:
            self._read, self._at = next(self._reader), step
        rows = {key: value[:count].to(state.device) for key, value in self._read.items()}
        for key in self._pictures & rows.keys():
            if rows[key].dtype == torch.uint8:  # as LeRobot's trainer does it
                rows[key] = rows[key].float() / 255
        try:
            rows = self._health.observation(self._sensors.observation(rows))
            rows[OBS_STATE] = state.new_zeros(count, 0)  # says how many they are, and where
            if self._cfg.health in (None, "strict"):
                check_training_health(self._cfg, rows)
        except ValueError as error:
            raise ValueError(f"{self._said}: {error}") from error
        return rows

    def _reading(self, step: int) -> Iterator[dict[str, Tensor]]:
        """The frames of this and all further steps."""
        return iter(
            DataLoader(
                self._frames,
                batch_sampler=_Rows(self, step),
                num_workers=self._workers,
                # decoders of video do not survive a fork
                multiprocessing_context="spawn" if self._workers else None,
                generator=torch.Generator(),  # else starting it draws from the global one
            )
        )

    def rows(self, step: int) -> list[int]:
        """Rows of the data set that this rank takes at a step."""
        generator = step_generator(self._seed, step, purpose="unlabelled")
        drawn = torch.randint(len(self._frames), (world(), self._size), generator=generator)
        return drawn[rank()].tolist()


class _Rows:
    """`UnlabelledFrames.rows` of one step after the other."""

    def __init__(self, frames: UnlabelledFrames, step: int):
        self._frames, self._step = frames, step

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            yield self._frames.rows(self._step)
            self._step += 1


class _Frames(Dataset[dict[str, Tensor]]):
    """The data set's frames without what must not be read of them."""

    def __init__(self, data: LeRobotDataset, keys: list[str]):
        self._data, self._keys = data, keys

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        frame = self._data[row]
        return {key: frame[key] for key in self._keys}

"""The data set of a recording or a replay: a LeRobotDataset to which episodes are appended."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import datasets
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from PIL import Image

from lerobot_env_multismolvla.cameras import suite_views
from lerobot_env_multismolvla.labels import label_set
from multismolvla.modalities import Modality, Provenance, ViewMap
from multismolvla.pictures import SheetRow, Tile, colourise, contact_sheet
from multismolvla.system.files import whole_file
from multismolvla_data.formats.card import write_card
from multismolvla_data.formats.episode_files import SIMULATION, save_arrays
from multismolvla_data.formats.features import Features, declare_pictures
from multismolvla_data.formats.metadata import DatasetMetadata, write_metadata

FPS = 20
STATE_NAMES = ["x", "y", "z", "rx", "ry", "rz", "finger_left", "finger_right"]
ACTION_NAMES = ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]
#: First pictures of every task, inside the data set and, while it is made, beside it.
PREVIEW = "preview.png"
#: Simulator states before each frame and executed actions, from which episodes can be rendered again.
STATES_FOLDER = "meta/simulation"


def features(suite: str, size: int, video: bool = False) -> Features:
    """Features of a data set with all modalities of a suite's cameras, pictures of ``size`` pixels.

    ``video`` stores RGB as video, the rest without loss all the same.
    """
    labels = label_set(suite)
    declared: Features = {
        "observation.state": {"dtype": "float32", "shape": (8,), "names": STATE_NAMES},
        "action": {"dtype": "float32", "shape": (7,), "names": ACTION_NAMES},
    }
    for streams in suite_views(suite).values():
        for modality, key in streams.items():
            declared[key] = declare_pictures(modality, size, size, Provenance.SENSOR.value, labels)
            if video and modality == Modality.RGB:
                declared[key]["dtype"] = "video"
    return declared


class DatasetWriter:
    """A new data set of a suite's episodes at ``root``, in place of what is there.

    Attributes:
        lengths: frames of the episodes so far.
    """

    def __init__(self, root: Path, repo_id: str, suite: str, size: int, video: bool = False) -> None:
        shutil.rmtree(root, ignore_errors=True)
        datasets.disable_progress_bars()  # one bar per episode would bury the command's own
        self._root = root
        self._views = suite_views(suite)
        self._dataset = LeRobotDataset.create(
            repo_id=repo_id,
            fps=FPS,
            features=features(suite, size, video),
            root=root,
            robot_type="panda",
            use_videos=video,
        )
        self.lengths: list[int] = []
        self._examples: dict[str, Mapping[str, np.ndarray]] = {}

    def append(self, episode: Mapping[str, np.ndarray], instruction: str) -> None:
        """Append an episode: arrays with one row per frame, as of `.episode_files.load_episode`."""
        frames = {key: rows for key, rows in episode.items() if not key.startswith(SIMULATION)}
        simulation = {k.removeprefix(SIMULATION): rows for k, rows in episode.items() if k not in frames}
        length = len(frames["action"])
        for t in range(length):
            self._dataset.add_frame({**{key: rows[t] for key, rows in frames.items()}, "task": instruction})
        self._dataset.save_episode()
        if simulation:
            folder = self._root / STATES_FOLDER
            folder.mkdir(parents=True, exist_ok=True)
            save_arrays(folder / f"episode_{len(self.lengths):06d}.npz", simulation)
        self.lengths.append(length)
        if instruction not in self._examples:
            self._examples[instruction] = {key: rows[length // 2] for key, rows in frames.items()}
            self._preview(self._root.parent / PREVIEW)

    def finish(self, metadata: DatasetMetadata) -> None:
        """Complete the files; the metadata come last."""
        self._dataset.finalize()
        self._preview(self._root / PREVIEW)
        metadata.episode_lengths = self.lengths
        write_card(self._root, metadata)
        write_metadata(self._root, metadata)

    def _preview(self, target: Path) -> None:
        """Draw a frame of every task so far; a mistake shall show before the last episode."""
        with whole_file(target) as partial:
            preview_sheet(self._examples, self._views).save(partial)


def preview_sheet(frames: Mapping[str, Mapping[str, np.ndarray]], views: ViewMap) -> Image.Image:
    """Contact sheet with a row per task and view; frames by instruction, pictures (H, W, C) by feature."""
    rows = []
    for instruction, frame in frames.items():
        for view, streams in views.items():
            pictures = {m: frame[key].transpose(2, 0, 1) for m, key in streams.items() if key in frame}
            tiles = [Tile(colourise(m, picture, depth_span=None), m) for m, picture in pictures.items()]
            rows.append(SheetRow(f"{instruction}: {view}", tiles))
    return contact_sheet(rows, side=160)

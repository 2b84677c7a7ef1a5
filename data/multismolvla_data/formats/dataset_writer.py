"""The shape of our data sets: features, per-modality metadata, and the file that tells where they come from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla.modalities import Modality, Provenance, default_view_map

if TYPE_CHECKING:
    import numpy as np


FPS = 20
STATE_NAMES = ["x", "y", "z", "rx", "ry", "rz", "finger_left", "finger_right"]
ACTION_NAMES = ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]


def features(size: int, labels: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """LeRobot features of a data set with all modalities of the default view map.

    Args:
        size: picture height and width in pixels.
        labels: names of the segmentation classes; the position is the id.

    Returns:
        LeRobot v3 feature dictionary. Depth is a float32 image (stored as TIFF, lossless) in metres; segmentation is
        an RGB PNG with the class in R and the instance in G, because LeRobot cannot store one-channel uint8 and a
        lossy video would invent classes.
    """
    declared: dict[str, dict[str, Any]] = {
        "observation.state": {"dtype": "float32", "shape": (8,), "names": STATE_NAMES},
        "action": {"dtype": "float32", "shape": (7,), "names": ACTION_NAMES},
    }
    for streams in default_view_map().values():
        for modality, key in streams.items():
            channels = 1 if modality == Modality.DEPTH else 3
            info: dict[str, Any] = {"modality": str(modality), "provenance": str(Provenance.SENSOR)}
            if modality == Modality.DEPTH:
                info |= {"is_depth_map": True}
            if modality == Modality.SEG:
                info |= {"labels": list(labels), "channels": ["class", "instance", "zero"]}
            if modality == Modality.THERMAL:
                info |= {"unit": "relative temperature, 0..255 = 0..1"}
            names = ["height", "width", "channels"]
            declared[key] = {"dtype": "image", "shape": (size, size, channels), "names": names, "info": info}
    return declared


def create_dataset(root: Path, repo_id: str, suite: str, size: int) -> Any:
    """An empty :class:`~lerobot.datasets.LeRobotDataset` in write mode at ``root``, in place of what is there.

    Args:
        root: folder of the data set.
        repo_id: name stored in it.
        suite: decides the segmentation's labels.
        size: picture height and width in pixels.
    """
    import datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from lerobot_env_multismolvla.labels import label_set

    shutil.rmtree(root, ignore_errors=True)
    datasets.disable_progress_bars()  # one bar per episode would bury the recorder's own
    return LeRobotDataset.create(
        repo_id=repo_id,
        fps=FPS,
        features=features(size, label_set(suite)),
        root=root,
        robot_type="panda",
        use_videos=False,
    )


def append_episode(dataset: Any, episode: Mapping[str, np.ndarray], instruction: str) -> int:
    """Append an episode to a dataset in write mode.

    Args:
        dataset: of :func:`create_dataset`.
        episode: arrays with one row per frame, see :func:`.episode.load_episode`.
        instruction: what the episode's task is.

    Returns:
        Number of frames.
    """
    frames = len(episode["action"])
    for t in range(frames):
        dataset.add_frame({**{key: rows[t] for key, rows in episode.items()}, "task": instruction})
    dataset.save_episode()
    return frames


def stream_metadata(suite: str, render_quality: str) -> dict[str, Any]:
    """The part of the metadata that tells what the streams are; the same for every simulated data set."""
    from lerobot_env_multismolvla.labels import label_set

    views = default_view_map()
    return {
        "render_quality": render_quality,
        "views": views,
        "provenance": {m: str(Provenance.SENSOR) for m in next(iter(views.values()))},
        "thermal": "simulated: temperature per body, rendered through segmentation, blurred, noisy",
        "labels": list(label_set(suite)),
        "depth_unit": "m",
    }

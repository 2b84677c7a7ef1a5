"""The shape of our data sets: features, per-modality metadata, and the file that tells where they come from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla.files import write_json
from multismolvla.modalities import Modality, Origin, default_view_map

if TYPE_CHECKING:
    import numpy as np

    from .record_config import RecordConfig
    from .replay import ReplayConfig

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
            info: dict[str, Any] = {"modality": str(modality), "origin": str(Origin.SENSOR)}
            if modality == Modality.DEPTH:
                info |= {"is_depth_map": True}
            if modality == Modality.SEG:
                info |= {"labels": list(labels), "channels": ["class", "instance", "zero"]}
            if modality == Modality.THERMAL:
                info |= {"unit": "relative temperature, 0..255 = 0..1"}
            names = ["height", "width", "channels"]
            declared[key] = {"dtype": "image", "shape": (size, size, channels), "names": names, "info": info}
    return declared


def create_dataset(root: Path, config: RecordConfig | ReplayConfig) -> Any:
    """An empty :class:`~lerobot.datasets.LeRobotDataset` in write mode at ``root``, in place of what is there."""
    import datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from lerobot_env_multismolvla.labels import label_set

    shutil.rmtree(root, ignore_errors=True)
    datasets.disable_progress_bars()  # one bar per episode would bury the recorder's own
    return LeRobotDataset.create(
        repo_id=config.repo_id,
        fps=FPS,
        features=features(config.size, label_set(config.task)),
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


def failed_states(used: list[int]) -> list[int]:
    """Initial states that the expert tried and did not solve: the gaps, as states are tried in order.

    States after the last used one do not count: how many of them were tried depends on the number of workers.
    """
    return sorted(set(range(max(used, default=-1) + 1)) - set(used))


def write_metadata(
    target: Path, config: RecordConfig, states: dict[int, list[int]], lengths: list[int]
) -> None:
    """Write where the data come from; its presence also marks the data set as whole.

    Args:
        target: file to write.
        config: the recording's options.
        states: initial states of the stored episodes by task, ascending.
        lengths: frames of the episodes in the data set's order.
    """
    from lerobot_env_multismolvla.mini import TASKS

    content = {
        "recording": config.fingerprint(),
        "suite": config.task,
        "tasks": {str(t): TASKS[t].replace("_", " ") for t in states},
        "init_split": config.init_split,
        "init_states": {str(t): used for t, used in states.items()},
        "failed_init_states": {str(t): failed_states(used) for t, used in states.items()},
        "episode_lengths": lengths,
        **stream_metadata(config),
        "actions": actions_note(config),
        "lerobot": version("lerobot"),
    }
    write_json(target, content)


def actions_note(config: RecordConfig) -> str:
    """What the metadata of a recording tell about its actions."""
    return "clean; the executed ones were disturbed" if config.noise else "clean, executed as recorded"


def stream_metadata(config: RecordConfig | ReplayConfig) -> dict[str, Any]:
    """The part of the metadata that tells what the streams are; the same for every simulated data set."""
    from lerobot_env_multismolvla.labels import label_set

    views = default_view_map()
    return {
        "render_quality": config.render_quality,
        "views": views,
        "origin": {m: str(Origin.SENSOR) for m in next(iter(views.values()))},
        "thermal": "simulated: temperature per body, rendered through segmentation, blurred, noisy",
        "labels": list(label_set(config.task)),
        "depth_unit": "m",
    }

"""A tiny LeRobotDataset v3 on disk with all four modalities of two views: a bright square that wanders over a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from tiny_policy import SIDE

from multismolvla.modalities import default_view_map

REPO_ID = "tests/tiny"
EPISODES, FRAMES = 2, 12


def features() -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {
        "observation.state": {"dtype": "float32", "shape": (8,), "names": [f"s{i}" for i in range(8)]},
        "action": {"dtype": "float32", "shape": (7,), "names": [f"a{i}" for i in range(7)]},
    }
    for streams in default_view_map().values():
        for modality, key in streams.items():
            channels = 1 if modality == "depth" else 3
            made[key] = {
                "dtype": "image",
                "shape": (SIDE, SIDE, channels),
                "names": ["height", "width", "channels"],
            }
            if modality == "depth":
                made[key]["info"] = {"is_depth_map": True}
    return made


def frame(rng: np.random.Generator, place: tuple[int, int]) -> dict[str, Any]:
    rows, columns = (slice(p, p + 16) for p in place)
    out: dict[str, Any] = {"task": "put the cube in the basket"}
    for streams in default_view_map().values():
        rgb = rng.integers(60, 90, (SIDE, SIDE, 3), dtype=np.uint8)
        depth = np.full((SIDE, SIDE, 1), 1.2, dtype=np.float32)
        seg = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
        thermal = np.full((SIDE, SIDE, 3), 50, dtype=np.uint8)
        rgb[rows, columns], depth[rows, columns], seg[rows, columns, 0], thermal[rows, columns] = (
            220,
            0.8,
            3,
            200,
        )
        depth[:4] = 0  # nothing measured
        out |= {
            streams["rgb"]: rgb,
            streams["depth"]: depth,
            streams["seg"]: seg,
            streams["thermal"]: thermal,
        }
    aim = np.array(place, dtype=np.float32) / SIDE
    out["observation.state"] = np.concatenate([aim, rng.normal(size=6)]).astype(np.float32)
    out["action"] = np.concatenate([aim - 0.5, rng.normal(size=5)]).astype(np.float32)
    return out


def write_dataset(root: Path) -> Path:
    """Write the dataset into the new folder ``root``."""
    rng = np.random.default_rng(0)
    data = LeRobotDataset.create(REPO_ID, fps=20, features=features(), root=root, use_videos=False)
    for _ in range(EPISODES):
        for step in range(FRAMES):
            data.add_frame(frame(rng, (4 * step, 44 - 4 * step)))
        data.save_episode()
    data.finalize()
    return root

"""Stand-ins for annotation tests: a small recorded dataset, and tiny networks in the official layouts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EPISODES, FRAMES, HEIGHT, WIDTH = 4, 6, 48, 64
TASKS = ("put the cube in the basket", "open the drawer")


def recorded_features(depth: str) -> dict[str, dict[str, Any]]:
    """Two RGB cameras as videos; `front` has a RealSense's depth stored as ``depth`` ("video" or "image")."""
    names = ["height", "width", "channels"]
    colour = {"dtype": "video", "shape": (HEIGHT, WIDTH, 3), "names": names}
    return {
        "observation.images.front": dict(colour),
        "observation.images.wrist": dict(colour),
        "observation.images.front_depth": {
            "dtype": depth,
            "shape": (HEIGHT, WIDTH, 1),
            "names": names,
            "info": {"is_depth_map": True},
        },
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["dx", "dy"]},
    }


def recorded_frame(rng: np.random.Generator, step: int, task: str) -> dict[str, Any]:
    column = 4 + 4 * step
    patch = (slice(16, 32), slice(column, column + 16))
    ramp = np.linspace(40, 120, WIDTH, dtype=np.uint8)
    front = np.repeat(np.tile(ramp, (HEIGHT, 1))[..., None], 3, axis=-1)
    front[patch] = (230, 60, 40)
    depth = np.tile(np.linspace(700, 1500, HEIGHT)[:, None], (1, WIDTH))
    depth[patch] = 500
    depth[:8] = 0  # a RealSense measures nothing there
    return {
        "observation.images.front": front,
        "observation.images.wrist": np.ascontiguousarray(front[::-1]),
        "observation.images.front_depth": depth.astype(np.uint16)[..., None],
        "observation.state": rng.normal(size=3).astype(np.float32),
        "action": rng.normal(size=2).astype(np.float32),
        "task": task,
    }


def write_recorded(root: Path, *, depth: str = "video", episodes: int = EPISODES) -> Path:
    """Record a dataset as LeRobot does on an arm."""
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    rng = np.random.default_rng(0)
    data = LeRobotDataset.create(
        "tests/recorded",
        fps=10,
        features=recorded_features(depth),
        root=root,
        robot_type="so101",
        rgb_encoder=RGBEncoderConfig(vcodec="h264"),
    )
    for episode in range(episodes):
        for step in range(FRAMES - episode % 2):  # not all of one length
            data.add_frame(recorded_frame(rng, step, TASKS[episode % 2]))
        data.save_episode(parallel_encoding=False)
    data.finalize()
    return root


@pytest.fixture(scope="session")
def record() -> Callable[..., Path]:
    """`write_recorded`, for tests that need another dataset."""
    return write_recorded


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recorded(tmp_path_factory.mktemp("recorded") / "so101")


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of the annotation that name tiny local networks instead of the published ones."""
    from tiny_estimators import write_tiny_networks

    return {
        **write_tiny_networks(tmp_path_factory.mktemp("networks")),
        "thermal_steps": 2,
        "thermal_size": 32,
        "image_size": 224,
        "device": "cpu",
        "batch_size": 4,
        "num_workers": 2,
        "verify_frames": 4,
    }


@pytest.fixture(scope="session")
def help_of() -> Callable[..., str]:
    """What a module's ``--help`` prints, in a process that must not import the ``heavy`` packages."""

    def ask(module: str, *heavy: str) -> str:
        asked = [sys.executable, "-X", "importtime", "-m", module, "--help"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
        assert "argparse" in loaded
        assert not loaded & set(heavy)
        return done.stdout

    return ask

"""A robot behind LeRobot's driver interface: one camera with colour and depth of the three the policy knows, no simulator.

Found by ``--robot.discover_packages_path=fake_arm``; writes what it was told to do when it is disconnected.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots import Robot, RobotConfig

SIDE = 64


@RobotConfig.register_subclass("fake_arm")
@dataclass
class FakeArmConfig(RobotConfig):
    """Where to report."""

    report: Path = Path("report.json")


class FakeArm(Robot):
    config_class = FakeArmConfig
    name = "fake_arm"

    def __init__(self, config: FakeArmConfig):
        super().__init__(config)
        self.config = config
        self.frames = 0
        self.actions: list[dict[str, float]] = []
        self._connected = False

    @property
    def observation_features(self) -> dict[str, Any]:
        joints: dict[str, Any] = {f"s{i}.pos": float for i in range(8)}
        return joints | {"image": (SIDE, SIDE, 3), "image_depth": (SIDE, SIDE, 1)}

    @property
    def action_features(self) -> dict[str, type]:
        return {f"a{i}.pos": float for i in range(7)}

    @property
    def is_connected(self) -> bool:
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        self._connected = True

    def calibrate(self) -> None:
        pass

    def configure(self) -> None:
        pass

    def get_observation(self) -> dict[str, Any]:
        rng = np.random.default_rng(self.frames)
        self.frames += 1
        depth = rng.integers(
            400, 2500, (SIDE, SIDE, 1), dtype=np.uint16
        )  # millimetres, as a RealSense gives them
        depth[:8] = 0
        return {f"s{i}.pos": 0.1 * i for i in range(8)} | {
            "image": rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8),
            "image_depth": depth,
        }

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        self.actions.append({k: float(v) for k, v in action.items()})
        return action

    def disconnect(self) -> None:
        self._connected = False
        self.config.report.write_text(json.dumps({"frames": self.frames, "actions": self.actions}))

"""The arm that the emulated motors move: a MuJoCo model of the SO-101 on a table, in real time."""

from __future__ import annotations

import math
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

from lerobot_robot_multismolvla.emulated.motors import TICKS

MODEL = Path(__file__).with_name("so101.xml")
#: In the order of the motors' ids, from 1; the names are LeRobot's.
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
#: What LeRobot's calibration takes to turn without end: its range is all of the encoder's.
FULL_TURN = "wrist_roll"
#: Folded, so that nothing falls when the torque is off; radians.
REST = (0.0, -1.72, 1.66, 1.1, 0.0, 0.0)
MIDDLE = TICKS // 2 - 1  # where LeRobot's calibration puts the middle of a joint's range
SPEED = 4.7  # radians per second, an STS3215's without load at 7.4 V
#: What is made up for after the process stood still (it was stopped, the machine slept) [s].
LONGEST = 0.1


class Arm:
    """Moves towards its motors' goals with limited speed; joints whose motor is off fall.

    Attributes:
        ranges: per joint the lowest and highest position that LeRobot's calibration finds, in ticks.
    """

    def __init__(self) -> None:
        self._model = mujoco.MjModel.from_xml_path(str(MODEL))
        self._data = mujoco.MjData(self._model)
        limits = self._model.jnt_range
        turns = np.array([name == FULL_TURN for name in JOINTS])
        self._middle = np.where(turns, 0.0, limits.mean(axis=1))
        self.ranges = [
            (0, TICKS - 1) if turn else (int(low), int(high))
            for turn, (low, high) in zip(turns, self._ticks(limits.T).T, strict=True)
        ]
        self._gain, self._bias = self._model.actuator_gainprm.copy(), self._model.actuator_biasprm.copy()
        self._data.qpos[:] = self._data.ctrl[:] = REST
        self._due = 0.0

    @property
    def joints(self) -> NDArray[np.float64]:
        """Angles of the joints (6,) [rad]; zero is the middle of a joint's range in the published model."""
        return self._data.qpos

    @property
    def positions(self) -> NDArray[np.int64]:
        """What the encoders measure (6,) [ticks]."""
        return self._ticks(self._data.qpos)

    @property
    def velocities(self) -> NDArray[np.int64]:
        """How fast the joints turn (6,) [ticks per second]."""
        return np.rint(self._data.qvel * TICKS / math.tau).astype(np.int64)

    def advance(self, seconds: float, goals: NDArray[np.int64], powered: NDArray[np.bool_]) -> None:
        """Let time pass.

        Args:
            seconds: how much; of more than a tenth of a second only that.
            goals: where the motors are sent (6,) [ticks].
            powered: which motors hold their position (6,).
        """
        data, step = self._data, self._model.opt.timestep
        self._model.actuator_gainprm[:] = np.where(powered[:, None], self._gain, 0.0)
        self._model.actuator_biasprm[:] = np.where(powered[:, None], self._bias, 0.0)
        wanted = self._middle + (goals - MIDDLE) * math.tau / TICKS
        self._due += min(seconds, LONGEST)
        while self._due >= step:
            self._due -= step
            moved = data.ctrl + np.clip(wanted - data.ctrl, -SPEED * step, SPEED * step)
            data.ctrl[:] = np.where(powered, moved, data.qpos)
            mujoco.mj_step(self._model, data)

    def _ticks(self, angles: NDArray[np.float64]) -> NDArray[np.int64]:
        return MIDDLE + np.rint((angles - self._middle[..., :]) * TICKS / math.tau).astype(np.int64)

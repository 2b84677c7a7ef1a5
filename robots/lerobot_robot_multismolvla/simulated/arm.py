"""The arm of the mini suite as one of LeRobot's robots."""

from __future__ import annotations

import importlib
import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property

import numpy as np
from lerobot.cameras.utils import make_cameras_from_configs
from lerobot.lerobot_types import RobotAction, RobotObservation
from lerobot.robots import Robot
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from lerobot_robot_multismolvla.simulated.config_arm import SimArmConfig
from lerobot_robot_multismolvla.simulated.simulator import ENVIRONMENT, Act, Outcome, Settings, Simulator
from multismolvla.system.files import write_json

logger = logging.getLogger(__name__)

Features = dict[str, type[float] | tuple[int, ...]]

_PICTURES = "observation.images."
STATE = tuple(f"{n}.pos" for n in ("x", "y", "z", "rx", "ry", "rz", "finger_left", "finger_right"))
#: The hand's velocity, as shares of what its controller allows, and the gripper: -1 opens, +1 closes.
ACTION = (*(f"{n}.vel" for n in ("x", "y", "z", "rx", "ry", "rz")), "gripper.pos")


_simulators: list[Simulator] = []  # of the arms that are connected in this process


def running_arm() -> Simulator:
    """The simulator of this process's arm, for the cameras that look at it.

    Raises:
        ConnectionError: no simulated arm is connected, or more than one.
    """
    if len(_simulators) != 1:
        raise ConnectionError(
            f"{len(_simulators)} simulated arms are connected in this process; a simulated camera with a "
            "picture of one needs exactly one (--robot.type=multismolvla_sim_arm)."
        )
    return _simulators[0]


class SimArm(Robot):
    """The mini suite behind LeRobot's driver interface; see :class:`SimArmConfig`.

    Its observation is what the environment's data sets hold: the state's eight numbers, and per stream an
    upright picture (depth float32, metres). Its action is the environment's. An action that names places
    instead (``x.pos``, ...), as LeRobot sends to return an arm, moves the hand towards them.

    Args:
        config: what is simulated.

    Raises:
        ValueError: the suite does not have one of the chosen pictures.

    Example:
        >>> arm = SimArm(SimArmConfig(clock="lockstep"))
        >>> arm.connect()
        >>> _ = arm.send_action(dict.fromkeys(arm.action_features, 0.0))
    """

    config_class = SimArmConfig
    name = "multismolvla_sim_arm"

    def __init__(self, config: SimArmConfig) -> None:
        super().__init__(config)
        self.config = config
        self.cameras = make_cameras_from_configs(config.cameras)
        self._own = _shapes(config.pictures)
        self._simulator: Simulator | None = None
        self._asked_to_stop = False

    @cached_property
    def observation_features(self) -> Features:
        """Names of the state, and shapes of the pictures (H, W, C)."""
        pictures = dict(self._own)
        for name, camera in self.cameras.items():
            if getattr(camera, "use_rgb", True):
                pictures[name] = (camera.height, camera.width, 3)
            if getattr(camera, "use_depth", False):
                pictures[f"{name}_depth"] = (camera.height, camera.width, 1)
        return {**dict.fromkeys(STATE, float), **pictures}

    @cached_property
    def action_features(self) -> Features:
        """Names of the action."""
        return dict.fromkeys(ACTION, float)

    @property
    def is_connected(self) -> bool:
        """Whether the simulator runs."""
        return self._simulator is not None

    @property
    def is_calibrated(self) -> bool:
        """Always."""
        return True

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def connect(self, calibrate: bool = True) -> None:
        """Start the simulator, and open the cameras.

        Raises:
            DeviceAlreadyConnectedError: it runs.
            ConnectionError: it cannot begin.
        """
        if self._simulator is not None:
            raise DeviceAlreadyConnectedError(f"{self} is already connected.")
        own = self.config
        settings = Settings(
            task_id=own.task_id,
            real_time=own.clock == "real",
            init_state_id=own.init_state_id,
            init_split=own.init_split,
            seed=own.seed,
            episodes=own.episodes,
            episode_length=own.episode_length,
            pictures=tuple(self._own),
        )
        self._simulator = Simulator(settings)
        _simulators.append(self._simulator)
        for camera in self.cameras.values():
            camera.connect()

    def get_observation(self) -> RobotObservation:
        """State and pictures now."""
        frame = self._running().look()
        found: RobotObservation = dict(zip(STATE, map(float, frame.state), strict=True))
        found |= frame.pictures
        for name, camera in self.cameras.items():
            if getattr(camera, "use_rgb", True):
                found[name] = camera.read_latest()
            if getattr(camera, "use_depth", False):
                found[f"{name}_depth"] = camera.read_latest_depth()  # type: ignore[attr-defined]
        return found

    def send_action(self, action: RobotAction) -> RobotAction:
        """Obey an action, or move the hand towards places.

        Raises:
            ValueError: the action has neither all velocities nor a place.
        """
        simulator = self._running()
        if all(name in action for name in ACTION):
            request = Act(np.array([action[name] for name in ACTION], np.float32))
        elif all(name in action for name in STATE[:3]):
            request = Act(None, goal=np.array([action[name] for name in STATE[:3]], np.float32))
        else:
            raise ValueError(f"An action of {self} has {ACTION}, or {STATE[:3]}; got {tuple(action)}.")
        frame = simulator.act(request)
        if 0 < self.config.episodes <= len(frame.outcomes) and not self._asked_to_stop:
            self._asked_to_stop = True
            os.kill(os.getpid(), signal.SIGTERM)  # lerobot 0.6.1: how a roll-out is ended from inside
        return action

    def disconnect(self) -> None:
        """End the simulator, and say how the episodes went.

        Raises:
            DeviceNotConnectedError: it does not run.
        """
        simulator = self._running()
        for camera in self.cameras.values():
            camera.disconnect()
        outcomes = simulator.frame.outcomes
        simulator.close()
        _simulators.remove(simulator)
        self._simulator = None
        if self.config.report is not None:
            write_json(self.config.report, [asdict(outcome) for outcome in outcomes])
        if outcomes:
            logger.info(summary(outcomes))

    def _running(self) -> Simulator:
        if self._simulator is None:
            raise DeviceNotConnectedError(f"{self} is not connected.")
        return self._simulator


def _shapes(chosen: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """Shapes (H, W, C) of the suite's pictures, all or the chosen ones.

    Raises:
        ValueError: one is chosen that the suite does not have.
    """
    features = importlib.import_module(ENVIRONMENT).MultiSmolVLALiberoConfig().features
    shapes = {
        key.removeprefix(_PICTURES): tuple(feature.shape)
        for key, feature in features.items()
        if key.startswith(_PICTURES)
    }
    if unknown := [name for name in chosen or () if name not in shapes]:
        raise ValueError(f"--robot.pictures has {unknown}; the suite has {list(shapes)}.")
    return shapes if chosen is None else {name: shapes[name] for name in chosen}


def summary(outcomes: tuple[Outcome, ...]) -> str:
    """Successes and their 95 % interval (Wilson's)."""
    from statsmodels.stats.proportion import proportion_confint

    count, good = len(outcomes), sum(outcome.success for outcome in outcomes)
    low, high = proportion_confint(good, count, method="wilson")
    return f"Success {good}/{count} (95 % interval {low:.2f} to {high:.2f})."

"""The process in which the simulated arm lives: it alone imports the simulator and owns its GL context."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from lerobot.lerobot_types import RobotObservation
from numpy.typing import NDArray

from multismolvla.modalities import modality_of_key
from multismolvla.system.processes import end_with_parent

#: Loaded late and by name: this package imports the core alone.
ENVIRONMENT = "lerobot_env_multismolvla"
GRIPPER = 6  # the component of an action that is a position, and so is kept while nothing moves
OPEN = -1.0
GAIN = 20.0  # speed per metre to go, as the suite's expert has it


@dataclass(frozen=True)
class Settings:
    """What the simulator must know of the arm's configuration."""

    task_id: int
    real_time: bool
    init_state_id: int
    init_split: str
    seed: int
    episodes: int
    episode_length: int | None
    pictures: Sequence[str]


@dataclass(frozen=True)
class Outcome:
    """How an episode ended."""

    init_state_id: int
    success: bool
    steps: int


@dataclass(frozen=True)
class Frame:
    """What the arm sees.

    Attributes:
        state: float32 (8,): place of the hand (3) [m], its rotation vector (3) [rad], fingers (2) [m].
        pictures: stream -> as in data sets, upright: uint8 (H, W, 3), depth float32 (H, W, 1) [m].
        step: of the episode.
        outcomes: of the episodes that have ended.
    """

    state: NDArray[np.float32]
    pictures: dict[str, NDArray[Any]]
    step: int
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class Act:
    """What the arm is to do in the next step.

    Attributes:
        action: the environment's action (7,); ``None`` = stand still.
        goal: where the hand is to move instead (3,) [m].
    """

    action: NDArray[np.float32] | None
    goal: NDArray[np.float32] | None = None


class _World:
    """An environment and where it stands; ``frame`` is what is seen now."""

    def __init__(self, settings: Settings) -> None:
        package = importlib.import_module(ENVIRONMENT)
        self._steps = importlib.import_module(f"{ENVIRONMENT}.processor_multismolvla_libero")
        config = package.MultiSmolVLALiberoConfig(
            task_ids=[settings.task_id],
            streams=sorted({modality_of_key(name) for name in settings.pictures}),
            init_split=settings.init_split,
            episode_length=settings.episode_length,
        )
        self.settings = settings
        self.period = 1 / config.fps
        self._outcomes: list[Outcome] = []
        self._env = config.env_maker(config.suites[0], settings.task_id)()
        self._limit = self._env.unwrapped.facts.max_steps
        self._process, _ = config.get_env_processors()
        self._begin()

    @property
    def over(self) -> bool:
        """Whether all episodes that were asked for have ended."""
        return bool(self.settings.episodes) and len(self._outcomes) >= self.settings.episodes

    def act(self, request: Act) -> None:
        """Make one step."""
        if self.over:
            return
        action: NDArray[np.float32] = np.zeros(GRIPPER + 1, np.float32)
        if request.action is not None:
            action = request.action
            self._gripper = float(action[GRIPPER])
        elif request.goal is not None:
            action[:3] = np.clip(GAIN * (request.goal - self.frame.state[:3]), -1, 1)
        action[GRIPPER] = self._gripper
        observation, _, terminated, truncated, info = self._env.step(action)
        steps, success = self.frame.step + 1, bool(info.get("is_success", False))
        if success or terminated or truncated or steps >= self._limit:
            self._outcomes.append(Outcome(self._number, success, steps))
            if not self.over:
                self._begin()
                return
        self._see(observation, steps)

    def close(self) -> None:
        """Free renderer and simulator."""
        self._env.close()

    def _begin(self) -> None:
        self._number = self.settings.init_state_id + len(self._outcomes)
        options = {"init_state_id": self._number}
        observation, _ = self._env.reset(seed=self.settings.seed, options=options)
        self._gripper = OPEN
        self._see(observation, 0)

    def _see(self, observation: RobotObservation, step: int) -> None:
        from lerobot.envs.utils import preprocess_observation

        raw = {**observation.get("pixels", {}), **observation}
        pictures = {
            name: np.ascontiguousarray(self._steps.upright(raw[name])) for name in self.settings.pictures
        }
        batch = self._process(preprocess_observation(self._steps.add_batch_axis(observation)))
        state = batch["observation.state"][0].numpy()
        self.frame = Frame(state, pictures, step, tuple(self._outcomes))


def simulate(connection: Connection, settings: Settings) -> None:
    """Answer requests until the other end is closed."""
    end_with_parent()
    os.environ.setdefault("MUJOCO_GL", "egl")
    world = _World(settings)
    connection.send(world.frame)
    due = time.monotonic() + world.period
    pending: Act | None = None
    while True:
        left = due - time.monotonic() if settings.real_time else None
        if left is None or connection.poll(max(0.0, left)):
            try:
                request = connection.recv()
            except EOFError:
                world.close()
                return
            if isinstance(request, Act):
                if settings.real_time:
                    pending = request
                else:
                    world.act(request)
            connection.send(world.frame)
        if settings.real_time and time.monotonic() >= due:
            world.act(pending or Act(None))
            pending = None
            due = max(due + world.period, time.monotonic())


class Simulator:
    """The other end: a simulator in a process of its own.

    Raises:
        ConnectionError: it cannot begin, or has ended; it has said why.
    """

    def __init__(self, settings: Settings) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=simulate, args=(theirs, settings), daemon=True)
        self._process.start()
        theirs.close()
        self.frame: Frame = self._receive()

    def look(self) -> Frame:
        """What is seen now."""
        return self._ask(None)

    def act(self, request: Act) -> Frame:
        """Act, and see how the episodes went; under the real clock before the action is obeyed."""
        return self._ask(request)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(timeout=10.0)
        self._process.kill()
        self._process.join()

    def _ask(self, request: Act | None) -> Frame:
        try:
            self._connection.send(request)
        except BrokenPipeError as error:
            raise ConnectionError(_ENDED) from error
        self.frame = self._receive()
        return self.frame

    def _receive(self) -> Frame:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise ConnectionError(_ENDED) from error


_ENDED = "The simulator's process has ended; what it wrote above says why."

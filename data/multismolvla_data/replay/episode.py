"""Replay of one demonstration: first the physics, which decides about success, then the pictures.

Runs in the worker processes. A demonstration that fails is never rendered: pictures are nine tenths of the cost.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multismolvla.system.files import write_json
from multismolvla_data.formats.libero_hdf5 import (
    DemoFileError,
    Demonstration,
    fixture_poses,
    noop_mask,
    read_demo,
)
from multismolvla_data.formats.simulators import simulator
from multismolvla_data.record.episode import _store, dataset_frame

#: Motionless, gripper open: what the community lets pass before the first action.
SETTLE_ACTION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])


@dataclass(frozen=True)
class ReplaySettings:
    """What decides the content of the replayed episodes.

    Attributes:
        suite: suite name.
        size: picture height and width in pixels.
        render_quality: ``"default"`` or ``"fast"``.
        mode: ``"actions"`` or ``"states"``, see :class:`multismolvla_data.replay.config.ReplayConfig`.
        filter_noops: whether no-ops are dropped.
        settle_steps: steps before the first action (mode ``actions`` only).
        keep_failed: whether demonstrations without success are rendered, too.
        seed: seed of the reset (places of fixtures that a file does not tell) and of the thermal camera.
        libero_assets: folder of LIBERO's assets, or ``None`` to look in the usual places.
    """

    suite: str
    size: int
    render_quality: str
    mode: str
    filter_noops: bool
    settle_steps: int
    keep_failed: bool
    seed: int
    libero_assets: str | None = None


@dataclass(frozen=True)
class Failure:
    """Why a demonstration did not succeed.

    Attributes:
        reason: in words.
        step: action after which it was decided, counted from 1 over the actions executed.
    """

    reason: str
    step: int


@dataclass(frozen=True)
class Job:
    """One demonstration to replay.

    Attributes:
        task_id: task of the suite.
        path: demonstration file.
        demo: its group, ``demo_<i>``.
        frames: frames that remain of it.
        dropped: no-ops that do not.
    """

    task_id: int
    path: Path
    demo: str
    frames: int
    dropped: int

    def episode_file(self, folder: Path) -> Path:
        """Where the rendered episode is stored."""
        return folder / f"task{self.task_id:03d}_{self.demo}.npz"

    def failure_file(self, folder: Path) -> Path:
        """Where a :class:`Failure` is stored."""
        return folder / f"task{self.task_id:03d}_{self.demo}.failed.json"


def replay_demo(settings: ReplaySettings, job: Job, folder: Path) -> Failure | None:
    """Replay one demonstration and store it in ``folder`` if it succeeds (or failures are kept).

    Returns:
        ``None`` on success, else why not; a failure is stored beside the episodes, too.

    Raises:
        DemoFileError: the demonstration does not belong to this task's scene.
    """
    demo = read_demo(job.path, job.demo)
    noops = noop_mask(demo.actions) if settings.filter_noops else np.zeros(len(demo.actions), bool)
    kept = np.flatnonzero(~noops)
    env, processor = environment(settings, job.task_id)
    # The demonstration's number takes the initial state's place in the thermal camera's seed.
    env.reset(seed=settings.seed, options={"init_state_id": int(job.demo[5:])})
    try:
        if demo.model_xml is not None:
            env.place_fixtures(fixture_poses(demo.model_xml, env.fixture_bodies))
        env.restore(demo.states[0], observe=False)
    except ValueError as error:
        raise DemoFileError(f"{job.path}: data/{job.demo}: {error}") from error
    simulate = _from_actions if settings.mode == "actions" else _from_states
    states, failure = simulate(env, demo, kept, settings.settle_steps)
    if failure is not None:
        write_json(job.failure_file(folder), asdict(failure))
    if len(states) and (failure is None or settings.keep_failed):
        actions = demo.actions[kept].astype(np.float32)
        frames = [
            {**dataset_frame(env.restore(state), processor), "action": action}
            for state, action in zip(states, actions, strict=False)
        ]
        _store(frames, job.episode_file(folder))
    return failure


def load_failure(job: Job, folder: Path) -> Failure | None:
    """The stored failure of a job, or ``None``."""
    file = job.failure_file(folder)
    return Failure(**json.loads(file.read_text())) if file.is_file() else None


def environment(settings: ReplaySettings, task_id: int) -> tuple[Any, Any]:
    """Environment and observation processor of a task, kept until another task is asked for.

    Settling begins at the demonstration's state, not at LIBERO's.
    """
    return simulator(
        settings.suite,
        task_id,
        size=settings.size,
        render_quality=settings.render_quality,
        settle_steps=0,
        libero_assets=settings.libero_assets,
    )


def _from_actions(
    env: Any, demo: Demonstration, kept: np.ndarray, settle_steps: int
) -> tuple[list[np.ndarray], Failure | None]:
    """Execute the kept actions from the first state; the states before each of them, and whether they succeed.

    As in OpenVLA's conversion all actions are executed and the goal must hold after the last one.
    """
    problem = env.simulation
    if settle_steps + len(kept) > problem.horizon:
        return [], Failure(f"longer than the simulator's horizon of {problem.horizon} steps", problem.horizon)
    for _ in range(settle_steps):
        problem.step(SETTLE_ACTION)
    states: list[np.ndarray] = []
    reached = []
    for step, index in enumerate(kept, start=1):
        states.append(env.state)
        _, _, success, _ = problem.step(demo.actions[index])
        reached.append(bool(success))
        if not np.isfinite(env.state).all():
            return [], Failure("the simulation became unstable", step)
    if reached and reached[-1]:
        return states, None
    if any(reached):
        last = len(reached) - reached[::-1].index(True)
        return states, Failure("the goal was reached and lost again", last + 1)
    return states, Failure("the goal was never reached" if reached else "only no-ops", len(kept))


def _from_states(
    env: Any, demo: Demonstration, kept: np.ndarray, settle_steps: int
) -> tuple[list[np.ndarray], Failure | None]:
    """The recorded states before each kept action; success is looked for in the last one and after its action."""
    del settle_steps  # nothing moves before the first state
    env.restore(demo.states[-1], observe=False)
    problem = env.simulation
    success = bool(problem._check_success()) or bool(problem.step(demo.actions[-1])[2])
    states = list(demo.states[kept])
    if not states:
        return states, Failure("only no-ops", 0)
    return states, None if success else Failure("the goal does not hold at the end", len(kept))

"""Replay of one demonstration: first the physics, which decides about success, then the pictures.

Runs in the worker processes. What fails is not rendered: pictures are nine tenths of the cost.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from multismolvla.system.files import write_json
from multismolvla_data.formats.episode_files import store_episode
from multismolvla_data.formats.libero_hdf5 import (
    DemoFileError,
    Demonstration,
    fixture_poses,
    noop_mask,
    read_demo,
)
from multismolvla_data.formats.simulators import simulator
from multismolvla_data.replay.config import ReplaySettings
from multismolvla_data.replay.plan import Failure, PlannedDemo

#: Motionless, gripper open: what the community lets pass before the first action.
SETTLE_ACTION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])

#: Simulator states, one before each action, and why they lead to no success.
Outcome = tuple[list[np.ndarray], Failure | None]


def replay_demo(settings: ReplaySettings, planned: PlannedDemo, folder: Path) -> Failure | None:
    """Replay one demonstration and store it in ``folder`` if it succeeds (or failures are kept).

    Returns:
        ``None`` on success, else why not; a failure is stored beside the episodes, too.

    Raises:
        DemoFileError: the demonstration does not belong to this task's scene.
    """
    demo = read_demo(planned.path, planned.demo)
    noops = noop_mask(demo.actions) if settings.filter_noops else np.zeros(len(demo.actions), bool)
    kept = np.flatnonzero(~noops)
    opened = simulator(settings.simulator, planned.task_id)
    env = opened.env
    # The demonstration's number takes the initial state's place in the thermal camera's seed.
    env.reset(seed=settings.seed, options={"init_state_id": planned.number})
    try:
        if demo.model_xml is not None:
            env.place_fixtures(fixture_poses(demo.model_xml, env.fixture_bodies))
        env.restore(demo.states[0], observe=False)
    except ValueError as error:
        raise DemoFileError(f"{planned.path}: data/{planned.demo}: {error}") from error
    if settings.mode == "actions":
        states, failure = execute_actions(env, demo, kept, settings.settle_steps)
    else:
        states, failure = _recorded_states(env, demo, kept)
    if failure is not None:
        write_json(planned.failure_file(folder), asdict(failure))
    if states and (failure is None or settings.keep_failed):
        actions = demo.actions[kept].astype(np.float32)
        frames = [
            {**opened.frame(env.restore(state)), "action": action}
            for state, action in zip(states, actions, strict=False)
        ]
        store_episode(frames, planned.episode_file(folder))
    return failure


def load_failure(planned: PlannedDemo, folder: Path) -> Failure | None:
    """The stored failure of a demonstration, or ``None``."""
    file = planned.failure_file(folder)
    return Failure(**json.loads(file.read_text())) if file.is_file() else None


def execute_actions(env: Any, demo: Demonstration, kept: np.ndarray, settle_steps: int) -> Outcome:
    """Execute the kept actions from the first state.

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


def _recorded_states(env: Any, demo: Demonstration, kept: np.ndarray) -> Outcome:
    """Take the recorded states; success is looked for in the last one and after its action."""
    env.restore(demo.states[-1], observe=False)
    problem = env.simulation
    success = bool(problem._check_success()) or bool(problem.step(demo.actions[-1])[2])
    states = list(demo.states[kept])
    if not states:
        return states, Failure("only no-ops", 0)
    return states, None if success else Failure("the goal does not hold at the end", len(kept))

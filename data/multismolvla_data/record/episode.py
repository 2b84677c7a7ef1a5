"""One scripted demonstration: roll out the expert, keep what the policy would see, store it in one file.

Runs in the recorder's worker processes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from multismolvla_data.formats.episode_files import SIMULATION, store_episode
from multismolvla_data.formats.simulators import simulator
from multismolvla_data.record.config import LIBERO_SUITES, EpisodeSettings

RecordedFrames = list[dict[str, np.ndarray]]
#: Arrays that go beside the data set: simulator state before each frame, and the action executed.
SIM_STATE, EXECUTED = f"{SIMULATION}state", f"{SIMULATION}executed_action"


def record_episode(settings: EpisodeSettings, task_id: int, number: int, target: Path) -> bool:
    """Let the expert solve a task from its ``number``-th start and store the episode if it succeeds.

    Returns:
        Whether the expert succeeded; else nothing is written.
    """
    roll_out = _libero_frames if settings.simulator.suite in LIBERO_SUITES else _mini_frames
    frames = roll_out(settings, task_id, number)
    if frames:
        store_episode(frames, target)
    return bool(frames)


def _mini_frames(settings: EpisodeSettings, task_id: int, number: int) -> RecordedFrames:
    from lerobot_env_multismolvla.mini.expert import ActionNoise, MiniExpert, snapshot

    opened, start = simulator(settings.simulator, task_id), settings.start(number)
    env = opened.env
    observation, _ = env.reset(seed=start.seed, options={"init_state_id": start.init_state})
    expert = MiniExpert(task_id)
    seeds = [start.seed, task_id, start.init_state]
    noise = ActionNoise(np.random.default_rng(seeds), settings.noise)
    frames: RecordedFrames = []
    for _ in range(env._max_episode_steps):
        clean = expert.action(snapshot(env.simulation, task_id))
        frames.append({**opened.frame(observation), "action": clean})
        observation, _, terminated, _, _ = env.step(noise.disturb(clean, expert.phase))
        if terminated:
            return frames
    return []


def _libero_frames(settings: EpisodeSettings, task_id: int, number: int) -> RecordedFrames:
    """The expert searches without rendering; only the attempt that succeeds is rendered."""
    from lerobot_env_multismolvla.libero_expert.search import LiberoExpert, noisy, recording_seed

    opened, start = simulator(settings.simulator, task_id), settings.start(number)
    env, state = opened.env, start.init_state
    seed = recording_seed(start.seed, task_id, state)
    observation, _ = env.reset(seed=seed, options={"init_state_id": state})
    expert = LiberoExpert(noisy([start.seed, task_id, state], settings.noise))
    plan = expert.reset(env, state)
    frames: RecordedFrames = []
    if not plan.solved:
        return frames
    solved = 0
    for step in range(1, plan.steps + settings.after_success + 1):
        before = env.simulation.sim.get_state().flatten()
        frame = {**opened.frame(observation), "action": expert.act(env)}
        frames.append({**frame, SIM_STATE: before, EXECUTED: expert.executed})
        observation, _, terminated, _, _ = env.step(expert.executed)  # goes on after success, too
        solved = step if terminated else solved
    if solved < plan.steps:
        raise RuntimeError(
            f"{settings.simulator.suite} task {task_id}, initial state {state}: the rendered episode ended "
            "otherwise than the search. This is a bug; please report it with the versions of mujoco and "
            "robosuite."
        )
    return frames[:solved]  # what is let go may roll away again

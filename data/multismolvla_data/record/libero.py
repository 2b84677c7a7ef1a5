"""LIBERO's suites for the recorder: which initial states may be recorded, one episode, its metadata.

Physics first: the expert searches without rendering, and only the attempt that succeeds is rendered. The simulator's
states are kept with the data set, so that the same episodes can be rendered again in another size.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from multismolvla_data.formats.simulators import simulator
from multismolvla_data.record.config import LiberoEpisodeSettings
from multismolvla_data.record.episode import _store, dataset_frame

if TYPE_CHECKING:
    pass


#: Arrays of a stored episode that go beside the data set: simulator state before each frame, the action executed.
SIM_STATE, EXECUTED = "simulation.state", "simulation.executed_action"


def record_libero_episode(settings: LiberoEpisodeSettings, task_id: int, number: int, target: Path) -> int:
    """Let the expert solve one initial state and store the episode.

    Args:
        settings: see :class:`LiberoEpisodeSettings`.
        task_id: task of the suite.
        number: number of the try, see :meth:`LiberoEpisodeSettings.start`.
        target: file to write (``.npz``); written whole or not at all.

    Returns:
        Number of frames, or 0 when no variant of the expert's skills works (nothing is written then).

    Raises:
        RuntimeError: the rendered episode did not repeat the one that the search found.
    """
    from lerobot_env_multismolvla.libero_expert.search import LiberoExpert, episode_seed, noisy

    env, processor = simulator(
        settings.suite,
        task_id,
        size=settings.size,
        render_quality=settings.render_quality,
        settle_steps=settings.settle_steps,
        libero_assets=settings.libero_assets,
    )
    state, seed = settings.start(number)
    raw, _ = env.reset(seed=episode_seed(seed, task_id, state), options={"init_state_id": state})
    expert = LiberoExpert(noisy([seed, task_id, state], settings.noise))
    plan = expert.reset(env, state)
    if not plan.solved:
        return 0
    frames: list[dict[str, np.ndarray]] = []
    for _ in range(plan.steps):
        kept = {SIM_STATE: env.simulation.sim.get_state().flatten()}
        clean = expert.act(env)
        frames.append({**dataset_frame(raw, processor), "action": clean, **kept, EXECUTED: expert.executed})
        raw, _, terminated, _, _ = env.step(expert.executed)
    if not terminated:
        raise RuntimeError(
            f"{settings.suite} task {task_id}, initial state {state}: the rendered episode ended differently from the "
            "physics-only search. This is a bug; please report it with the versions of mujoco and robosuite."
        )
    _store(frames, target, instruction=np.array(env.task_description))
    return len(frames)

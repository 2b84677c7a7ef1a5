"""LIBERO's suites for the recorder: which initial states may be recorded, one episode, its metadata.

Physics first: the expert searches without rendering, and only the attempt that succeeds is rendered. The simulator's
states are kept with the data set, so that the same episodes can be rendered again in another size.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multismolvla.files import write_json

from .episode import EpisodeSettings, _store, dataset_frame
from .simulators import simulator

if TYPE_CHECKING:
    from .record_config import RecordConfig

#: Initial states that the evaluation uses by declaration (``MultiSmolVLALiberoConfig(init_split="eval")``).
EVALUATION_STATES = range(20)
RECORDING_STATES = "20-49"

#: Arrays of a stored episode that go beside the data set: simulator state before each frame, the action executed.
SIM_STATE, EXECUTED = "simulation.state", "simulation.executed_action"
#: Where they go.
STATES_FOLDER = "meta/simulation"


@dataclass(frozen=True)
class LiberoEpisodeSettings(EpisodeSettings):
    """As :class:`EpisodeSettings`, for LIBERO's suites.

    Attributes:
        init_states: numbers of the initial states in the order of recording; after the last one the first is used
            again with another seed, which moves the fixtures and changes the disturbance.
        settle_steps: no-op steps before the first frame.
        libero_assets: folder of LIBERO's assets, or ``None`` for the usual places.
    """

    init_states: tuple[int, ...]
    settle_steps: int
    libero_assets: str | None = None

    def start(self, number: int) -> tuple[int, int]:
        """(initial state, seed) of the ``number``-th try of a task, counted from 0."""
        turn, which = divmod(number, len(self.init_states))
        return self.init_states[which], self.seed + turn


def check_states(text: str, allow_evaluation: bool) -> tuple[int, ...]:
    """Initial states to record.

    Args:
        text: e.g. ``"20-49"``.
        allow_evaluation: whether states of the evaluation are allowed.

    Raises:
        ValueError: not a list of states, or states that the evaluation uses.
    """
    from lerobot_env_multismolvla.libero_expert.measure import state_numbers

    states = tuple(state_numbers(text))
    taken = [state for state in states if state in EVALUATION_STATES]
    if taken and not allow_evaluation:
        raise ValueError(
            f"--init_states={text}: states {taken} are for evaluation (0 to {EVALUATION_STATES[-1]} by declaration), and "
            f"a policy trained on them cannot be measured. Record {RECORDING_STATES}, or, for data that nothing is "
            "measured with, add --allow_evaluation_states=true."
        )
    return states


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
    from lerobot_env_multismolvla.libero_expert.noise import noisy
    from lerobot_env_multismolvla.libero_expert.search import LiberoExpert
    from lerobot_env_multismolvla.libero_expert.simulation import episode_seed

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


def libero_settings(config: RecordConfig) -> LiberoEpisodeSettings:
    """The part of the recorder's options that decides what an episode holds.

    Raises:
        ValueError: states of the evaluation, or no states.
    """
    return LiberoEpisodeSettings(
        suite=config.task,
        size=config.size,
        render_quality=config.render_quality,
        init_split="train",
        noise=config.noise,
        seed=config.seed,
        init_states=check_states(config.init_states or RECORDING_STATES, config.allow_evaluation_states),
        settle_steps=config.settle_steps,
        libero_assets=config.libero_assets,
    )


def libero_fingerprint(config: RecordConfig) -> dict[str, Any]:
    """What must be equal for a recording to be continued: settings, the expert's code, the assets.

    Raises:
        FileNotFoundError: no assets; the message says how to get them.
    """
    from lerobot_env_multismolvla.libero_expert import expert_version
    from multismolvla.libero_assets import find_libero_assets, identify

    settings = libero_settings(config)
    folder = find_libero_assets(settings.libero_assets)
    if folder is None:
        raise FileNotFoundError(
            f"Suite {settings.suite!r} needs LIBERO's assets and none were found. Name their folder with "
            "--libero_assets or MULTISMOLVLA_LIBERO_ASSETS (hub data set 'lerobot/libero-assets')."
        )
    identity = {**asdict(settings), "init_states": list(settings.init_states)}  # as JSON gives it back
    del identity["libero_assets"]  # what they hold matters, not where they lie
    chosen = {"episodes": config.episodes, "task_ids": config.task_ids}
    return identity | chosen | {"version": expert_version(), "assets": identify(folder).hash}


def write_libero_metadata(
    target: Path,
    config: RecordConfig,
    numbers: dict[int, list[int]],
    lengths: list[int],
    names: dict[int, str],
) -> None:
    """As :func:`.dataset_writer.write_metadata`, for LIBERO's suites.

    Args:
        target: file to write.
        config: the recording's options.
        numbers: tries whose episodes are stored, by task, ascending.
        lengths: frames of the episodes in the data set's order.
        names: instruction of each task.
    """
    from .dataset_writer import actions_note, failed_states, stream_metadata

    settings = config.settings
    assert isinstance(settings, LiberoEpisodeSettings)

    def starts(tries: list[int]) -> list[dict[str, int]]:
        return [dict(zip(("init_state", "seed"), settings.start(n), strict=True)) for n in tries]

    content = {
        "recording": config.fingerprint(),
        "suite": config.task,
        "tasks": {str(t): names[t] for t in numbers},
        "starts": {str(t): starts(used) for t, used in numbers.items()},
        "failed_starts": {str(t): starts(failed_states(used)) for t, used in numbers.items()},
        "evaluation_init_states": f"0-{EVALUATION_STATES[-1]}",
        "episode_lengths": lengths,
        **stream_metadata(config),
        "simulation": f"{STATES_FOLDER}: LIBERO's flattened state before each frame and the action executed",
        "actions": actions_note(config),
        "lerobot": version("lerobot"),
        "mujoco": version("mujoco"),
    }
    write_json(target, content)

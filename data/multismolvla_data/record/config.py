"""Options of ``multismolvla-record`` and what follows from them."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multismolvla_data.record.episode import EpisodeSettings

#: LIBERO's suites with a scripted expert.
LIBERO_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


@dataclass
class RecordConfig:
    """Options of the recorder.

    Raises:
        ValueError: an option is out of range; the message names it.
    """

    # Folder of the data set to write. Must not exist, or be the result of this very command.
    output: Path = Path("outputs/mini")
    # Successful episodes per task.
    episodes: int = 50
    # The same under its long name; wins when given.
    episodes_per_task: int | None = None
    # Suite with a scripted expert: "multismolvla_mini" or LIBERO's spatial, object, goal, 10.
    task: str = "multismolvla_mini"
    # The same under the name that other commands use; wins when given.
    suite: str | None = None
    # Tasks to record; all when not given.
    task_ids: list[int] | None = None
    # Pixels, height and width; 0 = 64 for the mini suite, 256 for LIBERO's.
    size: int = 0
    # "default" or "fast"; stored in the metadata, must match the evaluation's.
    render_quality: str = "default"
    # The mini suite's initial states: "train" keeps the evaluation's states out of the data.
    init_split: str = "train"
    # LIBERO's initial states, e.g. "20-49"; 0 to 19 are for evaluation.
    init_states: str | None = None
    # Record the evaluation's states all the same: whoever trains on them cannot measure with them.
    allow_evaluation_states: bool = False
    # LIBERO: no-op steps before the first frame. With 10, LeRobot's number, bottles of libero_10 are still falling.
    settle_steps: int = 20
    # Folder of LIBERO's assets; default: environment variable MULTISMOLVLA_LIBERO_ASSETS, then hf-libero's places.
    libero_assets: str | None = None
    # Scale of the disturbance of executed actions (recorded ones stay clean); 0 = none.
    noise: float = 1.0
    seed: int = 0
    # Simulator processes; 0 = number of cores.
    workers: int = 0
    # Name stored in the data set; default: multismolvla/mini, or multismolvla/<suite>.
    repo_id: str = ""

    def __post_init__(self) -> None:
        from lerobot_env_multismolvla.mini import SUITE_NAME, TASKS

        self.task = self.suite or self.task
        self.suite = self.task
        self.episodes = self.episodes if self.episodes_per_task is None else self.episodes_per_task
        self.episodes_per_task = self.episodes
        if self.task not in (SUITE_NAME, *LIBERO_SUITES):
            raise ValueError(
                f"--task={self.task}: a scripted expert exists for {SUITE_NAME!r} and {', '.join(LIBERO_SUITES)}."
            )
        self.size = self.size or (256 if self.is_libero else 64)
        self.repo_id = self.repo_id or f"multismolvla/{self.task if self.is_libero else 'mini'}"
        if self.episodes < 1:
            raise ValueError(f"--episodes={self.episodes}: expected at least 1 episode per task.")
        if self.size < 16:
            raise ValueError(f"--size={self.size}: expected at least 16 pixels.")
        if self.noise < 0:
            raise ValueError(f"--noise={self.noise}: expected 0 (none) or more.")
        if self.render_quality not in ("default", "fast"):
            raise ValueError(f"--render_quality={self.render_quality}: expected 'default' or 'fast'.")
        if self.init_split not in ("train", "eval"):
            raise ValueError(f"--init_split={self.init_split}: expected 'train' or 'eval'.")
        n_tasks = 10 if self.is_libero else len(TASKS)
        self.task_ids = list(range(n_tasks)) if self.task_ids is None else sorted(set(self.task_ids))
        if not self.task_ids or not set(self.task_ids) <= set(range(n_tasks)):
            raise ValueError(f"--task_ids={self.task_ids}: the suite has tasks 0 to {n_tasks - 1}.")
        if self.settle_steps < 0:
            raise ValueError(f"--settle_steps={self.settle_steps}: expected 0 or more.")
        if not self.is_libero and self.init_states is not None:
            raise ValueError(
                f"--init_states={self.init_states}: the mini suite draws its own; use --init_split."
            )
        if self.is_libero:
            if self.init_split != "train":
                raise ValueError(
                    f"--init_split={self.init_split}: LIBERO's suites take --init_states instead."
                )
            _ = self.settings  # refuses states of the evaluation before anything is done
        self.workers = self.workers or max(1, len(os.sched_getaffinity(0)))

    @property
    def is_libero(self) -> bool:
        """Whether the suite is one of LIBERO's own."""
        return self.task in LIBERO_SUITES

    @property
    def settings(self) -> EpisodeSettings:
        """What decides the content of an episode."""
        if self.is_libero:
            return libero_settings(self)
        return EpisodeSettings(
            self.task, self.size, self.render_quality, self.init_split, self.noise, self.seed
        )

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for a recording to be continued, or to pass for this one."""
        from lerobot_env_multismolvla.mini import MINI_VERSION, assets_hash

        if self.is_libero:
            return libero_fingerprint(self)
        return {
            **asdict(self.settings),
            "episodes": self.episodes,
            "task_ids": self.task_ids,
            "version": MINI_VERSION,
            "assets": assets_hash(),
        }


#: Initial states that the evaluation uses by declaration (``MultiSmolVLALiberoConfig(init_split="eval")``).
EVALUATION_STATES = range(20)


RECORDING_STATES = "20-49"


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
    from lerobot_env_multismolvla.libero.initial_states import state_numbers

    states = tuple(state_numbers(text))
    taken = [state for state in states if state in EVALUATION_STATES]
    if taken and not allow_evaluation:
        raise ValueError(
            f"--init_states={text}: states {taken} are for evaluation (0 to {EVALUATION_STATES[-1]} by declaration), and "
            f"a policy trained on them cannot be measured. Record {RECORDING_STATES}, or, for data that nothing is "
            "measured with, add --allow_evaluation_states=true."
        )
    return states


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
    from multismolvla.system.libero_assets import find_libero_assets, identify

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

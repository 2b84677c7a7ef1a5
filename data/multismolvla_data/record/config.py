"""Options of ``multismolvla-record`` and what follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from multismolvla_data.formats.metadata import JsonObject, Start
from multismolvla_data.formats.simulators import SimulatorSettings, worker_count

#: LIBERO's suites with a scripted expert.
LIBERO_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
#: Initial states that the evaluation uses by declaration (``MultiSmolVLALiberoConfig(init_split="eval")``).
EVALUATION_STATES = range(20)
RECORDING_STATES = "20-49"
#: As many as a chunk of `train.py libero_tiny`: one that begins at the release is whole.
STEPS_AFTER_SUCCESS = 16
#: Below that LIBERO's smallest objects are specks of a few pixels.
LEAST_LIBERO_SIZE = 64


@dataclass(frozen=True)
class EpisodeSettings:
    """What decides the content of the episodes; two recordings with equal settings are equal."""

    simulator: SimulatorSettings
    noise: float  # scale of the disturbance of executed actions; 0 = none
    seed: int  # see `start`
    init_states: tuple[int, ...] | None = None  # of LIBERO, in this order; None = the suite draws them
    after_success: int = 0  # steps that are recorded after success

    def start(self, number: int) -> Start:
        """Start of the ``number``-th try of a task, counted from 0.

        After the last initial state the first is used again with another seed, which moves LIBERO's fixtures
        and changes the disturbance.
        """
        if self.init_states is None:
            return Start(number, self.seed)
        turn, which = divmod(number, len(self.init_states))
        return Start(self.init_states[which], self.seed + turn)


@dataclass
class RecordConfig:
    """Options of the recorder; one that is out of range is a ValueError that names it."""

    # Folder of the data set to write. Must not exist, or be the result of this very command.
    output: Path = Path("outputs/mini")
    # Successful episodes per task.
    episodes: int = 50
    # Suite with a scripted expert: "multismolvla_mini" or LIBERO's spatial, object, goal, 10.
    suite: str = "multismolvla_mini"
    # Tasks to record; all when not given.
    task_ids: list[int] | None = None
    # Pixels, height and width; 0 = 64 for the mini suite, 256 for LIBERO's.
    size: int = 0
    # Store RGB as video, as LeRobot's own recordings do: smaller, and at 256 pixels training loads it several
    # times faster. It is lossy; depth, segmentation and thermal stay as they are.
    video: bool = False
    # "default" or "fast"; stored in the metadata, must match the evaluation's.
    render_quality: str = "default"
    # The mini suite's initial states: "train" keeps the evaluation's states out of the data.
    init_split: str = "train"
    # LIBERO's initial states, e.g. "20-49"; 0 to 19 are for evaluation.
    init_states: str | None = None
    # Record the evaluation's states all the same: whoever trains on them cannot measure with them.
    allow_evaluation_states: bool = False
    # LIBERO: no-op steps before the first frame. After LeRobot's 10, bottles of libero_10 are still falling.
    settle_steps: int = 20
    # Folder of LIBERO's assets; default: variable MULTISMOLVLA_LIBERO_ASSETS, then hf-libero's places.
    libero_assets: str | None = None
    # LIBERO: steps recorded after success, in which the expert lets go and rises; default: 16. LIBERO calls a
    # task solved while the object is held or hardly let go of: demonstrations that end there show no release.
    after_success: int | None = None
    # Scale of the disturbance of executed actions (recorded ones stay clean); 0 = none.
    noise: float = 1.0
    seed: int = 0
    # Simulator processes; 0 = number of cores.
    workers: int = 0
    # Name stored in the data set; default: multismolvla/mini, or multismolvla/<suite>.
    repo_id: str = ""

    def __post_init__(self) -> None:
        from lerobot_env_multismolvla.mini import SUITE_NAME, TASKS

        if self.suite not in (SUITE_NAME, *LIBERO_SUITES):
            known = ", ".join((SUITE_NAME, *LIBERO_SUITES))
            raise ValueError(f"--suite={self.suite}: a scripted expert exists for {known}.")
        self.size = self.size or (256 if self.is_libero else 64)
        if self.is_libero and self.size < LEAST_LIBERO_SIZE:
            raise ValueError(
                f"--size={self.size}: expected at least {LEAST_LIBERO_SIZE} pixels for {self.suite}: at 128 "
                "the smallest objects cover 28 to 63 pixels of the front view."
            )
        if self.after_success is None:
            self.after_success = STEPS_AFTER_SUCCESS if self.is_libero else 0
        if self.after_success < 0 or (self.after_success and not self.is_libero):
            wanted = "0 or more steps" if self.is_libero else "0: the mini suite's episodes end with success"
            raise ValueError(f"--after_success={self.after_success}: expected {wanted}.")
        self.repo_id = self.repo_id or f"multismolvla/{self.suite if self.is_libero else 'mini'}"
        if self.episodes < 1:
            raise ValueError(f"--episodes={self.episodes}: expected at least 1 episode per task.")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"--noise={self.noise}: expected 0 (none) or more.")
        if self.seed < 0:
            raise ValueError(f"--seed={self.seed}: expected 0 or more.")
        if self.init_split not in ("train", "eval"):
            raise ValueError(f"--init_split={self.init_split}: expected 'train' or 'eval'.")
        if self.is_libero and self.init_split != "train":
            raise ValueError(f"--init_split={self.init_split}: LIBERO's suites take --init_states instead.")
        if self.init_split == "eval" and not self.allow_evaluation_states:
            raise ValueError(
                "--init_split=eval: a policy trained on the evaluation's states cannot be measured. Leave it "
                "out, or, for data that nothing is measured with, add --allow_evaluation_states=true."
            )
        if not self.is_libero and self.init_states is not None:
            raise ValueError(f"--init_states={self.init_states}: the mini suite takes --init_split instead.")
        every = range(10 if self.is_libero else len(TASKS))
        if self.task_ids is not None and not (self.task_ids and set(self.task_ids) <= set(every)):
            raise ValueError(f"--task_ids={self.task_ids}: the suite has tasks 0 to {every[-1]}.")
        self.task_ids = sorted(set(every if self.task_ids is None else self.task_ids))
        self.workers = worker_count(self.workers)
        _ = self.settings  # what it refuses shall be refused before anything is done

    @property
    def is_libero(self) -> bool:
        """Whether the suite is one of LIBERO's own."""
        return self.suite in LIBERO_SUITES

    @property
    def recorded_split(self) -> str:
        """Whose initial states are recorded: ``eval`` as soon as one of them is the evaluation's."""
        states = self.settings.init_states
        if states is None:
            return self.init_split
        return "train" if set(states).isdisjoint(EVALUATION_STATES) else "eval"

    @property
    def settings(self) -> EpisodeSettings:
        """What decides the content of an episode."""
        states = None
        if self.is_libero:
            text = RECORDING_STATES if self.init_states is None else self.init_states
            states = check_states(text, self.allow_evaluation_states)
        simulator = SimulatorSettings(
            suite=self.suite,
            size=self.size,
            render_quality=self.render_quality,
            init_split="all" if self.is_libero else self.init_split,
            settle_steps=self.settle_steps if self.is_libero else None,
            libero_assets=self.libero_assets,
        )
        return EpisodeSettings(simulator, self.noise, self.seed, states, self.after_success or 0)

    def identity(self) -> JsonObject:
        """What must be equal for a recording to be continued, or to pass for this one."""
        from lerobot_env_multismolvla.libero_expert import expert_version

        states = self.settings.init_states
        stored: JsonObject = {}  # data sets made before know no such options
        if self.video:
            stored["video"] = True
        if self.after_success:
            stored["after_success"] = self.after_success
        return stored | {
            "simulator": self.settings.simulator.identity(),
            "noise": self.noise,
            "seed": self.seed,
            "init_states": states and list(states),
            "episodes": self.episodes,
            "task_ids": self.task_ids,
            "expert": expert_version() if self.is_libero else None,
        }


def check_states(text: str, allow_evaluation: bool) -> tuple[int, ...]:
    """Initial states to record, e.g. of ``"20-49"``; those of the evaluation only where that is allowed."""
    from lerobot_env_multismolvla.libero.initial_states import state_numbers

    states = tuple(state_numbers(text))
    taken = [state for state in states if state in EVALUATION_STATES]
    if taken and not allow_evaluation:
        raise ValueError(
            f"--init_states={text}: states {taken} are for evaluation (0 to {EVALUATION_STATES[-1]}), and a "
            f"policy trained on them cannot be measured. Record {RECORDING_STATES}, or, for data that "
            "nothing is measured with, add --allow_evaluation_states=true."
        )
    return states

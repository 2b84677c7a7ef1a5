"""``multismolvla-record``: scripted demonstrations with all modalities, as a LeRobotDataset v3.

    multismolvla-record --output=outputs/demo/mini --episodes=50
    multismolvla-record --suite=libero_object --output=outputs/libero_object --episodes_per_task=30

Simulator processes store one file per successful episode; this process turns the files into the data set, in an
order that depends on the settings alone. Whatever kills it, the same command continues: finished episodes are kept,
the half-assembled data set is assembled again from them, and the result appears under ``--output`` only when whole.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import draccus
import numpy as np

from .episode import EpisodeSettings, load_episode, record_episode

logger = logging.getLogger(__name__)

#: LIBERO's suites with a scripted expert.
LIBERO_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")

#: Our own metadata, beside LeRobot's; LeRobot 0.6.1 drops unknown fields of info.json.
METADATA_FILE = "meta/multismolvla.json"


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
    repo_id: str | None = None

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
            from .libero_recording import libero_settings

            return libero_settings(self)
        return EpisodeSettings(
            self.task, self.size, self.render_quality, self.init_split, self.noise, self.seed
        )

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for a recording to be continued, or to pass for this one."""
        from lerobot_env_multismolvla.mini import MINI_VERSION, assets_hash

        if self.is_libero:
            from .libero_recording import libero_fingerprint

            return libero_fingerprint(self)
        return {
            **asdict(self.settings),
            "episodes": self.episodes,
            "task_ids": self.task_ids,
            "version": MINI_VERSION,
            "assets": assets_hash(),
        }


class Production(Protocol):
    """Options of a command that makes a data set under ``output`` and can continue: recorder or replay."""

    output: Path

    def fingerprint(self) -> dict[str, Any]:
        """What decides the content of the data set, as JSON."""


class RecordingError(RuntimeError):
    """The recording cannot be started, continued or finished; the message says what to do."""


def record(config: RecordConfig) -> Path:
    """Record, or continue to record, the data set that ``config`` describes.

    Returns:
        The folder of the finished data set.

    Raises:
        RecordingError: ``--output`` holds something else, a recording with other settings was begun there, or the
            expert fails far too often.
        OSError: the disk is full; what was recorded stays and the command can be repeated.
    """
    if _finished(config):
        logger.info("%s is complete already; nothing to do.", config.output)
        return config.output
    workspace = _open_workspace(config)
    with _Assembler(config, workspace) as assembler:
        for task_id, state in _rollouts(config, workspace / "episodes"):
            assembler.outcome(task_id, state)
    _publish(config, workspace)
    return config.output


def _workspace(config: Production) -> Path:
    return config.output.parent / f".{config.output.name}.recording"


def _finished(config: Production) -> bool:
    """Whether the output is this very recording, whole; anything else there is refused."""
    metadata = config.output / METADATA_FILE
    if metadata.is_file():
        known = json.loads(metadata.read_text()).get("recording")
        if known == config.fingerprint():
            return True
        raise RecordingError(
            f"{config.output} was recorded with other settings: {known}; asked for: {config.fingerprint()}. "
            "Choose another --output or delete that folder."
        )
    if config.output.exists() and (not config.output.is_dir() or any(config.output.iterdir())):
        raise RecordingError(
            f"{config.output} exists and is not a data set written by this command (no {METADATA_FILE}): "
            "a foreign or half-written data set. Choose another --output or delete that folder."
        )
    return False


def _open_workspace(config: Production) -> Path:
    workspace = _workspace(config)
    begun = workspace / "recording.json"
    if begun.is_file():
        known = json.loads(begun.read_text())
        if known != config.fingerprint():
            raise RecordingError(
                f"{workspace} holds an unfinished recording with other settings: {known}; asked for: "
                f"{config.fingerprint()}. Repeat the command that began it, or delete that folder."
            )
        logger.info("Continuing the recording in %s.", workspace)
    elif workspace.exists():
        shutil.rmtree(workspace)  # killed before its first line was written
    (workspace / "episodes").mkdir(parents=True, exist_ok=True)
    for partial in (workspace / "episodes").glob(".*.npz"):
        partial.unlink()
    if not begun.is_file():
        partial = workspace / ".recording.json"
        partial.write_text(json.dumps(config.fingerprint()))
        os.replace(partial, begun)
    return workspace


def _rollouts(config: RecordConfig, folder: Path) -> Iterator[tuple[int, int]]:
    """Run starts 0, 1, 2... of each task until enough succeeded; yield (task, start) as each is decided."""
    from tqdm import tqdm

    run: Any = record_episode
    if config.is_libero:
        from .libero_recording import record_libero_episode as run
    assert config.task_ids is not None
    goal = config.episodes * len(config.task_ids)
    next_state = dict.fromkeys(config.task_ids, 0)
    good = dict.fromkeys(config.task_ids, 0)
    failed = dict.fromkeys(config.task_ids, 0)
    running: dict[Future[int], tuple[int, int]] = {}
    # LP_NUM_THREADS: two software renderers with a thread each beat one with two.
    environment = {"LP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        config.workers, mp_context=context, initializer=_worker, initargs=(environment,)
    )
    bar = tqdm(total=goal, desc="record", unit="episode", smoothing=0.1)
    try:
        while sum(good.values()) < goal:
            pending = {t: sum(task == t for task, _ in running.values()) for t in config.task_ids}
            open_tasks = [t for t in config.task_ids if good[t] + pending[t] < config.episodes]
            if open_tasks and len(running) < 2 * config.workers:
                task = min(open_tasks, key=lambda t: next_state[t])
                state, next_state[task] = next_state[task], next_state[task] + 1
                if _episode_file(folder, task, state).is_file():
                    good[task] += 1
                elif _failure_file(folder, task, state).is_file():
                    failed[task] += 1
                else:
                    file = _episode_file(folder, task, state)
                    running[pool.submit(run, config.settings, task, state, file)] = (task, state)
                    continue
                bar.update(_episode_file(folder, task, state).is_file())
                yield task, state
                continue
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, state = running.pop(future)
                if future.result():
                    good[task] += 1
                    bar.update()
                else:
                    failed[task] += 1
                    _failure_file(folder, task, state).touch()
                    if failed[task] > 10 + config.episodes // 2:
                        raise RecordingError(
                            f"The expert failed on {failed[task]} initial states of task {task}, succeeded on "
                            f"{good[task]}. At least two of three should succeed; lower --noise."
                        )
                yield task, state
    finally:
        bar.close()
        pool.shutdown(wait=True, cancel_futures=True)


def _worker(environment: dict[str, str]) -> None:
    """Set up a simulator process before anything heavy is imported in it."""
    import signal

    os.environ.update(environment)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends the workers in order


def _exit_with_parent() -> None:
    """End this worker when its parent is gone: after kill -9 a pool's workers would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _episode_file(folder: Path, task: int, state: int) -> Path:
    return folder / f"task{task}_state{state:05d}.npz"


def _failure_file(folder: Path, task: int, state: int) -> Path:
    return folder / f"task{task}_state{state:05d}.failed"


class _Assembler:
    """Appends stored episodes to the data set in a fixed order: first of each task, second of each task, ...

    The order is the settings' alone, so the data set does not depend on the number of workers or on interruptions.
    """

    def __init__(self, config: RecordConfig, workspace: Path) -> None:
        assert config.task_ids is not None
        self._config, self._workspace = config, workspace
        self._tasks = config.task_ids
        self._outcomes: dict[int, set[int]] = {t: set() for t in self._tasks}
        self._good: dict[int, list[int]] = {t: [] for t in self._tasks}
        self._decided = dict.fromkeys(self._tasks, 0)
        self._written = 0
        self._lengths: list[int] = []
        self._first_frames: list[tuple[str, dict[str, Any]]] = []
        self._names: dict[int, str] = {}
        self._dataset: Any = None

    def __enter__(self) -> _Assembler:
        from .dataset_writer import create_dataset

        shutil.rmtree(self._workspace / "dataset", ignore_errors=True)
        self._dataset = create_dataset(self._workspace / "dataset", self._config)
        return self

    def outcome(self, task: int, state: int) -> None:
        """Note that a state is decided and write every episode whose turn has come."""
        folder = self._workspace / "episodes"
        self._outcomes[task].add(state)
        while self._decided[task] in self._outcomes[task]:
            if _episode_file(folder, task, self._decided[task]).is_file():
                self._good[task].append(self._decided[task])
            self._decided[task] += 1
        while self._written < self._config.episodes * len(self._tasks):
            turn, which = divmod(self._written, len(self._tasks))
            task = self._tasks[which]
            if len(self._good[task]) <= turn:
                return
            self._write(task, self._good[task][turn])

    def _write(self, task: int, state: int) -> None:
        from lerobot_env_multismolvla.mini import TASKS

        from .preview import contact_sheet

        episode = load_episode(_episode_file(self._workspace / "episodes", task, state))
        if self._config.is_libero:
            instruction = str(episode.pop("instruction"))
            self._keep_simulation(episode)
        else:
            instruction = TASKS[task].replace("_", " ")
        self._names[task] = instruction
        length = len(episode["action"])
        for t in range(length):
            self._dataset.add_frame(
                {**{key: value[t] for key, value in episode.items()}, "task": instruction}
            )
        self._dataset.save_episode()
        self._lengths.append(length)
        self._written += 1
        if len(self._first_frames) < len(self._tasks):
            self._first_frames.append((instruction, {key: value[0] for key, value in episode.items()}))
            if len(self._first_frames) == len(self._tasks):
                preview = self._workspace / "preview.png"
                contact_sheet(self._first_frames, preview)
                logger.info("First pictures of all modalities: %s", preview)

    def _keep_simulation(self, episode: dict[str, Any]) -> None:
        """Move the simulator's states out of the episode into a file beside the data set."""
        from .libero_recording import EXECUTED, SIM_STATE, STATES_FOLDER

        folder = self._workspace / "dataset" / STATES_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {key.removeprefix("simulation."): episode.pop(key) for key in (SIM_STATE, EXECUTED)}
        np.savez_compressed(folder / f"episode_{self._written:06d}.npz", **arrays)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        from .dataset_writer import failed_states, write_metadata

        if kind is not None:
            return  # the episodes stay; the data set is assembled again next time
        self._dataset.finalize()
        root = self._workspace / "dataset"
        states = {t: self._good[t][: self._config.episodes] for t in self._tasks}
        if self._config.is_libero:
            from .libero_recording import write_libero_metadata

            write_libero_metadata(root / METADATA_FILE, self._config, states, self._lengths, self._names)
        else:
            write_metadata(root / METADATA_FILE, self._config, states, self._lengths)
        shutil.copyfile(self._workspace / "preview.png", root / "preview.png")
        solved, failed = sum(map(len, states.values())), sum(len(failed_states(s)) for s in states.values())
        logger.info("expert: %d of %d starts solved", solved, solved + failed)


def _publish(config: Production, workspace: Path) -> None:
    """Move the whole data set into place in one step, then drop the workspace."""
    with contextlib.suppress(FileNotFoundError):
        config.output.rmdir()  # an empty folder made beforehand; anything else was refused at the start
    os.replace(workspace / "dataset", config.output)
    shutil.rmtree(workspace)
    logger.info("Data set: %s (first pictures: %s)", config.output, config.output / "preview.png")


def main() -> int:
    """Entry point of ``multismolvla-record``.

    Returns:
        0 when the data set is complete, 1 on an error named on stderr, 130 when interrupted.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logger.setLevel(logging.INFO)
    try:
        record(draccus.parse(RecordConfig))
    except (RecordingError, ValueError, OSError) as error:
        sys.stderr.write(f"multismolvla-record: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("multismolvla-record: interrupted; the same command continues.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

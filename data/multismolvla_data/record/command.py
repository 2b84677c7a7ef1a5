"""``multismolvla-record``: scripted demonstrations with all modalities, as a LeRobotDataset v3.

    multismolvla-record --output=outputs/demo/mini --episodes=50
    multismolvla-record --suite=libero_object --output=outputs/libero_object --episodes_per_task=30

Simulator processes store one file per successful episode; this process turns the files into the data set, in an
order that depends on the settings alone. Whatever kills it, the same command continues: finished episodes are kept,
the half-assembled data set is assembled again from them, and the result appears under ``--output`` only when whole.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import numpy as np

from multismolvla.system.command import entry_point, parse_options, show_progress
from multismolvla_data.formats.dataset_writer import append_episode, create_dataset
from multismolvla_data.formats.simulators import simulator_pool
from multismolvla_data.formats.workspace import (
    METADATA_FILE,
    RecordingError,
    finished,
    open_workspace,
    publish,
)
from multismolvla_data.record.config import RecordConfig
from multismolvla_data.record.episode import load_episode, record_episode
from multismolvla_data.record.metadata import failed_states, write_metadata

logger = logging.getLogger(__name__)


def record(config: RecordConfig) -> Path:
    """Record, or continue to record, the data set that ``config`` describes.

    Returns:
        The folder of the finished data set.

    Raises:
        RecordingError: ``--output`` holds something else, a recording with other settings was begun there, or the
            expert fails far too often.
        OSError: the disk is full; what was recorded stays and the command can be repeated.
    """
    if finished(config):
        logger.info("%s is complete already; nothing to do.", config.output)
        return config.output
    workspace = open_workspace(config)
    with _Assembler(config, workspace) as assembler:
        for task_id, state in _rollouts(config, workspace / "episodes"):
            assembler.outcome(task_id, state)
    publish(config, workspace)
    return config.output


def _rollouts(config: RecordConfig, folder: Path) -> Iterator[tuple[int, int]]:
    """Run starts 0, 1, 2... of each task until enough succeeded; yield (task, start) as each is decided."""
    from tqdm import tqdm

    run: Any = record_episode
    if config.is_libero:
        from multismolvla_data.record.libero import record_libero_episode as run
    assert config.task_ids is not None
    goal = config.episodes * len(config.task_ids)
    next_state = dict.fromkeys(config.task_ids, 0)
    good = dict.fromkeys(config.task_ids, 0)
    failed = dict.fromkeys(config.task_ids, 0)
    running: dict[Future[int], tuple[int, int]] = {}
    progress = tqdm(total=goal, desc="record", unit="episode", smoothing=0.1)
    with simulator_pool(config.workers) as pool, progress as bar:
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
        self._dataset = create_dataset(
            self._workspace / "dataset", self._config.repo_id, self._config.task, self._config.size
        )
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
        from multismolvla_data.record.contact_sheet import contact_sheet

        episode = load_episode(_episode_file(self._workspace / "episodes", task, state))
        if self._config.is_libero:
            instruction = str(episode.pop("instruction"))
            self._keep_simulation(episode)
        else:
            instruction = TASKS[task].replace("_", " ")
        self._names[task] = instruction
        self._lengths.append(append_episode(self._dataset, episode, instruction))
        self._written += 1
        if len(self._first_frames) < len(self._tasks):
            self._first_frames.append((instruction, {key: value[0] for key, value in episode.items()}))
            if len(self._first_frames) == len(self._tasks):
                preview = self._workspace / "preview.png"
                contact_sheet(self._first_frames, preview)
                logger.info("First pictures of all modalities: %s", preview)

    def _keep_simulation(self, episode: dict[str, Any]) -> None:
        """Move the simulator's states out of the episode into a file beside the data set."""
        from multismolvla_data.record.libero import EXECUTED, SIM_STATE
        from multismolvla_data.record.metadata import STATES_FOLDER

        folder = self._workspace / "dataset" / STATES_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {key.removeprefix("simulation."): episode.pop(key) for key in (SIM_STATE, EXECUTED)}
        np.savez_compressed(folder / f"episode_{self._written:06d}.npz", **arrays)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return  # the episodes stay; the data set is assembled again next time
        self._dataset.finalize()
        root = self._workspace / "dataset"
        states = {t: self._good[t][: self._config.episodes] for t in self._tasks}
        if self._config.is_libero:
            from multismolvla_data.record.metadata import write_libero_metadata

            write_libero_metadata(root / METADATA_FILE, self._config, states, self._lengths, self._names)
        else:
            write_metadata(root / METADATA_FILE, self._config, states, self._lengths)
        shutil.copyfile(self._workspace / "preview.png", root / "preview.png")
        solved, failed = sum(map(len, states.values())), sum(len(failed_states(s)) for s in states.values())
        logger.info("expert: %d of %d starts solved", solved, solved + failed)


@entry_point("multismolvla-record", loads="lerobot")
def main() -> int:
    """Entry point of ``multismolvla-record``.

    Returns:
        0 when the data set is complete, 1 on an error named on stderr, 130 when interrupted.
    """
    show_progress("multismolvla_data")
    record(parse_options(RecordConfig))
    return 0


if __name__ == "__main__":
    sys.exit(main())

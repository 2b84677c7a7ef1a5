"""Recording: simulator processes store a file per successful episode, this one makes the data set of them.

The order of the episodes is the settings' alone: first of each task, second of each task, and so on. So the
data set depends neither on the number of processes nor on interruptions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from multismolvla.system.command import CommandError
from multismolvla_data.formats.dataset_writer import DatasetWriter
from multismolvla_data.formats.episode_files import load_episode
from multismolvla_data.formats.metadata import simulated
from multismolvla_data.formats.simulators import simulator_pool, suite_tasks
from multismolvla_data.formats.workspace import Workspace, make
from multismolvla_data.record.config import RecordConfig
from multismolvla_data.record.episode import record_episode

logger = logging.getLogger(__name__)

COMMAND = "multismolvla-record"


@dataclass
class TaskProgress:
    """Starts of one task, tried in order."""

    task_id: int
    folder: Path  # of the episodes
    tried: int = 0  # starts begun
    outcomes: dict[int, bool] = field(default_factory=dict)  # start -> whether solved, as far as known

    @property
    def failed(self) -> int:
        """Starts that the expert did not solve."""
        return list(self.outcomes.values()).count(False)

    @property
    def solved(self) -> list[int]:
        """Solved starts before the first undecided one, in order."""
        decided = next(n for n in range(len(self.outcomes) + 1) if n not in self.outcomes)
        return [n for n in range(decided) if self.outcomes[n]]

    def episode_file(self, start: int) -> Path:
        """Where the episode of a start is stored."""
        return self.folder / f"task{self.task_id}_start{start:05d}.npz"

    def failure_file(self, start: int) -> Path:
        """Its presence says that the expert failed from a start."""
        return self.episode_file(start).with_suffix(".failed")


def record(config: RecordConfig) -> Path:
    """Record, or continue to record, the data set that ``config`` describes; returns its folder.

    Raises:
        WorkspaceError: ``--output`` holds something else, or other settings were begun there.
        CommandError: the expert fails far too often.
    """
    workspace = Workspace(COMMAND, config.output, config.identity())
    return make(workspace, lambda: _record(config, workspace))


def _record(config: RecordConfig, workspace: Workspace) -> None:
    tasks = [TaskProgress(task_id, workspace.episodes) for task_id in config.task_ids or ()]
    instructions = list(suite_tasks(config.suite).values())
    writer = DatasetWriter(workspace.dataset, config.repo_id, config.suite, config.size, config.video)
    goal = config.episodes * len(tasks)
    progress = tqdm(total=goal, desc="record", unit="episode", smoothing=0.1)
    with simulator_pool(config.workers) as pool, progress as bar:
        attempts = _Attempts(config, tasks, pool)
        while len(writer.lengths) < goal:
            ready = _in_order(tasks, config.episodes)[len(writer.lengths) :]
            attempts.go_on(wait_for_one=not ready)
            bar.update(sum(len(task.outcomes) - task.failed for task in tasks) - bar.n)
            for task, start in ready[:1]:  # one at a time, so that the processes always have work
                episode = load_episode(task.episode_file(start))
                writer.append(episode, instructions[task.task_id])
    metadata = simulated(config.suite, config.render_quality, config.settings.simulator.assets)
    metadata.identities[COMMAND] = workspace.identity
    metadata.init_split = config.recorded_split
    metadata.actions = "clean; the executed ones were disturbed" if config.noise else "clean, as executed"
    if config.after_success:
        metadata.actions += f"; up to {config.after_success} steps beyond success"
    for task in tasks:
        number, used = str(task.task_id), task.solved[: config.episodes]
        # Starts after the last used one do not count: the number of processes decides how many are tried.
        failed = [n for n in range(used[-1]) if n not in used]
        metadata.tasks[number] = instructions[task.task_id]
        metadata.starts[number] = [config.settings.start(n) for n in used]
        metadata.failed_starts[number] = [config.settings.start(n) for n in failed]
    writer.finish(metadata)
    failures = sum(map(len, metadata.failed_starts.values()))
    states = {start.init_state for starts in metadata.starts.values() for start in starts}
    logger.info(
        "expert: %d of %d starts solved; recorded from the initial states %d to %d",
        goal,
        goal + failures,
        min(states),
        max(states),
    )


def _in_order(tasks: Sequence[TaskProgress], episodes: int) -> list[tuple[TaskProgress, int]]:
    """(task, start) of the data set's first episodes, up to the first that is not there yet."""
    found: list[tuple[TaskProgress, int]] = []
    solved = [task.solved for task in tasks]
    for turn in range(episodes):
        for task, starts in zip(tasks, solved, strict=True):
            if len(starts) <= turn:
                return found
            found.append((task, starts[turn]))
    return found


class _Attempts:
    """Tries starts 0, 1, 2... of each task until enough are solved."""

    def __init__(
        self, config: RecordConfig, tasks: Sequence[TaskProgress], pool: ProcessPoolExecutor
    ) -> None:
        self._config, self._tasks, self._pool = config, tasks, pool
        self._running: dict[Future[bool], tuple[TaskProgress, int]] = {}

    def go_on(self, wait_for_one: bool) -> None:
        """Give the processes enough to do and note what was decided, if wanted after waiting for it."""
        goal = self._config.episodes
        while len(self._running) < 2 * self._config.workers:
            unfinished = [task for task in self._tasks if task.tried - task.failed < goal]
            if not unfinished:
                break
            self._begin(min(unfinished, key=lambda task: task.tried))
        for future in wait(self._running, None if wait_for_one else 0, FIRST_COMPLETED).done:
            task, start = self._running.pop(future)
            task.outcomes[start] = future.result()
            if future.result():
                continue
            task.failure_file(start).touch()
            if task.failed > 10 + goal // 2:
                raise CommandError(
                    f"The expert failed on {task.failed} of {len(task.outcomes)} starts of task "
                    f"{task.task_id}. At least two of three should succeed; lower --noise."
                )

    def _begin(self, task: TaskProgress) -> None:
        """Try a task's next start, or take what an earlier run of the command found."""
        start = task.tried
        task.tried += 1
        file = task.episode_file(start)
        if file.is_file() or task.failure_file(start).is_file():
            task.outcomes[start] = file.is_file()
            return
        future = self._pool.submit(record_episode, self._config.settings, task.task_id, start, file)
        self._running[future] = task, start

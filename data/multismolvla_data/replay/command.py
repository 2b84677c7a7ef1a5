"""``multismolvla-replay``: LIBERO's official demonstrations, rendered anew with all modalities.

    multismolvla-replay --source=libero_object --suite=libero_object --output=outputs/libero_object

The public data have RGB only, at 128 pixels, and no depth in metres. Their files hold the simulator's states and the
actions, so every sensor can be had after the fact. What is written is what ``multismolvla-record`` writes. As there,
worker processes store one file per demonstration, this process turns them into the data set, the same command
continues after whatever killed it, and the result appears under ``--output`` only when whole.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla.system.command import entry_point, parse_options, show_progress
from multismolvla.system.files import write_json
from multismolvla_data.formats.dataset_writer import append_episode, create_dataset, stream_metadata
from multismolvla_data.formats.simulators import simulator_pool
from multismolvla_data.formats.workspace import (
    METADATA_FILE,
    RecordingError,
    finished,
    open_workspace,
    publish,
)
from multismolvla_data.replay.config import ReplayConfig
from multismolvla_data.replay.plan import Plan, plan_replay, plan_table, summary_table

if TYPE_CHECKING:
    from multismolvla_data.replay.episode import Failure, Job

logger = logging.getLogger(__name__)

#: Demonstrations without success, inside the data set and, if there is none, in the workspace.
REPORT_FILE = "meta/replay_report.json"


def replay(config: ReplayConfig) -> Path:
    """Replay, or continue to replay, the demonstrations that ``config`` names.

    Returns:
        The folder of the finished data set.

    Raises:
        DemoFileError: a file is damaged, foreign or belongs to another scene.
        RecordingError: ``--output`` holds something else, a replay with other settings was begun there, or no
            demonstration succeeded.
        OSError: the disk is full; what was replayed stays and the command can be repeated.
    """
    if finished(config):
        logger.info("%s is complete already; nothing to do.", config.output)
        return config.output
    plan = plan_replay(config)
    workspace = open_workspace(config)
    with _Assembler(config, plan, workspace) as assembler:
        for job in _replays(config, plan, workspace / "episodes"):
            assembler.outcome(job)
    sys.stderr.write(assembler.table)
    publish(config, workspace)
    return config.output


def _replays(config: ReplayConfig, plan: Plan, folder: Path) -> Iterator[Job]:
    """Replay what is not decided yet; yield each job when it is."""
    from tqdm import tqdm

    from multismolvla_data.replay.episode import replay_demo

    decided = [job for job in plan.jobs if _decided(config, job, folder)]
    todo = [job for job in plan.jobs if job not in decided]
    # One of each task first: a file that does not fit its scene must show in the first minutes.
    first = {job.task_id: job for job in reversed(todo)}
    todo.sort(key=lambda job: job is not first[job.task_id])
    settings, queue = config.settings, iter(todo)
    running: dict[Future[Failure | None], Job] = {}
    failed, frames = 0, sum(job.frames for job in plan.jobs)
    progress = tqdm(total=frames, desc="replay", unit="frame", smoothing=0.1)
    with simulator_pool(max(1, min(config.workers, len(todo)))) as pool, progress as bar:
        while True:
            for job in islice(queue, 2 * config.workers - len(running)):
                running[pool.submit(replay_demo, settings, job, folder)] = job
            if not decided and not running:
                return
            for future in wait(running, 0 if decided else None, FIRST_COMPLETED).done:
                job = running.pop(future)
                failed += future.result() is not None
                bar.set_postfix(failed=failed)
                bar.update(job.frames)
                yield job
            if decided:  # what an earlier start left is assembled while the workers go on
                job = decided.pop(0)
                bar.update(job.frames)
                yield job


def _decided(config: ReplayConfig, job: Job, folder: Path) -> bool:
    return job.episode_file(folder).is_file() or (
        not config.keep_failed and job.failure_file(folder).is_file()
    )


class _Assembler:
    """Appends replayed episodes to the data set in the plan's order, whatever order they are finished in.

    Attributes:
        table: summary for the terminal, once closed.
    """

    def __init__(self, config: ReplayConfig, plan: Plan, workspace: Path) -> None:
        self._config, self._plan, self._workspace = config, plan, workspace
        self._waiting = iter(plan.jobs)
        self._next = next(self._waiting, None)
        self._done: set[Job] = set()
        self._kept: list[Job] = []
        self._failures: dict[Job, Failure] = {}
        self._pictures: dict[int, tuple[str, dict[str, Any]]] = {}
        self._dataset: Any = None
        self.table = ""

    def __enter__(self) -> _Assembler:
        self._dataset = create_dataset(
            self._workspace / "dataset", self._config.repo_id, self._config.task, self._config.size
        )
        return self

    def outcome(self, job: Job) -> None:
        """Note that a job is decided and write every episode whose turn has come."""
        from multismolvla_data.replay.episode import load_failure

        folder = self._workspace / "episodes"
        self._done.add(job)
        while self._next in self._done:
            turn = self._next
            failure = load_failure(turn, folder)
            if failure is not None:
                self._failures[turn] = failure
            if turn.episode_file(folder).is_file():
                self._write(turn, folder)
            self._next = next(self._waiting, None)

    def _write(self, job: Job, folder: Path) -> None:
        from multismolvla_data.record.episode import load_episode

        episode = load_episode(job.episode_file(folder))
        instruction = self._plan.instructions[job.task_id]
        append_episode(self._dataset, episode, instruction)
        self._kept.append(job)
        middle = {key: value[job.frames // 2] for key, value in episode.items()}
        self._pictures.setdefault(job.task_id, (instruction, middle))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return  # the episodes stay; the data set is assembled again next time
        from multismolvla_data.record.contact_sheet import contact_sheet

        self.table = summary_table(self._plan, self._kept, self._failures)
        root = self._workspace / "dataset"
        write_json(self._workspace / Path(REPORT_FILE).name, self._report())
        if not self._kept:
            sys.stderr.write(self.table)
            raise RecordingError(
                f"None of {len(self._plan.jobs)} demonstrations succeeded; reasons in "
                f"{self._workspace / Path(REPORT_FILE).name}. Is --suite={self._config.suite} theirs? --mode=states "
                "repeats their trajectories exactly."
            )
        self._dataset.finalize()
        write_json(root / METADATA_FILE, self._metadata())
        write_json(root / REPORT_FILE, self._report())
        contact_sheet(list(self._pictures.values()), root / "preview.png")

    def _report(self) -> dict[str, Any]:
        return {
            "demonstrations": len(self._plan.jobs),
            "succeeded": len(self._plan.jobs) - len(self._failures),
            "written": len(self._kept),
            "dropped_noops": sum(job.dropped for job in self._kept),
            "failed": [
                {"file": job.path.name, "demo": job.demo, **asdict(failure), "dropped_noops": job.dropped}
                for job, failure in self._failures.items()
            ],
        }

    def _metadata(self) -> dict[str, Any]:
        return {
            "recording": self._config.fingerprint(),
            "suite": self._config.suite,
            "tasks": {str(t): text for t, text in self._plan.instructions.items()},
            "init_split": "demonstrations",
            "demonstrations": [
                {
                    "file": job.path.name,
                    "demo": job.demo,
                    "dropped_noops": job.dropped,
                    "succeeded": job not in self._failures,
                }
                for job in self._kept
            ],
            "episode_lengths": [job.frames for job in self._kept],
            **stream_metadata(self._config.task, self._config.render_quality),
            "actions": "as demonstrated; each belongs to the observation of the state before it",
            "lerobot": version("lerobot"),
            "mujoco": version("mujoco"),
        }


@entry_point("multismolvla-replay", loads="lerobot")
def main() -> int:
    """Entry point of ``multismolvla-replay``.

    Returns:
        0 when the data set is complete, 1 on an error named on stderr, 130 when interrupted.
    """
    show_progress("multismolvla_data")
    config = parse_options(ReplayConfig)
    if config.dry_run:
        sys.stdout.write(plan_table(config, plan_replay(config)))
    else:
        replay(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())

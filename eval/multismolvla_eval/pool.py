"""A pool of worker processes that survives the death of its members."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from multismolvla_eval.plan import Episode
from multismolvla_eval.results import Row
from multismolvla_eval.worker import WorkerArguments, log_path, worker_main

logger = logging.getLogger(__name__)

#: So many crashes without a finished episode in between are no bad luck but a broken set-up.
CRASHES_IN_A_ROW = 3
POLL_S = 1.0
LOG_TAIL_LINES = 25


class WorkerError(RuntimeError):
    """A worker that cannot work: it failed while loading, or the workers crash one after the other."""


@dataclass
class _Worker:
    arguments: WorkerArguments
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    episode: Episode | None = None
    since: float = 0.0


class WorkerPool:
    """Runs episodes in several processes.

    Args:
        arguments: one entry per worker.
        episode_timeout: an episode that takes longer is ended [s].
    """

    def __init__(self, arguments: list[WorkerArguments], episode_timeout: float) -> None:
        self._arguments = arguments
        self._timeout = episode_timeout
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._pending: list[tuple[Episode, str]] = []

    def describe(self) -> dict[str, Any]:
        """Start the first worker and return its description of environment and policies.

        Raises:
            WorkerError: it ended instead; the message holds the end of its log.
        """
        worker = self._start(self._arguments[0])
        while not worker.pipe.poll(POLL_S):
            if not worker.process.is_alive():
                raise self._setup_error(worker)
        try:
            _, description = worker.pipe.recv()
        except EOFError:
            worker.process.join(10)
            raise self._setup_error(worker) from None
        worker.ready = True
        return description

    def run(
        self,
        episodes: Iterable[Episode],
        on_row: Callable[[Row], None],
        on_crash: Callable[[Episode, str], None],
    ) -> None:
        """Run all episodes.

        Args:
            episodes: in the order in which they should start.
            on_row: called with every finished episode's row.
            on_crash: called for an episode whose worker died or hung, with the cause. The call is held back until some
                later episode has finished, so that a broken set-up does not fill the results with failures.

        Raises:
            WorkerError: a worker cannot load, workers crash one after the other, or no episode finished after the last
                crash, which then stays unrecorded: nothing shows that the set-up still works.
        """
        queue = deque(episodes)
        for arguments in self._arguments[1 : len(queue)]:
            self._start(arguments)
        while queue or any(w.episode for w in self._workers):
            for worker in self._workers:
                if worker.ready and worker.episode is None and queue:
                    worker.episode, worker.since = queue.popleft(), time.monotonic()
                    worker.pipe.send(worker.episode)
            self._wait(on_row, on_crash)
        if self._pending:
            raise WorkerError(
                f"{self._crashes()}\nNo episode finished after that, so nothing of it was recorded: the set-up may be "
                "broken. The same command repeats what is missing; if it always crashes there, run more episodes "
                "(--episodes, --conditions), so that one of them finishes afterwards."
            )

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            if worker.process.is_alive():
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        self._workers.clear()

    def _start(self, arguments: WorkerArguments) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=worker_main, args=(arguments, theirs), daemon=True, name=f"eval-worker-{arguments.number}"
        )
        process.start()
        theirs.close()
        worker = _Worker(arguments, process, ours)
        self._workers.append(worker)
        return worker

    def _wait(self, on_row: Callable[[Row], None], on_crash: Callable[[Episode, str], None]) -> None:
        for item in wait([w.pipe for w in self._workers], POLL_S):
            worker = next(w for w in self._workers if w.pipe is item)
            try:
                kind, content = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                self._died(worker)
                continue
            if kind == "ready":
                worker.ready = True
                continue
            worker.episode = None
            self._flush_crashes(on_crash)
            on_row(content)
        for worker in list(self._workers):
            if worker.episode is not None and time.monotonic() - worker.since > self._timeout:
                logger.warning(
                    "Episode %s takes longer than %g s; it is ended.", worker.episode.key, self._timeout
                )
                worker.process.kill()
                self._replace(worker, f"stuck: no end after {self._timeout:g} s")

    def _died(self, worker: _Worker) -> None:
        worker.process.join(10)
        if not worker.ready:
            raise self._setup_error(worker)
        cause = f"crash: exit code {worker.process.exitcode}"
        if worker.process.exitcode == 1:  # a Python exception: the log ends with it
            cause += f", {_last_line(worker)}"
        self._replace(worker, cause[:300])

    def _replace(self, worker: _Worker, cause: str) -> None:
        """Put a fresh worker in the place of one that is gone; its episode counts as failed with ``cause``."""
        self._workers.remove(worker)
        worker.process.join(10)
        worker.pipe.close()
        if worker.episode is not None:
            logger.warning("Episode %s failed: %s", worker.episode.key, cause)
            self._pending.append((worker.episode, cause))
        if len(self._pending) >= CRASHES_IN_A_ROW:
            raise WorkerError(
                f"{self._crashes()}\nNone finished in between; nothing of them was recorded.\n"
                f"End of {log_path(worker.arguments)}:\n{_tail(worker)}"
            )
        self._start(worker.arguments)

    def _crashes(self) -> str:
        causes = "\n".join(f"  {e.key}: {c}" for e, c in self._pending)
        return f"{len(self._pending)} episode(s) crashed in a row:\n{causes}"

    def _flush_crashes(self, on_crash: Callable[[Episode, str], None]) -> None:
        for episode, cause in self._pending:
            on_crash(episode, cause)
        self._pending.clear()

    def _setup_error(self, worker: _Worker) -> WorkerError:
        reason = f": {_last_line(worker)}" if worker.process.exitcode == 1 else ""
        return WorkerError(
            f"Environment or policies could not be loaded (exit code {worker.process.exitcode}){reason}\n"
            f"The whole log is {log_path(worker.arguments)}."
        )


def _last_line(worker: _Worker) -> str:
    lines = _tail(worker).splitlines()
    return lines[-1] if lines else "no message"


def _tail(worker: _Worker) -> str:
    path = log_path(worker.arguments)
    text = path.read_text(errors="replace") if path.is_file() else ""
    return "\n".join(text.strip().splitlines()[-LOG_TAIL_LINES:])

"""A pool of worker processes that survives the death of its members.

With a batch size above one the workers are simulators, and one more process, the policy server, computes the
actions.

A crash, or an episode that does not end, says nothing about a policy as long as it may be the machine's
fault. So a crashed episode runs once more, after another one has finished. If it crashes again it is a
failure, because leaving it out would favour a policy that drives the simulator into crashes; but its row is
held back until another episode has finished. At the end of a run this is one that has finished before: it
runs again, unrecorded. If none finishes, or ``CRASHES_IN_A_ROW`` starts crash with none finishing in between,
or the policy server fails, it is the set-up that fails (graphics driver, memory, files): the run stops,
nothing of these crashes is recorded, and the episodes run again when the run is continued.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from multismolvla_eval.config import EvalConfig
from multismolvla_eval.policies.interface import PolicyServer
from multismolvla_eval.protocol.schedule import EpisodeSpec
from multismolvla_eval.records.schema import EpisodeRow, RunFacts
from multismolvla_eval.rollout.server import ServerProcess
from multismolvla_eval.rollout.worker import begin, log_path, worker_main

logger = logging.getLogger(__name__)

#: So many crashes without a finished episode in between stop the run.
CRASHES_IN_A_ROW = 3
POLL_S = 1.0
#: A process that has closed its pipe may take so long to end, on a machine that writes large core dumps [s].
EXIT_S = 60.0
LOG_TAIL_LINES = 25


class WorkerError(RuntimeError):
    """A set-up that cannot work: a worker cannot load, the policy server fails, or all episodes crash."""


@dataclass
class _WorkerProcess:
    """A worker process and what it does."""

    number: int
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    episode: EpisodeSpec | None = None
    since: float = field(default_factory=time.monotonic)  # it began to load, or its episode began


class WorkerPool:
    """Runs episodes in several processes.

    Args:
        config: options of the run.
        shard: number of this process among those that share the run; it tells the workers' numbers apart.
    """

    def __init__(self, config: EvalConfig, shard: int = 0) -> None:
        self._config = config
        self._numbers = range(shard * config.workers, (shard + 1) * config.workers)
        self._server_name = f"server-{self._numbers[0]}"
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_WorkerProcess] = []
        self._server_process: ServerProcess | None = None
        self._server: PolicyServer | None = None
        self._queue: deque[EpisodeSpec] = deque()
        self._crashed: set[str] = set()  # keys of the episodes that have crashed once
        self._again: deque[EpisodeSpec] = deque()  # those that wait for their second try
        self._held: list[EpisodeRow] = []  # second crashes since an episode finished
        self._proven: EpisodeSpec | None = None  # the last episode that finished
        self._check: EpisodeSpec | None = None  # it, while it runs once more
        self._in_a_row: dict[tuple[str, int, int], str] = {}  # starts that crashed since an episode finished

    def load(self) -> RunFacts:
        """Start the first worker and return what its environment and policies tell of themselves.

        Raises:
            WorkerError: it ended instead; the message holds the last line of its log.
        """
        if self._config.batch_size > 1:
            self._server_process = ServerProcess(ctx=self._context)
            self._server_process.start(begin, (self._config, self._server_name))
            self._server = self._server_process.batch_server(self._config)
        worker = self._start(self._numbers[0])
        try:
            self._facts: RunFacts = worker.pipe.recv()
        except EOFError:
            worker.process.join(EXIT_S)
            raise self._cannot_load(worker) from None
        worker.ready = True
        return self._facts

    def run(self, episodes: Iterable[EpisodeSpec], proven: EpisodeSpec | None = None) -> Iterator[EpisodeRow]:
        """Run all episodes and yield the row of each one that has finished, or crashed twice.

        Args:
            episodes: in the order in which they should start.
            proven: one that finished in an earlier call.

        Raises:
            WorkerError: a worker cannot load, the policy server fails, or episodes crash one after the other.
        """
        self._queue, self._proven = deque(episodes), proven
        for number in self._numbers[1 : len(self._queue)]:
            self._start(number)
        while self._more_to_run():
            for worker in self._workers:
                if worker.ready and worker.episode is None and self._queue:
                    self._give(worker, self._queue.popleft())
            for pipe in wait([w.pipe for w in self._workers], POLL_S):
                yield from self._hear(next(w for w in self._workers if w.pipe is pipe))
            for worker in list(self._workers):
                self._end_if_late(worker)

    def _more_to_run(self) -> bool:
        """Whether anything runs or waits; at the end it queues second tries, then the check of the set-up."""
        if self._queue or any(w.episode for w in self._workers):
            return True
        self._queue.extend(self._again)
        self._again.clear()
        if not self._queue and self._held:
            if self._proven is None:
                raise self._broken_setup("No episode has finished, so it is probably the set-up that fails")
            self._check = replace(self._proven, clip=False)
            self._queue.append(self._check)
        return bool(self._queue)

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        self._workers.clear()
        if self._server_process is not None:
            self._server_process.shutdown()
            self._server_process = self._server = None

    def _start(self, number: int) -> _WorkerProcess:
        ours, theirs = self._context.Pipe()
        arguments = (self._config, number, theirs, self._server)
        process = self._context.Process(
            target=worker_main, args=arguments, daemon=True, name=f"worker-{number}"
        )
        process.start()
        theirs.close()
        worker = _WorkerProcess(number, process, ours)
        self._workers.append(worker)
        return worker

    def _give(self, worker: _WorkerProcess, episode: EpisodeSpec) -> None:
        worker.episode, worker.since = episode, time.monotonic()
        try:
            worker.pipe.send(episode)
        except BrokenPipeError:
            logger.debug("Worker %d died before its episode began.", worker.number)  # its pipe tells so next

    def _hear(self, worker: _WorkerProcess) -> Iterator[EpisodeRow]:
        """Take in what a worker sends, or its death."""
        try:
            message: RunFacts | EpisodeRow = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join(EXIT_S)
            if not worker.ready:
                raise self._cannot_load(worker) from None
            self._replace(worker, f"crash: {self._end(worker)}"[:300])
            return
        if isinstance(message, RunFacts):
            worker.ready = True
            return
        yield from self._held
        if worker.episode is not self._check:
            yield message
        self._proven, self._check, worker.episode = worker.episode, None, None
        self._held.clear()
        self._in_a_row.clear()
        if self._again:
            self._queue.appendleft(self._again.popleft())

    def _replace(self, worker: _WorkerProcess, cause: str) -> None:
        """Put a fresh worker in the place of one that is gone; its episode runs again, or its row is held."""
        self._workers.remove(worker)
        worker.process.join(EXIT_S)
        worker.pipe.close()
        episode = worker.episode
        if episode is not None:
            logger.warning("Episode %s: %s", episode.key, cause)
            if failure := self._server_failure():
                raise WorkerError(f"{failure} Finished episodes are kept; the same command continues.")
            # policies alternate on one start of a task: that it cannot be simulated is one crash
            self._in_a_row[episode.suite, episode.task_id, episode.episode] = f"  {episode.key}: {cause}"
            if len(self._in_a_row) == CRASHES_IN_A_ROW:
                why = f"{CRASHES_IN_A_ROW} episodes crashed in a row, so it is probably the set-up that fails"
                raise self._broken_setup(why, worker)
            if episode is self._check:
                raise self._broken_setup("An episode that had finished before crashes now", worker)
            if episode.key in self._crashed:
                self._held.append(self._crash_row(episode, cause))
            else:
                self._crashed.add(episode.key)
                self._again.append(episode)
        self._start(worker.number)

    def _broken_setup(self, why: str, worker: _WorkerProcess | None = None) -> WorkerError:
        """The error after crashes; the worker is the one that crashed last, if its log is worth showing."""
        worker = worker or self._workers[-1]
        crashes = "\n".join(self._in_a_row.values())
        return WorkerError(
            f"{why}:\n{crashes}\nNothing of this is recorded. Once the cause is gone (graphics driver, "
            f"memory, files), the same command continues.\nEnd of {self._log(worker)}:\n{self._tail(worker)}"
        )

    def _server_failure(self) -> str:
        """What is wrong with the policy server, and where to read on; empty if nothing is."""
        if self._server is None:
            return ""
        try:
            what = self._server.failure()
        except (OSError, EOFError):
            what = "its process has ended"
        log = log_path(self._config, self._server_name)
        return what and f"The policy server failed: {what}\nThe whole log is {log}."

    def _crash_row(self, episode: EpisodeSpec, cause: str) -> EpisodeRow:
        """What is known of an episode whose process is gone."""
        return EpisodeRow(
            run="",
            policy=episode.policy,
            checkpoint=self._facts.policies[episode.policy].checkpoint,
            suite=episode.suite,
            suite_hash="",
            task_id=episode.task_id,
            task=self._facts.suites[episode.suite].tasks[episode.task_id],
            condition=episode.condition,
            episode=episode.episode,
            repeat=episode.repeat,
            init_state=episode.episode,
            success=False,
            cause=cause,
            steps=0,
        )

    def _end_if_late(self, worker: _WorkerProcess) -> None:
        """End a worker whose episode takes too long."""
        limit = self._config.episode_timeout
        if worker.episode is not None and time.monotonic() - worker.since > limit:
            worker.process.kill()
            self._replace(worker, f"crash: no end after {limit:g} s")

    def _cannot_load(self, worker: _WorkerProcess) -> WorkerError:
        failure = self._server_failure() or f"The whole log is {self._log(worker)}."
        return WorkerError(
            f"Environment or policies could not be loaded ({self._end(worker)}).\n{failure} "
            "Finished episodes are kept; the same command continues."
        )

    def _end(self, worker: _WorkerProcess) -> str:
        """How a process ended; a Python exception is the last line of its log."""
        code = worker.process.exitcode
        tail = self._tail(worker).splitlines() if code == 1 else []
        return f"exit code {code}" + (f", {tail[-1]}" if tail else "")

    def _log(self, worker: _WorkerProcess) -> Path:
        return log_path(self._config, f"worker-{worker.number}")

    def _tail(self, worker: _WorkerProcess) -> str:
        path = self._log(worker)
        text = path.read_text(errors="replace") if path.is_file() else ""
        return "\n".join(text.strip().splitlines()[-LOG_TAIL_LINES:])

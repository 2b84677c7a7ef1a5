"""A pool of worker processes that survives the death of its members.

With a batch size above one the workers are simulators, and one more process, the policy server, computes the actions.

A crash, or an episode that does not end, says nothing about a policy as long as it may be the machine's fault. So a
crashed episode runs once more, after all others; if it crashes again it is recorded as a failure, because leaving it out
would favour a policy that drives the simulator into crashes. Where ``CRASHES_IN_A_ROW`` starts crash without an episode
that finishes in between, it is the set-up that fails (graphics driver, memory, files): the run stops, and they run again
when it is continued.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from multismolvla_eval.policies.messages import PolicyServer
from multismolvla_eval.protocol.schedule import EpisodeSpec
from multismolvla_eval.records.schema import EpisodeRow, RunFacts
from multismolvla_eval.rollout.server import ServerProcess
from multismolvla_eval.rollout.worker import WorkerArguments, begin, worker_main

logger = logging.getLogger(__name__)

#: So many crashes without a finished episode in between stop the run.
CRASHES_IN_A_ROW = 3
POLL_S = 1.0
#: A process that has closed its pipe may take so long to end, on a machine that writes large core dumps [s].
EXIT_S = 60.0
LOG_TAIL_LINES = 25


class WorkerError(RuntimeError):
    """A set-up that cannot work: a worker cannot load, or several episodes in a row have crashed."""


@dataclass
class _Member:
    """A worker process and what it does."""

    arguments: WorkerArguments
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    episode: EpisodeSpec | None = None
    since: float = field(default_factory=time.monotonic)  # it began to load, or its episode began


class WorkerPool:
    """Runs episodes in several processes.

    Args:
        arguments: one entry per worker.
        episode_timeout: an episode that takes longer is ended and counts as crashed [s].
        load_timeout: a process that is not ready after so long is ended [s].
    """

    def __init__(self, arguments: list[WorkerArguments], episode_timeout: float, load_timeout: float) -> None:
        self._arguments = arguments
        self._timeout, self._load_timeout = episode_timeout, load_timeout
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Member] = []
        self._server_process: ServerProcess | None = None
        self._server: PolicyServer | None = None
        self._queue: deque[EpisodeSpec] = deque()
        self._crashed: set[str] = set()  # keys of the episodes that wait for their second try
        self._in_a_row: dict[tuple[str, int, int], str] = {}  # starts that crashed since an episode finished

    def describe(self) -> RunFacts:
        """Start the first worker and return what its environment and policies tell of themselves.

        Raises:
            WorkerError: it ended instead, or takes too long; the message holds the end of its log.
        """
        first = self._arguments[0]
        if first.batch_size > 1:
            own = replace(first, name=f"server-{first.number}")
            self._server_process = ServerProcess(ctx=self._context)
            self._server_process.start(begin, (own,))
            self._server = self._server_process.batch_server(own, len(self._arguments))
        worker = self._start(first)
        while not worker.pipe.poll(POLL_S):
            self._refuse_late(worker)
        try:
            facts: RunFacts = worker.pipe.recv()
        except EOFError:
            worker.process.join(EXIT_S)
            raise self._cannot_load(worker) from None
        worker.ready = True
        return facts

    def run(
        self,
        episodes: Iterable[EpisodeSpec],
        on_row: Callable[[EpisodeRow], None],
        on_crash: Callable[[EpisodeSpec, str], None],
    ) -> None:
        """Run all episodes.

        Args:
            episodes: in the order in which they should start.
            on_row: called with every finished episode's row.
            on_crash: called with the cause for an episode that has crashed twice.

        Raises:
            WorkerError: a worker cannot load, or episodes crash one after the other.
        """
        self._queue = deque(episodes)
        for arguments in self._arguments[1 : len(self._queue)]:
            self._start(arguments)
        while self._queue or any(w.episode for w in self._workers):
            for worker in self._workers:
                if worker.ready and worker.episode is None and self._queue:
                    self._give(worker, self._queue.popleft())
            for pipe in wait([w.pipe for w in self._workers], POLL_S):
                self._hear(next(w for w in self._workers if w.pipe is pipe), on_row, on_crash)
            for worker in list(self._workers):
                self._refuse_late(worker)
                if worker.episode is not None and time.monotonic() - worker.since > self._timeout:
                    worker.process.kill()
                    self._replace(worker, f"crash: no end after {self._timeout:g} s", on_crash)

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

    def _start(self, arguments: WorkerArguments) -> _Member:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=worker_main, args=(arguments, theirs, self._server), daemon=True, name=arguments.name
        )
        process.start()
        theirs.close()
        worker = _Member(arguments, process, ours)
        self._workers.append(worker)
        return worker

    def _give(self, worker: _Member, episode: EpisodeSpec) -> None:
        worker.episode, worker.since = episode, time.monotonic()
        try:
            worker.pipe.send(episode)
        except BrokenPipeError:
            logger.debug("%s died before its episode began.", worker.arguments.name)  # its pipe tells so next

    def _hear(
        self,
        worker: _Member,
        on_row: Callable[[EpisodeRow], None],
        on_crash: Callable[[EpisodeSpec, str], None],
    ) -> None:
        """Take in what a worker sends, or its death."""
        try:
            message: RunFacts | EpisodeRow = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join(EXIT_S)
            if not worker.ready:
                raise self._cannot_load(worker) from None
            self._replace(worker, _cause(worker), on_crash)
            return
        if isinstance(message, RunFacts):
            worker.ready = True
            return
        self._in_a_row.clear()
        worker.episode = None
        on_row(message)

    def _replace(self, worker: _Member, cause: str, on_crash: Callable[[EpisodeSpec, str], None]) -> None:
        """Put a fresh worker in the place of one that is gone."""
        self._workers.remove(worker)
        worker.process.join(EXIT_S)
        worker.pipe.close()
        if worker.episode is not None:
            self._crash(worker.episode, cause, worker, on_crash)
        self._start(worker.arguments)

    def _crash(
        self, episode: EpisodeSpec, cause: str, worker: _Member, on_crash: Callable[[EpisodeSpec, str], None]
    ) -> None:
        """Let an episode run again later, or record it if this was its second try.

        Raises:
            WorkerError: too many episodes have crashed in a row.
        """
        logger.warning("Episode %s: %s", episode.key, cause)
        # policies alternate on one start of a task: that it cannot be simulated is one crash
        self._in_a_row[episode.suite, episode.task_id, episode.episode] = f"  {episode.key}: {cause}"
        if len(self._in_a_row) == CRASHES_IN_A_ROW:
            crashes = "\n".join(self._in_a_row.values())
            raise WorkerError(
                f"{CRASHES_IN_A_ROW} episodes crashed in a row, so it is probably the set-up that fails:\n{crashes}\n"
                "Once the cause is gone (graphics driver, memory, files), the same command continues.\n"
                f"End of {worker.arguments.log}:\n{_tail(worker)}"
            )
        if episode.key in self._crashed:
            on_crash(episode, cause)
        else:
            self._crashed.add(episode.key)
            self._queue.append(episode)

    def _refuse_late(self, worker: _Member) -> None:
        """See that a worker gets ready in time."""
        if not worker.ready and time.monotonic() - worker.since > self._load_timeout:
            raise self._cannot_load(worker, f"not ready after --load_timeout={self._load_timeout:g} s")

    def _cannot_load(self, worker: _Member, why: str | None = None) -> WorkerError:
        reason = f": {_last_line(worker)}" if worker.process.exitcode == 1 else ""
        return WorkerError(
            f"Environment or policies could not be loaded ({why or f'exit code {worker.process.exitcode}'}){reason}\n"
            f"The whole logs are in {worker.arguments.log.parent}. Finished episodes are kept; the same command continues."
        )


def _cause(worker: _Member) -> str:
    cause = f"crash: exit code {worker.process.exitcode}"
    if worker.process.exitcode == 1:  # a Python exception: the log ends with it
        cause += f", {_last_line(worker)}"
    return cause[:300]


def _last_line(worker: _Member) -> str:
    lines = _tail(worker).splitlines()
    return lines[-1] if lines else "no message"


def _tail(worker: _Member) -> str:
    path = worker.arguments.log
    text = path.read_text(errors="replace") if path.is_file() else ""
    return "\n".join(text.strip().splitlines()[-LOG_TAIL_LINES:])

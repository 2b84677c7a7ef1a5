"""A pool of worker processes that survives the death of its members.

With a batch size above one the workers are simulators, and one more process, the policy server, computes the actions.

A crashed or stuck episode is that episode's failure, and the run goes on. But a machine that has lost its graphics driver
crashes in every episode, which says nothing about a policy. Hence a crash is believed once an episode finishes after it. After
``CRASHES_IN_A_ROW`` of them, and where no more episodes would follow, a *trial* runs alone: the last episode that finished,
once more and unrecorded, or, before any has, the one of those to come that is least like those that crashed. If the trial
finishes, all crashes are recorded; if it crashes too, the run stops, and nothing of them is recorded.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from multismolvla_eval.policies.messages import SERVER_GONE, WorkerArguments
from multismolvla_eval.protocol.schedule import Episode
from multismolvla_eval.records.store import Row
from multismolvla_eval.rollout.server import ALIVE, server_main
from multismolvla_eval.rollout.worker import log_path, worker_main

logger = logging.getLogger(__name__)

#: So many crashes without a finished episode in between call for a trial of the set-up.
CRASHES_IN_A_ROW = 3
#: How far a trial is looked for among the episodes to come; a plan may have a million.
LOOK_AHEAD = 10_000
POLL_S = 1.0
#: A process that has closed its pipe may take so long to end, on a machine that writes large core dumps [s].
EXIT_S = 60.0
#: A policy server that does not answer for so long, while an episode is over its time, hangs [s].
ANSWER_S = 60.0
LOG_TAIL_LINES = 25


class WorkerError(RuntimeError):
    """A set-up that cannot work: a worker failed while loading, or even an episode that had finished crashes now."""


@dataclass
class _Worker:
    arguments: WorkerArguments
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    episode: Episode | None = None
    since: float = field(default_factory=time.monotonic)  # it began to load, or its episode began


@dataclass
class _Server:
    arguments: WorkerArguments
    process: BaseProcess
    pipe: Connection


class WorkerPool:
    """Runs episodes in several processes.

    Args:
        arguments: one entry per worker.
        episode_timeout: an episode that takes longer is ended [s].
        load_timeout: a process that is not ready after so long is ended [s].
    """

    def __init__(self, arguments: list[WorkerArguments], episode_timeout: float, load_timeout: float) -> None:
        self._arguments = arguments
        self._timeout = episode_timeout
        self._load_timeout = load_timeout
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._pending: list[tuple[Episode, str]] = []  # crashed since the last episode finished
        self._proven: Episode | None = None  # the last one that finished
        self._trial: Episode | None = None  # running, alone
        self._failed_loads = 0  # since a worker was last ready
        self._server: _Server | None = None
        self._queue: deque[Episode] = deque()
        self._suspects: deque[Episode] = (
            deque()
        )  # ran when the policy server died: each is tried again, alone

    def describe(self) -> dict[str, Any]:
        """Start the first worker and return its description of environment and policies.

        Raises:
            WorkerError: it ended instead, or takes too long; the message holds the end of its log.
        """
        worker = self._start(self._arguments[0])
        while not worker.pipe.poll(POLL_S):
            # a server that dies while loading has not yet taken up its simulators' connections: they would wait for ever
            for member in (self._server, worker):
                if member is not None and not member.process.is_alive():
                    raise self._setup_error(member)
            if self._overdue(worker):
                late = self._server if self._server is not None and self._server_hangs() else worker
                raise self._setup_error(late, self._not_ready())
        try:
            _, description = worker.pipe.recv()
        except EOFError:
            worker.process.join(EXIT_S)
            raise self._setup_error(worker) from None
        worker.ready = True
        return description

    def run(
        self,
        episodes: Iterable[Episode],
        on_row: Callable[[Row], None],
        on_crash: Callable[[Episode, str], None],
        proven: Episode | None = None,
    ) -> None:
        """Run all episodes.

        Args:
            episodes: in the order in which they should start.
            on_row: called with every finished episode's row.
            on_crash: called for an episode whose worker died or hung, with the cause, once the set-up is known to work
                nevertheless; see the module.
            proven: an episode that finished in an earlier call, for a trial before any has finished in this one.

        Raises:
            WorkerError: a worker cannot load, or a trial crashed. What crashed last is unrecorded then.
        """
        self._queue, self._proven = deque(episodes), proven
        for arguments in self._arguments[1 : len(self._queue)]:
            self._start(arguments)
        while self._queue or self._suspects or self._pending or any(w.episode for w in self._workers):
            for worker in self._workers:
                if worker.ready and worker.episode is None:
                    self._give(worker)
            self._wait(on_row, on_crash)

    def close(self) -> None:
        """End all processes."""
        members: list[_Worker | _Server] = [*self._workers]
        if self._server is not None:
            members.append(self._server)
        for member in members:
            if member.process.is_alive():
                member.process.terminate()
        for member in members:
            member.process.join(5)
            if member.process.is_alive():
                member.process.kill()
                member.process.join()
            member.pipe.close()
        self._workers.clear()
        self._server = None

    def _give(self, worker: _Worker) -> None:
        """The next episode for an idle worker, if there is one that may start now."""
        if self._in_doubt() or self._suspects:
            if any(w.episode for w in self._workers):
                return
            worker.episode = self._next_trial() if self._in_doubt() else self._suspects.popleft()
        elif self._queue:
            worker.episode = self._queue.popleft()
        else:
            return
        worker.since = time.monotonic()
        try:
            worker.pipe.send(worker.episode)
        except BrokenPipeError:
            logger.debug(
                "Worker %d died before its episode began.", worker.arguments.number
            )  # _wait() sees it

    def _in_doubt(self) -> bool:
        """Whether a trial must show that the set-up still works before anything else may start."""
        ended = not (self._queue or self._suspects)
        return len(self._pending) >= CRASHES_IN_A_ROW or (ended and bool(self._pending))

    def _next_trial(self) -> Episode:
        """The episode that shows whether the set-up works."""
        if self._proven is not None:
            self._proven = self._trial = replace(self._proven, clip=False)  # it has been filmed
        else:
            # one of them holds something: _crashed() stops a run that has nothing left to try
            queue = self._queue or self._suspects
            ahead = islice(queue, LOOK_AHEAD)
            self._trial = min(ahead, key=lambda e: sum(_likeness(e, c) for c, _ in self._pending))
            queue.remove(self._trial)
        logger.warning(
            "%d episode(s) crashed; %s is to show that others do not.", len(self._pending), self._trial.key
        )
        return self._trial

    def _start(self, arguments: WorkerArguments) -> _Worker:
        ours, theirs = self._context.Pipe()
        to_server: Connection | None = None
        if arguments.batch_size > 1:
            at_server, to_server = self._context.Pipe()
            self._serve(arguments).pipe.send(at_server)
            at_server.close()
        process = self._context.Process(
            target=worker_main,
            args=(arguments, theirs, to_server),
            daemon=True,
            name=f"eval-worker-{arguments.number}",
        )
        process.start()
        theirs.close()
        if to_server is not None:
            to_server.close()
        worker = _Worker(arguments, process, ours)
        self._workers.append(worker)
        return worker

    def _serve(self, arguments: WorkerArguments) -> _Server:
        """The policy server, started if need be."""
        if self._server is None:
            own = replace(arguments, role="server")
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=server_main, args=(own, theirs), daemon=True, name="eval-policy-server"
            )
            process.start()
            theirs.close()
            self._server = _Server(own, process, ours)
        return self._server

    def _wait(self, on_row: Callable[[Row], None], on_crash: Callable[[Episode, str], None]) -> None:
        server = [self._server.process.sentinel] if self._server is not None else []
        ready = wait([*(w.pipe for w in self._workers), *server], POLL_S)
        if any(item in server for item in ready):
            self._server_died()
            return
        for item in ready:
            worker = next(w for w in self._workers if w.pipe is item)
            try:
                kind, content = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join(EXIT_S)
                if worker.process.exitcode == SERVER_GONE:
                    self._server_died()
                    return
                self._died(worker)
                continue
            if kind == "ready":
                worker.ready, self._failed_loads = True, 0
                continue
            self._finished(worker, content, on_row, on_crash)
        for worker in list(self._workers):
            if not self._overdue(worker):
                continue
            if worker.episode is None:
                logger.warning("%s is %s; it is ended.", worker.process.name, self._not_ready())
            else:
                logger.warning(
                    "Episode %s takes longer than %g s; it is ended.", worker.episode.key, self._timeout
                )
            if self._server_hangs():
                self._server_died("stuck: the policy server does not answer")
                return
            worker.process.kill()
            if worker.episode is None:
                self._failed_to_load(worker, self._not_ready())
            self._replace(worker, f"stuck: no end after {self._timeout:g} s")

    def _overdue(self, worker: _Worker) -> bool:
        """Whether it takes too long to load or to run its episode."""
        if worker.ready and worker.episode is None:
            return False
        limit = self._timeout if worker.ready else self._load_timeout
        return time.monotonic() - worker.since > limit

    def _not_ready(self) -> str:
        return f"not ready after --load_timeout={self._load_timeout:g} s"

    def _died(self, worker: _Worker) -> None:
        if not worker.ready:
            self._failed_to_load(worker)
        self._replace(worker, _crash("crash", worker))

    def _failed_to_load(self, member: _Worker | _Server, why: str | None = None) -> None:
        """Let a process that takes the place of another try again: memory may have been short for a moment.

        Args:
            member: what failed.
            why: if it did not end by itself.

        Raises:
            WorkerError: no episode has finished yet, or it has tried often enough.
        """
        self._failed_loads += 1
        if self._proven is None or self._failed_loads >= CRASHES_IN_A_ROW:
            raise self._setup_error(member, why)
        why = why or f"exit code {member.process.exitcode}"
        logger.warning("%s ended while it was loading (%s); it starts again.", member.process.name, why)

    def _server_hangs(self) -> bool:
        """Whether it is the policy server that an episode waits for."""
        if self._server is None:
            return False
        pipe = self._server.pipe
        try:
            while pipe.poll():
                pipe.recv()
            pipe.send(ALIVE)
            return not pipe.poll(min(self._timeout, ANSWER_S))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return False  # it is dead, which the next wait() sees

    def _server_died(self, hung: str | None = None) -> None:
        """Begin anew with all processes. Whose fault it was is found out by running what was running one by one.

        Args:
            hung: the cause, if it is still there.

        Raises:
            WorkerError: it cannot load, or it was the trial's server.
        """
        server, running = self._server, [w.episode for w in self._workers if w.episode is not None]
        assert server is not None
        if hung is not None:
            server.process.kill()
        server.process.join(EXIT_S)
        if not any(w.ready for w in self._workers):
            self._failed_to_load(server, hung)
        cause = hung or _crash("crash of the policy server", server)
        logger.warning("%s; %d episode(s) were running.", cause, len(running))
        arguments = [w.arguments for w in self._workers]
        self.close()
        if len(running) == 1:
            self._crashed(running[0], cause, server)
        else:
            self._suspects.extend(running)
        for own in arguments:
            self._start(own)

    def _replace(self, worker: _Worker, cause: str) -> None:
        """Put a fresh worker in the place of one that is gone; its episode counts as failed with ``cause``."""
        self._workers.remove(worker)
        worker.process.join(EXIT_S)
        worker.pipe.close()
        if worker.episode is not None:
            self._crashed(worker.episode, cause, worker)
        self._start(worker.arguments)

    def _crashed(self, episode: Episode, cause: str, member: _Worker | _Server) -> None:
        """Keep a crash until the set-up is known to work.

        Raises:
            WorkerError: it was the trial, or there is none to be made.
        """
        logger.warning("Episode %s failed: %s", episode.key, cause)
        self._pending.append((episode, cause))
        if episode is self._trial:
            what = "had finished before" if episode is self._proven else "was chosen to be unlike the others"
            reason = f"The last of them {what}: it is not these episodes that fail, but the set-up."
        elif self._proven is None and not (
            self._queue or self._suspects or any(w.episode for w in self._workers)
        ):
            reason = "No episode has finished here yet, and none is left to try."
        else:
            return
        causes = "\n".join(f"  {e.key}: {c}" for e, c in self._pending)
        raise WorkerError(
            f"{len(self._pending)} episode(s) crashed in a row:\n{causes}\n{reason} Nothing of this was recorded. Once the "
            f"cause is gone (graphics driver, memory, files), the same command continues.\n"
            f"End of {log_path(member.arguments)}:\n{_tail(member)}"
        )

    def _finished(
        self,
        worker: _Worker,
        row: Row,
        on_row: Callable[[Row], None],
        on_crash: Callable[[Episode, str], None],
    ) -> None:
        """An episode has finished, so the set-up works: what crashed before it did so by itself."""
        episode, worker.episode = worker.episode, None
        for crashed, cause in self._pending:
            on_crash(crashed, cause)
        self._pending.clear()
        if episode is not self._proven:  # otherwise it was run again as a trial
            on_row(row)
        self._proven, self._trial = episode, None

    def _setup_error(self, member: _Worker | _Server, why: str | None = None) -> WorkerError:
        if self._server is not None and member.process.exitcode == SERVER_GONE:
            self._server.process.join(EXIT_S)
            member = self._server
        reason = f": {_last_line(member)}" if member.process.exitcode == 1 else ""
        return WorkerError(
            f"Environment or policies could not be loaded ({why or f'exit code {member.process.exitcode}'}){reason}\n"
            f"The whole log is {log_path(member.arguments)}. Finished episodes are kept; the same command continues."
        )


def _likeness(one: Episode, other: Episode) -> int:
    """How many of policy, task and start two episodes share."""
    same_task = (one.suite, one.task_id) == (other.suite, other.task_id)
    return (one.policy == other.policy) + same_task + (same_task and one.episode == other.episode)


def _crash(what: str, member: _Worker | _Server) -> str:
    cause = f"{what}: exit code {member.process.exitcode}"
    if member.process.exitcode == 1:  # a Python exception: the log ends with it
        cause += f", {_last_line(member)}"
    return cause[:300]


def _last_line(member: _Worker | _Server) -> str:
    lines = _tail(member).splitlines()
    return lines[-1] if lines else "no message"


def _tail(member: _Worker | _Server) -> str:
    path = log_path(member.arguments)
    text = path.read_text(errors="replace") if path.is_file() else ""
    return "\n".join(text.strip().splitlines()[-LOG_TAIL_LINES:])

"""One process with the policies, for many simulators: it answers requests for action chunks in batches.

It knows no episodes. A request carries the prepared observation and the noise, both made by the simulator that asks, so an
answer depends on nothing but its request. Simulators may come and go.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from multismolvla_eval.policies.messages import WorkerArguments
from multismolvla_eval.rollout.worker import begin

if TYPE_CHECKING:
    from multismolvla_eval.policies.messages import Request
    from multismolvla_eval.rollout.batching import ChunkBatcher

logger = logging.getLogger(__name__)

#: Asked by the parent when an episode takes too long: is it the simulator that hangs, or the server?
ALIVE = "alive"


def server_main(arguments: WorkerArguments, parent: Connection) -> None:
    """Load the policies that plan ahead, then serve until the parent is gone.

    Messages from the parent: the connection of a new simulator, or ``ALIVE``, to be sent back. Messages to it: ``"ready"``,
    once. From simulators: a path, to be told the policy's facts, or a request, to be answered. Whatever goes wrong ends the
    process with a traceback in its log; the parent decides what that means.
    """
    begin(arguments)
    import torch

    from multismolvla_eval.environments import load_sources
    from multismolvla_eval.policies.checkpoints import checkpoint_path
    from multismolvla_eval.policies.lerobot import LeRobotPolicy, planning_checkpoints
    from multismolvla_eval.rollout.batching import ChunkBatcher

    torch.set_num_threads(1)
    source = next(iter(load_sources(arguments.env).values()))
    paths = planning_checkpoints(arguments.policies.values())
    renames = {checkpoint_path(p): arguments.rename_map.get(n, {}) for n, p in arguments.policies.items()}
    batchers, facts = {}, {}
    for path in paths:
        policy = LeRobotPolicy(path, source, arguments.device, renames[path])
        policy.mask_absent_tokens()
        device = str(policy.config.device)
        batchers[path] = ChunkBatcher(
            path, policy.chunk, policy.at_the_door, policy.trust, arguments.batch_size, device
        )
        facts[path] = {**policy.describe(), "checkpoint": policy.checkpoint}
    parent.send("ready")
    _Server(parent, batchers, facts).run()


@dataclass
class _Waiting:
    """Requests of one kind that wait for company."""

    since: float
    asking: list[tuple[Connection, Request]] = field(default_factory=list)


class _Server:
    """Collects requests and answers them.

    Args:
        parent: brings the connections of new simulators; its end is the server's end.
        batchers: by path of the policy.
        facts: what a simulator that asks with a path is told.
    """

    def __init__(self, parent: Connection, batchers: dict[str, ChunkBatcher], facts: dict[str, Any]) -> None:
        self._parent, self._batchers, self._facts = parent, batchers, facts
        self._simulators: list[Connection] = []
        self._waiting: dict[Any, _Waiting] = {}

    def run(self) -> None:
        """Serve until the parent is gone."""
        while True:
            for connection in wait([self._parent, *self._simulators], self._patience()):
                assert isinstance(connection, Connection)
                try:
                    message = connection.recv()
                except (EOFError, ConnectionResetError):
                    if connection is self._parent:
                        return
                    self._forget(connection)
                    continue
                if message == ALIVE and connection is self._parent:
                    self._parent.send(ALIVE)
                elif connection is self._parent:
                    self._simulators.append(message)
                elif isinstance(message, str):
                    _send(connection, self._facts[message])
                else:
                    group = self._waiting.setdefault(message.kind(), _Waiting(time.monotonic()))
                    group.asking.append((connection, message))
            self._answer_those_due()

    def _patience(self) -> float | None:
        """Time until a waiting group is due [s], ``None`` when nobody waits."""
        times = [self._due(group) - time.monotonic() for group in self._waiting.values()]
        return max(0.0, min(times)) if times else None

    def _due(self, group: _Waiting) -> float:
        """Waiting for company pays for about as long as a batch takes."""
        return group.since + self._batchers[group.asking[0][1].policy].seconds

    def _answer_those_due(self) -> None:
        everybody = sum(len(g.asking) for g in self._waiting.values()) == len(self._simulators)
        for kind, group in list(self._waiting.items()):
            batcher = self._batchers[group.asking[0][1].policy]
            if everybody or len(group.asking) >= batcher.size or time.monotonic() >= self._due(group):
                now, later = group.asking[: batcher.size], group.asking[batcher.size :]
                if later:
                    group.asking = later
                else:
                    del self._waiting[kind]
                self._answer(batcher, now)

    def _answer(self, batcher: ChunkBatcher, asking: Sequence[tuple[Connection, Request]]) -> None:
        for (connection, _), reply in zip(asking, batcher.answer([r for _, r in asking]), strict=True):
            _send(connection, reply)

    def _forget(self, connection: Connection) -> None:
        """A simulator is gone, and so is what it asked."""
        self._simulators.remove(connection)
        connection.close()
        for kind, group in list(self._waiting.items()):
            group.asking = [(c, r) for c, r in group.asking if c is not connection]
            if not group.asking:
                del self._waiting[kind]


def _send(connection: Connection, message: Any) -> None:
    try:
        connection.send(message)
    except (BrokenPipeError, ConnectionResetError):
        logger.info("A simulator went away before it was answered.")  # the next wait() notices

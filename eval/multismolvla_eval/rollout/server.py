"""One process with the policies, for many simulators: it computes their actions in batches.

It knows no episodes. A request carries the prepared observation and the noise, both made by the simulator
that asks, so an answer depends on nothing but its request. Simulators may come and go: each has a connection
of its own, which a thread of its own serves (:mod:`multiprocessing.managers`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from multiprocessing.managers import BaseManager

from multismolvla_eval.config import EvalConfig, renaming
from multismolvla_eval.policies.interface import Reply, Request
from multismolvla_eval.records.schema import PolicyFacts
from multismolvla_eval.rollout.batching import ChunkBatcher
from multismolvla_eval.rollout.worker import use_one_thread

logger = logging.getLogger(__name__)


@dataclass
class _Batch:
    """Requests of one kind that are computed together, and their answers once they are."""

    requests: list[Request] = field(default_factory=list)
    replies: Future[list[Reply]] | None = None


class BatchServer:
    """Answers requests of several threads in batches; a `PolicyServer`.

    A batch is computed when it is full or every simulator waits, at the latest after the time that the last
    batch took.

    Args:
        load: makes the batchers of the policies, by path.
        simulators: how many may ask at the same time.
    """

    def __init__(self, load: Callable[[], dict[str, ChunkBatcher]], simulators: int) -> None:
        self._simulators = simulators
        self._computing = ThreadPoolExecutor(1, initializer=use_one_thread)
        self._loaded = self._computing.submit(load)
        self._open: dict[Hashable, _Batch] = {}
        self._changed = threading.Condition()
        self._failure: BaseException | None = None

    def facts(self, policy: str) -> PolicyFacts:
        """What a policy tells of itself; waits until it is loaded."""
        return self._loaded.result()[policy].policy.facts()

    def answer(self, request: Request) -> Reply:
        """The policy's actions for a request.

        Raises:
            BatchingError: on this machine the policy's results depend on the rest of the batch.
        """
        batcher, kind = self._loaded.result()[request.policy], request.kind()
        full = min(batcher.size, self._simulators)
        with self._changed:
            batch = self._open.get(kind)
            if batch is None or len(batch.requests) == full:
                batch = self._open[kind] = _Batch()
            place = len(batch.requests)
            batch.requests.append(request)
            self._changed.notify_all()
            if place == 0:
                self._changed.wait_for(lambda: len(batch.requests) == full, timeout=batcher.seconds)
                if self._open.get(kind) is batch:
                    del self._open[kind]
                batch.replies = self._computing.submit(batcher.answer, batch.requests)
                self._changed.notify_all()
            else:
                self._changed.wait_for(lambda: batch.replies is not None)
        assert batch.replies is not None
        error = batch.replies.exception()
        if error is not None and self._failure is None:
            self._failure = error
            logger.error("A batch of %s cannot be computed.", request.policy, exc_info=error)
        return batch.replies.result()[place]

    def failure(self) -> str:
        """Why policies could not be loaded or actions not be computed; empty if all is well."""
        error = self._failure
        if error is None and self._loaded.done():
            error = self._loaded.exception()
        return "" if error is None else f"{type(error).__name__}: {error}"


def _load(config: EvalConfig) -> dict[str, ChunkBatcher]:
    """The policies that plan ahead, by the path of their checkpoint."""
    for module in config.plugins:
        import_module(module)
    from multismolvla_eval.environments import load_sources
    from multismolvla_eval.policies.checkpoints import loaded_path
    from multismolvla_eval.policies.lerobot import LeRobotPolicy, plans_ahead, stored_config

    source = next(iter(load_sources(config.env).values()))
    batchers: dict[str, ChunkBatcher] = {}
    for name, named in config.policy_paths().items():
        path = loaded_path(named)
        if path is not None and path not in batchers and plans_ahead(stored_config(path)):
            renamed = renaming(name, config.rename_map)
            policy = LeRobotPolicy(path, source, config.device, renamed, estimators=config)
            policy.keep_shapes()
            batchers[path] = ChunkBatcher(policy, config.batch_size)
    return batchers


class ServerProcess(BaseManager):
    """The process of the `BatchServer`, which ``batch_server(config)`` makes there; returns a proxy of it."""

    batch_server: Callable[[EvalConfig], BatchServer]


def _serve(config: EvalConfig) -> BatchServer:
    return BatchServer(partial(_load, config), config.workers)


ServerProcess.register("batch_server", _serve, exposed=("facts", "answer", "failure"))

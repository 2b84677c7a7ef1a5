"""The process that owns simulators and policies: it runs one episode at a time and hands the row to its parent.

With a policy server it owns simulators only, and asks the server for the actions of policies that plan ahead.

It never writes results. Its parent is the single writer of its shard, so a worker that crashes, hangs or outlives its
parent can neither lose nor repeat an episode.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import signal
import sys
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from multismolvla.system.processes import end_with_parent
from multismolvla_eval.policies.messages import WorkerArguments

#: Simulators kept open at the same time; further tasks close the least recently used one.
OPEN_ENVIRONMENTS = 4


def begin(arguments: WorkerArguments) -> None:
    """What every process of a pool does first: see to its end, leave Ctrl-C to the parent, write to its log, load plug-ins."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    log = open(log_path(arguments), "a", buffering=1)  # noqa: SIM115 - lives as long as the process
    os.dup2(log.fileno(), sys.stdout.fileno())
    os.dup2(log.fileno(), sys.stderr.fileno())
    faulthandler.enable(log)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    for module in arguments.plugins:
        import_module(module)


def worker_main(arguments: WorkerArguments, pipe: Connection, server: Connection | None = None) -> None:
    """Load everything, describe it, then serve episodes until the pipe closes.

    Messages to the parent: ``("ready", description)`` once, then ``("row", row)`` per episode. Whatever goes wrong ends
    the process with a traceback in its log; the parent decides what that means.
    """
    begin(arguments)
    import torch

    from multismolvla_eval.environments import load_sources
    from multismolvla_eval.policies.load import load_policy
    from multismolvla_eval.protocol.schedule import Episode

    torch.set_num_threads(1)  # small policies on shared cores: spinning threads cost more than they give
    sources = load_sources(arguments.env)
    first = next(iter(sources.values()))  # all suites have the same cameras, state and action
    policies = {
        name: load_policy(path, first, arguments.device, arguments.rename_map.get(name), server)
        for name, path in arguments.policies.items()
    }
    description = {
        "suites": {
            s.suite: {"tasks": {str(i): t for i, t in s.tasks.items()}, **s.describe()}
            for s in sources.values()
        },
        "cameras": list(first.cameras),
        "policies": {n: {"checkpoint": p.checkpoint, **p.describe()} for n, p in policies.items()},
    }
    pipe.send(("ready", description))
    state = _State(arguments, sources, policies)
    while True:
        try:
            message: Episode | None = pipe.recv()
        except EOFError:
            return  # the parent is gone
        if message is None:
            return
        pipe.send(("row", state.run(message)))


def log_path(arguments: WorkerArguments) -> Path:
    """Where a worker's output goes."""
    folder = arguments.output / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{arguments.role}-{arguments.number}.log"


def _peak_memory_mb() -> int:
    """Of this process until now, with the simulators and all policies that it holds."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


class _State:
    """Open simulators and loaded policies of one worker."""

    def __init__(self, arguments: WorkerArguments, sources: dict[str, Any], policies: dict[str, Any]) -> None:
        self.arguments, self.sources, self.policies = arguments, sources, policies
        self._open: list[tuple[str, int]] = []
        self._filmed_failures: set[Any] = set()
        self._live: Any = None
        if arguments.view is not None:
            from multismolvla_eval.rollout.rerun_log import LiveView

            self._live = LiveView(arguments.view, str(arguments.output))
            self._live.close_when_terminated()

    def run(self, episode: Any) -> dict[str, Any]:
        from multismolvla_eval.rollout.clips import ClipRecorder, clip_name, keeps_clip
        from multismolvla_eval.rollout.episode import run_episode
        from multismolvla_eval.rollout.rerun_log import Recorders

        self._make_room((episode.suite, episode.task_id))
        source = self.sources[episode.suite]
        policy = self.policies[episode.policy]
        recorder = None
        if episode.clip:
            recorder = ClipRecorder(source.cameras, f"{episode.policy}   {episode.condition}")
        live = None
        if self._live is not None:
            labels = getattr(source.make(episode.task_id).unwrapped, "labels", ())
            live = self._live.episode(episode, source.tasks[episode.task_id], source.cameras, labels)
        shown_to = Recorders([r for r in (recorder, live) if r is not None])
        row = run_episode(
            episode, source, policy, self.arguments.seed, shown_to, self._door_picture(episode, policy)
        )
        if live is not None:
            live.finish(row)
        row["worker"] = self.arguments.number
        row["peak_memory_mb"] = _peak_memory_mb()
        row["clip"] = None
        if recorder is not None and keeps_clip(episode, row["success"], self._filmed_failures):
            path = self.arguments.output / "clips" / clip_name(episode)
            if recorder.write(path, row["success"], row["cause"]):
                row["clip"] = f"clips/{path.name}"
        return row

    def _door_picture(self, episode: Any, policy: Any) -> Path | None:
        """Path of the modalities picture, if this episode should draw it: clean, by the policy that reads most."""
        path: Path = self.arguments.output / "modalities.png"
        most = max(self.policies.values(), key=lambda p: len(p.describe()["reads"]))
        return path if policy is most and episode.condition == "C0" and not path.exists() else None

    def _make_room(self, wanted: tuple[str, int]) -> None:
        if wanted in self._open:
            self._open.remove(wanted)
        self._open.append(wanted)
        while len(self._open) > OPEN_ENVIRONMENTS:
            suite, task_id = self._open.pop(0)
            self.sources[suite].make(task_id).close()

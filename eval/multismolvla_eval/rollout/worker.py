"""The process that owns simulators and policies: it runs one episode after the other and hands on the rows.

With a policy server it asks that for the actions of policies that plan ahead, and has no weights of them. It
never writes results: its parent is the single writer of the shard, so a worker that crashes, hangs or
outlives its parent can neither lose nor repeat an episode.
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
from typing import TYPE_CHECKING

from multismolvla.system.processes import end_with_parent
from multismolvla_eval.config import EvalConfig, renaming

if TYPE_CHECKING:
    from multismolvla_eval.environments import EnvironmentSource
    from multismolvla_eval.policies.interface import Policy, PolicyServer
    from multismolvla_eval.protocol.schedule import EpisodeSpec
    from multismolvla_eval.records.schema import EpisodeRow

#: Simulators kept open at the same time; further tasks close the least recently used one.
OPEN_ENVIRONMENTS = 4


def log_path(config: EvalConfig, name: str) -> Path:
    """Where the output of a process of this name goes."""
    return config.output / "logs" / f"{name}.log"


def begin(config: EvalConfig, name: str) -> None:
    """What every process of a pool does first: end with its parent, leave Ctrl-C to it, write to its log."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    path = log_path(config, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    log = open(path, "a", buffering=1)  # noqa: SIM115 - lives as long as the process
    os.dup2(log.fileno(), sys.stdout.fileno())
    os.dup2(log.fileno(), sys.stderr.fileno())
    faulthandler.enable(log)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)


def use_one_thread() -> None:
    """Small policies on shared cores: more threads that wait for each other cost more than they give."""
    import torch

    torch.set_num_threads(1)


def worker_main(config: EvalConfig, number: int, pipe: Connection, server: PolicyServer | None) -> None:
    """Load everything, send what it tells of itself, then serve episodes until the pipe closes.

    Messages to the parent: `RunFacts` once, then an `EpisodeRow` per episode. Whatever goes wrong ends the
    process with a traceback in its log; the parent decides what that means.

    Args:
        config: options of the run.
        number: of the worker, over all shards.
        pipe: to the parent.
        server: has the weights of policies that plan ahead.
    """
    begin(config, f"worker-{number}")
    for module in config.plugins:
        import_module(module)
    use_one_thread()
    from multismolvla_eval.environments import load_sources
    from multismolvla_eval.policies.load import load_policy
    from multismolvla_eval.records.schema import RunFacts
    from multismolvla_eval.rollout import clips, episode  # noqa: F401 - not in an episode's time

    sources = load_sources(config.env)
    first = next(iter(sources.values()))  # all suites have the same cameras, state and action
    policies = {
        name: load_policy(path, first, config.device, renaming(name, config.rename_map), server, config)
        for name, path in config.policy_paths().items()
    }
    suites = {name: source.facts() for name, source in sources.items()}
    pipe.send(RunFacts(suites, list(first.cameras), {name: p.facts() for name, p in policies.items()}))
    worker = _EpisodeRunner(config, number, sources, policies)
    while True:
        try:
            spec: EpisodeSpec = pipe.recv()
        except EOFError:
            return  # the parent is gone
        pipe.send(worker.run(spec))


class _EpisodeRunner:
    """Open simulators and loaded policies of one process."""

    def __init__(
        self,
        config: EvalConfig,
        number: int,
        sources: dict[str, EnvironmentSource],
        policies: dict[str, Policy],
    ) -> None:
        self._config, self._number, self._sources, self._policies = config, number, sources, policies
        self._open: list[tuple[str, int]] = []
        self._filmed_failures: set[EpisodeSpec] = set()
        self._view = None
        if config.view is not None and number % config.workers == 0:
            from multismolvla_eval.rollout.rerun_log import LiveView

            self._view = LiveView(config.view, str(config.output))
            self._view.close_when_terminated()

    def run(self, episode: EpisodeSpec) -> EpisodeRow:
        """Run an episode and keep its clip, if it is worth keeping."""
        from multismolvla_eval.rollout.clips import ClipRecorder, clip_name, keeps_clip
        from multismolvla_eval.rollout.episode import run_episode

        self._make_room((episode.suite, episode.task_id))
        source, policy = self._sources[episode.suite], self._policies[episode.policy]
        clip = None
        if episode.clip:
            clip = ClipRecorder(source.cameras, f"{episode.policy}   {episode.condition}")
        if self._view is not None:
            self._view.begin(episode, source)
        recorders = [r for r in (clip, self._view) if r is not None]
        row = run_episode(
            episode, source, policy, self._config.seed, recorders, self._picture(episode, policy)
        )
        if self._view is not None:
            self._view.finish(row)
        row.worker = self._number
        row.peak_memory_mb = _peak_memory_mb()
        if clip is not None and keeps_clip(episode, row.success, self._filmed_failures):
            path = self._config.output / "clips" / clip_name(episode)
            if clip.write(path, row.success, row.cause):
                row.clip = f"clips/{path.name}"
        return row

    def _picture(self, episode: EpisodeSpec, policy: Policy) -> Path | None:
        """Path of the modalities picture, if this episode draws it: clean, by the policy that reads most."""
        path = self._config.output / "modalities.png"
        most = max(self._policies.values(), key=lambda p: len(p.facts().reads))
        return path if policy is most and episode.condition == "C0" and not path.exists() else None

    def _make_room(self, wanted: tuple[str, int]) -> None:
        if wanted in self._open:
            self._open.remove(wanted)
        self._open.append(wanted)
        while len(self._open) > OPEN_ENVIRONMENTS:
            suite, task_id = self._open.pop(0)
            self._sources[suite].make(task_id).close()


def _peak_memory_mb() -> int:
    """Of this process until now, with the simulators and all policies that it holds."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit

"""Replay: simulator processes store one file per demonstration, this process makes the data set of them."""

from __future__ import annotations

import sys
from concurrent.futures import as_completed
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from multismolvla.system.command import CommandError
from multismolvla.system.files import write_json
from multismolvla_data.formats.dataset_writer import DatasetWriter
from multismolvla_data.formats.episode_files import load_episode
from multismolvla_data.formats.metadata import JsonObject, ReplayedDemo, simulated
from multismolvla_data.formats.simulators import simulator_pool
from multismolvla_data.formats.workspace import Workspace, make
from multismolvla_data.replay.config import ReplayConfig
from multismolvla_data.replay.episode import load_failure, replay_demo
from multismolvla_data.replay.plan import Failure, PlannedDemo, ReplayPlan, plan_replay, summary_table

COMMAND = "multismolvla-replay"
#: Demonstrations without success, inside the data set's ``meta`` and, if there is none, in the workspace.
REPORT_FILE = "replay_report.json"


def replay(config: ReplayConfig) -> Path:
    """Replay, or continue to replay, what ``config`` names; returns the finished data set's folder.

    Raises:
        DemoFileError: a file is damaged, foreign or belongs to another scene.
        WorkspaceError: ``--output`` holds something else, or a replay with other settings was begun there.
        CommandError: no demonstration succeeded.
    """
    plan = plan_replay(config)
    workspace = Workspace(COMMAND, config.output, plan.identity(config))
    return make(workspace, lambda: _replay(config, plan, workspace))


def _replay(config: ReplayConfig, plan: ReplayPlan, workspace: Workspace) -> None:
    folder, assembly = workspace.episodes, _Assembly(config, plan, workspace)
    decided = [demo for demo in plan.demos if _is_decided(config, demo, folder)]
    todo = [demo for demo in plan.demos if demo not in decided]
    # One of each task first: a file that does not fit its scene must show in the first minutes.
    first = {demo.task_id: demo for demo in reversed(todo)}
    todo.sort(key=lambda demo: demo is not first[demo.task_id])
    frames = sum(demo.frames for demo in plan.demos)
    progress = tqdm(total=frames, desc="replay", unit="frame", smoothing=0.1)
    with simulator_pool(max(1, min(config.workers, len(todo)))) as pool, progress as bar:
        running = {pool.submit(replay_demo, config.settings, demo, folder): demo for demo in todo}
        for demo in decided:
            assembly.note(demo)
            bar.update(demo.frames)
        for future in as_completed(running):
            future.result()
            assembly.note(running[future])
            bar.set_postfix(failed=len(assembly.failures))
            bar.update(running[future].frames)
    assembly.finish()


def _is_decided(config: ReplayConfig, demo: PlannedDemo, folder: Path) -> bool:
    failed = not config.keep_failed and demo.failure_file(folder).is_file()
    return failed or demo.episode_file(folder).is_file()


class _Assembly:
    """Appends replayed episodes to the data set in the plan's order, whatever order they are finished in."""

    def __init__(self, config: ReplayConfig, plan: ReplayPlan, workspace: Workspace) -> None:
        self._config, self._plan, self._workspace = config, plan, workspace
        self._writer = DatasetWriter(
            workspace.dataset, config.repo_id, config.suite, config.size, config.video
        )
        self._finished: set[PlannedDemo] = set()
        self._waiting = list(plan.demos)
        self._written: list[PlannedDemo] = []
        self.failures: dict[PlannedDemo, Failure] = {}

    def note(self, demo: PlannedDemo) -> None:
        """Note that a demonstration is replayed and append every episode whose turn has come."""
        folder = self._workspace.episodes
        self._finished.add(demo)
        while self._waiting and self._waiting[0] in self._finished:
            turn = self._waiting.pop(0)
            failure = load_failure(turn, folder)
            if failure is not None:
                self.failures[turn] = failure
            if turn.episode_file(folder).is_file():
                episode = load_episode(turn.episode_file(folder))
                self._writer.append(episode, self._plan.instructions[turn.task_id])
                self._written.append(turn)

    def finish(self) -> None:
        """Report what failed and complete the data set, if any demonstration succeeded."""
        sys.stderr.write(summary_table(self._plan, self._written, self.failures))
        report = self._workspace.root / REPORT_FILE
        write_json(report, self._report())
        if not self._written:
            raise CommandError(
                f"None of {len(self._plan.demos)} demonstrations succeeded; reasons in {report}. Is "
                f"--suite={self._config.suite} theirs? --mode=states repeats their trajectories exactly."
            )
        write_json(self._workspace.dataset / "meta" / REPORT_FILE, self._report())
        settings = self._config.settings.simulator
        metadata = simulated(settings.suite, settings.render_quality, settings.assets)
        metadata.identities[COMMAND] = self._workspace.identity
        metadata.tasks = {str(task): text for task, text in self._plan.instructions.items()}
        metadata.init_split = "demonstrations"
        metadata.demonstrations = [
            ReplayedDemo(demo.path.name, demo.demo, demo.dropped, succeeded=demo not in self.failures)
            for demo in self._written
        ]
        metadata.actions = "as demonstrated; each belongs to the observation of the state before it"
        self._writer.finish(metadata)

    def _report(self) -> JsonObject:
        failed: list[object] = [
            {"file": demo.path.name, "demo": demo.demo, **asdict(failure), "dropped_noops": demo.dropped}
            for demo, failure in self.failures.items()
        ]
        return {
            "demonstrations": len(self._plan.demos),
            "succeeded": len(self._plan.demos) - len(self.failures),
            "written": len(self._written),
            "dropped_noops": sum(demo.dropped for demo in self._written),
            "failed": failed,
        }

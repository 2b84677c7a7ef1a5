"""What a replay will do and what it did: demonstrations matched with tasks, and tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from multismolvla_data.formats.libero_hdf5 import DemoFile, find_demo_files, inspect_demo_file
from multismolvla_data.formats.metadata import JsonObject
from multismolvla_data.formats.simulators import suite_tasks
from multismolvla_data.replay.config import ReplayConfig

#: For the estimate of --dry-run: one core's time for a frame of LIBERO's scenes (two cameras, all modalities,
#: 256 pixels, software OpenGL), and this process's for writing it. Measured on a shared machine as CPU time.
RENDER_SECONDS = {"default": 0.4, "fast": 0.2}
WRITE_SECONDS = 0.13
#: Disk space of a frame at 256 pixels while both the episode's file and the data set exist (0.4 + 0.6 MB).
MEGABYTES_PER_FRAME = 1.0


@dataclass(frozen=True)
class PlannedDemo:
    """One demonstration to replay."""

    task_id: int
    path: Path  # of the file
    demo: str  # its group there, demo_<i>
    frames: int  # that remain of it
    dropped: int  # no-ops that do not

    @property
    def number(self) -> int:
        """Number of the demonstration in its file."""
        return int(self.demo.removeprefix("demo_"))

    def episode_file(self, folder: Path) -> Path:
        """Where the rendered episode is stored."""
        return folder / f"task{self.task_id:03d}_{self.demo}.npz"

    def failure_file(self, folder: Path) -> Path:
        """Where a `Failure` is stored."""
        return folder / f"task{self.task_id:03d}_{self.demo}.failed.json"


@dataclass(frozen=True)
class Failure:
    """Why a demonstration did not succeed."""

    reason: str
    step: int  # executed action after which it was decided, counted from 1


@dataclass(frozen=True)
class ReplayPlan:
    """What a replay will do."""

    demos: tuple[PlannedDemo, ...]  # in the data set's order: by task, then by number
    instructions: dict[int, str]  # by task number
    digests: dict[str, str]  # name of each file -> hash of its content

    def identity(self, config: ReplayConfig) -> JsonObject:
        """What must be equal for a replay to be continued, or to pass for this one."""
        settings = config.settings
        stored: JsonObject = (
            {"video": True} if config.video else {}
        )  # data sets made before know no such option
        return stored | {
            **asdict(settings),
            "simulator": settings.simulator.identity(),
            "episodes": config.episodes,
            "files": self.digests,
        }


def plan_replay(config: ReplayConfig) -> ReplayPlan:
    """Check every file and match it with a task of the suite.

    Raises:
        ValueError: a file is damaged or foreign, or its task is not in the suite.
    """
    tasks = suite_tasks(config.suite)
    files = [inspect_demo_file(path) for path in find_demo_files(config.source)]
    demos: list[PlannedDemo] = []
    for file in files:
        if file.task not in tasks:
            raise ValueError(
                f"{file.path}: suite {config.suite!r} has no task {file.task!r}. Known: {', '.join(tasks)}. "
                "Choose the file's --suite."
            )
        demos += _planned(config, file, list(tasks).index(file.task))
    demos.sort(key=lambda demo: (demo.task_id, demo.number))
    instructions = list(tasks.values())
    return ReplayPlan(
        demos=tuple(demos),
        instructions={demo.task_id: instructions[demo.task_id] for demo in demos},
        digests={file.path.name: file.digest for file in files},
    )


def _planned(config: ReplayConfig, file: DemoFile, task_id: int) -> list[PlannedDemo]:
    planned = []
    for name, noops in islice(file.noops.items(), config.episodes or None):
        dropped = int(noops.sum()) if config.filter_noops else 0
        planned.append(PlannedDemo(task_id, file.path, name, len(noops) - dropped, dropped))
    return planned


def summary_table(
    plan: ReplayPlan, written: Sequence[PlannedDemo], failures: Mapping[PlannedDemo, Failure]
) -> str:
    """One line per task, then one per demonstration that did not succeed."""
    lines = [f"{'demos':>6} {'written':>8} {'failed':>7} {'frames':>8} {'no-ops':>7}  task"]
    for task_id, instruction in plan.instructions.items():
        demos = sum(demo.task_id == task_id for demo in plan.demos)
        failed = sum(demo.task_id == task_id for demo in failures)
        kept = [demo for demo in written if demo.task_id == task_id]
        frames, dropped = sum(demo.frames for demo in kept), sum(demo.dropped for demo in kept)
        lines.append(f"{demos:6} {len(kept):8} {failed:7} {frames:8} {dropped:7}  {instruction}")
    for demo, failure in failures.items():
        lines.append(f"  {demo.path.name} {demo.demo}: {failure.reason} (step {failure.step})")
    return "\n".join(lines) + "\n"


def plan_table(config: ReplayConfig, plan: ReplayPlan) -> str:
    """What ``--dry-run`` prints: demonstrations and frames per task, estimated time and disk space."""
    lines = [f"{'demos':>6} {'frames':>8} {'left':>9}  task"]
    for task_id, instruction in plan.instructions.items():
        demos = [demo for demo in plan.demos if demo.task_id == task_id]
        left, dropped = sum(demo.frames for demo in demos), sum(demo.dropped for demo in demos)
        lines.append(f"{len(demos):6} {left + dropped:8} {left:9}  {instruction}")
    frames = sum(demo.frames for demo in plan.demos)
    seconds = frames * max(RENDER_SECONDS[config.render_quality] / config.workers, WRITE_SECONDS)
    lines.append(
        f"{len(plan.demos)} demonstrations, {frames} frames to render: about {seconds / 60:.1f} min with "
        f"{config.workers} process(es) and {frames * MEGABYTES_PER_FRAME / 1000:.1f} GB on the way (estimate "
        "for LIBERO's scenes at 256 pixels and a CPU that renders)."
    )
    return "\n".join(lines) + "\n"

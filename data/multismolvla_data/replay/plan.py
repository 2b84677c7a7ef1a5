"""What a replay will do and what it did: files matched with tasks, and tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from multismolvla_data.formats.libero_hdf5 import demo_files

if TYPE_CHECKING:
    from multismolvla_data.replay.config import ReplayConfig
    from multismolvla_data.replay.episode import Failure, Job

#: For the estimate of --dry-run: one core's time for a frame of LIBERO's scenes (two cameras, all modalities, 256
#: pixels, software OpenGL), and this process's for writing it. Measured on a shared machine as CPU time.
RENDER_SECONDS = {"default": 0.4, "fast": 0.2}
WRITE_SECONDS = 0.13
#: Disk space of a frame at 256 pixels while both the episode's file and the data set exist (0.4 + 0.6 MB).
MEGABYTES_PER_FRAME = 1.0


@dataclass(frozen=True)
class Plan:
    """What a replay will do.

    Attributes:
        jobs: the demonstrations, in the data set's order: by task, then by number.
        instructions: instruction by task number.
    """

    jobs: tuple[Job, ...]
    instructions: dict[int, str]


def plan_replay(config: ReplayConfig) -> Plan:
    """Check every file and match it with a task of the suite.

    Raises:
        DemoFileError: a file is damaged or foreign.
        ValueError: unknown suite, or a file whose task is not in it; names the known ones.
    """
    from multismolvla_data.replay.episode import Job

    tasks = suite_tasks(config.suite)
    jobs: list[Job] = []
    for file in demo_files(config.source):
        if file.task not in tasks:
            raise ValueError(
                f"{file.path}: suite {config.suite!r} has no task {file.task!r}. Known: {', '.join(tasks)}. "
                "Choose the file's --suite."
            )
        task_id = list(tasks).index(file.task)
        for name, noops in islice(file.noops.items(), config.episodes or None):
            dropped = int(noops.sum()) if config.filter_noops else 0
            jobs.append(Job(task_id, file.path, name, len(noops) - dropped, dropped))
    jobs.sort(key=lambda job: (job.task_id, int(job.demo[5:])))
    instructions = dict(enumerate(tasks.values()))
    return Plan(tuple(jobs), {job.task_id: instructions[job.task_id] for job in jobs})


def suite_tasks(suite: str) -> dict[str, str]:
    """Names and instructions of a suite's tasks, in the suite's order.

    Raises:
        ValueError: no such suite.
    """
    from lerobot_env_multismolvla.mini import SUITE_NAME, TASKS

    if suite == SUITE_NAME:
        return {name: name.replace("_", " ") for name in TASKS}
    from lerobot_env_multismolvla.multimodal_env import get_suite

    return {task.name: task.language for task in get_suite(suite).tasks}


def summary_table(plan: Plan, kept: Sequence[Job], failures: dict[Job, Failure]) -> str:
    """One line per task, then one per demonstration that did not succeed."""
    lines = [f"{'demos':>6} {'written':>8} {'failed':>7} {'frames':>8} {'no-ops':>7}  task"]
    for task_id, instruction in plan.instructions.items():
        written = [job for job in kept if job.task_id == task_id]
        demos, failed = (sum(job.task_id == task_id for job in jobs) for jobs in (plan.jobs, failures))
        frames, dropped = sum(job.frames for job in written), sum(job.dropped for job in written)
        lines.append(f"{demos:6} {len(written):8} {failed:7} {frames:8} {dropped:7}  {instruction}")
    for job, failure in failures.items():
        lines.append(f"  {job.path.name} {job.demo}: {failure.reason} (step {failure.step})")
    return "\n".join(lines) + "\n"


def plan_table(config: ReplayConfig, plan: Plan) -> str:
    """What ``--dry-run`` prints: demonstrations and frames per task, and an estimate of time and disk space."""
    lines = [f"{'demos':>6} {'frames':>8} {'left':>9}  task"]
    for task_id, instruction in plan.instructions.items():
        jobs = [job for job in plan.jobs if job.task_id == task_id]
        after, dropped = sum(job.frames for job in jobs), sum(job.dropped for job in jobs)
        lines.append(f"{len(jobs):6} {after + dropped:8} {after:9}  {instruction}")
    frames = sum(job.frames for job in plan.jobs)
    seconds = frames * max(RENDER_SECONDS[config.render_quality] / config.workers, WRITE_SECONDS)
    lines.append(
        f"{len(plan.jobs)} demonstrations, {frames} frames to render: about {seconds / 60:.1f} min with "
        f"{config.workers} process(es) and {frames * MEGABYTES_PER_FRAME / 1000:.1f} GB on the way (estimate for "
        "LIBERO's scenes at 256 pixels and a CPU that renders)."
    )
    return "\n".join(lines) + "\n"

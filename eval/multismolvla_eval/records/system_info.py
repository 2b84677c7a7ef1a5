"""What a result was made with: source commit and hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import msgspec

from multismolvla.system.command import CommandError
from multismolvla_eval.records.schema import Hardware, MadeWith, RunManifest


def source_commit() -> str | None:
    """Commit of this package's source tree, with ``+changes`` if it is not clean; ``None`` outside git."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        # reading must not write .git/index on the way: whoever works on the repository would find it locked
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def distinct_calls(manifest: RunManifest) -> list[MadeWith]:
    """What a run's calls were made with, each combination once, with the time of its first call."""
    found: list[MadeWith] = []
    for call in manifest.calls:
        if not any(call == msgspec.structs.replace(other, time=call.time) for other in found):
            found.append(call)
    return found


def single_commit(folder: Path, manifest: RunManifest) -> str:
    """The commit of all episodes of a run.

    Raises:
        CommandError: several commits took part.
    """
    commits = sorted({call.commit or "unknown" for call in manifest.calls})
    if len(commits) > 1:
        raise CommandError(
            f"{folder} was evaluated at the commits {' and '.join(commits)}, and its rows do not say which "
            "is theirs. Remove the folder: the same command evaluates anew."
        )
    return commits[0]


def hardware() -> Hardware:
    """Processor, cores, memory, threads and rendering back end."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return Hardware(
        system=f"{platform.system()} {platform.machine()}",
        processor=model,
        cores=os.cpu_count(),
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        renderer=os.environ.get("MUJOCO_GL", "default"),
    )

"""What a result was made with: versions, source commit, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from multismolvla.system.versions import package_versions

__all__ = ["distinct_calls", "hardware", "package_versions", "source_commit"]


def source_commit() -> str | None:
    """Commit of the source tree this package runs from, with ``+changes`` if it is not clean; ``None`` outside git."""
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


def distinct_calls(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """What a run's calls were made with, each combination once: ``time`` (of the first such call) and what it ran on.

    Runs of earlier versions of this package know their last call only.
    """
    kinds = ("commit", "versions", "hardware")
    calls = manifest.get("provenance") or [
        {"time": manifest["created"], **{k: manifest.get(k) for k in kinds}}
    ]
    found: list[dict[str, Any]] = []
    for call in calls:
        if not any(all(call.get(k) == other.get(k) for k in kinds) for other in found):
            found.append(call)
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, memory, threads and rendering back end."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "renderer": os.environ.get("MUJOCO_GL", "default"),
        "threads_per_worker": 1,
    }

"""Interleaved timing, ratios and their spread, and what the machine was doing meanwhile.

Absolute seconds on a shared machine say little. All cases therefore run in one process, one after the other
in every round, with the order reversed from round to round, and what is reported first is the ratio of two
cases *within* rounds.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path.append(str(REPO / "tests" / "fixtures"))  # random networks are made there


@dataclass
class Case:
    """Something to be timed.

    Attributes:
        run: does the work once (``units`` of it).
        units: how many units (steps, chunks) one call of ``run`` makes.
        prepare: called before each ``run`` and not timed.
        wait: called after ``run`` and timed; blocks until an accelerator is done.
    """

    run: Callable[[], object]
    units: int = 1
    prepare: Callable[[], object] | None = None
    wait: Callable[[], object] | None = None


@dataclass
class Series:
    """Seconds per unit, one value per round: of the clock, and of the processor (all threads)."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Summaries and all samples."""
        return {
            "wall_s": spread(self.wall),
            "cpu_s": spread(self.cpu),
            "samples": {"wall_s": self.wall, "cpu_s": self.cpu},
        }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes of one or more values."""
    if len(values) < 2:
        low = middle = high = values[0]
    else:
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "median": middle,
        "q25": low,
        "q75": high,
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def ratios(series: Mapping[str, Series], baseline: str) -> dict[str, dict[str, Any]]:
    """Time of every other case relative to ``baseline``, round by round.

    Returns:
        Per case ``wall`` and ``cpu``: the spread of the quotients, each taken within one round.
    """
    base = series[baseline]
    return {
        name: {
            "wall": spread([a / b for a, b in zip(own.wall, base.wall, strict=True)]),
            "cpu": spread([a / b for a, b in zip(own.cpu, base.cpu, strict=True) if b > 0] or [float("nan")]),
        }
        for name, own in series.items()
        if name != baseline
    }


def interleave(cases: Mapping[str, Case], rounds: int, warmup: int, title: str) -> dict[str, Series]:
    """Time all cases ``rounds`` times, alternating: A B C, C B A, A B C, ...

    Args:
        cases: name -> case.
        rounds: timed rounds, at least 1.
        warmup: rounds before them that are not kept.
        title: text of the progress bar.

    Raises:
        ValueError: fewer than one round, or a negative warm-up.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"--rounds={rounds} and --warmup={warmup}: expected at least 1 and 0.")
    from tqdm import tqdm

    kept = {name: Series() for name in cases}
    with tqdm(total=(rounds + warmup) * len(cases), desc=title, unit="run") as bar:
        for number in range(-warmup, rounds):
            names = list(cases) if number % 2 == 0 else list(cases)[::-1]
            for name in names:
                wall, cpu = _time(cases[name])
                if number >= 0:
                    kept[name].wall.append(wall)
                    kept[name].cpu.append(cpu)
                bar.set_postfix_str(f"{name} {wall:.3g} s")
                bar.update()
    return kept


def _time(case: Case) -> tuple[float, float]:
    """Clock and processor seconds per unit of one run."""
    if case.prepare is not None:
        case.prepare()
    wall, cpu = time.perf_counter(), time.process_time()
    case.run()
    if case.wait is not None:
        case.wait()
    return (time.perf_counter() - wall) / case.units, (time.process_time() - cpu) / case.units


class Machine:
    """Describes the machine, and how busy *others* kept it between construction and :meth:`report`.

    Children that have ended by then count as this process.
    """

    def __init__(self) -> None:
        import psutil

        self._busy = lambda: (
            sum(psutil.cpu_times()) - psutil.cpu_times().idle - getattr(psutil.cpu_times(), "iowait", 0.0)
        )
        self._memory = psutil.virtual_memory().total
        self._commit = _commit()  # of the code that runs, not of what the folder holds at the end
        self._start = (time.perf_counter(), self._busy(), _own_seconds())

    def report(self) -> dict[str, Any]:
        """Machine, versions, commit, peak memory, and the other processes' share of the cores (0 to 1)."""
        elapsed = time.perf_counter() - self._start[0]
        own = _own_seconds() - self._start[2]
        cores = os.cpu_count() or 1
        others = max(0.0, self._busy() - self._start[1] - own) / max(elapsed * cores, 1e-9)
        return {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": self._commit,
            "cpu": _cpu_name(),
            "cores": cores,
            "memory_gib": round(self._memory / 2**30, 1),
            "system": platform.platform(),
            "versions": {
                n: _version(n) for n in ("lerobot", "torch", "transformers", "mujoco", "robosuite", "numpy")
            },
            "threads": {n: os.environ.get(n) for n in ("OMP_NUM_THREADS", "LP_NUM_THREADS", "MUJOCO_GL")},
            "peak_rss_gib": round(
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2
            ),  # Linux: in KiB
            "elapsed_s": round(elapsed, 1),
            "own_cpu_share": round(own / max(elapsed * cores, 1e-9), 2),
            "other_cpu_share": round(min(others, 1.0), 2),
        }


def _own_seconds() -> float:
    """Processor seconds of this process and of the children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def machine_line(report: Mapping[str, Any]) -> str:
    """One line about the machine, for people."""
    return (
        f"{report['cpu']}, {report['cores']} cores, {report['memory_gib']} GiB; commit {report['commit']}, "
        f"torch {report['versions']['torch']}, lerobot {report['versions']['lerobot']}; other processes used "
        f"{report['other_cpu_share']:.0%} of the cores; peak memory of this process {report['peak_rss_gib']} "
        "GiB"
    )


def table(
    title: str, series: Mapping[str, Series], relative: Mapping[str, Mapping[str, Any]], baseline: str
) -> str:
    """The cases with milliseconds, units per second and ratio, as lines of text."""
    width = max(len(name) for name in series)
    lines = [
        f"{title} (median, quartiles)",
        f"  {'':{width}}  {'ms':>8}  {'ms, quartiles':>19}  {'per s':>8}  ratio to {baseline}",
    ]
    for name, own in series.items():
        wall = spread(own.wall)
        median, low, high = (wall[k] * 1e3 for k in ("median", "q25", "q75"))
        line = f"  {name:{width}}  {median:8.1f}  {low:8.1f} - {high:8.1f}"
        line += f"  {1 / wall['median']:8.3g}  "
        if name in relative:
            wall, cpu = relative[name]["wall"], relative[name]["cpu"]
            line += f"{wall['median']:.2f} ({wall['q25']:.2f} - {wall['q75']:.2f}); "
            line += f"processor time {cpu['median']:.2f} ({cpu['q25']:.2f} - {cpu['q75']:.2f})"
        else:
            line += "1" if name == baseline else ""
        lines.append(line)
    return "\n".join(lines)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write via a temporary name, so that an interrupted run leaves the former result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(content, indent=1, default=str) + "\n")
    os.replace(partial, path)
    print(f"written: {path}")


def _commit() -> str:
    command = ["git", "-C", str(REPO), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none"


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()

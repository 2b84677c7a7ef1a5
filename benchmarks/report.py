"""Time and memory of a report: `python benchmarks/report.py --episodes=100000`.

Makes a folder with made-up rows (marked as synthetic, and with all the fields that an evaluation writes), then runs
`multismolvla-report` on it in a process of its own and reads that process's highest memory from the kernel.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from measuring import Machine, machine_line, spread, write_json

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
POLICIES = {"ours": 0.85, "smolvla": 0.8}
CAMERAS = ("image", "image2")
FINGERPRINT = "feedc0ffee00"
#: Run in the measured process: the report, then the kernel's count of the highest resident memory.
_MEASURED = """
import sys, time
begin = time.perf_counter()
from multismolvla_eval.report.command import main
code = main([sys.argv[1], "--output=" + sys.argv[2]])
seconds, own = time.perf_counter() - begin, time.process_time()
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
sys.stderr.write(f"measured {seconds} {own} {peak}")
sys.exit(code)
"""


@dataclass
class Options:
    """Report of made-up rows."""

    # Rows to make; at least one per policy, task and condition of the level.
    episodes: int = 100_000
    # Conditions: those of this level.
    level: str = "standard"
    # Times that the report is made; the median is printed.
    rounds: int = 3
    # Keep rows and report here; a temporary folder when left out.
    folder: Path | None = None
    # Samples go here.
    output: Path = Path("outputs/benchmarks/report.json")


def main() -> None:
    """Command line entry."""
    import draccus

    options = draccus.parse(Options)
    machine = Machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        made = synthetic_folder(folder / "run", options.episodes, options.level)
        size = sum(p.stat().st_size for p in (folder / "run").glob("*.jsonl"))
        print(f"{made} rows, {size / 1e6:.0f} MB")
        samples = [_measure(folder) for _ in range(options.rounds)]
        page = (folder / "report" / "report.html").stat().st_size
    report = machine.report()
    clock, processor, peak = (spread(values)["median"] for values in zip(*samples, strict=True))
    print(f"report of {made} episodes: {clock:.1f} s ({processor:.1f} s of processor time; medians of {len(samples)}), "
          f"peak memory {peak:.2f} GiB, page {page / 1e6:.1f} MB")  # fmt: skip
    print(machine_line(report))
    content = {"episodes": made, "bytes": size, "samples": samples, "page_bytes": page, "machine": report}
    write_json(options.output, content)


def _measure(folder: Path) -> tuple[float, float, float]:
    """Seconds of the clock and of the processor, imports included, and highest memory [GiB] of one report in a process of its own."""
    command = [sys.executable, "-c", _MEASURED, str(folder / "run"), str(folder / "report")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise SystemExit(f"The report failed: {result.stderr}")
    clock, processor, peak = result.stderr.rpartition("measured ")[2].split()
    return float(clock), float(processor), int(peak) / 2**20


def synthetic_folder(folder: Path, number: int, level: str) -> int:
    """Write a manifest and at least ``number`` made-up rows, equally many per cell.

    Returns:
        The number of rows.
    """
    from multismolvla_eval.protocol.levels import level_conditions

    conditions = level_conditions(level).conditions
    arms = [(s, t, c) for s in SUITES for t in range(10) for c in conditions]
    per_arm = max(1, math.ceil(number / (len(arms) * len(POLICIES))))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(_manifest(conditions, level, per_arm)))
    rng = random.Random(0)
    rows = 0
    with open(folder / "episodes-0of1.jsonl", "w") as handle:
        for suite, task, condition in arms:
            for episode in range(per_arm):
                for policy in POLICIES:
                    row = _row(rng, policy, suite, task, condition, episode)
                    handle.write(json.dumps(row, separators=(",", ":")) + "\n")
                    rows += 1
    return rows


def _streams() -> list[str]:
    pictures = [f"observation.images.{c}{m}" for c in CAMERAS for m in ("", "_depth", "_seg", "_thermal")]
    return [
        *pictures,
        *(f"{p}_padding_mask" for p in pictures),
        *(f"observation.images.{c}_depth_valid" for c in CAMERAS),
    ]


@cache
def _faulted(condition: str) -> dict[str, set[str]]:
    from multismolvla_eval.protocol.reach import faulted_streams

    return faulted_streams(condition, {"cameras": CAMERAS})


def _row(
    rng: random.Random, policy: str, suite: str, task: int, condition: str, episode: int
) -> dict[str, Any]:
    harm = 1.0 if condition == "C0" else 1 - 0.12 * int(condition[-1]) if condition.startswith("C3") else 0.6
    success = rng.random() < POLICIES[policy] * harm * (0.8 + 0.04 * task)
    steps = rng.randint(60, 250) if success else 280

    def digest(*parts: Any) -> str:
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    place = (suite, task, episode)
    faulted = _faulted(condition)
    hit = {k for keys in faulted.values() for k in keys}
    door = {k: digest(place, k, condition if k in hit else "C0")[:12] for k in _streams()}
    return {
        "run": FINGERPRINT, "world": suite, "policy": policy, "checkpoint": f"made-up-{policy}", "suite": suite,
        "task_id": task, "condition": condition, "episode": episode, "seed": 0, "init_state": episode,
        "env_seed": rng.getrandbits(31), "noise_seed": rng.getrandbits(31), "start": digest(place)[:16],
        "success": success, "cause": None if success else "time_out", "steps": steps,
        "steps_to_success": steps if success else None, "actions": digest(place, policy, condition)[:16],
        "gripper": {"closed": round(rng.random(), 3), "switches": rng.randint(1, 4)}, "door": door,
        "encoder": {m: digest(place, m, condition if m in faulted else "C0")[:12] for m in ("rgb", "depth", "seg", "thermal")},
        "seconds": {"total": round(rng.uniform(10, 30), 3), "policy": round(rng.uniform(3, 9), 3), "env": 8.0, "clip": 0.0},
        "worker": 0, "clip": None, "time": "2020-01-01T00:00:00+00:00",
    }  # fmt: skip


def _manifest(conditions: tuple[str, ...], level: str, per_arm: int) -> dict[str, Any]:
    from multismolvla_eval.records.store import SCHEMA

    machine = {
        "processor": "made up",
        "cores": 1,
        "memory_gb": 1,
        "system": "none",
        "renderer": "none",
        "threads_per_worker": 1,
    }
    return {
        "schema": SCHEMA, "fingerprint": FINGERPRINT, "synthetic": True, "created": "2020-01-01T00:00:00+00:00",
        "comparable": {"schema": SCHEMA, "env": {"type": "multismolvla_libero", "options": {}}, "seed": 0, "corruption_version": "1"},
        "level": level, "cameras": list(CAMERAS), "env": {"type": "multismolvla_libero", "fps": 20, "streams": [], "provenance": {}},
        "suites": {
            s: {"tasks": {str(t): f"made-up task {t} of {s}" for t in range(10)}, "max_steps": 280, "init_states": 50,
                "assets": "", "labels": [], "world": s}
            for s in SUITES
        },
        "policies": {
            n: {"checkpoint": f"made-up-{n}", "type": "synthetic", "parameters": 450_000_000, "path": f"outputs/{n}",
                "reads": _streams(), "provenance": dict.fromkeys(("rgb", "depth", "seg", "thermal"), "sensor"), "n_action_steps": 10}
            for n in POLICIES
        },
        "baseline": "smolvla", "conditions": list(conditions), "clean_episodes": per_arm, "clean_seeds": 1,
        "episodes": per_arm, "seed": 0, "workers": 1, "versions": {"python": "3"}, "commit": None,
        "hardware": machine, "provenance": [], "commands": [["made-up"]], "remarks": [],
    }  # fmt: skip


if __name__ == "__main__":
    main()

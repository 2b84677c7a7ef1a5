"""Time and memory of a report: `python benchmarks/report.py --episodes=100000`.

Makes a folder with made-up rows (marked as synthetic, and with all the fields that an evaluation writes),
then runs `multismolvla-report` on it in a process of its own and reads that process's highest memory from
the kernel.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from support.measuring import Machine, machine_line, spread, write_json

from multismolvla.modalities import MODALITIES, Provenance
from multismolvla_eval.records.reach import faulted_streams
from multismolvla_eval.records.schema import (
    SCHEMA,
    Comparable,
    Durations,
    EpisodeRow,
    Gripper,
    Hardware,
    MadeWith,
    PolicyFacts,
    RunManifest,
    SuiteRecord,
)

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
    print(
        f"report of {made} episodes: {clock:.1f} s ({processor:.1f} s of processor time; medians of "
        f"{len(samples)}), peak memory {peak:.2f} GiB, page {page / 1e6:.1f} MB"
    )
    print(machine_line(report))
    content = {"episodes": made, "bytes": size, "samples": samples, "page_bytes": page, "machine": report}
    write_json(options.output, content)


def _measure(folder: Path) -> tuple[float, float, float]:
    """Seconds (clock, processor; imports included) and highest memory [GiB] of one report's process."""
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
    import msgspec

    from multismolvla_eval.protocol.levels import level_conditions
    from multismolvla_eval.records.store import write_manifest

    conditions = level_conditions(level).conditions
    cells = [(s, t, c) for s in SUITES for t in range(10) for c in conditions]
    episodes = max(1, math.ceil(number / (len(cells) * len(POLICIES))))
    folder.mkdir(parents=True, exist_ok=True)
    manifest = _manifest(conditions, level, episodes)
    write_manifest(folder, manifest)
    faulted = {condition: faulted_streams(condition, manifest) for condition in conditions}
    rng = random.Random(0)
    places = [(*cell, e, p) for cell in cells for e in range(episodes) for p in POLICIES]
    with open(folder / "episodes-0of1.jsonl", "wb") as handle:
        for suite, task, condition, episode, policy in places:
            row = _row(rng, policy, suite, task, condition, episode, faulted[condition])
            handle.write(msgspec.json.encode(row) + b"\n")
    return len(places)


def _streams() -> list[str]:
    pictures = [f"observation.images.{c}{m}" for c in CAMERAS for m in ("", "_depth", "_seg", "_thermal")]
    masks = [f"{p}_padding_mask" for p in pictures]
    return [*pictures, *masks, *(f"observation.images.{c}_depth_valid" for c in CAMERAS)]


def _row(
    rng: random.Random,
    policy: str,
    suite: str,
    task: int,
    condition: str,
    episode: int,
    faulted: dict[str, set[str]],
) -> EpisodeRow:
    harm = 1.0 if condition == "C0" else 1 - 0.12 * int(condition[-1]) if condition.startswith("C3") else 0.6
    success = rng.random() < POLICIES[policy] * harm * (0.8 + 0.04 * task)
    steps = rng.randint(60, 250) if success else 280

    def digest(*parts: object) -> str:
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    place = (suite, task, episode)
    hit = set().union(*faulted.values())
    return EpisodeRow(
        run=FINGERPRINT,
        policy=policy,
        checkpoint=f"made-up-{policy}",
        suite=suite,
        suite_hash=suite,
        task_id=task,
        condition=condition,
        episode=episode,
        repeat=0,
        init_state=episode,
        start=digest(place),
        env_seed=rng.getrandbits(31),
        noise_seed=rng.getrandbits(31),
        success=success,
        cause=None if success else "time_out",
        steps=steps,
        steps_to_success=steps if success else None,
        actions=digest(place, policy, condition),
        gripper=Gripper(round(rng.random(), 3), rng.randint(1, 4)),
        policy_inputs={k: digest(place, k, condition if k in hit else "C0") for k in _streams()},
        encoder_inputs={m: digest(place, m, condition if m in faulted else "C0") for m in MODALITIES},
        seconds=Durations(round(rng.uniform(10, 30), 3), round(rng.uniform(3, 9), 3), 8.0),
        worker=0,
        time="2020-01-01T00:00:00+00:00",
    )


def _manifest(conditions: tuple[str, ...], level: str, episodes: int) -> RunManifest:
    provenance = dict.fromkeys(MODALITIES, Provenance.SENSOR.value)
    suites = {
        s: SuiteRecord(
            type="multismolvla_libero",
            tasks={t: f"made-up task {t} of {s}" for t in range(10)},
            max_steps=280,
            init_states=50,
            fps=20,
            streams=list(MODALITIES),
            provenance=provenance,
            suite_hash=s,
            complete=True,
        )
        for s in SUITES
    }
    policies = {
        name: PolicyFacts(
            path=f"outputs/{name}",
            type="synthetic",
            checkpoint=f"made-up-{name}",
            reads=_streams(),
            provenance=provenance,
            parameters=450_000_000,
            n_action_steps=10,
        )
        for name in POLICIES
    }
    call = MadeWith("2020-01-01T00:00:00+00:00", {"python": "3"}, None, Hardware("none", "made up", 1, 1.0))
    return RunManifest(
        schema=SCHEMA,
        fingerprint=FINGERPRINT,
        comparable=Comparable(SCHEMA, "multismolvla_libero", {}, 0, "1"),
        created=call.time,
        level=level,
        suites=suites,
        cameras=list(CAMERAS),
        policies=policies,
        baseline="smolvla",
        conditions=list(conditions),
        clean_episodes=episodes,
        episodes=episodes,
        calls=[call],
        commands=[["made-up"]],
        synthetic=True,
    )


if __name__ == "__main__":
    main()

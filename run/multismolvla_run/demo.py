"""``make demo``: the whole story as five visible commands, continued where it was interrupted.

doctor -> record demonstrations -> train -> evaluate -> report. Every chapter is a program of this package that can be
called alone; the demo only chooses folders and sizes, shows the commands, and keeps the time. What need not be done
again is for each program to find out: it compares settings and data, where the demo would know command lines only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multismolvla.system.files import write_json
from multismolvla_run.presets import load_preset, result_folder
from multismolvla_run.process import (
    BusyError,
    die_with_parent,
    folder_lock,
    show_command,
    stop,
    terminate_as_interrupt,
)

# Shown in the report: what a reader must know before comparing the two rows.
_BUDGET_NOTE = json.dumps(
    [
        "MultiSmolVLA continues from the baseline and has had more training steps than it.",
        "Segmentation ids and depth come from the simulator: they are exact, as no real sensor is.",
    ]
)


@dataclass(frozen=True)
class Size:
    """How much of everything a demo does.

    Attributes:
        preset: training preset.
        episodes: recorded demonstrations of each task.
        level: level of the evaluation.
        minutes: expected duration of each chapter on 2 cores.
    """

    preset: str
    episodes: int
    level: str
    minutes: dict[str, float]


SIZES = {
    "demo": Size("mini", 40, "quick", {"doctor": 0.3, "record": 4, "train": 17, "eval": 7, "report": 0.5}),
    "smoke": Size(
        "mini_smoke", 4, "smoke", {"doctor": 0.3, "record": 0.5, "train": 1.5, "eval": 1, "report": 0.3}
    ),
}


@dataclass(frozen=True)
class Chapter:
    """One command of the story.

    Attributes:
        name: short name, also the key in the demo's record.
        title: what the reader is going to see.
        command: program and arguments.
        hint: what else to tell when it fails.
    """

    name: str
    title: str
    command: tuple[str, ...]
    hint: str = ""


class ChapterError(RuntimeError):
    """A chapter ended with an error."""


def _tool(name: str) -> str:
    installed = Path(sys.executable).with_name(name)
    return str(installed) if installed.exists() else name


def story(size: Size, out: Path, configs: Path, workers: int) -> list[Chapter]:
    """The chapters of the demo.

    Args:
        size: how much.
        out: folder of the demo.
        configs: folder of the training presets.
        workers: simulator processes.

    Returns:
        Chapters in order.
    """
    preset = load_preset(size.preset, configs)
    train = out / "train"
    ours = result_folder(preset.stage("robust"), train)
    baseline = result_folder(preset.stage("base"), train)
    return [
        Chapter(
            "doctor", "Is this machine fit for it?",
            (_tool("multismolvla-doctor"), f"--output={out}", f"--thread-cache={train / 'threads.json'}",
             f"--report={out / 'doctor.json'}"),
        ),
        Chapter(
            "record", f"A scripted expert shows each task of the mini suite {size.episodes} times",
            (_tool("multismolvla-record"), f"--output={out / 'dataset'}", f"--episodes={size.episodes}",
             f"--workers={workers}"),
        ),
        Chapter(
            "train", "Tiny base models, a vanilla SmolVLA, then the two stages of MultiSmolVLA",
            (sys.executable, "train.py", size.preset, f"--dataset={out / 'dataset'}", f"--output={train}"),
        ),
        Chapter(
            "eval", "Sensors fail: MultiSmolVLA against vanilla SmolVLA, same seeds, same initial states",
            (_tool("multismolvla-eval"), f"--policies=[multismolvla={ours},smolvla={baseline}]", "--baseline=smolvla",
             f"--level={size.level}", f"--output={out / 'eval'}", f"--workers={workers}", f"--note={_BUDGET_NOTE}"),
            hint=f"If a policy has changed: delete {out / 'eval'} to evaluate the new policies.",
        ),
        Chapter(
            "report", "What it means, in one page",
            (_tool("multismolvla-report"), f"--results={out / 'eval'}", f"--output={out / 'report'}"),
        ),
    ]  # fmt: skip


def read_record(path: Path) -> dict[str, Any]:
    """The demo's memory: chapter -> command, status, seconds. Empty when absent or damaged."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def run_chapter(chapter: Chapter, env: dict[str, str]) -> None:
    """Run one command with the terminal as its own.

    Args:
        chapter: what to run.
        env: environment variables to set on top of the present ones.

    Raises:
        ChapterError: it ended with an error.
        KeyboardInterrupt: after the child has been ended.
    """
    full_env = {**os.environ, "PYTHONUNBUFFERED": "1", **env}
    if not sys.stderr.isatty():
        full_env.setdefault("TQDM_MININTERVAL", "15")
    with subprocess.Popen(chapter.command, env=full_env, preexec_fn=die_with_parent) as child:
        try:
            code = child.wait()
        except BaseException:
            stop(child)
            raise
    if code == 130:
        raise KeyboardInterrupt
    if code != 0:
        message = f"chapter {chapter.name!r} ended with code {code}; the reason stands above."
        raise ChapterError(f"{message}\n{chapter.hint}".rstrip())


def doctor_env(out: Path) -> dict[str, str]:
    """Environment that the doctor recommends for simulator processes: its renderer, one thread for each process."""
    try:
        found = json.loads((out / "doctor.json").read_text())["env"]
    except (OSError, ValueError, KeyError):
        found = {}
    single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}
    return {**single, **{k: v for k, v in found.items() if k == "MUJOCO_GL"}}


def tell(chapters: Sequence[Chapter], out: Path, size: Size) -> None:
    """Run the chapters and print the time table. Those that find their work done end at once.

    Args:
        chapters: in order.
        out: folder of the demo.
        size: for the expected minutes.

    Raises:
        ChapterError: a chapter failed.
    """
    path = out / "demo.json"
    record = read_record(path)
    for number, chapter in enumerate(chapters, start=1):
        known = record.get(chapter.name, {})
        _say(
            f"\n[{number}/{len(chapters)}] {chapter.name}: {chapter.title}\n$ {show_command(list(chapter.command))}"
        )
        entry = {"command": list(chapter.command), "status": "interrupted"}
        start = time.monotonic()
        try:
            run_chapter(chapter, doctor_env(out))
            entry["status"] = "finished"
        finally:
            record[chapter.name] = {
                **entry,
                "seconds": _total_seconds(known, entry, time.monotonic() - start),
            }
            write_json(path, record)
    _say("\n" + time_table(chapters, record, size))


def _total_seconds(known: dict[str, Any], entry: dict[str, Any], seconds: float) -> float:
    """Seconds that a chapter's work took over all starts of the demo.

    An interrupted chapter continues, so its seconds add up. A finished one has little or nothing left to do: the
    moments it takes to find that out must not hide how long the work took. Another command is other work.
    """
    if known.get("command") != entry["command"]:
        return seconds
    before = float(known.get("seconds", 0.0))
    return max(before, seconds) if known.get("status") == "finished" else before + seconds


def time_table(chapters: Sequence[Chapter], record: dict[str, Any], size: Size) -> str:
    """Minutes of each chapter beside the expectation."""
    lines = [f"{'chapter':<10}{'minutes':>9}{'expected':>10}"]
    total = expected = 0.0
    for chapter in chapters:
        minutes = record.get(chapter.name, {}).get("seconds", 0.0) / 60
        total, expected = total + minutes, expected + size.minutes[chapter.name]
        lines.append(f"{chapter.name:<10}{minutes:>9.1f}{size.minutes[chapter.name]:>10.1f}")
    lines.append(f"{'together':<10}{total:>9.1f}{expected:>10.1f}")
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0 when the report is there, 1 when a chapter failed, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m multismolvla_run.demo", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="demo")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="folder of everything")
    parser.add_argument("--workers", type=int, default=2, help="simulator processes")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and end")
    options = parser.parse_args(argv)
    if not Path("train.py").is_file():
        sys.stderr.write(
            "error: no train.py here. Start the demo in the repository's root, or with `make demo`.\n"
        )
        return 2
    out, size = options.output, SIZES[options.size]
    chapters = story(size, out, Path("configs"), options.workers)
    if options.dry_run:
        for chapter in chapters:
            _say(f"# {chapter.name}: {chapter.title}\n{show_command(list(chapter.command))}\n")
        return 0
    _say(
        f"Demo of size {options.size!r} in {out}: about {sum(size.minutes.values()):.0f} minutes on two cores."
    )
    try:
        with folder_lock(out), terminate_as_interrupt():
            tell(chapters, out, size)
    except (ChapterError, BusyError) as error:
        sys.stderr.write(f"\nerror: {error}\nStart the same command again to continue.\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. Start the same command again to continue.\n")
        return 130
    _say(f"\nThe report: {out / 'report'}")
    for page in sorted((out / "report").glob("*.*")):
        _say(f"  {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

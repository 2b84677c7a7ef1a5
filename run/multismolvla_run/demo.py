"""``make demo``: the whole story as five visible commands, continued where it was interrupted.

doctor -> record demonstrations -> train -> evaluate -> report. Each chapter is a program that can be called
alone, and finds out by itself what it need not do again; the demo chooses folders and sizes, shows the
commands and keeps the time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from multismolvla.system.command import CommandError, entry_point, parse_options
from multismolvla.system.files import write_json
from multismolvla_run.presets import load_preset, result_folder
from multismolvla_run.process import (
    ChildFailedError,
    child_environment,
    die_with_parent,
    folder_lock,
    installed_program,
    show_command,
    stop,
    terminate_as_interrupt,
)

# Shown in the report: what a reader must know before comparing the two rows.
_NOTES = json.dumps(
    ["Segmentation ids and depth come from the simulator: they are exact, as no real sensor is."]
)
#: For everything but training, which runs one process per core.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Size:
    """How much of everything a demo does."""

    preset: str  # training preset
    episodes: int  # recorded demonstrations of each task
    level: str  # level of the evaluation
    minutes: Mapping[str, float]  # expected duration of each chapter on 2 cores


_DEMO = {"doctor": 0.2, "record": 8, "train": 42, "eval": 10, "report": 0.2}
_SMOKE = {"doctor": 0.2, "record": 1.7, "train": 3, "eval": 1, "report": 0.2}
SIZES = {"demo": Size("mini", 40, "quick", _DEMO), "smoke": Size("mini_smoke", 4, "smoke", _SMOKE)}


@dataclass
class DemoOptions:
    """Options of the demo."""

    size: str = "demo"  # demo or smoke (a few minutes, for CI)
    output: Path = Path("outputs/demo")  # folder of everything
    workers: int = 2  # simulator processes
    dry_run: bool = False  # print the commands and end

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"--size={self.size}: expected one of {sorted(SIZES)}.")


@dataclass(frozen=True)
class Chapter:
    """One command of the story."""

    name: str  # short name, also the key in the demo's record
    title: str  # what the reader is going to see
    command: tuple[str, ...]  # program and arguments
    hint: str = ""  # what else to tell when it fails


class ChapterRecord(msgspec.Struct):
    """What the demo remembers of a chapter: its last command, how that ended, and the seconds of the work."""

    command: list[str]
    status: str = "interrupted"
    seconds: float = 0.0


Diary = dict[str, ChapterRecord]


def story(size: Size, out: Path, configs: Path, workers: int) -> list[Chapter]:
    """The chapters of the demo in order; presets are read from ``configs``."""
    preset = load_preset(size.preset, configs)
    train = out / "train"
    ours = result_folder(preset.stage("robust"), train)
    baseline = result_folder(preset.stage("base"), train)
    return [
        Chapter(
            "doctor", "Is this machine fit for it?",
            (installed_program("multismolvla-doctor"), f"--output={out}", f"--report={out / 'doctor.json'}"),
        ),
        Chapter(
            "record", f"A scripted expert shows each task of the mini suite {size.episodes} times",
            (installed_program("multismolvla-record"), f"--output={out / 'dataset'}",
             f"--episodes={size.episodes}", f"--workers={workers}"),
        ),
        Chapter(
            "train", "Tiny base models, a vanilla SmolVLA, then the two stages of MultiSmolVLA",
            (sys.executable, "train.py", size.preset, f"--dataset={out / 'dataset'}", f"--output={train}"),
        ),
        Chapter(
            "eval", "Sensors fail: MultiSmolVLA against vanilla SmolVLA, same seeds, same initial states",
            # SmolVLA as it is does not judge its pictures
            (installed_program("multismolvla-eval"),
             f"--policies=[multismolvla={ours},smolvla=no_health:{baseline}]",
             "--baseline=smolvla", f"--level={size.level}", f"--output={out / 'eval'}",
             f"--workers={workers}", f"--note={_NOTES}"),
            hint=f"If a policy has changed: delete {out / 'eval'} to evaluate the new policies.",
        ),
        Chapter(
            "report", "What it means, in one page",
            (installed_program("multismolvla-report"), f"--results={out / 'eval'}",
             f"--output={out / 'report'}"),
        ),
    ]  # fmt: skip


def read_diary(path: Path) -> Diary:
    """The demo's memory by chapter. Empty when absent or damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Diary)
    except (OSError, msgspec.DecodeError):
        return {}


def run_chapter(chapter: Chapter, env: Mapping[str, str]) -> None:
    """Run one command with the terminal as its own.

    Raises:
        ChildFailedError: it ended with an error.
        KeyboardInterrupt: after the child has been ended.
    """
    with subprocess.Popen(chapter.command, env=child_environment(env), preexec_fn=die_with_parent) as child:
        try:
            code = child.wait()
        except BaseException:
            stop(child)
            raise
    if code == 130:
        raise KeyboardInterrupt
    if code != 0:
        message = f"chapter {chapter.name!r} ended with code {code}; the reason stands above."
        raise ChildFailedError(f"{message}\n{chapter.hint}".rstrip())


def chapter_environment(chapter: Chapter, out: Path) -> dict[str, str]:
    """The renderer that the doctor found to work, and one thread for each process unless it trains."""
    try:
        renderer = json.loads((out / "doctor.json").read_text())["env"]
    except (OSError, ValueError, KeyError):
        renderer = {}
    return {**({} if chapter.name == "train" else _ONE_THREAD), **renderer}


def tell(chapters: Sequence[Chapter], out: Path, size: Size) -> None:
    """Run the chapters and print the time table.

    Raises:
        ChildFailedError: a chapter failed.
    """
    path = out / "demo.json"
    diary = read_diary(path)
    for number, chapter in enumerate(chapters, start=1):
        command = list(chapter.command)
        _say(f"\n[{number}/{len(chapters)}] {chapter.name}: {chapter.title}\n$ {show_command(command)}")
        known, record = diary.get(chapter.name), ChapterRecord(command)
        start = time.monotonic()
        try:
            run_chapter(chapter, chapter_environment(chapter, out))
            record.status = "finished"
        finally:
            record.seconds = _total_seconds(known, command, time.monotonic() - start)
            diary[chapter.name] = record
            write_json(path, msgspec.to_builtins(diary))
    _say("\n" + time_table(chapters, diary, size))


def _total_seconds(known: ChapterRecord | None, command: list[str], seconds: float) -> float:
    """Seconds that a chapter's work took over all starts of the demo.

    An interrupted chapter continues, so its seconds add up. A finished one only finds out that there is
    nothing to do, which must not hide how long the work took.
    """
    if known is None or known.command != command:
        return seconds
    return max(known.seconds, seconds) if known.status == "finished" else known.seconds + seconds


def time_table(chapters: Sequence[Chapter], diary: Diary, size: Size) -> str:
    """Minutes of each chapter beside the expectation."""
    rows = [(c.name, diary[c.name].seconds / 60, size.minutes[c.name]) for c in chapters]
    rows.append(("together", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    table = [f"{name:<10}{minutes:>9.1f}{expected:>10.1f}" for name, minutes, expected in rows]
    return "\n".join([f"{'chapter':<10}{'minutes':>9}{'expected':>10}", *table])


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@entry_point("error", failure=2, interrupted="\nInterrupted. Start the same command again to continue.")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0 when the report is there, 1 when a chapter failed, 130 when interrupted."""
    options = parse_options(DemoOptions, argv)
    out, size = options.output, SIZES[options.size]
    if not Path("train.py").is_file():
        raise CommandError("no train.py here. Start the demo in the repository's root, or with `make demo`.")
    chapters = story(size, out, Path("configs"), options.workers)
    if options.dry_run:
        for chapter in chapters:
            _say(f"# {chapter.name}: {chapter.title}\n{show_command(list(chapter.command))}\n")
        return 0
    minutes = sum(size.minutes.values())
    _say(f"Demo of size {options.size!r} in {out}: about {minutes:.0f} minutes on two cores.")
    try:
        with folder_lock(out), terminate_as_interrupt():
            tell(chapters, out, size)
    except ChildFailedError as error:
        sys.stderr.write(f"\nerror: {error}\nStart the same command again to continue.\n")
        return 1
    _say(f"\nThe report: {out / 'report'}")
    for page in sorted((out / "report").glob("*.*")):
        _say(f"  {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python train.py PRESET``: run the stages of a preset, each as one visible command, and continue an interrupted run.

The driver trains nothing itself. It prints and starts ``lerobot-train`` (unpatched) and small modules, and remembers for
every stage what it was started with. On the next start a finished stage is skipped, an interrupted one resumed from its
last checkpoint, and a stage whose settings have changed since is refused rather than mixed with the old ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multismolvla.system.command import entry_point
from multismolvla_run.dry_run import describe, how_to_make
from multismolvla_run.presets import (
    Preset,
    PresetError,
    available_presets,
    dataset_id,
    final_checkpoint,
    load_preset,
)
from multismolvla_run.process import (
    BusyError,
    ChildFailedError,
    Progress,
    folder_lock,
    run_logged,
    show_command,
    terminate_as_interrupt,
)
from multismolvla_run.stages import Action, Run, StageError, Step, is_finished, plan, read_state, write_state
from multismolvla_run.threads import best_thread_env


def execute(run: Run, step: Step, env: Mapping[str, str]) -> float:
    """Carry out one step.

    Args:
        run: folders.
        step: what to do; a finished one is left alone.
        env: environment variables for the child.

    Returns:
        Seconds spent now.

    Raises:
        StageError: the child ended well, but what it should have written is not there.
        ChildFailedError: the child failed.
    """
    if step.action is Action.SKIP:
        return 0.0
    stage, folder, state = step.stage, run.out / step.stage.name, run.state_file(step.stage)
    record = read_state(state) or {}
    spent = float(record.get("seconds", 0.0)) if step.action is Action.RESUME else 0.0
    if (
        step.action is not Action.RESUME
        and folder.exists()
        and not (stage.keep_partial and step.action is Action.RESTART)
    ):
        shutil.rmtree(folder)
    mark = {
        "stage": stage.name,
        "fingerprint": step.fingerprint,
        "settings": step.settings,
        "command": step.command,
    }
    write_state(state, {**mark, "status": "running", "seconds": spent})
    progress = Progress(stage.name, stage.steps, step.resume_step) if stage.trains and stage.steps else None
    start = time.monotonic()
    try:
        run_logged(step.command, run.out / "logs" / f"{stage.name}.log", env, progress)
    finally:
        seconds = time.monotonic() - start
        write_state(state, {**mark, "status": "interrupted", "seconds": spent + seconds})
    record = {**mark, "status": "finished", "seconds": spent + seconds}
    if not is_finished(stage, run.out, record):
        wanted = (
            final_checkpoint(stage, run.out) if stage.trains else [str(folder / p) for p in stage.produces]
        )
        raise StageError(f"Stage {stage.name!r} ended without an error, but {wanted} is not there.")
    write_state(state, record)
    return seconds


def run_pipeline(run: Run, until: str | None = None, say: Any = None) -> None:
    """Run all stages that are not finished.

    Args:
        run: preset, folders and wishes.
        until: name of the last stage to run, ``None`` for all.
        say: function that takes a line of text for the user; default writes to stdout.

    Raises:
        StageError, ChildFailedError, BusyError: see there.
    """
    say = say or _say
    steps = _up_to(plan(run), until)
    if (
        any(s.stage.uses_dataset() and s.action is not Action.SKIP for s in steps)
        and dataset_id(run.dataset) is None
    ):
        how = "\n".join(how_to_make(run.preset, run.dataset))
        raise StageError(
            f"{run.dataset} is not a LeRobotDataset (no meta/info.json). Name yours with --dataset, or {how}"
        )
    with folder_lock(run.out), terminate_as_interrupt():
        env = (
            best_thread_env(run.out / "threads.json")
            if any(s.action is not Action.SKIP for s in steps)
            else {}
        )
        for number, step in enumerate(steps, start=1):
            title = f"[{number}/{len(steps)}] {step.stage.name}: {step.action}"
            if step.action is Action.SKIP:
                say(title)
                continue
            where = f" from step {step.resume_step}" if step.action is Action.RESUME else ""
            say(f"{title}{where}\n{show_command(step.command, env)}")
            seconds = execute(run, step, env)
            say(f"[{number}/{len(steps)}] {step.stage.name}: finished in {seconds / 60:.1f} min")


def _up_to(steps: list[Step], until: str | None) -> list[Step]:
    if until is None:
        return steps
    return steps[: [s.stage.name for s in steps].index(until) + 1]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


_DRIVER_OPTIONS = {
    "output_dir": "Use --output.",
    "resume": "Start the same command again to resume.",
    "config_path": "Write a preset that extends this one.",
    "job_name": "It is made of the preset's and the stage's name.",
}


def override_steps(preset: Preset, extra: dict[str, list[str]]) -> Preset:
    """Take ``--steps=N`` out of the additional arguments and put it where the stage's length is kept.

    Args:
        preset: the preset.
        extra: see `parse_extra`; changed in place.

    Returns:
        The preset with the lengths asked for.

    Raises:
        PresetError: not a positive whole number.
    """
    stages = []
    for stage in preset.stages:
        for words in (extra.get("", []), extra.get(stage.name, [])):
            for word in words if stage.trains else []:
                if word.startswith("--steps="):
                    value = word.removeprefix("--steps=")
                    if not value.isdigit() or int(value) < 1:
                        raise PresetError(f"{word}: expected a positive whole number of steps.")
                    stage = dataclasses.replace(stage, steps=int(value))
        stages.append(stage)
    for name, words in extra.items():
        extra[name] = [word for word in words if not word.startswith("--steps=")]
    return dataclasses.replace(preset, stages=tuple(stages))


def parse_extra(words: Sequence[str], preset: Preset) -> dict[str, list[str]]:
    """Sort additional arguments by stage: ``--x=1`` is for every training stage, ``base:--x=1`` for one.

    Args:
        words: what came after ``--`` on the command line.
        preset: for the names of the stages.

    Returns:
        Stage name (or ``""``) -> arguments.

    Raises:
        PresetError: unknown stage, an argument that is not ``--key=value``, or one that is the driver's to set.
    """
    extra: dict[str, list[str]] = {}
    for word in words:
        name, found, option = word.partition(":--")
        key = (option if found else word.removeprefix("--")).partition("=")[0]
        if key in _DRIVER_OPTIONS:
            raise PresetError(
                f"Additional argument {word!r}: {key} is set by the driver. {_DRIVER_OPTIONS[key]}"
            )
        if found and not name.startswith("-"):
            extra.setdefault(preset.stage(name).name, []).append("--" + option)
        elif word.startswith("--") and "=" in word:
            extra.setdefault("", []).append(word)
        else:
            raise PresetError(f"Additional argument {word!r}: expected --key=value or <stage>:--key=value.")
    return extra


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Run the stages of a preset, each as one visible command; continue an interrupted run.",
        epilog="After `--`: arguments for lerobot-train, --key=value for every stage or <stage>:--key=value for one.",
    )
    parser.add_argument("preset", nargs="?", help="name of a file in configs/, or the path of a YAML file")
    parser.add_argument("--list", action="store_true", help="list the presets and end")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be downloaded, run and needed, and end"
    )
    parser.add_argument("--output", type=Path, help="folder of the run (default: the preset's)")
    parser.add_argument("--dataset", type=Path, help="folder of the LeRobotDataset (default: the preset's)")
    parser.add_argument(
        "--from", dest="first", metavar="STAGE", help="discard and repeat this stage and the later ones"
    )
    parser.add_argument("--until", metavar="STAGE", help="end after this stage")
    parser.add_argument("--launcher", default="", help="words before lerobot-train, e.g. 'accelerate launch'")
    parser.add_argument("--configs", type=Path, default=Path("configs"), help=argparse.SUPPRESS)
    return parser


def _make_run(options: argparse.Namespace, extra: Sequence[str]) -> Run:
    preset = load_preset(options.preset, options.configs)
    names = [stage.name for stage in preset.stages]
    repeat = names[names.index(preset.stage(options.first).name) :] if options.first else []
    if options.until:
        preset.stage(options.until)
    wishes = parse_extra(extra, preset)
    return Run(
        preset=override_steps(preset, wishes),
        out=options.output or Path(preset.output),
        dataset=options.dataset or Path(preset.dataset),
        extra=wishes,
        launcher=tuple(shlex.split(options.launcher)),
        repeat=frozenset(repeat),
    )


def _list_presets(folder: Path) -> None:
    for name in available_presets(folder):
        preset = load_preset(name, folder)
        _say(f"{name:<12} {preset.description} ({' -> '.join(stage.name for stage in preset.stages)})")


@entry_point(
    "error",
    errors=(PresetError, StageError, BusyError),
    failure=2,
    interrupted="\nInterrupted. Start the same command again to continue.",
)
def main(argv: Sequence[str] | None = None, configs: Path | None = None) -> int:
    """Command line of ``train.py``.

    Args:
        argv: arguments, default those of the process.
        configs: folder of the presets, default ``configs`` in the working directory.

    Returns:
        Exit code: 0 done, 1 a stage failed, 2 a wrong request, 130 interrupted (start again to continue).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    own, extra = (
        (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    )
    parser = _parser()
    if configs is not None:
        parser.set_defaults(configs=configs)
    options = parser.parse_args(own)
    if options.list:
        _list_presets(options.configs)
        return 0
    if not options.preset:
        parser.error(f"name a preset: {', '.join(available_presets(options.configs))}")
    run = _make_run(options, extra)
    if options.dry_run:
        _say(describe(run, _up_to(plan(run), options.until)))
        return 0
    try:
        run_pipeline(run, options.until)
    except ChildFailedError as error:
        sys.stderr.write(f"error: {error}\nStart the same command again to continue.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python train.py PRESET``: run the stages of a preset, each as one visible command; continue an old run.

The driver trains nothing itself: it prints and starts ``lerobot-train`` and small modules, and remembers what
each stage was started with. On the next start a finished stage is skipped, an interrupted one resumed from
its last checkpoint, and a stage whose settings have changed is refused.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from multismolvla.system.command import entry_point, parse_options
from multismolvla_data.formats.metadata import read_metadata
from multismolvla_run.dry_run import check_training_options, dry_run_text, how_to_make
from multismolvla_run.presets import (
    Preset,
    PresetError,
    available_presets,
    dataset_id,
    final_checkpoint,
    fingerprint,
    load_preset,
)
from multismolvla_run.process import (
    ChildFailedError,
    Progress,
    folder_lock,
    run_logged,
    show_command,
    terminate_as_interrupt,
)
from multismolvla_run.stages import (
    Action,
    StageError,
    StageRecord,
    Step,
    TrainingRun,
    is_finished,
    plan,
    read_record,
    write_record,
)


@dataclass
class TrainOptions:
    """Options of ``train.py PRESET``.

    After ``--`` follow arguments of lerobot-train: --key=value for every stage, STAGE:--key=value for one.
    """

    preset: str = ""  # name of a file in configs/, or the path of a YAML file; may be given without --preset=
    list: bool = False  # list the presets and end
    dry_run: bool = False  # print what would be downloaded, run and needed, and end
    output: Path | None = None  # folder of the run; default: the preset's
    dataset: Path | None = None  # folder of the LeRobotDataset; default: the preset's
    repeat: str | None = None  # discard and repeat this stage and what is built on it
    until: str | None = None  # end after this stage
    launcher: str = ""  # words before lerobot-train, e.g. 'accelerate launch'
    configs: Path = Path("configs")  # folder of the presets


def execute(run: TrainingRun, step: Step, env: Mapping[str, str]) -> float:
    """Carry out one step that is not finished; ``env`` is set for the child.

    Returns:
        Seconds spent now.

    Raises:
        StageError: the child ended well, but what it should have written is not there.
        ChildFailedError: the child failed.
    """
    stage, folder, state = step.stage, run.out / step.stage.name, run.state_file(step.stage)
    before = read_record(state) if step.action is Action.RESUME else None
    if before is None and folder.exists():
        shutil.rmtree(folder)
    spent = before.seconds if before else 0.0
    record = StageRecord(fingerprint(step.settings), step.settings, step.command, seconds=spent)
    write_record(state, record)
    progress = Progress(stage.name, stage.steps, step.resume_step) if stage.trains and stage.steps else None
    start = time.monotonic()
    record.status = "interrupted"
    try:
        run_logged(step.command, run.out / "logs" / f"{stage.name}.log", env, progress)
        record.status = "finished"
    finally:
        seconds = time.monotonic() - start
        record.seconds = spent + seconds
        write_record(state, record)
    if not is_finished(stage, run.out, record):
        files = [str(folder / name) for name in stage.produces]
        wanted = final_checkpoint(stage, run.out) if stage.trains else files
        raise StageError(f"Stage {stage.name!r} ended without an error, but {wanted} is not there.")
    return seconds


def run_pipeline(run: TrainingRun, until: str | None = None) -> None:
    """Run all stages that are not finished, up to the one named ``until``.

    Raises:
        StageError, ChildFailedError, BusyError: see there.
        ValueError: a data set's own metadata cannot be read.
    """
    steps = _up_to(plan(run), until)
    todo = [step for step in steps if step.action is not Action.SKIP]
    for dataset in dict.fromkeys(found for step in todo for found in step.stage.datasets(run.dataset)):
        if dataset_id(dataset) is None:
            how = "\n".join(how_to_make(run.preset, run.dataset))
            raise StageError(
                f"{dataset} is not a LeRobotDataset (no meta/info.json). Name yours with --dataset, or {how}"
            )
        if read_metadata(dataset).init_split == "eval":
            raise StageError(
                f"{dataset} was recorded from the evaluation's initial states: what is trained on it cannot "
                "be measured. Record it without --allow_evaluation_states, or name another with --dataset."
            )
    if todo:
        check_training_options(run)  # now, and not when a stage's turn has come
    env = run.environment()
    with folder_lock(run.out), terminate_as_interrupt():
        for number, step in enumerate(steps, start=1):
            title = f"[{number}/{len(steps)}] {step.stage.name}"
            if step.action is Action.SKIP:
                _say(f"{title}: {step.action}")
                continue
            where = f" from step {step.resume_step}" if step.action is Action.RESUME else ""
            _say(f"{title}: {step.action}{where}\n{show_command(step.command, env)}")
            seconds = execute(run, step, env)
            _say(f"{title}: finished in {seconds / 60:.1f} min")


def _up_to(steps: Sequence[Step], until: str | None) -> Sequence[Step]:
    if until is None:
        return steps
    return steps[: [s.stage.name for s in steps].index(until) + 1]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


#: Options of lerobot-train that are not the user's to set, with what to do instead.
_DRIVER_OPTIONS = {
    "output_dir": "Use --output.",
    "resume": "Start the same command again to resume.",
    "config_path": "Write a preset that extends this one.",
    "job_name": "It is made of the preset's and the stage's name.",
}


def parse_extra(words: Sequence[str], preset: Preset) -> tuple[Preset, dict[str, list[str]]]:
    """Sort additional arguments by stage: ``--x=1`` is for every training stage, ``base:--x=1`` for one.

    Returns:
        The preset with the lengths that ``--steps`` asks for, and stage name (or ``""``) -> other arguments.

    Raises:
        PresetError: unknown stage, an argument that is not ``--key=value``, or one that the driver sets.
    """
    extra: dict[str, list[str]] = {}
    for word in sorted(words, key=lambda word: ":--" in word):  # what is said of one stage counts in the end
        name, found, option = word.partition(":--")
        argument = f"--{option}" if found else word
        key, equals, value = argument.removeprefix("--").partition("=")
        if key in _DRIVER_OPTIONS:
            raise PresetError(f"Additional argument {word!r}: the driver sets {key}. {_DRIVER_OPTIONS[key]}")
        if not equals or not argument.startswith("--"):
            raise PresetError(f"Additional argument {word!r}: expected --key=value or <stage>:--key=value.")
        where = preset.stage(name).name if found else ""
        if key == "steps" and (not found or preset.stage(name).trains):
            preset = _with_steps(preset, where, value)
        else:
            extra.setdefault(where, []).append(argument)
    return preset, extra


def _with_steps(preset: Preset, name: str, value: str) -> Preset:
    if not value.isdigit() or int(value) < 1:
        raise PresetError(f"--steps={value}: expected a positive whole number.")
    stages = [
        msgspec.structs.replace(stage, steps=int(value))
        if stage.trains and name in ("", stage.name)
        else stage
        for stage in preset.stages
    ]
    return msgspec.structs.replace(preset, stages=tuple(stages))


def _training_run(options: TrainOptions, words: Sequence[str]) -> TrainingRun:
    preset = load_preset(options.preset, options.configs)
    names = [stage.name for stage in preset.stages]
    for name in (options.repeat, options.until):
        if name is not None:
            preset.stage(name)
    preset, extra = parse_extra(words, preset)
    return TrainingRun(
        preset=preset,
        out=options.output or Path(preset.output),
        dataset=options.dataset or Path(preset.dataset),
        extra=extra,
        launcher=tuple(shlex.split(options.launcher)),
        repeat=frozenset(names[names.index(options.repeat) :] if options.repeat else ()),
    )


@entry_point("error", failure=2, interrupted="\nInterrupted. Start the same command again to continue.")
def main(argv: Sequence[str] | None = None, configs: Path | None = None) -> int:
    """Command line of ``train.py``, which says where the presets lie.

    Returns:
        Exit code: 0 done, 1 a stage failed, 2 a wrong request, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if any(word.partition("=")[0] == "--from" for word in words):
        raise PresetError("--from is called --repeat now: python train.py PRESET --repeat=STAGE.")
    end = words.index("--") if "--" in words else len(words)
    own, extra = words[:end], words[end + 1 :]
    if own and not own[0].startswith("-"):
        own[0] = f"--preset={own[0]}"
    if configs is not None:
        own.insert(0, f"--configs={configs}")
    options = parse_options(TrainOptions, own)
    if options.list:
        for name in available_presets(options.configs):
            preset = load_preset(name, options.configs)
            _say(f"{name:<12} {preset.description} ({' -> '.join(stage.name for stage in preset.stages)})")
        return 0
    if not options.preset:
        raise PresetError(f"Name a preset: {', '.join(available_presets(options.configs))}.")
    run = _training_run(options, extra)
    if options.dry_run:
        if extra:  # presets are tested, and LeRobot's imports take seconds
            check_training_options(run)
        _say(dry_run_text(run, _up_to(plan(run), options.until)))
        return 0
    try:
        run_pipeline(run, options.until)
    except ChildFailedError as error:
        sys.stderr.write(f"error: {error}\nStart the same command again to continue.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

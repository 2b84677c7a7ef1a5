"""What to do with each stage of a run: skip it, start it, resume it, or refuse.

Decided from what lies on the disk: complete checkpoints, and for each stage the settings with which it was
begun. A kill at any moment is therefore harmless.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

import msgspec

from multismolvla.system.command import CommandError
from multismolvla.system.files import write_json
from multismolvla_run.presets import (
    LEROBOT_TRAIN,
    Preset,
    Settings,
    Stage,
    dataset_id,
    final_checkpoint,
    fingerprint,
    resolve_args,
    settings,
)
from multismolvla_run.process import installed_program
from multismolvla_run.threads import training_threads

#: Files of a checkpoint's training state, the last one written last (lerobot 0.6.1).
_STEP, _LAST = "training_step.json", "scheduler_state.json"
_TRAINING_STATE = (_STEP, "rng_state.safetensors", "optimizer_state.safetensors", _LAST)


class Action(StrEnum):
    """What the driver does with a stage."""

    SKIP = "finished"
    START = "start"
    RESUME = "resume"
    RESTART = "start again (interrupted before its first checkpoint)"


class StageError(CommandError):
    """A stage that cannot be run as asked; the message says what to do."""


class StageRecord(msgspec.Struct):
    """What the driver remembers of a stage, in ``<out>/state/<name>.json``.

    Attributes:
        fingerprint: hash of the settings.
        settings: what the stage's result depends on.
        command: the last command.
        status: whether its process is running, was interrupted, or has finished.
        seconds: spent on it in all starts.
    """

    fingerprint: str
    settings: Settings
    command: list[str]
    status: Literal["running", "interrupted", "finished"] = "running"
    seconds: float = 0.0


@dataclass(frozen=True)
class Step:
    """A stage with its decision."""

    stage: Stage
    action: Action
    command: list[str]  # empty when the stage is finished
    settings: Settings  # what the stage's result depends on, remembered for the next start
    resume_step: int = 0  # optimizer step to continue from


@dataclass(frozen=True)
class TrainingRun:
    """A preset with its folders and the user's wishes.

    Attributes:
        preset: the stages.
        out: folder of the run; stage ``x`` writes into ``out/x``, logs and state lie beside it.
        dataset: folder of the LeRobotDataset.
        extra: additional arguments for every ``lerobot-train`` stage (key ``""``) or for one (key: its name).
        launcher: words put before ``lerobot-train``, e.g. ``accelerate launch --num_processes 2``.
        repeat: names of stages that are discarded and repeated.
    """

    preset: Preset
    out: Path
    dataset: Path
    extra: Mapping[str, list[str]] = field(default_factory=dict)
    launcher: tuple[str, ...] = ()
    repeat: frozenset[str] = frozenset()

    def extra_for(self, stage: Stage) -> list[str]:
        """Additional arguments of ``stage``."""
        general = self.extra.get("", []) if stage.trains else []
        return [*general, *self.extra.get(stage.name, [])]

    def environment(self) -> dict[str, str]:
        """Variables that are set for each stage's process: how many threads it gets.

        What the user has set stays, and a launcher divides the cores among its processes by itself.
        """
        if "OMP_NUM_THREADS" in os.environ or self.launcher:
            return {}
        return training_threads(self.preset.threads)

    def state_file(self, stage: Stage) -> Path:
        """Where the driver remembers ``stage``."""
        return self.out / "state" / f"{stage.name}.json"


def completed_step(checkpoint: Path) -> int | None:
    """Optimizer step of a checkpoint ``checkpoints/<step>`` that is written to the end, else ``None``."""
    state = checkpoint / "training_state"
    files = [
        checkpoint / "pretrained_model" / "train_config.json",
        *(state / name for name in _TRAINING_STATE),
    ]
    if not all(file.is_file() for file in files):
        return None
    try:
        json.loads((state / _LAST).read_text())
        return int(json.loads((state / _STEP).read_text())["step"])
    except (ValueError, KeyError):
        return None


def latest_checkpoint(stage_folder: Path) -> tuple[Path, int] | None:
    """Folder and step of the newest complete checkpoint below a stage's folder.

    LeRobot's link ``last`` is not used: a kill while it is renewed leaves none.
    """
    folders = (stage_folder / "checkpoints").glob("[0-9]*")
    found = [(folder, step) for folder in folders if (step := completed_step(folder)) is not None]
    return max(found, key=lambda item: item[1], default=None)


def plan(run: TrainingRun) -> list[Step]:
    """Decide for every stage what to do.

    Raises:
        StageError: a stage was begun with other settings, or its folder is not the driver's.
    """
    steps: list[Step] = []
    marks: dict[str, str] = {}
    again: set[str] = set()
    for stage in run.preset.stages:
        data = " ".join(dataset_id(found) or "" for found in stage.datasets(run.dataset)) or None
        needs = {name: marks[name] for name in stage.needs()}
        values = settings(stage, run.extra_for(stage), needs, data)
        marks[stage.name] = fingerprint(values)
        # What is built on a repeated stage is repeated too: its old result came from other weights.
        if stage.name in run.repeat or again & set(needs):
            again.add(stage.name)
            steps.append(Step(stage, Action.START, _start_command(run, stage), values))
        else:
            steps.append(_decide(run, stage, values))
    return steps


def _decide(run: TrainingRun, stage: Stage, values: Settings) -> Step:
    folder = run.out / stage.name
    record = read_record(run.state_file(stage))
    if record is None:
        if folder.exists():
            raise StageError(
                f"{folder} exists, but this driver did not make it. Move it away, or choose another --output."
            )
        return Step(stage, Action.START, _start_command(run, stage), values)
    if record.settings != values:
        raise StageError(_explain_change(stage, record.settings, values))
    if is_finished(stage, run.out, record):
        return Step(stage, Action.SKIP, [], values)
    checkpoint = latest_checkpoint(folder) if stage.trains else None
    if checkpoint is not None:
        return Step(stage, Action.RESUME, _resume_command(run, stage, checkpoint[0]), values, checkpoint[1])
    action = Action.RESTART if folder.exists() else Action.START
    return Step(stage, action, _start_command(run, stage), values)


def is_finished(stage: Stage, out: Path, record: StageRecord) -> bool:
    """Whether all that ``stage`` should write is there and complete."""
    if stage.trains:
        return completed_step(final_checkpoint(stage, out)) == stage.steps
    return record.status == "finished" and all((out / stage.name / p).exists() for p in stage.produces)


def _explain_change(stage: Stage, old: Settings, new: Settings) -> str:
    changed = [
        f"    {key}: {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    return "\n".join(
        [
            f"Stage {stage.name!r} was begun with other settings:",
            *changed,
            f"Repeat it and what is built on it with --repeat={stage.name}, write elsewhere with --output, "
            "or take the change back.",
        ]
    )


def program(run: TrainingRun, stage: Stage) -> list[str]:
    """The program of a stage, without its arguments."""
    if not stage.trains:
        return [sys.executable, "-m", stage.run]
    return [*run.launcher, installed_program(LEROBOT_TRAIN)]


def _start_command(run: TrainingRun, stage: Stage) -> list[str]:
    args = [*resolve_args(run.preset, stage, run.out, run.dataset)]
    if stage.trains:
        args += [f"--steps={stage.steps}", f"--output_dir={run.out / stage.name}"]
        args += [f"--job_name={run.preset.name}_{stage.name}"]
    return [*program(run, stage), *args, *run.extra_for(stage)]


def _resume_command(run: TrainingRun, stage: Stage, checkpoint: Path) -> list[str]:
    config = checkpoint / "pretrained_model" / "train_config.json"
    # The saved configuration names the folders of the first start; the run may have been moved since.
    args = resolve_args(run.preset, stage, run.out, run.dataset)
    folders = [f"--output_dir={run.out / stage.name}", *(a for a in args if a.startswith("--dataset.root="))]
    return [*program(run, stage), f"--config_path={config}", "--resume=true", *folders]


def read_record(path: Path) -> StageRecord | None:
    """The record of a stage, ``None`` if it was never begun.

    Raises:
        StageError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=StageRecord)
    except msgspec.DecodeError as error:
        raise StageError(
            f"{path} is damaged ({error}). Delete it together with the stage's folder."
        ) from error


def write_record(path: Path, record: StageRecord) -> None:
    """Write the record of a stage, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, msgspec.to_builtins(record))

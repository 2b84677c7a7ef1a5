"""What to do with each stage of a run: skip it, start it, resume it, or refuse.

Decisions are made from what lies on the disk (checkpoints that are complete, and a small record per stage with the
settings it was begun with), never from what a previous process believed; so a kill at any moment is harmless.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from multismolvla.system.files import write_json
from multismolvla_run.presets import (
    LEROBOT_TRAIN,
    Preset,
    Stage,
    dataset_id,
    final_checkpoint,
    fingerprint,
    resolve_args,
    settings,
)

_STATE_FOLDER = "state"
_TRAINING_STATE = (
    "training_step.json",
    "rng_state.safetensors",
    "optimizer_state.safetensors",
    "scheduler_state.json",
)


class Action(StrEnum):
    """What the driver does with a stage."""

    SKIP = "finished"
    START = "start"
    RESUME = "resume"
    RESTART = "start again (interrupted before its first checkpoint)"


class StageError(RuntimeError):
    """A stage that cannot be run as asked; the message says what to do."""


@dataclass(frozen=True)
class Step:
    """A stage with its decision.

    Attributes:
        stage: the stage.
        action: what to do.
        command: the command, empty when the stage is finished.
        settings: what the stage's result depends on, remembered for the next start.
        fingerprint: hash of the settings.
        resume_step: optimizer step to continue from.
    """

    stage: Stage
    action: Action
    command: list[str]
    settings: dict[str, Any]
    fingerprint: str
    resume_step: int = 0


@dataclass(frozen=True)
class Run:
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

    def state_file(self, stage: Stage) -> Path:
        """Where the driver remembers ``stage``."""
        return self.out / _STATE_FOLDER / f"{stage.name}.json"


def completed_step(checkpoint: Path) -> int | None:
    """Optimizer step of a checkpoint that lerobot 0.6.1 has written to the end.

    Args:
        checkpoint: a folder ``checkpoints/<step>`` (or the link ``last``).

    Returns:
        The step, or ``None`` if the checkpoint is absent or half-written.
    """
    state = checkpoint / "training_state"
    if not (checkpoint / "pretrained_model" / "train_config.json").is_file():
        return None
    if not all((state / name).is_file() for name in _TRAINING_STATE):
        return None
    try:
        json.loads((state / _TRAINING_STATE[-1]).read_text())  # written last
        return int(json.loads((state / _TRAINING_STATE[0]).read_text())["step"])
    except (ValueError, KeyError):
        return None


def latest_checkpoint(stage_folder: Path) -> tuple[Path, int] | None:
    """The newest complete checkpoint of a stage.

    The link ``last`` moves after a checkpoint is complete, but a kill between its removal and its renewal leaves none,
    so all folders are looked at.

    Args:
        stage_folder: ``--output_dir`` of the stage.

    Returns:
        ``(folder, step)`` or ``None``.
    """
    found = []
    for folder in (stage_folder / "checkpoints").glob("[0-9]*"):
        step = completed_step(folder)
        if step is not None:
            found.append((folder, step))
    return max(found, key=lambda item: item[1], default=None)


def plan(run: Run) -> list[Step]:
    """Decide for every stage what to do.

    Args:
        run: preset, folders and wishes.

    Returns:
        One step per stage, in order.

    Raises:
        StageError: a stage was begun with other settings, or its folder is not ours.
    """
    steps: list[Step] = []
    marks: dict[str, str] = {}
    again: set[str] = set()
    for stage in run.preset.stages:
        data = dataset_id(run.dataset) if stage.uses_dataset() else None
        values = settings(stage, run.extra_for(stage), {name: marks[name] for name in stage.needs()}, data)
        mark = marks[stage.name] = fingerprint(values)
        # What is built on a repeated stage is repeated too: its old result came from other weights.
        if stage.name in run.repeat or again & set(stage.needs()):
            again.add(stage.name)
            steps.append(Step(stage, Action.START, _start_command(run, stage), values, mark))
        else:
            steps.append(_decide(run, stage, values, mark))
    return steps


def _decide(run: Run, stage: Stage, values: dict[str, Any], mark: str) -> Step:
    folder = run.out / stage.name
    record = read_state(run.state_file(stage))
    if record is None:
        if folder.exists():
            raise StageError(
                f"{folder} exists, but this driver did not make it. Move it away, or choose another --output."
            )
        return Step(stage, Action.START, _start_command(run, stage), values, mark)
    if record.get("fingerprint") != mark:
        raise StageError(_explain_change(stage, record.get("settings", {}), values))
    if is_finished(stage, run.out, record):
        return Step(stage, Action.SKIP, [], values, mark)
    checkpoint = latest_checkpoint(folder) if stage.trains else None
    if checkpoint is not None:
        return Step(
            stage, Action.RESUME, _resume_command(run, stage, checkpoint[0]), values, mark, checkpoint[1]
        )
    action = Action.RESTART if folder.exists() else Action.START
    return Step(stage, action, _start_command(run, stage), values, mark)


def is_finished(stage: Stage, out: Path, record: Mapping[str, Any]) -> bool:
    """Whether all that ``stage`` should write is there and complete."""
    if stage.trains:
        return completed_step(final_checkpoint(stage, out)) == stage.steps
    return record.get("status") == "finished" and all((out / stage.name / p).exists() for p in stage.produces)


def _explain_change(stage: Stage, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    changed = [
        f"    {key}: {old.get(key, '(absent)')!r} -> {new.get(key, '(absent)')!r}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    return (
        f"Stage {stage.name!r} was begun with other settings:\n" + "\n".join(changed) + "\n"
        f"Repeat it and what is built on it with --from {stage.name}, write elsewhere with --output, "
        "or take the change back."
    )


def program(run: Run, stage: Stage) -> list[str]:
    """The program of a stage, without its arguments."""
    if not stage.trains:
        return [sys.executable, "-m", stage.run]
    installed = Path(sys.executable).with_name(LEROBOT_TRAIN)
    return [*run.launcher, str(installed) if installed.exists() else LEROBOT_TRAIN]


def _start_command(run: Run, stage: Stage) -> list[str]:
    args = resolve_args(run.preset, stage, run.out, run.dataset)
    if stage.trains:
        args += [f"--steps={stage.steps}", f"--output_dir={run.out / stage.name}"]
        args += [f"--job_name={run.preset.name}_{stage.name}"]
    return [*program(run, stage), *args, *run.extra_for(stage)]


def _resume_command(run: Run, stage: Stage, checkpoint: Path) -> list[str]:
    config = checkpoint / "pretrained_model" / "train_config.json"
    # The saved configuration names the folders of the first start; the run may have been moved since.
    args = resolve_args(run.preset, stage, run.out, run.dataset)
    folders = [f"--output_dir={run.out / stage.name}", *(a for a in args if a.startswith("--dataset.root="))]
    return [*program(run, stage), f"--config_path={config}", "--resume=true", *folders]


def read_state(path: Path) -> dict[str, Any] | None:
    """The record of a stage, ``None`` if it was never begun.

    Raises:
        StageError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise StageError(
            f"{path} is damaged ({error}). Delete it together with the stage's folder."
        ) from error
    return record if isinstance(record, dict) else {}


def write_state(path: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a stage, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)

"""Presets: YAML files that name the stages of a training run and the command of each.

A preset is data, not code: a stage is either ``lerobot-train`` with arguments or ``python -m <module>`` with arguments.
Paths are written with placeholders (``{dataset}``, ``{out}``, ``{here}``, ``{stage:<name>}``), so that what a stage *is*
does not depend on where it is written; this is what the fingerprints compare.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

LEROBOT_TRAIN = "lerobot-train"
_STAGE_REFERENCE = re.compile(r"\{stage:([^}]+)\}")
_PLACEHOLDER = re.compile(r"\{(dataset|out|here|steps|stage:[^}]+)\}")
_PRESET_KEYS = {
    "extends",
    "description",
    "dataset",
    "make_dataset",
    "downloads",
    "output",
    "train_args",
    "stages",
}
_STAGE_KEYS = {"run", "args", "steps", "produces", "keep_partial"}


class PresetError(ValueError):
    """A preset that does not exist or does not say what it must."""


@dataclass(frozen=True)
class Stage:
    """One command of a preset.

    Attributes:
        name: unique in the preset; the stage writes into ``<out>/<name>``.
        run: ``lerobot-train`` or a module for ``python -m``.
        args: options without the leading dashes -> value, with placeholders.
        steps: optimizer steps of a ``lerobot-train`` stage, ``None`` for a module.
        produces: files below the stage's folder that a finished module stage has written.
        keep_partial: the module continues what it finds in its folder; otherwise an interrupted one starts clean.
    """

    name: str
    run: str
    args: Mapping[str, Any]
    steps: int | None
    produces: tuple[str, ...]
    keep_partial: bool

    @property
    def trains(self) -> bool:
        """Whether this is a ``lerobot-train`` process."""
        return self.run == LEROBOT_TRAIN

    def needs(self) -> tuple[str, ...]:
        """Names of the stages whose results the arguments refer to, in order of appearance."""
        return tuple(dict.fromkeys(_STAGE_REFERENCE.findall(json.dumps(dict(self.args)))))

    def uses_dataset(self) -> bool:
        """Whether the dataset's folder is among the arguments."""
        return "{dataset}" in json.dumps(dict(self.args))


@dataclass(frozen=True)
class Preset:
    """A training run: where its data are, where it writes, and its stages in order.

    Attributes:
        name: file name without suffix.
        description: one line for the listing.
        dataset: default folder of the LeRobotDataset.
        output: default folder for everything written.
        stages: in the order in which they run.
        make_dataset: commands that make the dataset, one a line, with ``{dataset}``; shown when it is missing.
        downloads: what these commands fetch beside what the training stages read: hub id -> purpose, or for a data set all there
            is to say. Listed, because a command does not tell without the data whether it estimates anything.
    """

    name: str
    description: str
    dataset: str
    output: str
    stages: tuple[Stage, ...]
    make_dataset: tuple[str, ...] = ()
    downloads: Mapping[str, str] = field(default_factory=dict)

    def stage(self, name: str) -> Stage:
        """The stage called ``name``.

        Raises:
            PresetError: there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise PresetError(
            f"Preset {self.name!r} has no stage {name!r}. Its stages: {[s.name for s in self.stages]}."
        )


def available_presets(folder: Path) -> list[str]:
    """Names of the presets in ``folder``, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_preset(name: str, folder: Path) -> Preset:
    """Read a preset and what it extends.

    Args:
        name: name of a file ``<folder>/<name>.yaml``, or the path of a YAML file.
        folder: where the presets lie.

    Returns:
        The checked preset.

    Raises:
        PresetError: unknown name, not a mapping, unknown key, or a reference to a stage that does not come earlier.
    """
    data = _read(name, folder, seen=())
    label = Path(name).stem
    unknown = set(data) - _PRESET_KEYS
    if unknown:
        raise PresetError(
            f"Preset {label!r}: unknown keys {sorted(unknown)}. Expected {sorted(_PRESET_KEYS)}."
        )
    for key in ("dataset", "output", "stages"):
        if not data.get(key):
            raise PresetError(f"Preset {label!r} lacks {key!r}.")
    stages = [
        _parse_stage(label, stage, spec, data.get("train_args") or {})
        for stage, spec in data["stages"].items()
    ]
    earlier: set[str] = set()
    for stage in stages:
        for needed in stage.needs():
            if needed not in earlier:
                raise PresetError(
                    f"Preset {label!r}: stage {stage.name!r} refers to {{stage:{needed}}}, which does not come before it."
                )
        earlier.add(stage.name)
    commands = data.get("make_dataset") or []
    if not isinstance(commands, list) or not all(isinstance(line, str) for line in commands):
        raise PresetError(f"Preset {label!r}: make_dataset is {commands!r}, expected a list of commands.")
    downloads = data.get("downloads") or {}
    if not isinstance(downloads, dict) or not all(isinstance(v, str) for v in downloads.values()):
        raise PresetError(
            f"Preset {label!r}: downloads is {downloads!r}, expected a mapping from hub id to purpose."
        )
    description = str(data.get("description", ""))
    return Preset(
        label, description, data["dataset"], data["output"], tuple(stages), tuple(commands), downloads
    )


def _read(name: str, folder: Path, seen: tuple[str, ...]) -> dict[str, Any]:
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = available_presets(folder)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise PresetError(
            f"Unknown preset {name!r}.{hint} Available: {', '.join(known) or 'none'} (in {folder})."
        )
    if str(path) in seen:
        raise PresetError(f"Preset {name!r} extends itself: {' -> '.join([*seen, str(path)])}.")
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise PresetError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise PresetError(
            f"{path} holds a {type(data).__name__}, expected a mapping with 'dataset', 'output', 'stages'."
        )
    parent = data.pop("extends", None)
    return _merge(_read(parent, folder, (*seen, str(path))), data) if parent else data


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``change`` over ``base``, mappings merged key by key; ``null`` removes a key."""
    merged = dict(base)
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _parse_stage(preset: str, name: str, spec: Mapping[str, Any], train_args: Mapping[str, Any]) -> Stage:
    where = f"Preset {preset!r}, stage {name!r}"
    if not isinstance(spec, Mapping) or not spec.get("run"):
        raise PresetError(f"{where}: lacks 'run' (lerobot-train, or a module for python -m).")
    unknown = set(spec) - _STAGE_KEYS
    if unknown:
        raise PresetError(f"{where}: unknown keys {sorted(unknown)}. Expected {sorted(_STAGE_KEYS)}.")
    trains = spec["run"] == LEROBOT_TRAIN
    steps = spec.get("steps")
    if trains and (not isinstance(steps, int) or steps < 1):
        raise PresetError(f"{where}: steps={steps!r}, expected a positive whole number.")
    args = {**(train_args if trains else {}), **(spec.get("args") or {})}
    for placeholder in re.findall(r"\{([a-z]+(?::[^}]*)?)\}", json.dumps(args)):
        if not _PLACEHOLDER.fullmatch("{" + placeholder + "}"):
            raise PresetError(
                f"{where}: unknown placeholder {{{placeholder}}}; known: dataset, out, here, steps, stage:<name>."
            )
    produces = tuple(spec.get("produces") or ())
    if not trains and not produces:
        raise PresetError(
            f"{where}: a module stage must list under 'produces' the files that show that it finished."
        )
    return Stage(
        name, spec["run"], args, steps if trains else None, produces, bool(spec.get("keep_partial", False))
    )


def result_folder(stage: Stage, out: Path) -> Path:
    """What ``{stage:<name>}`` stands for: the final checkpoint of a training stage, else the stage's folder."""
    if not stage.trains:
        return out / stage.name
    return final_checkpoint(stage, out) / "pretrained_model"


def final_checkpoint(stage: Stage, out: Path) -> Path:
    """Folder of the last checkpoint of a ``lerobot-train`` stage (lerobot 0.6.1: at least six digits)."""
    digits = max(6, len(str(stage.steps)))
    return out / stage.name / "checkpoints" / f"{stage.steps:0{digits}d}"


def resolve_args(preset: Preset, stage: Stage, out: Path, dataset: Path) -> list[str]:
    """Command-line arguments of a stage with all placeholders replaced.

    Args:
        preset: the preset, for the folders of other stages.
        stage: the stage.
        out: folder of the run.
        dataset: folder of the LeRobotDataset.

    Returns:
        ``--key=value`` strings; booleans, lists and mappings as JSON, which draccus reads as YAML.
    """

    def replace(match: re.Match[str]) -> str:
        what = match.group(1)
        if what.startswith("stage:"):
            return str(result_folder(preset.stage(what.removeprefix("stage:")), out))
        return str({"dataset": dataset, "out": out, "here": out / stage.name, "steps": stage.steps}[what])

    arguments = []
    for key, value in stage.args.items():
        text = value if isinstance(value, str) else json.dumps(value)
        arguments.append(f"--{key}={_PLACEHOLDER.sub(replace, text)}")
    return arguments


def settings(
    stage: Stage, extra: list[str], needs: Mapping[str, str], dataset_id: str | None
) -> dict[str, Any]:
    """Everything that decides a stage's result, as a flat mapping that can be compared and shown.

    Args:
        stage: the stage.
        extra: additional command-line arguments.
        needs: fingerprints of the stages it builds upon, by name.
        dataset_id: content id of the dataset, ``None`` when the stage does not read it.

    Returns:
        JSON-compatible mapping.
    """
    flat: dict[str, Any] = {
        "run": stage.run,
        "steps": stage.steps,
        **{f"--{k}": v for k, v in stage.args.items()},
    }
    flat.update({f"stage {name}": fingerprint for name, fingerprint in needs.items()})
    if extra:
        flat["extra arguments"] = extra
    if dataset_id is not None:
        flat["dataset"] = dataset_id
    return json.loads(json.dumps(flat))


def fingerprint(values: Mapping[str, Any]) -> str:
    """Short hash of a settings mapping, independent of key order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def dataset_id(dataset: Path) -> str | None:
    """Content id of a LeRobotDataset from its metadata, ``None`` if there is none at ``dataset``."""
    info = dataset / "meta" / "info.json"
    if not info.is_file():
        return None
    digest = hashlib.sha256(info.read_bytes())
    stats = dataset / "meta" / "stats.json"
    if stats.is_file():
        digest.update(stats.read_bytes())
    return digest.hexdigest()[:16]

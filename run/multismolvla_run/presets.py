"""Presets: YAML files that name the stages of a training run and the command of each.

A stage is ``lerobot-train`` or ``python -m <module>``, with arguments. Paths are placeholders (``{dataset}``,
``{out}``, ``{here}``, ``{stage:<name>}``), so that a stage's settings do not depend on where it is written.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import yaml
from msgspec import Meta, Struct

LEROBOT_TRAIN = "lerobot-train"
_STAGE_REFERENCE = re.compile(r"\{stage:([^}]+)\}")
_PLACEHOLDER = re.compile(r"\{(dataset|out|here|steps|stage:[^}]+)\}")
_ANY_PLACEHOLDER = re.compile(r"\{[a-z]+(?::[^}]*)?\}")

type Yaml = str | int | float | bool | None | list[Yaml] | dict[str, Yaml]

_Scalar = str | int | float | bool | None
#: The value of an option: a number or text, a list, or a mapping such as ``policy.views``.
OptionValue = (
    _Scalar | list[_Scalar | list[_Scalar]] | dict[str, _Scalar | list[_Scalar] | dict[str, _Scalar]]
)
#: Options of a program, without leading dashes.
Options = Mapping[str, OptionValue]
#: What decides a stage's result: name -> value as typed on a command line.
Settings = dict[str, str]


class PresetError(ValueError):
    """A preset that does not exist or does not say what it must."""


class Stage(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One command of a preset.

    Attributes:
        name: unique in the preset; the stage writes into ``<out>/<name>``.
        run: ``lerobot-train`` or a module for ``python -m``.
        args: options -> values, with placeholders.
        steps: optimizer steps of a ``lerobot-train`` stage.
        produces: files below the stage's folder that show that a module stage has finished.
        core_seconds: measured processor time of the stage, without that of its steps.
        core_seconds_per_step: measured processor time of a step, loading included; a module's steps are its
            option ``steps``.
    """

    name: str
    run: str
    args: Options = {}
    steps: Annotated[int, Meta(ge=1)] | None = None
    produces: tuple[str, ...] = ()
    core_seconds: Annotated[float, Meta(ge=0)] = 0.0
    core_seconds_per_step: Annotated[float, Meta(ge=0)] = 0.0

    @property
    def trains(self) -> bool:
        """Whether this is a ``lerobot-train`` process."""
        return self.run == LEROBOT_TRAIN

    def needs(self) -> tuple[str, ...]:
        """Names of the stages whose results the arguments refer to, in order of appearance."""
        return tuple(dict.fromkeys(_STAGE_REFERENCE.findall(json.dumps(self.args))))

    def datasets(self, of_the_run: Path) -> list[Path]:
        """Data sets that must be there before the run starts: the run's, and one named by its folder."""
        named = self.args.get("dataset")
        own = [Path(named)] if isinstance(named, str) and "{" not in named else []
        return own + [of_the_run] * ("{dataset}" in json.dumps(self.args))


class Preset(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A training run: where its data are, where it writes, and its stages in order.

    Attributes:
        name: file name without suffix.
        description: one line for the listing.
        dataset: default folder of the LeRobotDataset.
        output: default folder for everything written.
        stages: in the order in which they run.
        make_dataset: commands that make the dataset, with ``{dataset}``; shown when it is missing.
        make_dataset_core_seconds: what these commands take, measured; 0 = not said.
        downloads: what these commands fetch beside what training reads: hub id -> purpose.
        threads: of each stage's process; default: one per core. Sums depend on it in their last digits.
    """

    name: str
    description: str = ""
    dataset: str
    output: str
    stages: tuple[Stage, ...]
    make_dataset: tuple[str, ...] = ()
    make_dataset_core_seconds: Annotated[float, Meta(ge=0)] = 0.0
    downloads: dict[str, str] = {}
    threads: Annotated[int, Meta(ge=1)] | None = None

    def stage(self, name: str) -> Stage:
        """The stage called ``name``.

        Raises:
            PresetError: there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        known = [stage.name for stage in self.stages]
        raise PresetError(f"Preset {self.name!r} has no stage {name!r}. Its stages: {known}.")


def available_presets(folder: Path) -> list[str]:
    """Names of the presets in ``folder``, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_preset(name: str, folder: Path) -> Preset:
    """Read a preset, by its name in ``folder`` or its path, and what it extends.

    Raises:
        PresetError: unknown name, a key that is unknown, missing or of the wrong type, or a reference to a
            stage that does not come earlier.
    """
    data = dict(_read(name, folder, seen=()))
    label = Path(name).stem
    common = _typed(data.pop("train_args", {}), dict[str, OptionValue], f"Preset {label!r}, train_args")
    stages = data.get("stages")
    if not isinstance(stages, Mapping) or not stages:
        raise PresetError(f"Preset {label!r} lacks 'stages', a mapping from name to stage.")
    read = [_stage(label, stage, spec, common) for stage, spec in stages.items()]
    preset = _typed({"name": label, **data, "stages": read}, Preset, f"Preset {label!r}")
    for place, stage in enumerate(preset.stages):
        late = set(stage.needs()) - {earlier.name for earlier in preset.stages[:place]}
        if late:
            raise PresetError(
                f"Preset {label!r}, stage {stage.name!r}: refers to {{stage:{min(late)}}}, "
                "which does not come before it."
            )
    return preset


def _stage(preset: str, name: str, spec: object, common: Options) -> Stage:
    where = f"Preset {preset!r}, stage {name!r}"
    if not isinstance(spec, Mapping):
        raise PresetError(f"{where}: is {spec!r}, expected a mapping with 'run' and 'args'.")
    stage = _typed({"name": name, **spec}, Stage, where)
    if stage.trains:
        stage = msgspec.structs.replace(stage, args={**common, **stage.args})
        if stage.steps is None:
            raise PresetError(f"{where}: lacks 'steps', the number of optimizer steps.")
    elif not stage.produces:
        raise PresetError(
            f"{where}: lacks 'produces', the files of a module stage that show that it finished."
        )
    for placeholder in _ANY_PLACEHOLDER.findall(json.dumps(stage.args)):
        if not _PLACEHOLDER.fullmatch(placeholder):
            known = "{dataset}, {out}, {here}, {steps}, {stage:<name>}"
            raise PresetError(f"{where}: unknown placeholder {placeholder}; expected one of {known}.")
    return stage


def _typed[T](data: object, kind: type[T], where: str) -> T:
    """``data`` as an object of a class; the error names the key."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise PresetError(f"{where}: {error}.") from error


def _read(name: str, folder: Path, seen: tuple[str, ...]) -> Mapping[str, Yaml]:
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
        raise PresetError(f"{path} holds a {type(data).__name__}, expected a mapping with 'stages'.")
    parent = data.pop("extends", None)
    return _merge(_read(parent, folder, (*seen, str(path))), data) if isinstance(parent, str) else data


def _merge(base: Mapping[str, Yaml], change: Mapping[str, Yaml]) -> dict[str, Yaml]:
    """``change`` over ``base``, mappings merged key by key; ``null`` removes a key."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(old, dict):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def result_folder(stage: Stage, out: Path) -> Path:
    """What ``{stage:<name>}`` stands for: a training stage's final policy, else the stage's folder."""
    return final_checkpoint(stage, out) / "pretrained_model" if stage.trains else out / stage.name


def final_checkpoint(stage: Stage, out: Path) -> Path:
    """Folder of the last checkpoint of a ``lerobot-train`` stage (lerobot 0.6.1: at least six digits)."""
    digits = max(6, len(str(stage.steps)))
    return out / stage.name / "checkpoints" / f"{stage.steps:0{digits}d}"


def resolve_args(preset: Preset, stage: Stage, out: Path, dataset: Path) -> Iterator[str]:
    """The arguments of a stage as ``--key=value``, with all placeholders replaced."""

    def replace(match: re.Match[str]) -> str:
        what = match.group(1)
        if what.startswith("stage:"):
            return str(result_folder(preset.stage(what.removeprefix("stage:")), out))
        return str({"dataset": dataset, "out": out, "here": out / stage.name, "steps": stage.steps}[what])

    for key, value in stage.args.items():
        yield f"--{key}={_PLACEHOLDER.sub(replace, _typed_in(value))}"


def _typed_in(value: object) -> str:
    """A YAML value as typed on the command line: what is no text as JSON, which draccus reads as YAML."""
    return value if isinstance(value, str) else json.dumps(value)


def settings(stage: Stage, extra: list[str], needs: Mapping[str, str], dataset: str | None) -> Settings:
    """Everything that decides a stage's result, for comparison with an earlier start.

    Args:
        stage: the stage.
        extra: additional command-line arguments.
        needs: fingerprints of the stages it builds upon, by name.
        dataset: content id of the dataset, ``None`` when the stage does not read it.
    """
    found = {"run": stage.run, "steps": str(stage.steps)}
    found |= {f"--{key}": _typed_in(value) for key, value in stage.args.items()}
    found |= {f"stage {name}": mark for name, mark in needs.items()}
    if extra:
        found["extra arguments"] = " ".join(extra)
    if dataset is not None:
        found["dataset"] = dataset
    return found


def fingerprint(values: Settings) -> str:
    """Short hash of settings, independent of their order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def dataset_id(dataset: Path) -> str | None:
    """Content id of a LeRobotDataset from its metadata, ``None`` if there is none at ``dataset``."""
    info, stats = dataset / "meta" / "info.json", dataset / "meta" / "stats.json"
    if not info.is_file():
        return None
    content = info.read_bytes() + (stats.read_bytes() if stats.is_file() else b"")
    return hashlib.sha256(content).hexdigest()[:16]

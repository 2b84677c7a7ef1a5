"""The card of a data set (``README.md``): what is in it, in which units, where it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lerobot_env_multismolvla.mini import SUITE_NAME
from multismolvla.modalities import TOKEN_PREFIX, Modality
from multismolvla.pretrained import licence_of
from multismolvla.system.files import front_matter
from multismolvla_data.formats.metadata import DatasetMetadata

CARD = "README.md"
#: Stored unit of pictures without one of their own.
_UNITS = {
    Modality.RGB: "8-bit colour",
    Modality.DEPTH: "mm; 0 = not measured",
    Modality.SEG: "class ids",
    Modality.THERMAL: "8-bit grey",
}
#: Of our simulators' numbers.
_MEANINGS = {
    "observation.state": "x, y, z of the hand in metres, rx, ry, rz its axis-angle rotation in radians, "
    "fingers in metres",
    "action": "in -1 to 1; dx, dy, dz: 1 = 0.05 m along the world's axes; drx, dry, drz: 1 = 0.5 rad; "
    "gripper: -1 opens, +1 closes",
}
_SPLITS = {"eval": "the evaluation's: a policy trained on them cannot be measured on these"}
#: More initial states than this are told as a number.
_FEW = 8


def write_card(root: Path, metadata: DatasetMetadata) -> None:
    """Write the card of a finished data set, from its metadata and LeRobot's."""
    info = json.loads((root / "meta/info.json").read_text())
    front = {
        "license": "apache-2.0" if metadata.suite == SUITE_NAME else "other",
        "task_categories": ["robotics"],
        "tags": ["LeRobot", "multismolvla", "multimodal"],
        "configs": [{"config_name": "default", "data_files": "data/*/*.parquet"}],
    }
    lines = [
        *front_matter(front),
        f"# {root.name if metadata.suite is None else metadata.suite}",
        "",
        f"{info['total_episodes']} episodes, {info['total_frames']} frames at {info['fps']} per second, "
        f"robot `{info['robot_type']}`, in LeRobot's format {info['codebase_version']}.",
        "",
        *_tasks(metadata),
        "## Pictures",
        "",
        "| key | modality | size | stored as | unit | from |",
        "|---|---|---|---|---|---|",
        *_pictures(info["features"]),
        "",
        *_labels(info["features"]),
        *_ids(info["features"]),
        "## Numbers",
        "",
        *_numbers(info["features"], simulated=metadata.suite is not None),
        "",
        "## Origin",
        "",
        *_origin(metadata),
        "",
        "## Licence",
        "",
        *_licence(metadata),
    ]
    (root / CARD).write_text("\n".join(lines).rstrip() + "\n")


def _tasks(metadata: DatasetMetadata) -> Iterator[str]:
    if metadata.tasks:
        yield from ("## Tasks", "")
        yield from (f"{number}. {text}" for number, text in metadata.tasks.items())
        yield ""


def _pictures(features: dict[str, Any]) -> Iterator[str]:
    for key, feature in features.items():
        if feature["dtype"] not in ("image", "video"):
            continue
        info = feature.get("info") or {}
        modality = info.get("modality") or ("depth" if info.get("is_depth_map") else Modality.RGB)
        height, width = feature["shape"][:2]
        unit = info.get("meaning") or info.get("unit") or info.get("depth_unit")
        unit = unit or _UNITS.get(Modality(modality), "")
        origin = "estimated from RGB" if info.get("provenance") == "derived" else "sensor"
        yield f"| `{key}` | {modality} | {width}x{height} | {feature['dtype']} | {unit} | {origin} |"


def _labels(features: dict[str, Any]) -> Iterator[str]:
    """The segmentation classes, once."""
    for key, feature in features.items():
        labels = (feature.get("info") or {}).get("labels")
        if labels and feature["dtype"] == "image" and "seg" in key:
            named = ", ".join(f"{number} {name}" for number, name in enumerate(labels))
            yield from (f"Classes of segmentation, by id: {named}.", "")
            return


def _ids(features: dict[str, Any]) -> Iterator[str]:
    keys = [key for key in features if key.startswith(TOKEN_PREFIX)]
    if keys:
        yield f"Token ids of the tower's modalities: {', '.join(f'`{key}`' for key in keys)}. Each feature's"
        yield "`info` holds the recipe that they were made with."
        yield ""


def _numbers(features: dict[str, Any], *, simulated: bool) -> Iterator[str]:
    for key in ("observation.state", "action"):
        if key in features:
            names = features[key].get("names") or [f"{features[key]['shape'][0]} numbers"]
            meaning = f" ({_MEANINGS[key]})" if simulated else ""
            yield f"- `{key}`: {', '.join(map(str, names))}{meaning}"


def _origin(metadata: DatasetMetadata) -> Iterator[str]:
    made = {
        "made by": ", ".join(f"`{command}`" for command in metadata.identities),
        "simulated suite": metadata.suite,
        "render quality": metadata.render_quality,
        "initial states": _SPLITS.get(metadata.init_split or "", metadata.init_split),
        "temperature": metadata.thermal,
        "actions": metadata.actions,
        "disturbance of actions, seed": _disturbance(metadata),
    }
    yield from (f"- {name}: {value}" for name, value in made.items() if value)
    for number, starts in metadata.starts.items():
        states = [start.init_state for start in starts]
        shown = ", ".join(map(str, states)) if len(states) <= _FEW else f"{min(states)} to {max(states)}"
        failed = len(metadata.failed_starts.get(number, ()))
        yield f"- task {number}: {len(states)} episodes from the states {shown}; {failed} more starts failed"
    if metadata.demonstrations:
        count = len(metadata.demonstrations)
        yield f"- {count} published demonstrations, rendered again; `meta/multismolvla.json` names them"
    if metadata.joined_from:
        yield f"- joined from {', '.join(part.name for part in metadata.joined_from)}"
    if metadata.annotation:
        for modality, recipe in metadata.annotation.estimators.items():
            yield f"- {modality} estimated by `{recipe.get('model')}`"
        yield from (f"- {note}" for note in metadata.annotation.notes)
    if metadata.versions:
        yield f"- versions: {', '.join(f'{k} {v}' for k, v in metadata.versions.items())}"


def _disturbance(metadata: DatasetMetadata) -> str | None:
    """Scale and seed of a recording's disturbance."""
    for identity in metadata.identities.values():
        if "noise" in identity:
            return f"{identity['noise']} times the recorder's own, {identity.get('seed')}"
    return None


def _licence(metadata: DatasetMetadata) -> Iterator[str]:
    if metadata.suite == SUITE_NAME:
        yield "Rendered from shapes of this package's own (Apache-2.0) and robosuite's Panda (MIT)."
    elif metadata.suite is not None:
        yield "Rendered from the scenes of LIBERO (https://github.com/Lifelong-Robot-Learning/LIBERO): its"
        yield "code is under MIT, its assets have their own terms."
        if metadata.standins:
            yield "Some objects are this project's visual stand-ins for LIBERO's: figures cannot be compared"
            yield "with published ones."
    else:
        yield "That of the recording."
    for recipe in metadata.annotation.estimators.values() if metadata.annotation else ():
        model = str(recipe.get("model"))
        yield f"Estimates by `{model}` inherit its terms: {licence_of(model)}."

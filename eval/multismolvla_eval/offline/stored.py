"""The sensor diagnosis of a run's folder, for the report: offline action errors beside success, never instead of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla.modalities import MODALITIES
from multismolvla_eval.records import fields
from multismolvla_eval.records.fields import optional
from multismolvla_eval.records.store import ResultsError, read_json

if TYPE_CHECKING:
    pass

#: Conditions whose pictures a control of the diagnosis shows, too: black ones, announced by nothing.
_CONDITIONS = {"true": "C0", "zeroed": "C2:all=zero", **{f"{m} zeroed": f"C2:{m}=zero" for m in MODALITIES}}
_ARM = {
    **dict.fromkeys(("error", "low", "high"), fields.number),
    "n": fields.count,
    "relative": optional(fields.number),
}
_POLICY = {
    **dict.fromkeys(("checkpoint", "left_out"), optional(fields.text)),
    "arms": optional(fields.each(fields.record(_ARM))),
}
#: What the report shows of a diagnosis.
_CONTENT = fields.record(
    {
        "remark": fields.text,
        "dataset": fields.text,
        "held_out": fields.flag,
        "policies": fields.each(fields.record(_POLICY)),
    }
)


def stored_diagnosis(folder: Path) -> dict[str, Any] | None:
    """The content of the diagnosis in a run's folder, if there is one.

    Raises:
        ResultsError: the file is damaged, or has another format.
    """
    path = folder / DIAGNOSIS
    if not path.is_file():
        return None
    remedy = "Delete it, and run with --diagnose again."
    content = read_json(path, remedy)
    if content.get("schema") != SCHEMA or "policies" not in content:
        raise ResultsError(f"{path} is not of the format version {SCHEMA}. {remedy}")
    if wrong := _CONTENT(content):
        raise ResultsError(
            f"{path} is not what multismolvla-eval --diagnose writes: {wrong.strip(' .')}. {remedy}"
        )
    return content


def read_diagnosis(folder: Path, policies: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The diagnosis of a run's policies, if its folder has one.

    Args:
        folder: of the run.
        policies: the manifest's entries, by name.

    Returns:
        The file's content. A policy that it measured with another checkpoint than the run's is left out, and that is said.

    Raises:
        ResultsError: as :func:`stored_diagnosis`.
    """
    content = stored_diagnosis(folder)
    if content is None:
        return None
    measured = {}
    for name, entry in content["policies"].items():
        if name not in policies:
            continue
        if "arms" in entry and entry.get("checkpoint") != policies[name]["checkpoint"]:
            entry = {
                "left_out": f"it was measured with the checkpoint {entry.get('checkpoint')}, not the run's"
            }
        measured[name] = {k: v for k, v in entry.items() if v is not None}
    return {**content, "policies": measured}


def errors_by_condition(diagnosis: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Action errors as they stand beside success: ``{policy: {condition: {"error", "n"}}}``."""
    found: dict[str, dict[str, Any]] = {}
    for name, entry in (diagnosis or {"policies": {}})["policies"].items():
        arms = entry.get("arms", {})
        found[name] = {
            condition: {"error": arms[arm]["error"], "n": arms[arm]["n"]}
            for arm, condition in _CONDITIONS.items()
            if arm in arms
        }
    return found


DIAGNOSIS = "diagnosis.json"


SCHEMA = 1

"""How a report orders conditions: groups, families of comparisons, corruption types, what concerns a policy, short names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from multismolvla.corruption import Fault, parse_condition
from multismolvla.modalities import MODALITIES
from multismolvla_eval.protocol.reach import reaching_faults, reads_fault, told_of_loss

#: Titles of the protocol's groups, in the order of a report.
GROUPS: dict[str, str] = {
    "C0": "Clean",
    "C1": "Announced loss of sensors",
    "C2": "Unannounced loss of sensors",
    "C3": "Soft corruption",
    "C4": "Faults in time",
    "C5": "Disagreement between sensors",
}


def concerns(condition_id: str) -> str:
    """What a condition's faults hit: a modality, ``all``, ``several``, ``cameras``, or ``subsets`` of modalities in C1."""
    condition = parse_condition(condition_id)
    if condition.group in ("C0", "C1"):
        return "cameras" if "camera=" in condition_id else "subsets" if condition.group == "C1" else ""
    hit = {f.modality for f in condition.faults}
    return hit.pop() if len(hit) == 1 else "all" if hit == set(MODALITIES) else "several"


def family(condition_id: str) -> str:
    """Name of the family whose comparisons are adjusted together: a group and what its faults hit.

    One question is asked per family, e.g. "which soft corruptions of RGB does this policy suffer from?"; all types and
    severities of the family count. Every policy, comparison and suite has families of its own.
    """
    return f"{condition_id.partition(':')[0]} {concerns(condition_id)}".strip()


def is_subset(condition_id: str) -> bool:
    """Whether a condition leaves an announced subset of modalities in all cameras."""
    return condition_id.startswith("C1:") and "camera=" not in condition_id


def soft_types(conditions: Sequence[str]) -> dict[str, dict[int, str]]:
    """Soft corruption types among conditions: ``{"rgb=noise": {severity: condition id}}``, severities ascending."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for condition in conditions:
        if condition.startswith("C3:") and "+" not in condition:
            name, _, severity = condition[3:].rpartition("@")
            found[name][int(severity)] = condition
    return {k: dict(sorted(v.items())) for k, v in found.items()}


def stream(type_: str) -> str:
    """What a soft type hits: ``rgb`` of ``rgb=fog``, ``rgb.image`` of ``rgb.image=fog`` (that camera alone)."""
    return type_.partition("=")[0]


def reads_condition(policy: Mapping[str, Any], condition_id: str, manifest: Mapping[str, Any]) -> bool | None:
    """Whether a policy reads any stream that a condition hits; ``None`` when unknown or nothing is hit.

    A fault of RGB hits what the environment computes from RGB, too.

    Args:
        policy: its entry of the manifest: ``modalities`` and ``views`` (cameras) that it makes use of, or in older ones
            ``reads`` (observation keys) alone.
        condition_id: of the condition.
        manifest: of the run.
    """
    faults = reaching_faults(condition_id, manifest)
    if not faults or policy.get("blind"):
        return False if faults else None
    if "modalities" not in policy or "views" not in policy:
        return reads_fault(policy.get("reads") or (), condition_id, dict(manifest))
    return any(f.hits(camera, m) for f in faults for camera in policy["views"] for m in policy["modalities"])


def told(policy: Mapping[str, Any], condition_id: str, manifest: Mapping[str, Any]) -> bool | None:
    """Whether a policy knows of the announced loss; ``None`` where none is announced to it, or it is unknown.

    Args:
        policy: its entry of the manifest; without ``reads_masks`` (older runs) nothing is known.
        condition_id: of the condition.
        manifest: of the run.
    """
    return None if policy.get("reads_masks") is None else told_of_loss(policy, condition_id, dict(manifest))


def announced(fault: Fault) -> bool:
    """Whether a fault takes a sensor away and says so."""
    return fault.announced and fault.kind != "soft"


def seen(condition_id: str) -> bool | None:
    """Whether training may have met all of a condition's types of fault; ``None`` for the clean condition."""
    return parse_condition(condition_id).seen_in_training


def short(condition_id: str) -> str:
    """A few characters for a plot's axis."""
    if condition_id == "C0":
        return "clean"
    group, _, body = condition_id.partition(":")
    if body.startswith("camera="):
        return f"{group} no {body.removeprefix('camera=')}"
    if group == "C1":
        missing = [m for m in MODALITIES if m not in body.split("+")]
        if not missing:
            return f"{group} all, masks on"
        return f"{group} no {'+'.join(missing)}" if len(missing) < 3 else f"{group} only {body}"
    return f"{group} {body}"


def label(policy: Mapping[str, Any]) -> str:
    """A policy's name with what a reader must know beside each of its figures, e.g. ``expert (upper bound)``."""
    if policy["privileged"]:
        return f"{policy['name']} (upper bound)"
    marks = ["blind"] if policy["blind"] else []
    marks += [] if policy["gate"]["passed"] else ["no robustness figures"]
    return f"{policy['name']} ({', '.join(marks)})" if marks else policy["name"]

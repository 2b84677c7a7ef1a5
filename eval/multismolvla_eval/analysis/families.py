"""How a report orders conditions: groups, families of comparisons, corruption types, short names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from multismolvla.corruption import Fault, parse_condition
from multismolvla.modalities import MODALITIES
from multismolvla_eval.analysis.bootstrap import PairedDifference, Pairs, paired_differences
from multismolvla_eval.analysis.statistics import holm
from multismolvla_eval.records.reach import faulted_keys
from multismolvla_eval.records.schema import PolicyFacts, RunManifest

#: Titles of the protocol's groups, in the order of a report.
GROUPS: dict[str, str] = {
    "C0": "Clean",
    "C1": "Announced loss of sensors",
    "C2": "Unannounced loss of sensors",
    "C3": "Soft corruption",
    "C4": "Faults in time",
    "C5": "Disagreement between sensors",
    "C6": "Adversarial pictures",
}


@dataclass(frozen=True)
class Comparison(PairedDifference):
    """A paired difference within the family over which its p-value is adjusted.

    Attributes:
        p_holm: adjusted p-value.
        family_size: comparisons in the family.
    """

    p_holm: float
    family_size: int


def compare_in_families[Key: Hashable](
    pairs: Mapping[Key, Pairs], family_of: Callable[[Key], Hashable]
) -> dict[Key, Comparison]:
    """Compare many cells in pairs and adjust the p-values, after Holm, over each family.

    Args:
        pairs: what is compared, by any name.
        family_of: of a name, what its p-value is adjusted with.
    """
    differences = dict(zip(pairs, paired_differences(list(pairs.values())), strict=True))
    members: dict[Hashable, list[Key]] = defaultdict(list)
    for key in pairs:
        members[family_of(key)].append(key)
    adjusted: dict[Key, Comparison] = {}
    for keys in members.values():
        for key, p_holm in zip(keys, holm([differences[k].p_value for k in keys]), strict=True):
            adjusted[key] = Comparison(**vars(differences[key]), p_holm=p_holm, family_size=len(keys))
    return adjusted


def concerns(condition_id: str) -> str:
    """What a condition hits: a modality, ``all``, ``several``, ``cameras``, or in C1 ``subsets``."""
    condition = parse_condition(condition_id)
    if condition.group in ("C0", "C1"):
        return "cameras" if "camera=" in condition_id else "subsets" if condition.group == "C1" else ""
    hit = {f.modality for f in condition.faults}
    return hit.pop() if len(hit) == 1 else "all" if hit == set(MODALITIES) else "several"


def family(condition_id: str) -> str:
    """Name of the family whose comparisons are adjusted together: a group and what its faults hit.

    One question is asked per family, e.g. "which soft corruptions of RGB does this policy suffer from?"; all
    types and severities of the family count. Every policy, comparison and suite has families of its own.
    """
    return f"{condition_id.partition(':')[0]} {concerns(condition_id)}".strip()


def is_subset(condition_id: str) -> bool:
    """Whether a condition leaves an announced subset of modalities in all cameras."""
    return condition_id.startswith("C1:") and "camera=" not in condition_id


def soft_types(conditions: Sequence[str]) -> dict[str, dict[int, str]]:
    """Soft corruption types among conditions: ``{"rgb=noise": {severity: condition}}``, ascending."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for condition in conditions:
        if condition.startswith("C3:") and "+" not in condition:
            name, _, severity = condition[3:].rpartition("@")
            found[name][int(severity)] = condition
    return {k: dict(sorted(v.items())) for k, v in found.items()}


def stream(type_: str) -> str:
    """What a soft type hits: ``rgb`` of ``rgb=fog``; one camera, ``rgb.image``, of ``rgb.image=fog``."""
    return type_.partition("=")[0]


def reads_condition(policy: PolicyFacts, condition_id: str, manifest: RunManifest) -> bool | None:
    """Whether a policy reads any stream that a condition hits.

    A fault of RGB hits what environment or policy compute from RGB, too.

    Returns:
        ``None`` where nothing is hit, and for baselines that have no inputs at all.
    """
    keys = faulted_keys(condition_id, manifest, policy)
    has_inputs = bool(policy.reads or policy.no_vision)
    return bool(keys & set(policy.reads)) if keys and has_inputs else None


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


def label(name: str, policy: PolicyFacts, reportable: bool) -> str:
    """A policy's name with what a reader must know beside its figures, e.g. ``expert (upper bound)``."""
    if policy.privileged:
        return f"{name} (upper bound)"
    marks = ["no vision"] if policy.no_vision else []
    marks += [] if reportable else ["no robustness figures"]
    return f"{name} ({', '.join(marks)})" if marks else name

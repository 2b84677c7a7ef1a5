"""Which faults reach a policy, and which policies are told of a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multismolvla.corruption import Fault, parse_condition
from multismolvla.modalities import MODALITIES, Provenance, default_view_map
from multismolvla.provenance import with_derived


def reaching_faults(condition_id: str, manifest: Mapping[str, Any]) -> tuple[Fault, ...]:
    """The faults of a condition and what they do to the modalities that the environment computes from RGB."""
    provenance = manifest.get("env", {}).get("provenance") or {}
    derived = {m for m, kind in provenance.items() if kind == Provenance.DERIVED}
    return with_derived(parse_condition(condition_id).faults, derived, tuple(manifest["cameras"]))


def faulted_streams(condition_id: str, manifest: dict[str, Any]) -> dict[str, set[str]]:
    """Observation keys of the streams that a condition concerns, by modality; only modalities that have some.

    What the environment computes from RGB is concerned by the faults of RGB.
    """
    views = default_view_map(tuple(manifest["cameras"]))
    faults = reaching_faults(condition_id, manifest)
    streams = {m: {views[c][m] for c in views if any(f.hits(c, m) for f in faults)} for m in MODALITIES}
    return {m: keys for m, keys in streams.items() if keys}


def faulted_keys(condition_id: str, manifest: dict[str, Any]) -> set[str]:
    """Observation keys of the streams that a condition concerns."""
    return set().union(*faulted_streams(condition_id, manifest).values())


def reads_fault(reads: Sequence[str], condition_id: str, manifest: dict[str, Any]) -> bool | None:
    """Whether a policy reads any faulted stream; ``None`` when unknown or nothing is faulted."""
    keys = faulted_keys(condition_id, manifest)
    return bool(keys & set(reads)) if keys and reads else None


def told_of_loss(policy: Mapping[str, Any], condition_id: str, manifest: dict[str, Any]) -> bool | None:
    """Whether a policy knows of the announced loss of what it reads; if not, the condition shows it black pictures.

    Args:
        policy: its entry in the manifest; see :mod:`multismolvla_eval.policies.announcing`.
        condition_id: canonical text.
        manifest: of the run.

    Returns:
        ``None`` if there is nothing to tell: no loss is announced, or none that concerns it.
    """
    if not any(f.announced for f in parse_condition(condition_id).faults):
        return None
    views = default_view_map(tuple(manifest["cameras"]))
    pictures = {k for streams in views.values() for k in streams.values()} & set(policy.get("reads", ()))
    lost = pictures & faulted_keys(condition_id, manifest)
    if not lost:
        return None
    return bool(policy.get("reads_masks")) and not (policy.get("needs_a_picture") and lost == pictures)


def renaming(policy: str, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Environment's observation key -> policy's, as ``--rename_map`` gave them: for all policies, and for this one."""
    said = manifest.get("rename_map") or {}
    shared = {k: v for k, v in said.items() if not isinstance(v, dict)}
    return {**shared, **said.get(policy, {})}

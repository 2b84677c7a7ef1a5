"""Which faults reach a policy, and which announced losses."""

from __future__ import annotations

from multismolvla.corruption import Fault, parse_condition
from multismolvla.modalities import MODALITIES, Modality, Provenance, default_view_map, modality_of_key
from multismolvla.provenance import with_derived
from multismolvla_eval.records.schema import PolicyFacts, RunManifest


def reaching_faults(condition_id: str, manifest: RunManifest) -> tuple[Fault, ...]:
    """The faults of a condition and what they do to the modalities that the environment computes from RGB."""
    derived = {m for m, kind in manifest.provenance.items() if kind == Provenance.DERIVED}
    return with_derived(parse_condition(condition_id).faults, derived, tuple(manifest.cameras))


def faulted_streams(
    condition_id: str, manifest: RunManifest, policy: PolicyFacts | None = None
) -> dict[str, set[str]]:
    """Observation keys of the streams that a condition concerns, by modality; only modalities that have some.

    What environment or policy compute from RGB is concerned by the faults of RGB.

    Args:
        condition_id: canonical text.
        manifest: of the run.
        policy: whose entry in the manifest; without it what a policy computes is left out.
    """
    views = default_view_map(tuple(manifest.cameras))
    faults = reaching_faults(condition_id, manifest)
    derived = () if policy is None else derived_keys(policy, manifest)

    def concerned(camera: str, modality: str) -> bool:
        from_rgb = views[camera][modality] in derived
        return any(f.hits(camera, modality) or (from_rgb and f.hits(camera, Modality.RGB)) for f in faults)

    streams = {m: {views[c][m] for c in views if concerned(c, m)} for m in MODALITIES}
    return {m: keys for m, keys in streams.items() if keys}


def derived_keys(policy: PolicyFacts, manifest: RunManifest) -> set[str]:
    """Observation keys of the streams that a policy computes from RGB in this environment."""
    return {key for key in policy.derives if modality_of_key(key) not in manifest.streams}


def faulted_keys(condition_id: str, manifest: RunManifest, policy: PolicyFacts | None = None) -> set[str]:
    """Observation keys of the streams that a condition concerns; arguments as `faulted_streams`."""
    return set().union(*faulted_streams(condition_id, manifest, policy).values())


def can_meet(policy: PolicyFacts, condition_id: str) -> bool:
    """Whether a policy can be put under a condition: no attack reaches one without gradients or pictures."""
    attack = parse_condition(condition_id).attack
    return attack is None or attack.type in policy.attacks


def mask_reaches_policy(policy: PolicyFacts, condition_id: str, manifest: RunManifest) -> bool | None:
    """Whether an announced loss reaches a policy as one; if not, the condition shows it black pictures.

    Args:
        policy: its entry in the manifest; see :mod:`multismolvla_eval.policies.announcing`.
        condition_id: canonical text.
        manifest: of the run.

    Returns:
        ``None`` if no loss is announced, or none of a picture that it reads.
    """
    if not any(f.announced for f in parse_condition(condition_id).faults):
        return None
    views = default_view_map(tuple(manifest.cameras))
    pictures = {k for streams in views.values() for k in streams.values()} & set(policy.reads)
    lost = pictures & faulted_keys(condition_id, manifest, policy)
    if not lost:
        return None
    return policy.mask_reaches_policy and not (policy.needs_a_picture and lost == pictures)

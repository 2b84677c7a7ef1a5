"""Do policy and environment agree on what is a sensor and what is computed from RGB?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from multismolvla.modalities import Provenance
from multismolvla_eval.records.schema import RunManifest


def provenance_conflicts(
    policy: Mapping[str, str], environment: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """Streams whose provenance a policy and the environment name differently.

    Args:
        policy: of the policy, by modality or ``view.modality``, as its training data or options said.
        environment: by modality.

    Returns:
        Stream -> provenance for the policy, provenance in the environment; nothing where one of them says
        nothing.
    """
    both = {s: (own, environment.get(s.rpartition(".")[2])) for s, own in policy.items()}
    return {s: (own, other) for s, (own, other) in both.items() if other is not None and other != own}


def provenance_notes(manifest: RunManifest) -> Iterator[str]:
    """A sentence per policy and kind of contradiction, for readers of a report."""
    for name, policy in manifest.policies.items():
        conflicts = provenance_conflicts(policy.provenance, manifest.provenance)
        derived = [s for s, (own, _) in conflicts.items() if own == Provenance.DERIVED]
        sensors = [s for s in conflicts if s not in derived]
        if derived:
            yield (
                f"{name} takes {', '.join(derived)} for computed from RGB and drops it with an announced "
                "loss of RGB, but in this environment it is a sensor of its own: its pictures differ from "
                "those of the training, and its figures without RGB are too low."
            )
        if sensors:
            yield (
                f"{name} takes {', '.join(sensors)} for a sensor, but this environment computes it from RGB: "
                "its pictures differ from those of the training, and what is left without RGB is no sensor "
                "redundancy."
            )

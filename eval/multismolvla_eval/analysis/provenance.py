"""Do policy and environment agree on what is a sensor and what is computed from RGB?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multismolvla.modalities import Provenance


def provenance_conflicts(
    policy: Mapping[str, str], environment: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """Streams whose provenance a policy and the environment name differently.

    Args:
        policy: of the policy, by modality or ``view.modality``, as its training data or options said.
        environment: by modality.

    Returns:
        Stream -> provenance for the policy, provenance in the environment; nothing where one of them says nothing.
    """
    told = {stream: environment.get(stream.rpartition(".")[2]) for stream in policy}
    return {s: (policy[s], told_) for s, told_ in told.items() if told_ is not None and told_ != policy[s]}


def provenance_notes(manifest: Mapping[str, Any]) -> list[str]:
    """A sentence per policy and kind of contradiction, for readers of a report.

    Args:
        manifest: of the run.
    """
    notes = []
    environment = manifest.get("env", {}).get("provenance") or {}
    for name, facts in manifest["policies"].items():
        conflicts = provenance_conflicts(facts.get("provenance") or {}, environment)
        trained_derived = [s for s, (own, _) in conflicts.items() if own == Provenance.DERIVED]
        trained_sensor = [s for s in conflicts if s not in trained_derived]
        if trained_derived:
            notes.append(
                f"{name} takes {', '.join(trained_derived)} for computed from RGB and drops it with an announced loss of RGB, but "
                "in this environment it is a sensor of its own: its pictures differ from those of the training, and its figures "
                "without RGB are too low."
            )
        if trained_sensor:
            notes.append(
                f"{name} takes {', '.join(trained_sensor)} for a sensor, but this environment computes it from RGB: its pictures "
                "differ from those of the training, and what is left without RGB is no sensor redundancy."
            )
    return notes

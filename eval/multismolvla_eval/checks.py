"""Is the comparison fair? Evidence from hashes that were taken while the episodes ran."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from multismolvla.corruption import parse_condition
from multismolvla.modalities import MODALITIES, default_view_map
from multismolvla_eval.results import Row

#: Rows by (policy, condition) and (task, episode).
Index = dict[tuple[str, str], dict[tuple[int, int], Row]]


def faulted_keys(condition_id: str, manifest: dict[str, Any]) -> set[str]:
    """Observation keys of the streams that a condition concerns."""
    condition = parse_condition(condition_id)
    views = default_view_map(tuple(manifest["cameras"]))
    return {
        views[camera][m]
        for camera in views
        for m in MODALITIES
        if any(f.hits(camera, m) for f in condition.faults)
    }


def reads_fault(reads: Sequence[str], condition_id: str, manifest: dict[str, Any]) -> bool | None:
    """Whether a policy reads any faulted stream; ``None`` when unknown or nothing is faulted."""
    keys = faulted_keys(condition_id, manifest)
    return bool(keys & set(reads)) if keys and reads else None


def fairness_checks(
    names: Sequence[str], conditions: Sequence[str], index: Index, manifest: dict[str, Any]
) -> dict[str, Any]:
    """Proofs, from hashes, that arms are paired and that faults reach the policy.

    ``starts``: episodes whose simulator state equals that of the same episode in every other arm. ``faults``: per policy
    and condition, in how many episodes the faulted streams differ from the clean arm at the first frame (``reached``)
    and all others do not (``rest_equal``), measured on what the encoder was given if the policy shows it, else on the
    policy's input. A frozen picture cannot differ at the first frame, and what a policy does not read cannot reach it:
    neither is counted.
    """
    starts: dict[tuple[int, int], set[str]] = defaultdict(set)
    for cell in index.values():
        for key, row in cell.items():
            if row.get("start"):
                starts[key].add(row["start"])
    faults = []
    for name in names:
        for condition in conditions:
            faults_of_arm = parse_condition(condition).faults
            if not faults_of_arm or any(f.type == "freeze" for f in faults_of_arm):
                continue
            if reads_fault(manifest["policies"][name].get("reads", []), condition, manifest) is not False:
                clean, cell = index.get((name, "C0"), {}), index.get((name, condition), {})
                keys = faulted_keys(condition, manifest)
                outcomes = [
                    o
                    for k in cell.keys() & clean.keys()
                    if (o := _reached(clean[k], cell[k], keys, condition))
                ]
                if outcomes:
                    faults.append(
                        {
                            "policy": name,
                            "condition": condition,
                            "where": outcomes[0][2],
                            "episodes": len(outcomes),
                            "reached": sum(o[0] for o in outcomes),
                            "rest_equal": sum(o[1] for o in outcomes),
                        }
                    )
    return {
        "starts": {"episodes": len(starts), "equal": sum(len(v) == 1 for v in starts.values())},
        "faults": faults,
    }


def _reached(clean: Row, faulted: Row, keys: set[str], condition: str) -> tuple[bool, bool, str] | None:
    """``(fault arrived, everything else equal, where)`` of one pair of episodes; ``None`` without hashes."""
    before, after = clean.get("encoder"), faulted.get("encoder")
    if before and after is not None:
        hit = {f.modality for f in parse_condition(condition).faults} & before.keys()
        rest = before.keys() - hit
        return (
            any(before[m] != after.get(m) for m in hit),
            all(before[m] == after.get(m) for m in rest),
            "encoder",
        )
    before, after = clean.get("door"), faulted.get("door")
    if not before or not after or not keys & after.keys():
        return None
    own = {k for k in after if any(k == f or k.startswith((f"{f}_padding", f"{f}_valid")) for f in keys)}
    return (
        any(before.get(k) != after[k] for k in keys & after.keys()),
        all(before.get(k) == after[k] for k in after.keys() - own),
        "input",
    )

"""Is the comparison fair? Evidence from hashes that were taken while the episodes ran."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from multismolvla.corruption import parse_condition
from multismolvla.modalities import MODALITIES, default_view_map
from multismolvla_eval.results import Row

#: Rows by (policy, condition) and (task, episode).
#: What pairs two rows: (suite, task) and (repetition, episode).
Place = tuple[tuple[str, int], tuple[int, int]]
Index = dict[tuple[str, str], dict[Place, Row]]


def faulted_streams(condition_id: str, manifest: dict[str, Any]) -> dict[str, set[str]]:
    """Observation keys of the streams that a condition concerns, by modality; only modalities that have some."""
    condition = parse_condition(condition_id)
    views = default_view_map(tuple(manifest["cameras"]))
    streams = {
        m: {views[c][m] for c in views if any(f.hits(c, m) for f in condition.faults)} for m in MODALITIES
    }
    return {m: keys for m, keys in streams.items() if keys}


def faulted_keys(condition_id: str, manifest: dict[str, Any]) -> set[str]:
    """Observation keys of the streams that a condition concerns."""
    return set().union(*faulted_streams(condition_id, manifest).values())


def reads_fault(reads: Sequence[str], condition_id: str, manifest: dict[str, Any]) -> bool | None:
    """Whether a policy reads any faulted stream; ``None`` when unknown or nothing is faulted."""
    keys = faulted_keys(condition_id, manifest)
    return bool(keys & set(reads)) if keys and reads else None


def fairness_checks(
    names: Sequence[str], conditions: Sequence[str], index: Index, manifest: dict[str, Any]
) -> dict[str, Any]:
    """Proofs, from hashes, that arms are paired and that faults reach the policy.

    ``starts``: episodes whose simulator state equals that of the same episode in every other arm. ``faults``: per policy
    and condition, in how many episodes every faulted stream differs from the clean arm at the first frame (``reached``)
    and all others do not (``rest_equal``), measured on what the encoder was given if the policy shows it (there per
    modality), else on the policy's input. Of a soft fault one camera of a modality is enough: the other may show nothing
    that it could change. A frozen picture cannot differ at the first frame, and what a policy does not read cannot reach
    it: neither is counted.
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
                streams = faulted_streams(condition, manifest)
                outcomes = [
                    o
                    for k in cell.keys() & clean.keys()
                    if (o := _reached(clean[k], cell[k], streams, condition))
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


def _reached(
    clean: Row, faulted: Row, streams: dict[str, set[str]], condition: str
) -> tuple[bool, bool, str] | None:
    """``(fault arrived, everything else equal, where)`` of one pair of episodes; ``None`` without hashes."""
    before, after = clean.get("encoder"), faulted.get("encoder")
    if before and after is not None:
        hit = streams.keys() & before.keys()
        rest = before.keys() - hit
        return (
            bool(hit) and all(before[m] != after.get(m) for m in hit),
            all(before[m] == after.get(m) for m in rest),
            "encoder",
        )
    before, after = clean.get("door"), faulted.get("door")
    keys = set().union(*streams.values())
    if not before or not after or not keys & after.keys():
        return None
    own = {k for k in after if any(k == f or k.startswith((f"{f}_padding", f"{f}_valid")) for f in keys)}
    given = {m: k & after.keys() for m, k in streams.items() if k & after.keys()}
    changed = {k for k in after if before.get(k) != after[k]}
    soft = {f.modality for f in parse_condition(condition).faults if not f.hard}
    return (
        all(k & changed if m in soft else k <= changed for m, k in given.items()),
        all(before.get(k) == after[k] for k in after.keys() - own),
        "input",
    )

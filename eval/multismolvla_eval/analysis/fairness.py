"""Is the comparison fair? Evidence from hashes that were taken while the episodes ran."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from multismolvla.corruption import parse_condition
from multismolvla_eval.analysis.table import Cells, Episodes, Hashes
from multismolvla_eval.protocol.reach import faulted_streams, reads_fault, renaming


def fairness_checks(
    names: Sequence[str], conditions: Sequence[str], cells: Cells, manifest: dict[str, Any]
) -> dict[str, Any]:
    """Proofs, from hashes, that arms are paired and that faults reach the policy.

    ``starts``: episodes whose simulator state equals that of the same episode in every other arm. ``faults``: per policy
    and condition, in how many episodes every faulted stream differs from the clean arm at the first frame (``reached``)
    and all others do not (``rest_equal``), measured on what the encoder was given if the policy shows it (there per
    modality), else on the policy's input. Of a soft fault one camera of a modality is enough: the other may show nothing
    that it could change. A frozen picture and a fault in time cannot show at the first frame, and what a policy does not
    read cannot reach it: neither is counted.
    """
    faults = []
    for name in names:
        reads = manifest["policies"][name].get("reads", [])
        for condition in conditions:
            arm = parse_condition(condition).faults
            if not arm or not all(f.changes_first_frame for f in arm):
                continue
            if reads_fault(reads, condition, manifest) is False:
                continue
            clean, faulted = cells.shared([cells.rows(name, "C0"), cells.rows(name, condition)])
            found = _arrivals(cells.episodes, clean, faulted, condition, name, manifest)
            if found:
                faults.append({"policy": name, "condition": condition, **found})
    return {"starts": _starts(cells), "faults": faults}


def _starts(cells: Cells) -> dict[str, int]:
    """Of how many episodes the start is known, and of how many it is the same in all arms."""
    known = np.flatnonzero(cells.episodes.start)
    if not len(known):
        return {"episodes": 0, "equal": 0}
    order = known[np.argsort(cells.place[known], kind="stable")]
    first = np.flatnonzero(np.diff(cells.place[order], prepend=-1))
    start = cells.episodes.start[order]
    equal = np.minimum.reduceat(start, first) == np.maximum.reduceat(start, first)
    return {"episodes": len(first), "equal": int(equal.sum())}


def _arrivals(
    episodes: Episodes,
    clean: np.ndarray,
    faulted: np.ndarray,
    condition: str,
    policy: str,
    manifest: dict[str, Any],
) -> dict[str, Any]:
    """Counts of one arm's pairs of episodes; empty without hashes.

    Args:
        episodes: the columns.
        clean: rows of the clean episodes, (m,).
        faulted: rows of the faulted ones, (m,), paired with them.
        condition: of the faulted ones.
        policy: of both.
        manifest: of the run.
    """
    streams = faulted_streams(condition, manifest)
    renamed = renaming(policy, manifest)
    at_input = {m: {renamed.get(k, k) for k in keys} for m, keys in streams.items()}
    shown = episodes.encoder.known[faulted] & episodes.encoder.values[clean].any(1)
    soft = {f.modality for f in parse_condition(condition).faults if not f.hard}
    counted, reached, rest = _at_the_encoder(episodes.encoder, clean[shown], faulted[shown], set(streams))
    at_door = _at_the_door(episodes.door, clean[~shown], faulted[~shown], at_input, soft)
    total = int(counted.sum() + at_door[0].sum())
    if not total:
        return {}
    arrived = int((counted & reached).sum() + (at_door[0] & at_door[1]).sum())
    rest_equal = int((counted & rest).sum() + (at_door[0] & at_door[2]).sum())
    return {
        "where": "encoder" if counted.any() else "input",
        "episodes": total,
        "reached": arrived,
        "rest_equal": rest_equal,
        "doubtful": min(arrived, rest_equal) < total,
    }


_Outcome = tuple[np.ndarray, np.ndarray, np.ndarray]


def _at_the_encoder(hashes: Hashes, clean: np.ndarray, faulted: np.ndarray, modalities: set[str]) -> _Outcome:
    """``(counted, fault arrived, everything else equal)``, bool (m,) each, by modality."""
    before, after = hashes.values[clean], hashes.values[faulted]
    present, changed = before != 0, before != after
    hit = hashes.columns(modalities)
    rest = [i for i in range(len(hashes.keys)) if i not in hit]
    reached = present[:, hit].any(1) & (changed | ~present)[:, hit].all(1)
    return np.ones(len(clean), bool), reached, ~(changed & present)[:, rest].any(1)


def _at_the_door(
    hashes: Hashes, clean: np.ndarray, faulted: np.ndarray, streams: dict[str, set[str]], soft: set[str]
) -> _Outcome:
    """The same by stream of the policy's input; flags that come with a faulted stream may differ, too.

    A stream that is gone from the input has changed: that is how some policies are told of a loss.
    """
    before, after = hashes.values[clean], hashes.values[faulted]
    present = (before != 0) | (after != 0)
    changed = before != after
    keys = set().union(*streams.values()) if streams else set()
    reached = np.ones(len(clean), bool)
    for modality, stream_keys in streams.items():
        columns = hashes.columns(stream_keys)
        given = present[:, columns].any(1)
        all_changed = (changed | ~present)[:, columns].all(1)
        reached &= ~given | (changed[:, columns].any(1) if modality in soft else all_changed)
    own = [
        i
        for i, k in enumerate(hashes.keys)
        if any(k == f or k.startswith((f"{f}_padding", f"{f}_valid")) for f in keys)
    ]
    rest = [i for i in range(len(hashes.keys)) if i not in own]
    counted = present[:, hashes.columns(keys)].any(1) & (before != 0).any(1) & (after != 0).any(1)
    return counted, reached, ~changed[:, rest].any(1)

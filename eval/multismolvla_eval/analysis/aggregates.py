"""Figures over many conditions: subset profile, severity area, mean corruption error, calibration of availability.

A figure is JSON-ready: ``value``, ``low`` and ``high`` (95 %), ``n`` (starts per condition) and ``why``, the reason where
there is no interval. Every mean over types of corruption is over types that the policy reads, and names the others: what a
policy does not read cannot hurt it, and would flatter it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from multismolvla.corruption import SEVERITIES, parse_condition
from multismolvla.modalities import MODALITIES
from multismolvla_eval.analysis.bootstrap import interval_of, resampled_means, resampled_ratios, task_sizes
from multismolvla_eval.analysis.cells import Arms, faults_met
from multismolvla_eval.analysis.families import (
    announced,
    is_subset,
    reads_condition,
    seen,
    soft_types,
    stream,
)
from multismolvla_eval.analysis.statistics import AREA_WEIGHTS, auroc, marginal_weights
from multismolvla_eval.protocol.reach import reaching_faults

#: A modality that a policy trusts less than this counts as flagged by its gate.
OPERATING_POINT = 0.5

Types = dict[str, dict[int, str]]


def aggregates(
    name: str, arms: Arms, conditions: Sequence[str], manifest: Mapping[str, Any], suite: str | None = None
) -> dict[str, Any]:
    """All such figures of a policy, each ``None`` where its conditions have not all run.

    Args:
        name: of the policy.
        arms: the episodes.
        conditions: of the run.
        manifest: of the run: policies and what they read, baseline, cameras.
        suite: only this suite's episodes; all if ``None``.
    """
    baseline = manifest["baseline"]
    # With severities missing, neither the area nor the error is what its name says.
    types = {t: s for t, s in soft_types(conditions).items() if set(s) == set(SEVERITIES)}
    return {
        "subset_profile": _subsets(name, arms, conditions, suite),
        "severity_area": _areas(name, arms, types, manifest, suite),
        "mce": None if name == baseline else _corruption_error(name, arms, types, manifest, suite),
        "calibration": _calibration(name, arms, conditions, manifest, suite),
    }


def _figure(value: float, resamples: np.ndarray, n: int) -> dict[str, Any]:
    return {"value": float(value), **asdict(interval_of(resamples)), "n": n}


def _subsets(name: str, arms: Arms, conditions: Sequence[str], suite: str | None) -> dict[str, Any] | None:
    """Mean, worst and marginal values over the subsets of modalities that are left, on the starts that all share."""
    of = {tuple(c[3:].split("+")): arms.rows(name, c, suite) for c in conditions if is_subset(c)}
    subsets = [s for s, rows in of.items() if len(rows)]
    weights = marginal_weights(subsets)
    if weights is None:
        return None
    rows = arms.shared([of[s] for s in subsets])
    if not len(rows[0]):
        return None
    won, tasks = arms.by_start(rows)
    resamples = resampled_means(won, task_sizes(tasks))
    rates, n = won.mean(1), len(tasks)
    worst = min(range(len(subsets)), key=lambda i: (rates[i], len(subsets[i])))
    return {
        "subsets": len(subsets),
        "mean": _figure(rates.mean(), resamples.mean(0), n),
        "worst": arms.rate_entry(rows[worst]),
        "worst_subset": subsets[worst],
        "marginal": {m: _figure(w @ rates, w @ resamples, n) for m, w in weights.items()},
    }


def _areas(
    name: str, arms: Arms, types: Types, manifest: Mapping[str, Any], suite: str | None
) -> dict[str, Any] | None:
    """Severity areas over the starts that clean and all severities share: the clean arm may have more, and harder ones."""
    read, left_out = _read_by((name,), types, manifest)

    def of(group: Types) -> dict[str, Any] | None:
        known = {t: s for t, s in group.items() if all((name, c) in arms for c in s.values())}
        cells = ["C0", *(c for s in known.values() for c in s.values())]
        rows = arms.shared([arms.rows(name, c, suite) for c in cells])
        if not known or not len(rows[0]):
            return None
        won, tasks = arms.by_start(rows)
        if not won[0].any():
            return None
        curves = won[1:].reshape(len(known), len(SEVERITIES), -1)
        area = AREA_WEIGHTS[0] * won[0] + np.einsum("s,tsn->tn", AREA_WEIGHTS[1:], curves)
        return _over_types(list(known), area, np.broadcast_to(won[0], area.shape), tasks)

    return _grouped(read, of, left_out)


def _corruption_error(
    name: str, arms: Arms, types: Types, manifest: Mapping[str, Any], suite: str | None
) -> dict[str, Any] | None:
    """Failures in per cent of the baseline's, of the same types and starts.

    A type that only one of the two reads is no comparison: the other one would be measured by its clean failures.
    """
    baseline = manifest["baseline"]
    read, left_out = _read_by((name, baseline), types, manifest)

    def of(group: Types) -> dict[str, Any] | None:
        both = (name, baseline)
        known = {t: s for t, s in group.items() if all((p, c) in arms for p in both for c in s.values())}
        if not known:
            return None
        rows = arms.shared([arms.rows(p, c, suite) for p in both for s in known.values() for c in s.values()])
        if not len(rows[0]):
            return None
        won, tasks = arms.by_start(rows)
        failed = (1 - won).reshape(2, len(known), len(SEVERITIES), -1).sum(2)
        comparable = failed[1].any(1)
        for type_ in (t for t, kept in zip(known, comparable, strict=True) if not kept):
            left_out["the baseline does not fail there"].append(type_)
        names = [t for t, kept in zip(known, comparable, strict=True) if kept]
        own, reference = failed[:, comparable]
        return _over_types(names, 100 * own, reference, tasks) if names else None

    return _grouped(read, of, left_out)


def _read_by(
    names: Sequence[str], types: Types, manifest: Mapping[str, Any]
) -> tuple[Types, dict[str, list[str]]]:
    """The types that all of some policies read, and the streams of the others by reason."""
    left_out: dict[str, list[str]] = defaultdict(list)
    read = {}
    for type_, severities in types.items():
        condition = next(iter(severities.values()))
        deaf = [n for n in names if reads_condition(manifest["policies"][n], condition, manifest) is False]
        if not deaf:
            read[type_] = severities
            continue
        reason = f"{'this policy' if deaf[0] == names[0] else 'the baseline'} does not read them"
        if stream(type_) not in left_out[reason]:
            left_out[reason].append(stream(type_))
    return read, left_out


def _grouped(types: Types, of: Any, left_out: Mapping[str, list[str]]) -> dict[str, Any] | None:
    """Means over the types that hit all cameras and, apart, over those that hit one: these repeat the same types."""
    groups: dict[str, Types] = defaultdict(dict)
    for type_, severities in types.items():
        groups[stream(type_).partition(".")[2]][type_] = severities
    found = {camera: part for camera, members in groups.items() if (part := of(members)) is not None}
    if not found and not left_out:
        return None
    nothing: dict[str, Any] = {
        "mean": None,
        "seen": None,
        "unseen": None,
        "modalities": {},
        "types": {},
    }
    return {**nothing, **found.pop("", {}), "cameras": found, "left_out": dict(left_out)}


def _over_types(
    types: Sequence[str], numerators: np.ndarray, denominators: np.ndarray, tasks: np.ndarray
) -> dict[str, Any]:
    """Ratios per type and their means, over all types, those that training may meet, the others, and per modality.

    Args:
        types: names.
        numerators: float (types, starts).
        denominators: float (types, starts), no row all zero.
        tasks: of each start, ascending.
    """
    values = numerators.mean(1) / denominators.mean(1)
    resamples, n = resampled_ratios(numerators, denominators, tasks), len(tasks)

    def mean(chosen: Sequence[bool]) -> dict[str, Any] | None:
        members = np.flatnonzero(chosen)
        if not len(members):
            return None
        return {**_figure(values[members].mean(), resamples[members].mean(0), n), "types": len(members)}

    known = [bool(seen(f"C3:{t}@1")) for t in types]
    hit = [stream(t).partition(".")[0] for t in types]
    return {
        "mean": mean([True] * len(types)),
        "seen": mean(known),
        "unseen": mean([not k for k in known]),
        "modalities": {m: mean([h == m for h in hit]) for m in dict.fromkeys(hit)},
        "types": {t: _figure(v, r, n) for t, v, r in zip(types, values, resamples, strict=True)},
    }


def _calibration(
    name: str, arms: Arms, conditions: Sequence[str], manifest: Mapping[str, Any], suite: str | None
) -> dict[str, dict[str, Any]] | None:
    """Per modality, whether the policy's gate knows that the sensor is corrupted; ``None`` without gate values.

    A gate value says how far a policy trusts a modality beside its others. So faults of all of them at once cannot show and
    are left out, as are announced losses, where there is nothing to detect, and episodes that did not meet their fault.
    """
    gates, met = arms.episodes.gates, faults_met(arms.episodes)
    gated = {m for row in arms.all_rows(name).tolist() for m in gates.get(row, {})}
    sound: dict[str, list[int]] = defaultdict(list)
    corrupted: dict[str, list[int]] = defaultdict(list)
    for condition in conditions:
        faults = reaching_faults(condition, manifest)
        hit = {f.modality for f in faults}
        if gated <= hit or any(announced(f) for f in parse_condition(condition).faults):
            continue
        told = {f.modality for f in faults if announced(f)}  # derived from a faulted RGB
        rows = arms.rows(name, condition, suite)
        for row in rows[met[rows] != 0].tolist() if faults else rows.tolist():
            for modality in gates.get(row, {}).keys() - told:
                (corrupted if modality in hit else sound)[modality].append(row)
    return {
        m: _detection(corrupted[m], sound[m], {r: v[m] for r, v in gates.items() if m in v}, arms)
        for m in MODALITIES
        if corrupted[m] and sound[m]
    } or None


def _detection(
    corrupted: Sequence[int], sound: Sequence[int], trust: Mapping[int, float], arms: Arms
) -> dict[str, Any]:
    """How well little trust tells the episodes of a corrupted sensor from those of a sound one."""
    hits = np.array(corrupted)
    doubt, false_doubt = (1 - np.array([trust[r] for r in rows]) for rows in (corrupted, sound))
    flagged = doubt > 1 - OPERATING_POINT
    return {
        "auroc": auroc(doubt, false_doubt),
        "corrupted": len(corrupted),
        "sound": len(sound),
        "sound_flagged": int((false_doubt > 1 - OPERATING_POINT).sum()),
        "success_flagged": arms.rate_entry(hits[flagged]),
        "success_missed": arms.rate_entry(hits[~flagged]),
    }

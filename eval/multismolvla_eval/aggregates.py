"""Figures over many conditions: subset profile, severity area, mean corruption error, calibration of availability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from multismolvla.corruption import SEVERITIES, parse_condition
from multismolvla.modalities import MODALITIES
from multismolvla_eval.episodes import Cells
from multismolvla_eval.grouping import is_subset, seen, soft_types
from multismolvla_eval.statistics import (
    AREA_WEIGHTS,
    auroc,
    mean_corruption_error,
    mean_ratio_interval,
    severity_area,
    subset_profile,
)

#: A modality that a policy trusts less than this counts as flagged by its gate.
OPERATING_POINT = 0.5


def aggregates(
    name: str, baseline: str, cells: Cells, conditions: Sequence[str], suite: str | None = None
) -> dict[str, Any]:
    """All such figures of a policy, each ``None`` where its conditions have not all run.

    Args:
        name: of the policy.
        baseline: of the policy that errors are compared with.
        cells: the episodes.
        conditions: of the run.
        suite: only this suite's episodes; all if ``None``.
    """
    # Types of single cameras repeat others: they would count twice in a mean over types.
    known = {t: s for t, s in soft_types(conditions).items() if "." not in t.partition("=")[0]}
    # With severities missing, neither the area nor the error is what its name says.
    whole = {t: s for t, s in known.items() if set(s) == set(SEVERITIES)}
    types = {t: s for t, s in whole.items() if all((name, c) in cells for c in s.values())}
    return {
        "subset_profile": _subsets(name, cells, conditions, suite),
        "severity_area": _areas(name, cells, types, suite),
        "mce": None if name == baseline else _corruption_error(name, baseline, cells, types, suite),
        "calibration": _calibration(name, cells, conditions, suite),
    }


def _rates(cells: Cells, arms: Sequence[np.ndarray]) -> list[float]:
    return [float(cells.episodes.success[a].mean()) for a in arms]


def _subsets(name: str, cells: Cells, conditions: Sequence[str], suite: str | None) -> dict[str, Any] | None:
    arms = {tuple(c[3:].split("+")): cells.rows(name, c, suite) for c in conditions if is_subset(c)}
    arms = {k: v for k, v in arms.items() if len(v)}
    profile = subset_profile(dict(zip(arms, _rates(cells, list(arms.values())), strict=True)))
    if profile is None:
        return None
    low = high = None
    rows = cells.shared(list(arms.values()))
    if all(len(r) == len(a) for r, a in zip(rows, arms.values(), strict=True)):
        won = np.stack([cells.episodes.success[r] for r in rows])
        low, high = mean_ratio_interval(won, np.ones_like(won), cells.task[rows[0]])
    return {**asdict(profile), "low": low, "high": high}


def _areas(
    name: str, cells: Cells, types: Mapping[str, Mapping[int, str]], suite: str | None
) -> dict[str, Any] | None:
    """Severity areas over the episodes that all six cells share: the clean one may have more of them, and harder ones."""
    found: dict[str, float] = {}
    shared: dict[str, list[np.ndarray]] = {}
    for type_, severities in types.items():
        rows = cells.shared([cells.rows(name, c, suite) for c in ("C0", *severities.values())])
        area = severity_area(_rates(cells, rows)) if len(rows[0]) else None
        if area is not None:
            found[type_], shared[type_] = area, rows
    if not found:
        return None
    low = high = None
    first = next(iter(shared.values()))[0]
    if all(np.array_equal(rows[0], first) for rows in shared.values()):
        won = np.stack([np.stack([cells.episodes.success[r] for r in rows], 1) for rows in shared.values()])
        low, high = mean_ratio_interval(won @ AREA_WEIGHTS, won[:, :, 0].astype(float), cells.task[first])
    return {
        "mean": float(np.mean(list(found.values()))),
        "low": low,
        "high": high,
        "types": found,
        **_split(found),
    }


def _split(values: Mapping[str, float]) -> dict[str, float | None]:
    """Means over the types that training may have met, and over the others."""
    parts: dict[bool, list[float]] = {True: [], False: []}
    for type_, value in values.items():
        parts[bool(seen(f"C3:{type_}@1"))].append(value)
    return {
        k: float(np.mean(v)) if v else None for k, v in zip(("seen", "unseen"), parts.values(), strict=True)
    }


def _corruption_error(
    name: str, baseline: str, cells: Cells, types: Mapping[str, Mapping[int, str]], suite: str | None
) -> dict[str, Any] | None:
    """Errors against the baseline, over the episodes that both have run in all of a type's severities."""
    rates: dict[str, list[float]] = {}
    reference: dict[str, list[float]] = {}
    shared: dict[str, list[np.ndarray]] = {}
    for type_, severities in types.items():
        arms = [cells.rows(n, c, suite) for n in (name, baseline) for c in severities.values()]
        rows = cells.shared(arms)
        if not len(rows[0]):
            continue
        values = _rates(cells, rows)
        rates[type_], reference[type_] = values[: len(severities)], values[len(severities) :]
        shared[type_] = rows
    value, left_out = mean_corruption_error(rates, reference)
    kept = [t for t in rates if t not in left_out]
    if value is None:
        return {"value": None, "left_out": list(left_out)} if left_out else None
    low = high = None
    first = cells.place[shared[kept[0]][0]]
    if all(np.array_equal(cells.place[shared[t][0]], first) for t in kept):
        failed = {t: [1.0 - cells.episodes.success[r] for r in shared[t]] for t in kept}
        own = np.stack([np.sum(f[: len(f) // 2], axis=0) for f in failed.values()])
        theirs = np.stack([np.sum(f[len(f) // 2 :], axis=0) for f in failed.values()])
        low, high = mean_ratio_interval(own, theirs, cells.task[shared[kept[0]][0]])
    per_type = {t: 100 * sum(1 - r for r in rates[t]) / sum(1 - r for r in reference[t]) for t in kept}
    return {
        "value": value,
        "low": None if low is None else 100 * low,
        "high": None if high is None else 100 * high,
        "types": per_type,
        "left_out": list(left_out),
        **_split(per_type),
    }


def _calibration(
    name: str, cells: Cells, conditions: Sequence[str], suite: str | None
) -> dict[str, dict[str, Any]] | None:
    """Per modality, whether the policy's gate knows that the sensor is corrupted; ``None`` without gate values.

    A gate value says how far a policy trusts a modality. Announced losses do not count: there is nothing to detect.
    """
    gates = cells.episodes.gates
    if not gates:
        return None
    found = {}
    for modality in MODALITIES:
        sound: list[int] = []
        corrupted: list[int] = []
        for condition in conditions:
            faults = parse_condition(condition).faults
            if any(f.announced and f.kind != "soft" for f in faults):
                continue
            hit = any(f.modality == modality for f in faults)
            rows = [int(r) for r in cells.rows(name, condition, suite) if modality in gates.get(int(r), {})]
            (corrupted if hit else sound).extend(rows)
        distrust = [np.array([1 - gates[r][modality] for r in rows]) for rows in (corrupted, sound)]
        value = auroc(*distrust)
        if value is not None:
            won = cells.episodes.success[corrupted]
            flagged = distrust[0] > 1 - OPERATING_POINT
            found[modality] = {
                "auroc": value,
                "corrupted": len(corrupted),
                "sound": len(sound),
                "success_flagged": [int(won[flagged].sum()), int(flagged.sum())],
                "success_missed": [int(won[~flagged].sum()), int((~flagged).sum())],
            }
    return found or None

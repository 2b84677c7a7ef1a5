"""Figures over many conditions: subset profile, severity area, corruption error, detection of faults.

Every mean over types of corruption is over types that the policy reads, and names the others: what a policy
does not read cannot hurt it, and would flatter it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from multismolvla.corruption import SEVERITIES, parse_condition
from multismolvla.modalities import MODALITIES
from multismolvla_eval.analysis.bootstrap import interval_of, resampled_means, resampled_ratios, task_sizes
from multismolvla_eval.analysis.cells import Cells, rate_of, shared, shares_per_start
from multismolvla_eval.analysis.families import (
    announced,
    is_subset,
    reads_condition,
    seen,
    soft_types,
    stream,
)
from multismolvla_eval.analysis.statistics import AREA_WEIGHTS, Rate, auroc, marginal_weights
from multismolvla_eval.analysis.table import WEIGHT
from multismolvla_eval.records.reach import faulted_streams, reaching_faults
from multismolvla_eval.records.schema import RunManifest

#: A modality that weighs less than this is taken for one that the fusion distrusts.
OPERATING_POINT = 0.5

Types = dict[str, dict[int, str]]


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % bootstrap interval, or the reason why it has none."""

    value: float
    low: float | None
    high: float | None
    why: str  # there is no interval; empty if there is one
    n: int  # starts per condition
    types: int | None = None  # corruption types over which it is a mean


@dataclass(frozen=True)
class TypeMeans:
    """Means over corruption types that hit the same cameras; ``None`` over no type."""

    mean: Figure | None = None
    seen: Figure | None = None  # over those that training may meet
    unseen: Figure | None = None  # over the others
    modalities: dict[str, Figure | None] = field(default_factory=dict)  # over those that hit a modality
    types: dict[str, Figure] = field(default_factory=dict)  # each alone


@dataclass(frozen=True)
class OverTypes(TypeMeans):
    """Means over the types that hit all cameras and, apart, over those that hit one, which repeat them."""

    cameras: dict[str, TypeMeans] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(
        default_factory=dict
    )  # reason -> streams or types that do not count


@dataclass(frozen=True)
class SubsetProfile:
    """Success with announced subsets of modalities left, on the starts that all subsets share."""

    subsets: int
    mean: Figure
    worst: Rate | None
    worst_subset: tuple[str, ...]
    marginal: dict[str, Figure]  # modality -> mean over subsets with it minus mean over those without it


@dataclass(frozen=True)
class Detection:
    """How well a small weight of a modality tells a corrupted sensor from a sound one."""

    auroc: float  # probability that a corrupted one has the smaller weight
    corrupted: int  # episodes
    sound: int
    sound_flagged: int  # with a weight below the operating point
    success_flagged: Rate | None  # of the corrupted ones with a weight below it
    success_missed: Rate | None  # of the other corrupted ones


@dataclass(frozen=True)
class Aggregates:
    """A policy's figures over many conditions; ``None`` where not all of their conditions have run."""

    subset_profile: SubsetProfile | None
    severity_area: OverTypes | None  # area under success over severity, relative to clean; 1 = nothing lost
    # Mean corruption error: failures in per cent of the baseline's; None for the baseline.
    mce: OverTypes | None
    detection: dict[str, Detection]  # by modality; empty for a policy without modality weights


def aggregates(
    name: str, cells: Cells, conditions: Sequence[str], manifest: RunManifest, suite: str | None = None
) -> Aggregates:
    """All such figures of a policy.

    Args:
        name: of the policy.
        cells: the episodes.
        conditions: of the run.
        manifest: of the run.
        suite: only this suite's episodes; all if ``None``.
    """
    # With severities missing, neither the area nor the error is what its name says.
    types = {t: s for t, s in soft_types(conditions).items() if set(s) == set(SEVERITIES)}
    return Aggregates(
        _subset_profile(name, cells, conditions, suite),
        _severity_area(name, cells, types, manifest, suite),
        None if name == manifest.baseline else _corruption_error(name, cells, types, manifest, suite),
        _detections(name, cells, conditions, manifest, suite),
    )


def _figure(value: float, resamples: np.ndarray, n: int, types: int | None = None) -> Figure:
    return Figure(float(value), *interval_of(resamples), n, types)


def _subset_profile(
    name: str, cells: Cells, conditions: Sequence[str], suite: str | None
) -> SubsetProfile | None:
    found = {tuple(c[3:].split("+")): cells.of(name, c, suite) for c in conditions if is_subset(c)}
    found = {subset: cell for subset, cell in found.items() if len(cell)}
    subsets = list(found)
    weights = marginal_weights(subsets)
    if weights is None:
        return None
    paired = shared(list(found.values()))
    if paired[0].empty:
        return None
    won, tasks = shares_per_start(paired)
    resamples = resampled_means(won, task_sizes(tasks))
    rates, n = won.mean(1), len(tasks)
    worst = min(range(len(subsets)), key=lambda i: (rates[i], len(subsets[i])))
    return SubsetProfile(
        len(subsets),
        _figure(rates.mean(), resamples.mean(0), n),
        rate_of(paired[worst]),
        subsets[worst],
        {m: _figure(w @ rates, w @ resamples, n) for m, w in weights.items()},
    )


def _severity_area(
    name: str, cells: Cells, types: Types, manifest: RunManifest, suite: str | None
) -> OverTypes | None:
    """Over the starts that clean and all severities share: the clean cell may have more, and harder ones."""
    read, left_out = _read_by((name,), types, manifest)

    def means(group: Types) -> TypeMeans | None:
        known = {t: s for t, s in group.items() if all((name, c) in cells for c in s.values())}
        conditions = ["C0", *(c for s in known.values() for c in s.values())]
        paired = shared([cells.of(name, c, suite) for c in conditions])
        if not known or paired[0].empty:
            return None
        won, tasks = shares_per_start(paired)
        if not won[0].any():
            return None
        curves = won[1:].reshape(len(known), len(SEVERITIES), -1)
        area = AREA_WEIGHTS[0] * won[0] + np.einsum("s,tsn->tn", AREA_WEIGHTS[1:], curves)
        return _type_means(list(known), area, np.broadcast_to(won[0], area.shape), tasks)

    return _by_camera(read, means, left_out)


def _corruption_error(
    name: str, cells: Cells, types: Types, manifest: RunManifest, suite: str | None
) -> OverTypes | None:
    """Failures in per cent of the baseline's, of the same types and starts.

    A type that only one of the two reads is no comparison: the other would be measured by its clean failures.
    """
    both = (name, manifest.baseline)
    read, left_out = _read_by(both, types, manifest)

    def means(group: Types) -> TypeMeans | None:
        known = {t: s for t, s in group.items() if all((p, c) in cells for p in both for c in s.values())}
        if not known:
            return None
        paired = shared([cells.of(p, c, suite) for p in both for s in known.values() for c in s.values()])
        if paired[0].empty:
            return None
        won, tasks = shares_per_start(paired)
        failed = (1 - won).reshape(2, len(known), len(SEVERITIES), -1).sum(2)
        comparable = failed[1].any(1)
        for type_ in (t for t, kept in zip(known, comparable, strict=True) if not kept):
            left_out["the baseline does not fail there"].append(type_)
        names = [t for t, kept in zip(known, comparable, strict=True) if kept]
        own, reference = failed[:, comparable]
        return _type_means(names, 100 * own, reference, tasks) if names else None

    return _by_camera(read, means, left_out)


def _read_by(names: Sequence[str], types: Types, manifest: RunManifest) -> tuple[Types, dict[str, list[str]]]:
    """The types that all of some policies read, and the streams of the others by reason."""
    left_out: dict[str, list[str]] = defaultdict(list)
    read = {}
    for type_, severities in types.items():
        condition = next(iter(severities.values()))
        not_reading = [
            n for n in names if reads_condition(manifest.policies[n], condition, manifest) is False
        ]
        if not not_reading:
            read[type_] = severities
            continue
        reason = f"{'this policy' if not_reading[0] == names[0] else 'the baseline'} does not read them"
        if stream(type_) not in left_out[reason]:
            left_out[reason].append(stream(type_))
    return read, left_out


def _by_camera(
    types: Types, means: Callable[[Types], TypeMeans | None], left_out: dict[str, list[str]]
) -> OverTypes | None:
    groups: dict[str, Types] = defaultdict(dict)
    for type_, severities in types.items():
        groups[stream(type_).partition(".")[2]][type_] = severities
    found = {camera: part for camera, members in groups.items() if (part := means(members)) is not None}
    if not found and not left_out:
        return None
    return OverTypes(**vars(found.pop("", TypeMeans())), cameras=found, left_out=dict(left_out))


def _type_means(
    types: Sequence[str], numerators: np.ndarray, denominators: np.ndarray, tasks: np.ndarray
) -> TypeMeans:
    """Ratios per type and their means.

    Args:
        types: names.
        numerators: float (types, starts).
        denominators: float (types, starts), no row all zero.
        tasks: of each start, ascending.
    """
    values = numerators.mean(1) / denominators.mean(1)
    resamples, n = resampled_ratios(numerators, denominators, tasks), len(tasks)

    def mean(chosen: Sequence[bool]) -> Figure | None:
        members = np.flatnonzero(chosen)
        if not len(members):
            return None
        return _figure(values[members].mean(), resamples[members].mean(0), n, len(members))

    known = [bool(seen(f"C3:{t}@1")) for t in types]
    hit = [stream(t).partition(".")[0] for t in types]
    return TypeMeans(
        mean([True] * len(types)),
        mean(known),
        mean([not k for k in known]),
        {m: mean([h == m for h in hit]) for m in dict.fromkeys(hit)},
        {t: _figure(v, r, n) for t, v, r in zip(types, values, resamples, strict=True)},
    )


def _detections(
    name: str, cells: Cells, conditions: Sequence[str], manifest: RunManifest, suite: str | None
) -> dict[str, Detection]:
    """Per modality, whether its weight in the fusion falls when its sensor is corrupted.

    A weight says how much a modality counts beside the others. So faults of all of them at once cannot show
    and are left out, as are announced losses, where there is nothing to detect, and episodes that did not
    meet their fault.
    """
    own = cells.of_policy(name)
    weighed = {m for m in MODALITIES if WEIGHT + m in own and own[WEIGHT + m].notna().any()}
    corrupted: dict[str, list[pd.DataFrame]] = defaultdict(list)
    sound: dict[str, list[pd.DataFrame]] = defaultdict(list)
    for condition in conditions:
        faults = reaching_faults(condition, manifest)
        hit = set(faulted_streams(condition, manifest, manifest.policies[name]))
        if weighed <= hit or any(announced(f) for f in parse_condition(condition).faults):
            continue
        gone = {f.modality for f in faults if announced(f)}  # derived from a faulted RGB
        cell = cells.of(name, condition, suite)
        met = cell[cell["fault_met"] != 0] if faults else cell
        for modality in weighed - gone:
            known = met[met[WEIGHT + modality].notna()]
            if len(known):
                (corrupted if modality in hit else sound)[modality].append(known)
    return {
        m: _detection(pd.concat(corrupted[m]), pd.concat(sound[m]), WEIGHT + m)
        for m in MODALITIES
        if corrupted[m] and sound[m]
    }


def _detection(corrupted: pd.DataFrame, sound: pd.DataFrame, weight: str) -> Detection:
    flagged = corrupted[weight] < OPERATING_POINT
    return Detection(
        auroc(-corrupted[weight].to_numpy(), -sound[weight].to_numpy()),
        len(corrupted),
        len(sound),
        int((sound[weight] < OPERATING_POINT).sum()),
        rate_of(corrupted[flagged]),
        rate_of(corrupted[~flagged]),
    )

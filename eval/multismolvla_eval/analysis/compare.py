"""``multismolvla-report a b``: two runs beside each other, paired where they ran the same episodes.

Two episodes are the same if suite, task, number, repetition and condition are, in runs with the same seed,
environment options, corruption definitions and suite (assets, step limit, initial states). Everything else is
compared unpaired, and the page says which is which.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from multismolvla_eval.analysis.bootstrap import Pairs
from multismolvla_eval.analysis.cells import shares_per_start
from multismolvla_eval.analysis.families import Comparison, compare_in_families, family
from multismolvla_eval.analysis.loaded_run import LoadedRun
from multismolvla_eval.analysis.statistics import Rate, UnpairedDifference, unpaired_difference
from multismolvla_eval.records.schema import RunManifest
from multismolvla_eval.records.store import ResultsError


@dataclass(frozen=True)
class CellOfRun:
    """A cell in one suite of one of the two runs; as in `multismolvla_eval.analysis.summary.Cell`."""

    success: Rate
    met: tuple[int, int] | None
    mask_reaches_policy: bool | None


@dataclass(frozen=True)
class ComparedCell:
    """A cell in one suite of both runs."""

    policies: tuple[str, str]
    labels: tuple[str, str]
    suite: str
    condition: str
    description: str
    runs: tuple[CellOfRun, CellOfRun]
    withheld: str  # why there is no difference; empty if there is one
    paired: bool  # whether both are the same episodes
    difference: Comparison | UnpairedDifference | None


@dataclass(frozen=True)
class ComparedPolicy:
    """A policy of each run."""

    names: tuple[str, str]
    labels: tuple[str, str]
    checkpoints: tuple[str, str]


@dataclass(frozen=True)
class OnlyIn:
    """What only one of the runs has, and so is not compared."""

    run: str
    what: str
    names: list[str]


@dataclass(frozen=True)
class ComparedRun:
    """One of the two runs, for readers."""

    name: str
    manifest: RunManifest
    episodes: int


@dataclass(frozen=True)
class RunComparison:
    """Two runs beside each other; differences are second minus first."""

    runs: tuple[ComparedRun, ComparedRun]
    differing: dict[str, list[str]]  # per suite, why its episodes are not paired; empty if they are
    policies: list[ComparedPolicy]
    cells: list[ComparedCell]
    alone: list[OnlyIn]
    notes: list[str]  # what a reader must know of each run


class _Place(NamedTuple):
    """What a compared cell is of: names of a policy in both runs, suite and condition."""

    first: str
    second: str
    suite: str
    condition: str


def compare(a: LoadedRun, b: LoadedRun) -> RunComparison:
    """All cells that two runs have in common; robustness only where it is reportable in both.

    Raises:
        ResultsError: nothing is in common.
    """
    ours, theirs = a.manifest.suites, b.manifest.suites
    differing = {s: _differing(a.manifest, b.manifest, s) for s in ours if s in theirs}
    if not differing:
        raise ResultsError(
            f"{a.name} has the suites {list(ours)}, {b.name} {list(theirs)}: nothing is in common."
        )
    policies = _matched(a, b)
    places = [
        _Place(first, second, suite, condition)
        for first, second in policies
        for suite in differing
        for condition in a.manifest.conditions
        if len(a.cells.of(first, condition, suite)) and len(b.cells.of(second, condition, suite))
    ]
    if not places:
        raise ResultsError(f"{a.name} and {b.name} have no cell (policy, suite, condition) in common.")
    withheld = {place: _withheld(a, b, place) for place in places}
    pairs = {
        place: found
        for place in places
        if not differing[place.suite] and not withheld[place] and (found := _pairs(a, b, place))
    }
    paired = compare_in_families(pairs, lambda place: (place.first, place.suite, family(place.condition)))
    compared = [
        ComparedPolicy(
            (first, second),
            (a.policies[first].label, b.policies[second].label),
            (a.policies[first].facts.checkpoint, b.policies[second].facts.checkpoint),
        )
        for first, second in policies
    ]
    shared = [note for note in a.notes if note in b.notes]
    own = [f"{run.name}: {note}" for run in (a, b) for note in run.notes if note not in shared]
    return RunComparison(
        (
            ComparedRun(a.name, a.manifest, len(a.cells.table)),
            ComparedRun(b.name, b.manifest, len(b.cells.table)),
        ),
        differing,
        compared,
        [_cell(a, b, place, withheld[place], paired.get(place)) for place in places],
        list(_alone(a, b, policies, differing)),
        [f"both runs: {note}" for note in shared] + own,
    )


def _cell(
    a: LoadedRun, b: LoadedRun, place: _Place, withheld: str, paired: Comparison | None
) -> ComparedCell:
    condition = place.condition
    first, second = _cell_of(a, place.first, place), _cell_of(b, place.second, place)
    return ComparedCell(
        (place.first, place.second),
        (a.policies[place.first].label, b.policies[place.second].label),
        place.suite,
        condition,
        a.conditions[condition].description,
        (first, second),
        withheld,
        paired is not None,
        paired or (None if withheld else unpaired_difference(first.success, second.success)),
    )


def _cell_of(run: LoadedRun, policy: str, place: _Place) -> CellOfRun:
    condition = run.conditions[place.condition]
    figures = condition.figures(policy, place.suite if run.summary.suites else None)
    assert figures is not None
    return CellOfRun(figures.success, figures.met, condition.cells[policy].mask_reaches_policy)


def _withheld(a: LoadedRun, b: LoadedRun, place: _Place) -> str:
    """Why robustness may not be compared; the clean difference is no robustness figure."""
    if place.condition == "C0":
        return ""
    reasons = (
        f"{name} in {run.name}: {reason}"
        for run, name in ((a, place.first), (b, place.second))
        if (reason := run.policies[name].withheld_in(place.suite))
    )
    return "; ".join(reasons)


def _pairs(a: LoadedRun, b: LoadedRun, place: _Place) -> Pairs | None:
    """The episodes that both have, start by start; ``None`` without any."""
    first = a.cells.of(place.first, place.condition, place.suite)
    second = b.cells.of(place.second, place.condition, place.suite)
    both = first.merge(second, on=["task_id", "repeat", "episode"], suffixes=("", "_other"))
    if both.empty:
        return None
    (before, after), tasks = shares_per_start([both, both.assign(success=both["success_other"])])
    return Pairs(before, after, tasks, len(both))


def _alone(
    a: LoadedRun, b: LoadedRun, policies: Sequence[tuple[str, str]], suites: Collection[str]
) -> Iterator[OnlyIn]:
    """What only one of the runs has, beside the policies and suites that are compared."""
    swapped = [(second, first) for first, second in policies]
    for run, other, names in ((a, b, policies), (b, a, swapped)):
        missing: dict[str, list[str]] = {
            "suites": [s for s in run.manifest.suites if s not in suites],
            "policies": [p for p in run.policies if p not in dict(names)],
        }
        for own, theirs in names:
            for suite in suites:
                missing[f"conditions of {own} in {suite}"] = [
                    c
                    for c in run.conditions
                    if len(run.cells.of(own, c, suite)) and not len(other.cells.of(theirs, c, suite))
                ]
        # Several policies and suites mostly lack the same conditions.
        places: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for what, lacking in missing.items():
            places[tuple(lacking)].append(what)
        yield from (OnlyIn(run.name, ", ".join(what), list(names)) for names, what in places.items() if names)


def _matched(a: LoadedRun, b: LoadedRun) -> list[tuple[str, str]]:
    """Policies of the same name; if there are none and each run has one policy, these two.

    Raises:
        ResultsError: it is not clear what to compare.
    """
    both = [(name, name) for name in a.policies if name in b.policies]
    if both:
        return both
    if len(a.policies) == len(b.policies) == 1:
        return [(next(iter(a.policies)), next(iter(b.policies)))]
    raise ResultsError(
        f"{a.name} has the policies {sorted(a.policies)}, {b.name} {sorted(b.policies)}: no name is in both, "
        "so it is not clear what to compare. Evaluate under the same names, or one policy per run."
    )


def _differing(a: RunManifest, b: RunManifest, suite: str) -> list[str]:
    """What keeps the episodes of a suite from being the same in both runs; empty if they are."""
    reasons = [f"{k}: {mine} and {other}" for k, mine, other in _unequal(a.comparable, b.comparable)]
    first, second = a.suites[suite], b.suites[suite]
    if first.suite_hash != second.suite_hash:
        fields = [
            f"{k} of {suite}: {mine!r} and {other!r}"[:200]
            for k, mine, other in _unequal(first, second)
            if k not in ("suite_hash", "tasks")
        ]
        reasons += fields or [f"suite_hash of {suite}"]
    return reasons


def _unequal(first: msgspec.Struct, second: msgspec.Struct) -> list[tuple[str, object, object]]:
    """Fields that differ, in alphabetical order, with both values."""
    both = ((k, getattr(first, k), getattr(second, k)) for k in sorted(first.__struct_fields__))
    return [(k, mine, other) for k, mine, other in both if mine != other]

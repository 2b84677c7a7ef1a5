"""``multismolvla-report a b``: two runs beside each other, paired where they ran the same episodes.

Two episodes are the same if suite, task, number, repetition and condition are, in runs with the same seed, environment
options, corruption definitions and suite (assets, step limit, initial states). Everything else is compared unpaired, and
the page says which is which.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from multismolvla.corruption import parse_condition
from multismolvla_eval.analysis.bootstrap import Pairs, paired_differences
from multismolvla_eval.analysis.cells import shares_per_start
from multismolvla_eval.analysis.families import family, label, told
from multismolvla_eval.analysis.loaded_run import Side
from multismolvla_eval.analysis.statistics import holm, unpaired_difference
from multismolvla_eval.protocol.levels import describe
from multismolvla_eval.records.store import ResultsError


def compare(a: Side, b: Side) -> dict[str, Any]:
    """All cells that two runs have in common.

    Returns:
        JSON-ready data: ``sides``, ``differing`` (why suites are not paired), ``policies`` (which were compared),
        ``cells``, ``alone`` (what only one run has), ``notes`` (what a reader must know of each run). As in a run's own report, the robustness of a policy that fails the gate in its run, or
        that is an upper bound, is not compared.

    Raises:
        ResultsError: nothing is in common.
    """
    differing = {s: _differing(a, b, s) for s in a.facts["suites"] if s in b.facts["suites"]}
    if not differing:
        raise ResultsError(
            f"{a.name} has the suites {list(a.facts['suites'])}, {b.name} {list(b.facts['suites'])}: nothing is in common."
        )
    policies = _matched(a, b)
    cells, waiting = [], []
    for first, second in policies:
        for suite, reasons in differing.items():
            for entry, pairs in _cells(a, b, first, second, suite, not reasons):
                cells.append(entry)
                if pairs is not None:
                    waiting.append((entry, pairs))
    if not cells:
        raise ResultsError(f"{a.name} and {b.name} have no cell (policy, suite, condition) in common.")
    families: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for (entry, _), result in zip(waiting, paired_differences([p for _, p in waiting]), strict=True):
        entry["difference"] = asdict(result)
        families[entry["policies"][0], entry["suite"], family(entry["condition"])].append(entry["difference"])
    for members in families.values():
        for member, p_value in zip(members, holm([m["p_value"] for m in members]), strict=True):
            member.update(p_holm=p_value, family_size=len(members))
    return {
        "sides": [{"name": s.name, **s.facts, "episodes": len(s.cells.episodes)} for s in (a, b)],
        "differing": differing,
        "policies": [
            {
                "names": [first, second],
                "labels": [label(a.policy(first)), label(b.policy(second))],
                "checkpoints": [a.policies[first]["checkpoint"], b.policies[second]["checkpoint"]],
            }
            for first, second in policies
        ],
        "cells": cells,
        "alone": _alone(a, b, policies, differing),
        "notes": _notes(a, b),
    }


def _notes(a: Side, b: Side) -> list[str]:
    """The notes of both runs, those that are the same once."""
    shared = [f"both runs: {note}" for note in a.notes if note in b.notes]
    return shared + [
        f"{side.name}: {note}"
        for side, other in ((a, b), (b, a))
        for note in side.notes
        if note not in other.notes
    ]


def _alone(
    a: Side, b: Side, policies: Sequence[tuple[str, str]], suites: Collection[str]
) -> list[dict[str, Any]]:
    """What only one of the runs has, and so is not compared: ``run``, ``what`` and ``names``.

    Args:
        a: the first run.
        b: the second run.
        policies: names of those that are compared, in the first and in the second run.
        suites: names of those that are compared.
    """
    found = []
    for side, other, own, others in ((a, b, 0, 1), (b, a, 1, 0)):
        compared = {pair[own] for pair in policies}
        missing: dict[str, list[str]] = {
            "suites": [s for s in side.facts["suites"] if s not in suites],
            "policies": [p for p in side.policies if p not in compared],
        }
        for pair in policies:
            for suite in suites:
                missing[f"conditions of {pair[own]} in {suite}"] = [
                    c
                    for c in side.cells.episodes.names["condition"]
                    if len(side.cells.rows(pair[own], c, suite))
                    and not len(other.cells.rows(pair[others], c, suite))
                ]
        # Several policies and suites mostly lack the same conditions.
        places: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for what, names in missing.items():
            places[tuple(names)].append(what)
        found += [
            {"run": side.name, "what": ", ".join(what), "names": list(names)}
            for names, what in places.items()
            if names
        ]
    return found


def _matched(a: Side, b: Side) -> list[tuple[str, str]]:
    """Policies of the same name; if there are none and each run has one policy, these two.

    Raises:
        ResultsError: it is not clear what to compare.
    """
    ours, theirs = ({n for n in s.policies if s.cells.episodes.code("policy", n) >= 0} for s in (a, b))
    both = [(n, n) for n in a.policies if n in ours & theirs]
    if both:
        return both
    if len(ours) == len(theirs) == 1:
        return [(ours.pop(), theirs.pop())]
    raise ResultsError(
        f"{a.name} has the policies {sorted(ours)}, {b.name} {sorted(theirs)}: no name is in both, so it is not clear what to "
        "compare. Evaluate under the same names, or one policy per run."
    )


def _differing(a: Side, b: Side, suite: str) -> list[str]:
    """What keeps the episodes of a suite from being the same in both runs; empty if they are."""
    reasons = []
    one, other = a.facts["comparable"], b.facts["comparable"]
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key):
            reasons.append(f"{key}: {one.get(key)} and {other.get(key)}")
    first, second = a.facts["suites"][suite], b.facts["suites"][suite]
    if first.get("world") != second.get("world"):
        keys = [
            k
            for k in sorted(first.keys() | second.keys())
            if first.get(k) != second.get(k) and k not in ("world", "tasks")
        ]
        reasons += [f"{k} of {suite}: {first.get(k)!r} and {second.get(k)!r}"[:200] for k in keys] or [
            f"world of {suite}"
        ]
    return reasons


def _cells(
    a: Side, b: Side, first: str, second: str, suite: str, same: bool
) -> Iterator[tuple[dict[str, Any], Pairs | None]]:
    """Entries of a pair of policies in one suite; those that have pairs get their difference later."""
    named = ((a, first), (b, second))
    labels = [label(side.policy(name)) for side, name in named]
    withheld = "; ".join(_withheld(side, name, suite) for side, name in named).strip("; ")
    for condition in a.cells.episodes.names["condition"]:
        mine, others = a.cells.rows(first, condition, suite), b.cells.rows(second, condition, suite)
        if not len(mine) or not len(others):
            continue
        rates = [a.cells.rate(mine), b.cells.rate(others)]
        # The clean difference is no robustness figure, so it needs no gate.
        reason = withheld if condition != "C0" else ""
        pairs = _pairs(a, b, mine, others) if same and not reason else None
        entry: dict[str, Any] = {
            "policies": [first, second],
            "labels": labels,
            "suite": suite,
            "condition": condition,
            "description": describe(parse_condition(condition)),
            "rates": [asdict(r) for r in rates],
            "met": [None if condition == "C0" else s.cells.met(r) for s, r in ((a, mine), (b, others))],
            "told": [told(side.policies[name], condition, side.facts) for side, name in named],
            "paired": pairs is not None,
            "withheld": reason,
        }
        if reason:
            entry["difference"] = None
        elif pairs is None:
            entry["difference"] = asdict(unpaired_difference(*rates))
        yield entry, pairs


def _withheld(side: Side, name: str, suite: str) -> str:
    """Why a side's robustness may not be compared in a suite; empty if it may."""
    reasons = [gate["reason"] for s in (None, suite) if not (gate := side.policy(name, s)["gate"])["passed"]]
    return f"{name} in {side.name}: {reasons[0]}" if reasons else ""


def _pairs(a: Side, b: Side, mine: np.ndarray, others: np.ndarray) -> Pairs | None:
    """The episodes that both have, start by start; ``None`` without any."""

    def identities(side: Side, rows: np.ndarray) -> dict[tuple[int, int, int], int]:
        numbers = side.cells.episodes.numbers
        columns = (numbers[k][rows].tolist() for k in ("task_id", "seed", "episode"))
        return dict(zip(zip(*columns, strict=True), rows.tolist(), strict=True))

    ours, theirs = identities(a, mine), identities(b, others)
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    rows = [ours[k] for k in shared]
    won = [a.cells.episodes.success[rows], b.cells.episodes.success[[theirs[k] for k in shared]]]
    (before, after), first = shares_per_start(a.cells.start[rows], won)
    return Pairs(before, after, a.cells.task[rows][first], len(shared))

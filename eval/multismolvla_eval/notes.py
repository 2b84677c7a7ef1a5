"""What a reader must know before quoting a figure of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from multismolvla_eval.conditions import LEVELS
from multismolvla_eval.provenance import distinct_provenance
from multismolvla_eval.results import Row, cause_of
from multismolvla_eval.statistics import detectable_unpaired


def reader_notes(
    manifest: dict[str, Any],
    rows: Sequence[Row],
    policies: Sequence[dict[str, Any]],
    checks: dict[str, Any],
) -> list[str]:
    """Sentences for the page, the Markdown file and the terminal.

    Args:
        manifest: of the run.
        rows: all episodes.
        policies: the summary's entries.
        checks: from :func:`multismolvla_eval.checks.fairness_checks`.
    """
    notes = []
    level = LEVELS.get(manifest.get("level") or "")
    if level is None or not level.quotable:
        notes.append(
            f"Level {manifest.get('level')!r} gives a first look. Only the levels standard and full may be quoted."
        )
    if "multismolvla_mini" in manifest["suites"]:
        notes.append(
            "The mini suite is this project's own small test bed on the LIBERO engine: its figures are not comparable with "
            "published LIBERO results."
        )
    smallest = min(Counter((r["policy"], r["condition"]) for r in rows).values())
    points = 100 * detectable_unpaired(smallest)
    shows = (
        f"could show only differences of about {points:.0f} points"
        if points < 100
        else "can show no difference at all"
    )
    notes.append(
        f"The smallest cell has n = {smallest}: unpaired, it {shows}. Read every rate with its interval."
    )
    for policy in policies:
        if not policy["gate"]["passed"]:
            notes.append(f"No robustness figures for {policy['name']}: {policy['gate']['reason']}.")
        derived = [m for m, origin in policy["origins"].items() if origin == "derived"]
        if derived:
            notes.append(
                f"{policy['name']} computes {', '.join(derived)} from RGB: this is no sensor redundancy."
            )
    crashes = sum(cause_of(r).startswith(("crash", "stuck")) for r in rows if not r["success"])
    if crashes:
        notes.append(
            f"{crashes} episodes ended in a crash or hung; they count as failures (see the causes below)."
        )
    return (
        notes + _repeat_notes(manifest, rows) + _provenance_notes(manifest) + _fault_notes(checks["faults"])
    )


def _repeat_notes(manifest: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    notes = []
    for name, suite in manifest["suites"].items():
        cells = Counter(
            (r["policy"], r["condition"], r["task_id"], r["seed"]) for r in rows if r["suite"] == name
        )
        states, most = suite.get("init_states"), max(cells.values(), default=0)
        if states is not None and most > states:
            notes.append(
                f"Up to {most} episodes per task of {name} share {states} different initial states: the further ones repeat "
                "a start with other policy noise, so they are not independent and the intervals are too narrow."
            )
    return notes


def _provenance_notes(manifest: dict[str, Any]) -> list[str]:
    calls = distinct_provenance(manifest)
    kinds = [k for k in ("commit", "versions", "hardware") if any(c.get(k) != calls[0].get(k) for c in calls)]
    if not kinds:
        return []
    return [
        f"The calls of this run differ in {' and '.join(kinds)} (listed under “Made with”): part of a difference between "
        "cells may come from there."
    ]


def _fault_notes(faults: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence per policy and kind of doubt, so that a long matrix does not drown the page."""
    doubts = (
        ("reached", "not every faulted stream changed what entered the policy"),
        ("rest_equal", "something besides the faulted streams differs from the clean arm"),
    )
    notes = []
    for name in dict.fromkeys(f["policy"] for f in faults):
        for count, doubt in doubts:
            short = [f for f in faults if f["policy"] == name and f[count] < f["episodes"]]
            if short:
                where = ", ".join(
                    f"{f['condition']} ({f['episodes'] - f[count]} of {f['episodes']})" for f in short
                )
                notes.append(
                    f"{name}: {doubt} in some episodes; find out why before you trust these cells: {where}."
                )
    return notes

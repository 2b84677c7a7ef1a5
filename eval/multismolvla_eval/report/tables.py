"""A summary as the terminal's table and as CSV."""

from __future__ import annotations

from typing import Any

import pandas as pd

from multismolvla_eval.analysis.summary import CellFigures, ConditionSummary, PolicySummary, Summary
from multismolvla_eval.report.files import rounded
from multismolvla_eval.report.format import (
    NOT_TOLD,
    aggregate_lines,
    cell_text,
    difference_text,
    headline,
    power_text,
    repeats_text,
    scopes,
)

_COMPARED = ("n", "difference", "low", "high", "p_value", "p_holm", "family_size", "detectable")


def terminal_table(summary: Summary) -> str:
    """The table that ``multismolvla-report`` prints."""
    run = summary.run
    header = ["condition", *(p.label for p in summary.policies)]
    header.append("paired difference to the baseline in points; what n pairs can show with 80 % power")
    rows = [header]
    for condition in summary.conditions:
        cells = [condition.cells.get(p.name) for p in summary.policies]
        rates = [cell_text(c.success, c.met, c.mask_reaches_policy, "not told") if c else "–" for c in cells]
        compared = [
            f"{name} {difference_text(c.versus_baseline)}; {power_text(c.versus_baseline)}"
            for name, c in condition.cells.items()
            if c.versus_baseline
        ]
        rows.append([condition.condition, *rates, "; ".join(compared)])
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    repeated = [p for p in summary.policies if len(p.repeats) > 1]
    lines = [
        f"Success rate (k/n, 95 % Wilson interval) on {', '.join(summary.manifest.suites)}, {run.finished} "
        f"of {run.planned} episodes",
        "",
        *("".join(map(str.ljust, row, widths)).rstrip() for row in rows),
        "",
        *headline(summary),
        *(f"{p.name}, clean repetitions: {repeats_text(p.repeats)}." for p in repeated),
        *(line for scope, suite, f in scopes(summary) if not suite for line in aggregate_lines(scope, f)),
        "",
        *(f"note: {n}" for n in (*summary.manifest.remarks, *summary.notes)),
    ]
    return "\n".join(lines)


def cells_csv(summary: Summary) -> str:
    """One line per policy, condition and suite (``all`` for all of them together); rates are fractions."""
    policies = {p.name: p for p in summary.policies}
    rows = [
        _csv_row(condition, policies[name], suite, part, cell.mask_reaches_policy)
        | {"offline_error": cell.offline.error if cell.offline and suite == "all" else None}
        for condition in summary.conditions
        for name, cell in condition.cells.items()
        for suite, part in (("all", cell), *cell.suites.items())
    ]
    return pd.DataFrame(rows, dtype=object).to_csv(index=False)


def _csv_row(
    condition: ConditionSummary,
    policy: PolicySummary,
    suite: str,
    figures: CellFigures,
    mask_reaches_policy: bool | None,
) -> dict[str, object]:
    withheld = policy.withheld_in(suite)
    row: dict[str, Any] = {
        "policy": policy.name,
        "checkpoint": policy.facts.checkpoint,
        "privileged": policy.facts.privileged,
        "no_vision": bool(policy.facts.no_vision),
        "reportable": not withheld,
        "withheld": withheld,
        "suite": suite,
        "condition": condition.condition,
        "group": condition.group,
        "family": condition.family,
        "seen_in_training": condition.seen,
        "mask_reaches_policy": {None: "", True: "yes", False: NOT_TOLD}[mask_reaches_policy],
        **vars(figures.success),
    }
    for name, compared in (
        ("versus_clean", figures.versus_clean),
        ("versus_baseline", figures.versus_baseline),
    ):
        row |= {f"{name}_{k}": getattr(compared, k, None) for k in _COMPARED}
    for suffix in ("", "_low", "_high"):
        row[f"relative{suffix}"] = getattr(figures.versus_clean, f"ratio{suffix}", None)
    met, known = figures.met or (None, None)
    row |= {
        "steps_to_success": figures.steps_to_success,
        "time_outs": figures.time_outs,
        "met": met,
        "met_known": known,
    }
    return {column: rounded(value) for column, value in row.items()}

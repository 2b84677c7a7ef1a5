"""A summary as text: the terminal's table, the Markdown page for a model card, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from multismolvla_eval.analysis.families import GROUPS, label
from multismolvla_eval.report.format import (
    NOT_TOLD,
    aggregate_lines,
    calibration_lines,
    count_text,
    difference_text,
    families_text,
    headline,
    kept_text,
    met_text,
    percent,
    power_text,
    rate_text,
    result_text,
    seeds_text,
)

_COMPARED = ("n", "difference", "low", "high", "p_value", "p_holm", "family_size", "detectable")
CSV_COLUMNS = (
    "policy", "checkpoint", "privileged", "blind", "gate_passed", "gate_reason", "suite", "condition", "group", "family",
    "seen_in_training", "told", "successes", "n", "starts", "effective", "rate", "low", "high",
    *(f"{c}_{k}" for c in ("versus_clean", "versus_baseline") for k in _COMPARED),
    "relative", "relative_low", "relative_high", "steps_to_success", "time_outs", "met", "met_known", "offline_error",
)  # fmt: skip
#: What the policies' time and memory mean.
COSTS = (
    "Time per step is the policy's, actions that it has queued included. Peak memory is of the process that ran the "
    "episodes, with the simulator and all policies in it; not that of an accelerator, nor of a process that serves batches."
)


def terminal_table(summary: dict[str, Any]) -> str:
    """The table that ``multismolvla-report`` prints."""
    names, run = [p["name"] for p in summary["policies"]], summary["run"]
    header = ["condition", *(label(p) for p in summary["policies"])]
    header.append("paired difference to the baseline in points; what n pairs can show with 80 % power")
    rows = [header]
    for cell in summary["cells"]:
        results = cell["results"]
        compared = {n: r["versus_baseline"] for n in names if (r := results.get(n)) and r["versus_baseline"]}
        rows.append(
            [
                cell["condition"],
                *(_terminal_cell(results.get(n)) for n in names),
                "; ".join(f"{n} {difference_text(d)}; {power_text(d)}" for n, d in compared.items()),
            ]
        )
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    lines = [
        f"Success rate (k/n, 95 % Wilson interval) on {', '.join(run['suites'])}, {run['finished']} of {run['planned']} episodes",
        "",
        *(
            "".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ),
        "",
        *headline(summary),
        *(f"{n}, clean repetitions: {text}." for n, text in _repetitions(summary).items()),
    ]
    for name, figures in summary["aggregates"].items():
        lines += [*aggregate_lines(name, figures), *calibration_lines(name, figures)]
    lines += ["", *(f"note: {n}" for n in (*run["remarks"], *summary["notes"]))]
    return "\n".join(lines)


def _terminal_cell(result: dict[str, Any] | None) -> str:
    """A rate and its marks; a note below the table says what “not told” means."""
    if result is None:
        return rate_text(None)
    marks = (rate_text(result), met_text(result), "not told" if result["told"] is False else "")
    return "; ".join(filter(None, marks))


def _repetitions(summary: dict[str, Any]) -> dict[str, str]:
    """Clean success of each repetition by policy, where there is more than one."""
    return {p["name"]: seeds_text(p["clean_seeds"]) for p in summary["policies"] if len(p["clean_seeds"]) > 1}


def markdown(summary: dict[str, Any], title: str) -> str:
    """The Markdown page, fit for a model card."""
    run = summary["run"]
    lines = [f"# {title}", ""]
    if run["synthetic"]:
        lines += ["**Synthetic rows: made up to test the report, not measured.**", ""]
    lines += [f"- {line}" for line in headline(summary)]
    lines += ["", f"{run['finished']} of {run['planned']} episodes, suites {', '.join(f'`{s}`' for s in run['suites'])}, "
              f"level `{run['level']}`, seed {run['seed']}. Rates with count and 95 % Wilson interval; differences in points, "
              "paired, with the 95 % bootstrap interval over tasks and starts, and Holm's p of exact McNemar tests; in "
              "brackets what so many pairs can show with 80 % power. “Kept” is the share of the clean success that is left "
              "on the same starts. " + families_text(summary)]  # fmt: skip
    lines += _markdown_clean(summary)
    for group, title_ in GROUPS.items():
        cells = [c for c in summary["cells"] if c["group"] == group]
        lines += ["", f"## {title_}", "", *_markdown_cells(summary, cells)] if cells else []
    figures = []
    for name, whole in summary["aggregates"].items():
        figures += [*aggregate_lines(name, whole), *calibration_lines(name, whole)]
        for suite, part in whole["suites"].items():
            scope = f"{name} in {suite}"
            figures += [*aggregate_lines(scope, part), *calibration_lines(scope, part)]
    lines += (
        ["", "## Figures over many conditions", "", *(f"- {line}" for line in figures)] if figures else []
    )
    for suite in summary["policies"][0]["suites"]:
        lines += ["", f"## Suite {suite}", "", *_markdown_cells(summary, summary["cells"], suite)]
    lines += [*_markdown_diagnostics(summary), *_markdown_policies(summary)]
    lines += ["", "## Notes", "", *(f"- {n}" for n in (*run["remarks"], *summary["notes"]))]
    lines += [
        "",
        "## Made with",
        "",
        f"- run `{run['fingerprint']}`, corruption definitions {run['corruption_version']}",
    ]
    lines += [f"- assets of {', '.join(a['suites'])}: `{a['hash'] or 'not hashed'}`" for a in run["assets"]]
    for call in run["made_with"]:
        versions = ", ".join(f"{k} {v}" for k, v in call["versions"].items())
        machine = call["hardware"]
        lines.append(f"- from {call['time']}: commit {call['commit'] or 'unknown'}; {versions}; {machine['processor']}, "
                     f"{machine['cores']} cores, renderer {machine['renderer']}")  # fmt: skip
    lines += ["", "```", *(c["command"] for c in summary["cells"][:1]), "```", ""]
    return "\n".join(lines)


def _markdown_clean(summary: dict[str, Any]) -> list[str]:
    """Clean success, per suite and per repetition, if there are several of either."""
    suites, repeated = list(summary["policies"][0]["suites"]), bool(_repetitions(summary))
    if not suites and not repeated:
        return []
    header = ["policy", "all", *suites, *(["repetitions"] if repeated else [])]
    rows = [
        [
            label(p),
            rate_text(p["clean"]),
            *(rate_text(p["suites"][s]["clean"]) for s in suites),
            *([seeds_text(p["clean_seeds"])] if repeated else []),
        ]
        for p in summary["policies"]
    ]
    return ["", "## Clean success", "", *_table(header, rows)]


def _markdown_cells(
    summary: dict[str, Any], cells: Sequence[dict[str, Any]], suite: str | None = None
) -> list[str]:
    """Rates and comparisons of some conditions, over all suites or in one."""
    names, baseline = [p["name"] for p in summary["policies"]], summary["run"]["baseline"]
    others = [n for n in names if n != baseline]

    def result(cell: dict[str, Any], name: str) -> dict[str, Any] | None:
        whole = cell["results"].get(name)
        return whole["suites"].get(suite) if whole and suite else whole

    def rate(cell: dict[str, Any], name: str) -> str:
        found = result(cell, name)
        return result_text(found, cell["results"][name]["told"] if found else None)

    def compared(cell: dict[str, Any], name: str, comparison: str) -> str:
        entry = (result(cell, name) or {}).get(comparison)
        return f"{difference_text(entry)} [{power_text(entry)}]" if entry else "–"

    def kept(cell: dict[str, Any], name: str) -> str:
        return kept_text((result(cell, name) or {}).get("versus_clean"))

    faulted = any(c["condition"] != "C0" for c in cells)
    header = [
        "condition",
        *([] if suite else ["meaning"]),
        *(label(p) for p in summary["policies"]),
        *([f"{n} − clean" for n in names] + [f"{n} kept" for n in names] if faulted else []),
        *(f"{n} − {baseline}" for n in others),
    ]
    rows = [
        [
            f"`{c['condition']}`",
            *([] if suite else [c["description"] + (" (training may meet this type)" if c["seen"] else "")]),
            *(rate(c, n) for n in names),
            *(
                [compared(c, n, "versus_clean") for n in names] + [kept(c, n) for n in names]
                if faulted
                else []
            ),
            *(compared(c, n, "versus_baseline") for n in others),
        ]
        for c in cells
    ]
    return _table(header, rows)


def _markdown_diagnostics(summary: dict[str, Any]) -> list[str]:
    """How episodes ended and what the gripper did, per policy and group of conditions."""
    policies = {p["name"]: p for p in summary["policies"]}
    rows = [
        [
            label(policies[d["policy"]]),
            d["group"],
            str(d["episodes"]),
            ", ".join(f"{n} × {(cause or 'unknown').replace('_', ' ')}" for cause, n in d["causes"].items())
            or "none",
            _number(d["steps_to_success"]),
            percent(d["gripper_closed"]),
            _number(d["gripper_switches"]),
        ]
        for d in summary["diagnostics"]
    ]
    header = ["policy", "conditions", "episodes", "failures by cause", "steps to success", "gripper closed",
              "gripper switches"]  # fmt: skip
    return ["", "## Diagnostics", "", *_table(header, rows)]


def _number(value: float | None, unit: str = "") -> str:
    return "–" if value is None else f"{value:g}{unit}"


def _markdown_policies(summary: dict[str, Any]) -> list[str]:
    rows = [
        [
            label(p) + (" (baseline)" if p["baseline"] else ""),
            str(p["type"]),
            f"`{p['checkpoint']}`",
            count_text(p["parameters"]),
            _number(p["n_action_steps"]),
            _number(p["policy_ms_per_step"], " ms"),
            _number(p["peak_memory_mb"], " MB"),
            ", ".join(f"{m}: {o}" for m, o in p["provenance"].items()) or "–",
        ]
        for p in summary["policies"]
    ]
    header = ["policy", "type", "checkpoint", "parameters", "executed actions", "time per step", "peak memory",
              "modality provenance"]  # fmt: skip
    return ["", "## Policies", "", *_table(header, rows), "", COSTS]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines]


def cells_csv(summary: dict[str, Any]) -> str:
    """One line per policy, condition and suite (``all`` for all of them together); rates are fractions."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    policies = {p["name"]: p for p in summary["policies"]}
    for cell in summary["cells"]:
        for name, result in cell["results"].items():
            for suite, part in (("all", result), *result["suites"].items()):
                told = {None: "", True: "told", False: NOT_TOLD}[result["told"]]
                row = {**dict(_csv_row(cell, policies[name], suite, part)), "told": told}
                writer.writerow({k: rounded(v) for k, v in row.items()})
    return buffer.getvalue()


def _csv_row(
    cell: dict[str, Any], policy: dict[str, Any], suite: str, result: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    failed = [g for g in (policy["gate"], policy["suites"].get(suite, policy)["gate"]) if not g["passed"]]
    yield from (("policy", policy["name"]), *((k, policy[k]) for k in ("checkpoint", "privileged", "blind")))
    yield from (("gate_passed", not failed), ("gate_reason", failed[0]["reason"] if failed else ""))
    yield from (("suite", suite), ("seen_in_training", cell["seen"]))
    yield from ((k, cell[k]) for k in ("condition", "group", "family"))
    yield from (
        (k, result[k])
        for k in (
            "successes",
            "n",
            "starts",
            "effective",
            "rate",
            "low",
            "high",
            "steps_to_success",
            "time_outs",
        )
    )
    for comparison in ("versus_clean", "versus_baseline"):
        entry = result[comparison] or {}
        for key in _COMPARED:
            yield f"{comparison}_{key}", entry.get(key)
    for key in ("", "_low", "_high"):
        yield f"relative{key}", (result["versus_clean"] or {}).get(f"ratio{key}")
    yield from zip(("met", "met_known"), result["met"] or (None, None), strict=True)
    yield "offline_error", (result.get("offline") or {}).get("error")


def rounded(value: Any) -> Any:
    """Data for a file with six significant digits: the seventh is noise of the arithmetic, and differs between machines."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value

"""A summary as text: the terminal's table, the Markdown page for a model card, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from multismolvla_eval.grouping import GROUPS

CSV_COLUMNS = (
    "policy", "checkpoint", "privileged", "blind", "gate_passed", "gate_reason", "suite", "condition", "group", "family", "seen_in_training", "successes", "n", "rate", "low", "high",
    *(f"{c}_{k}" for c in ("versus_clean", "versus_baseline")
      for k in ("n", "difference", "low", "high", "p_value", "p_holm", "family_size", "detectable")),
    "relative", "relative_low", "relative_high", "steps_to_success", "time_outs", "met", "met_known", "offline_error",
)  # fmt: skip


def label(policy: dict[str, Any]) -> str:
    """A policy's name with what a reader must know beside each of its figures, e.g. ``expert (upper bound)``."""
    if policy["privileged"]:
        return f"{policy['name']} (upper bound)"
    marks = ["blind"] if policy["blind"] else []
    marks += [] if policy["gate"]["passed"] else ["no robustness figures"]
    return f"{policy['name']} ({', '.join(marks)})" if marks else policy["name"]


def percent(value: float | None) -> str:
    """A share as whole per cent; a dash for ``None``."""
    return "–" if value is None else f"{100 * value:.0f} %"


def rate_text(rate: dict[str, Any] | None) -> str:
    """``72 % (36/50, 58–83)``: never a rate without count, n and interval."""
    if rate is None:
        return "–"
    return f"{100 * rate['rate']:.0f} % ({rate['successes']}/{rate['n']}, {100 * rate['low']:.0f}–{100 * rate['high']:.0f})"


def met_text(result: dict[str, Any]) -> str:
    """``met in 3 of 10 episodes``: how many ran long enough to meet the fault; empty where no row tells."""
    return "met in {} of {} episodes".format(*result["met"]) if result["met"] else ""


def difference_text(difference: dict[str, Any] | None) -> str:
    """``−12 (−20 to −4), p = 0.003``: points with the interval and, of paired ones, Holm's p of the exact McNemar test."""
    if difference is None:
        return "–"
    text = f"{points(difference['difference'])} ({points(difference['low'])} to {points(difference['high'])})"
    p_value = difference.get("p_holm", difference.get("p_value"))
    if p_value is None:
        return text
    return f"{text}, p < 0.001" if p_value < 0.001 else f"{text}, p = {p_value:.3f}"


def power_text(difference: dict[str, Any] | None) -> str:
    """``5 (n = 400)``: the difference in points that such a comparison can show, and from how many pairs."""
    if difference is None:
        return "–"
    least = 100 * difference["detectable"]
    number = f"n = {difference['n']}" if "n" in difference else ""
    shown = f"{least:.0f}" if least < 100 else "nothing"
    return f"{shown} ({number})" if number else shown


def kept_text(difference: dict[str, Any] | None) -> str:
    """``64 % (55–73)``: the share of the clean success that is left, on the same episodes."""
    if difference is None or difference.get("ratio") is None:
        return "–"
    return with_interval(difference["ratio"], difference["ratio_low"], difference["ratio_high"], 100, " %")


def with_interval(
    value: float, low: float | None, high: float | None, scale: float, unit: str, digits: int = 0
) -> str:
    """``0.69 (0.66–0.73)``: a value with its interval, if that is known."""
    text = f"{scale * value:.{digits}f}{unit}"
    return (
        text
        if low is None or high is None
        else f"{text} ({scale * low:.{digits}f}–{scale * high:.{digits}f})"
    )


def points(share: float) -> str:
    """``+12``, ``−3`` or ``0``: a difference of shares in whole points."""
    value = round(100 * share)
    return f"+{value}" if value > 0 else f"−{-value}" if value < 0 else "0"


def count_text(number: int | None) -> str:
    """A count with thin spaces between thousands; a dash for ``None``."""
    return "–" if number is None else f"{number:,}".replace(",", " ")


def headline(summary: dict[str, Any]) -> list[str]:
    """The report in a few sentences, one per policy, and what is lost without colour pictures."""
    lines = []
    by_condition = {c["condition"]: c["results"] for c in summary["cells"]}
    for policy in summary["policies"]:
        name = policy["name"]
        text = f"{name}: {rate_text(policy['clean'])} clean success"
        if policy["privileged"]:
            lines.append(text + " (upper bound: reads the simulator's state).")
            continue
        if policy["blind"]:
            text += " without pictures (blind)"
        if not policy["gate"]["passed"]:
            lines.append(f"{text}; robustness not reported, because {policy['gate']['reason']}.")
            continue
        gone = by_condition.get("C1:depth+seg+thermal", {}).get(name)
        if gone is not None:
            text += f"; {rate_text(gone)} with RGB gone and announced"
            if gone["versus_clean"] is not None and gone["versus_clean"]["ratio"] is not None:
                text += (
                    f" ({percent(gone['versus_clean']['ratio'])} of its clean success on the same episodes)"
                )
        black = by_condition.get("C2:rgb=zero", {}).get(name)
        if black is not None:
            text += f"; {rate_text(black)} with RGB black and not announced"
        lines.append(text + (" (the baseline)." if policy["baseline"] else "."))
    return lines


def aggregate_lines(name: str, figures: dict[str, Any]) -> list[str]:
    """A policy's figures over many conditions, in sentences."""
    lines = []
    area, error, profile = figures["severity_area"], figures["mce"], figures["subset_profile"]
    if area:
        value = with_interval(area["mean"], area["low"], area["high"], 1, "", 2)
        lines.append(
            f"severity area {value} (1 = nothing lost), mean over {len(area['types'])} corruption types{_seen(area, 1, '', 2)}"
        )
    if error and error["value"] is not None:
        value = with_interval(error["value"], error["low"], error["high"], 1, " %")
        lines.append(
            f"mean corruption error {value} of the baseline's (below 100 = fewer failures), over {len(error['types'])} types{_seen(error, 1, ' %', 0)}"
        )
    if error and error["left_out"]:
        lines.append(
            f"left out of the mean corruption error, because the baseline does not fail there: {', '.join(error['left_out'])}"
        )
    if profile:
        value = with_interval(profile["mean"], profile["low"], profile["high"], 100, " %")
        marginal = ", ".join(f"{m} {points(v)}" for m, v in profile["marginal"].items())
        lines.append(
            f"over {profile['subsets']} subsets of modalities: mean {value}, worst {percent(profile['worst'])} "
            f"({' + '.join(profile['worst_subset'])}); value of having a modality, in points: {marginal}"
        )
    return [f"{name}: {line}." for line in lines]


def calibration_lines(name: str, figures: dict[str, Any]) -> list[str]:
    """Whether a policy's gates know which sensor is corrupted, in sentences; none without gates."""
    lines = []
    for modality, entry in (figures["calibration"] or {}).items():
        flagged, missed = entry["success_flagged"], entry["success_missed"]
        lines.append(
            f"gate of {modality}: AUROC {entry['auroc']:.2f} for “this sensor is corrupted” ({entry['corrupted']} corrupted, "
            f"{entry['sound']} sound episodes); success {flagged[0]}/{flagged[1]} where it was flagged, "
            f"{missed[0]}/{missed[1]} where it was missed"
        )
    return [f"{name}: {line}." for line in lines]


def _seen(figures: dict[str, Any], scale: float, unit: str, digits: int) -> str:
    parts = [
        f"{scale * figures[k]:.{digits}f}{unit} over types {words}"
        for k, words in (("seen", "that training may meet"), ("unseen", "kept for testing"))
        if figures[k] is not None
    ]
    return f"; {', '.join(parts)}" if len(parts) == 2 else ""


def families_text(summary: dict[str, Any]) -> str:
    """What the p-values are adjusted for."""
    sizes: dict[str, int] = {}
    for cell in summary["cells"]:
        for result in cell["results"].values():
            entry = result["versus_clean"] or result["versus_baseline"]
            if entry:
                sizes[cell["family"]] = entry["family_size"]
    listed = ", ".join(f"{name} ({size})" for name, size in sizes.items())
    return (
        "Holm's adjustment runs over families: for each policy, comparison and suite, the conditions of one group that hit "
        f"the same modality, all types and severities together. Families here (number of conditions): {listed}."
    )


def terminal_table(summary: dict[str, Any]) -> str:
    """The table that ``multismolvla-report`` prints."""
    names = [p["name"] for p in summary["policies"]]
    labels = [label(p) for p in summary["policies"]]
    width = max(24, *(len(text) + 2 for text in labels))
    first = max([len("condition"), *(len(c["condition"]) for c in summary["cells"])]) + 2
    run = summary["run"]
    lines = [
        f"Success rate (k/n, 95 % Wilson interval) on {', '.join(run['suites'])}, {run['finished']} of {run['planned']} episodes",
        "",
        "condition".ljust(first)
        + "".join(text.ljust(width) for text in labels)
        + "paired difference to the baseline in points; what n pairs can show with 80 % power",
    ]
    for cell in summary["cells"]:
        line = cell["condition"].ljust(first)
        line += "".join(rate_text(cell["results"].get(n)).ljust(width) for n in names)
        compared = {
            n: cell["results"][n]["versus_baseline"]
            for n in names
            if cell["results"].get(n, {}).get("versus_baseline")
        }
        lines.append(
            line + "; ".join(f"{n} {difference_text(d)}; {power_text(d)}" for n, d in compared.items())
        )
    lines += ["", *headline(summary)]
    for name, figures in summary["aggregates"].items():
        lines += [*aggregate_lines(name, figures), *calibration_lines(name, figures)]
    lines += ["", *(f"note: {n}" for n in (*run["remarks"], *summary["notes"]))]
    return "\n".join(lines)


def markdown(summary: dict[str, Any], title: str) -> str:
    """The Markdown page, fit for a model card."""
    run = summary["run"]
    lines = [f"# {title}", ""]
    if run["synthetic"]:
        lines += ["**Synthetic rows: made up to test the report, not measured.**", ""]
    lines += [f"- {line}" for line in headline(summary)]
    lines += ["", f"{run['finished']} of {run['planned']} episodes, suites {', '.join(f'`{s}`' for s in run['suites'])}, "
              f"level `{run['level']}`, seed {run['seed']}. Rates with count and 95 % Wilson interval; differences in points, "
              "paired, with the 95 % bootstrap interval over tasks and episodes, and Holm's p of exact McNemar tests; in "
              "brackets what so many pairs can show with 80 % power. " + families_text(summary)]  # fmt: skip
    lines += _markdown_suites(summary)
    for group, title_ in GROUPS.items():
        lines += _markdown_group(summary, group, title_)
    figures = [
        line
        for n, f in summary["aggregates"].items()
        for line in (*aggregate_lines(n, f), *calibration_lines(n, f))
    ]
    lines += (
        ["", "## Figures over many conditions", "", *(f"- {line}" for line in figures)] if figures else []
    )
    lines += _markdown_policies(summary)
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


def _markdown_suites(summary: dict[str, Any]) -> list[str]:
    suites = list(summary["policies"][0]["suites"])
    if not suites:
        return []
    rows = [
        [label(p), rate_text(p["clean"]), *(rate_text(p["suites"][s]["clean"]) for s in suites)]
        for p in summary["policies"]
    ]
    return ["", "## Clean success per suite", "", *_table(["policy", "all", *suites], rows)]


def _markdown_group(summary: dict[str, Any], group: str, title: str) -> list[str]:
    names = [p["name"] for p in summary["policies"]]
    others = [n for n in names if n != summary["run"]["baseline"]]
    cells = [c for c in summary["cells"] if c["group"] == group]
    if not cells:
        return []
    header = [
        "condition",
        "meaning",
        *(label(p) for p in summary["policies"]),
        *(f"{n} − clean" for n in names),
    ]
    header += [f"{n} − {summary['run']['baseline']}" for n in others]

    def compared(cell: dict[str, Any], name: str, comparison: str) -> str:
        entry = cell["results"].get(name, {}).get(comparison)
        return f"{difference_text(entry)} [{power_text(entry)}]" if entry else "–"

    def rate(result: dict[str, Any] | None) -> str:
        return "; ".join(filter(None, (rate_text(result), met_text(result) if result else "")))

    rows = [
        [
            f"`{c['condition']}`",
            c["description"] + (" (training may meet this type)" if c["seen"] else ""),
            *(rate(c["results"].get(n)) for n in names),
            *(compared(c, n, "versus_clean") for n in names),
            *(compared(c, n, "versus_baseline") for n in others),
        ]
        for c in cells
    ]
    return ["", f"## {title}", "", *_table(header, rows)]


def _markdown_policies(summary: dict[str, Any]) -> list[str]:
    rows = [
        [
            label(p) + (" (baseline)" if p["baseline"] else ""),
            str(p["type"]),
            f"`{p['checkpoint']}`",
            count_text(p["parameters"]),
            str(p["n_action_steps"]),
            ", ".join(f"{m}: {o}" for m, o in p["origins"].items()) or "–",
        ]
        for p in summary["policies"]
    ]
    header = ["policy", "type", "checkpoint", "parameters", "executed actions", "modality origins"]
    return ["", "## Policies", "", *_table(header, rows)]


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
                writer.writerow(dict(_csv_row(cell, policies[name], suite, part)))
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
        (k, result[k]) for k in ("successes", "n", "rate", "low", "high", "steps_to_success", "time_outs")
    )
    for comparison in ("versus_clean", "versus_baseline"):
        entry = result[comparison] or {}
        for key in ("n", "difference", "low", "high", "p_value", "p_holm", "family_size", "detectable"):
            yield f"{comparison}_{key}", entry.get(key)
    for key in ("", "_low", "_high"):
        yield f"relative{key}", (result["versus_clean"] or {}).get(f"ratio{key}")
    yield from zip(("met", "met_known"), result["met"] or (None, None), strict=True)
    yield "offline_error", (result.get("offline") or {}).get("error")

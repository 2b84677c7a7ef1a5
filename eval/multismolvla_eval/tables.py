"""A summary as text: the terminal's table and the Markdown page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def percent(value: float | None) -> str:
    """A share as whole per cent; a dash for ``None``."""
    return "–" if value is None else f"{100 * value:.0f} %"


def rate_text(rate: dict[str, Any] | None) -> str:
    """``72 % (36/50, 58–83)``: never a rate without count, n and interval."""
    if rate is None:
        return "–"
    return f"{100 * rate['rate']:.0f} % ({rate['successes']}/{rate['n']}, {100 * rate['low']:.0f}–{100 * rate['high']:.0f})"


def difference_text(difference: dict[str, Any] | None) -> str:
    """``−12 (−20 to −4), p = 0.003``: points with the bootstrap interval and Holm's p of the exact McNemar test."""
    if difference is None:
        return "–"
    p_value = difference.get("p_holm", difference["p_value"])
    p_text = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
    return f"{_points(difference['difference'])} ({_points(difference['low'])} to {_points(difference['high'])}), {p_text}"


def _points(share: float) -> str:
    value = round(100 * share)
    return f"+{value}" if value > 0 else f"−{-value}" if value < 0 else "0"


def headline(summary: dict[str, Any]) -> list[str]:
    """The report in a few sentences, one per policy, and what is lost without colour pictures."""
    lines = []
    by_condition = {c["condition"]: c for c in summary["cells"]}
    for policy in summary["policies"]:
        name = policy["name"]
        text = f"{name}: {rate_text(policy['clean'])} clean success"
        blind = by_condition.get("C1:depth+seg+thermal", {}).get("results", {}).get(name)
        if blind is not None:
            text += f"; {rate_text(blind)} with RGB gone and announced"
            if blind["relative"] is not None:
                text += f" ({percent(blind['relative'])} of its clean success on the same episodes)"
        black = by_condition.get("C2:rgb=zero", {}).get("results", {}).get(name)
        if black is not None:
            text += f"; {rate_text(black)} with RGB black and not announced"
        lines.append(text + (" (the baseline)." if policy["baseline"] else "."))
    return lines


def terminal_table(summary: dict[str, Any]) -> str:
    """The table that ``multismolvla-report`` prints."""
    names = [p["name"] for p in summary["policies"]]
    width = max(24, *(len(n) + 2 for n in names))
    first = max([len("condition"), *(len(c["condition"]) for c in summary["cells"])]) + 2
    run = summary["run"]
    lines = [
        f"Success rate (k/n, 95 % Wilson interval) on {run['suite']}, {run['finished']} of {run['planned']} episodes",
        "",
        "condition".ljust(first)
        + "".join(n.ljust(width) for n in names)
        + "paired difference to the baseline (points)",
    ]
    for cell in summary["cells"]:
        line = cell["condition"].ljust(first)
        line += "".join(rate_text(cell["results"].get(n)).ljust(width) for n in names)
        differences = [
            f"{n} {difference_text(cell['results'][n]['versus_baseline'])}"
            for n in names
            if cell["results"].get(n, {}).get("versus_baseline")
        ]
        lines.append(line + "; ".join(differences))
    lines += ["", *headline(summary), "", *(f"note: {n}" for n in (*run["remarks"], *summary["notes"]))]
    return "\n".join(lines)


def markdown(summary: dict[str, Any], title: str) -> str:
    """The Markdown page, fit for a model card."""
    run = summary["run"]
    names = [p["name"] for p in summary["policies"]]
    lines = [f"# {title}", ""]
    if run["synthetic"]:
        lines += ["**Synthetic rows: made up to test the report, not measured.**", ""]
    lines += [f"- {line}" for line in headline(summary)]
    lines += ["", "## Success per condition", "", f"{run['finished']} of {run['planned']} episodes, suite `{run['suite']}`, "
              f"level `{run['level']}`, seed {run['seed']}. Rates with count and 95 % Wilson interval; differences in points, "
              "paired, with the 95 % bootstrap interval over tasks and episodes, and Holm's p of exact McNemar tests.", ""]  # fmt: skip
    header = ["condition", "meaning", *names]
    header += [f"{n} − clean" for n in names] + [
        f"{n} − {run['baseline']}" for n in names if n != run["baseline"]
    ]
    lines += _row(header), _row(["---"] * len(header))
    for cell in summary["cells"]:
        results = cell["results"]
        row = [f"`{cell['condition']}`", cell["description"], *(rate_text(results.get(n)) for n in names)]
        row += [difference_text(results.get(n, {}).get("versus_clean")) for n in names]
        row += [
            difference_text(results.get(n, {}).get("versus_baseline")) for n in names if n != run["baseline"]
        ]
        lines.append(_row(row))
    lines += ["", "## Policies", "", _row(["policy", "type", "checkpoint", "parameters", "executed actions", "modality origins"]),
              _row(["---"] * 6)]  # fmt: skip
    for p in summary["policies"]:
        origins = ", ".join(f"{m}: {o}" for m, o in p["origins"].items()) or "–"
        lines.append(
            _row(
                [
                    p["name"],
                    str(p["type"]),
                    f"`{p['checkpoint']}`",
                    count_text(p["parameters"]),
                    str(p["n_action_steps"]),
                    origins,
                ]
            )
        )
    lines += [
        "",
        "## Notes",
        "",
        *(f"- {n}" for n in (*run["remarks"], *summary["notes"])),
        "",
        "## Made with",
        "",
    ]
    lines += [f"- run `{run['fingerprint']}`, corruption definitions {run['corruption_version']}"]
    for call in run["made_with"]:
        versions = ", ".join(f"{k} {v}" for k, v in call["versions"].items())
        machine = call["hardware"]
        lines.append(f"- from {call['time']}: commit {call['commit'] or 'unknown'}; {versions}; {machine['processor']}, "
                     f"{machine['cores']} cores, renderer {machine['renderer']}")  # fmt: skip
    lines += ["", "```", *(c["command"] for c in summary["cells"][:1]), "```", ""]  # fmt: skip
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"


def count_text(number: int | None) -> str:
    """A count with thin spaces between thousands; a dash for ``None``."""
    return "–" if number is None else f"{number:,}".replace(",", " ")

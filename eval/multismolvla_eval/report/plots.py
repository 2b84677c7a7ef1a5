"""Plots of a summary as SVG text, readable in print and for colour-blind readers (colour and marker both tell)."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from multismolvla_eval.analysis.families import is_subset, label, short, soft_types

#: Okabe and Ito's colours, the yellow darkened for white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#7a6a00")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", ":", "-.")
HEAT = "cividis"
#: Of a figure [inches], and of the names in its legend [points].
WIDTH, LEGEND_SIZE = 8.4, 9
#: Conditions that a task map names one by one; of more it names the groups.
NAMED_CONDITIONS = 16


def reported(summary: dict[str, Any]) -> dict[str, str]:
    """Names of the policies whose robustness may be shown, with their labels."""
    return {p["name"]: label(p) for p in summary["policies"] if p["gate"]["passed"]}


def _svg(figure: Figure) -> str:
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    # A fixed salt and no date: the same results give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "multismolvla", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _figure(
    width: float, height: float, left: float, right: float, bottom: float, top: float, **grid: Any
) -> Any:
    """Figure and axes with margins in inches: laying out by rule takes longer than drawing."""
    figure = Figure(figsize=(width, height))
    margins = {
        "left": left / width,
        "right": 1 - right / width,
        "bottom": bottom / height,
        "top": 1 - top / height,
    }
    rows, columns = grid.pop("rows", 1), grid.pop("columns", 1)
    axes = figure.subplots(
        rows, columns, squeeze=False, gridspec_kw={**margins, **grid.pop("gaps", {})}, **grid
    )
    return figure, axes


def _look(number: int) -> dict[str, Any]:
    """Colour, marker and line of a policy; no two of the first 36 share colour and marker, even without their lines."""
    cycle, place = divmod(number, len(COLOURS))
    colour = COLOURS[place]
    return {
        "color": colour,
        "marker": MARKERS[(place + cycle) % len(MARKERS)],
        "markerfacecolor": "white" if cycle % 2 else colour,
        "linestyle": LINES[cycle % len(LINES)],
    }


def _width(texts: Iterable[str], size: float) -> float:
    """Of the longest text in a font size [points], in inches."""
    return max(TextPath((0, 0), text, size=size).get_extents().width for text in texts) / 72


def _legend_columns(names: Collection[str]) -> int:
    """How many names fit beside each other; a line, its marker and the gaps around them take 0.65 inches."""
    return max(1, min(len(names), int((WIDTH - 0.2) / (_width(names, LEGEND_SIZE) + 0.65))))


def _legend_height(names: Collection[str]) -> float:
    """Room above the axes, in inches."""
    return 0.22 + 0.18 * -(-len(names) // _legend_columns(names))


def _legend(figure: Figure, names: Collection[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], **_look(i), markersize=5, linewidth=1.3, label=name) for i, name in enumerate(names)
    ]
    figure.legend(
        handles=handles, frameon=False, ncols=_legend_columns(names), loc="upper center", fontsize=LEGEND_SIZE,
        bbox_to_anchor=(0.5, 1 - 0.02 / figure.get_figheight()), borderaxespad=0,
    )  # fmt: skip


def success_points(summary: dict[str, Any], groups: Sequence[str]) -> str | None:
    """Success per condition and policy as points with Wilson intervals; ``None`` without such conditions or policies."""
    names = reported(summary)
    cells = [c for c in summary["cells"] if c["group"] in ("C0", *groups)]
    if not names or not any(c["group"] in groups for c in cells):
        return None
    step, legend = max(0.26, 0.13 * len(names) + 0.1), _legend_height(names.values())
    height = len(cells) * step + 0.55 + legend
    labels = [short(c["condition"]) for c in cells]
    figure, ((axis,),) = _figure(WIDTH, height, max(2.5, _width(labels, 8.5) + 0.15), 0.2, 0.55, legend)
    for number, name in enumerate(names):
        known = [(i, c["results"][name]) for i, c in enumerate(cells) if name in c["results"]]
        if not known:
            continue
        offset = (number - (len(names) - 1) / 2) * 0.13 / step
        rates = np.array([r["rate"] for _, r in known])
        spread = np.abs(np.array([(r["low"], r["high"]) for _, r in known]).T - rates)
        axis.errorbar(
            rates, [i + offset for i, _ in known], xerr=spread, markersize=4.5, elinewidth=1.3, capsize=2,
            **{**_look(number), "linestyle": "none"},
        )  # fmt: skip
    for place in range(0, len(cells), 2):
        axis.axhspan(place - 0.5, place + 0.5, color="#f3f4f8", linewidth=0, zorder=0)
    axis.set_yticks(range(len(cells)), labels, fontsize=8.5)
    axis.set_ylim(len(cells) - 0.5, -0.5)
    axis.set_xlim(-0.01, 1.01)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    axis.xaxis.set_major_formatter("{x:.0%}")
    axis.grid(axis="x", color="#d0d0d0", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelsize=8.5)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_xlabel("success rate, 95 % Wilson interval", fontsize=9)
    _legend(figure, names.values())
    return _svg(figure)


def severity_curves(summary: dict[str, Any], modality: str) -> str | None:
    """Success over severity, one panel per corruption type; ``None`` if no type has at least three severities."""
    known = soft_types([c["condition"] for c in summary["cells"]])
    types = {
        t: s for t, s in known.items() if t.partition("=")[0].partition(".")[0] == modality and len(s) >= 3
    }
    names = reported(summary)
    if not types or not names:
        return None
    by_condition = {c["condition"]: c["results"] for c in summary["cells"]}
    columns = min(4, max(2, len(types)))
    rows = -(-len(types) // columns)
    legend = _legend_height(names.values()) + 0.1
    height = 1.62 * rows + 0.25 + legend
    figure, axes = _figure(
        WIDTH, height, 0.55, 0.1, 0.48, legend, rows=rows, columns=columns, sharex=True, sharey=True,
        gaps={"hspace": 0.32, "wspace": 0.1},
    )  # fmt: skip
    for axis, (type_, severities) in zip(axes.flatten(), types.items(), strict=False):
        for number, name in enumerate(names):
            _curve(axis, {0: "C0", **severities}, name, number, by_condition)
        title = type_.removeprefix(f"{modality}=").replace("_", " ").replace(f"{modality}.", "")
        axis.set_title(title, fontsize=8.5, pad=3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#d0d0d0", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8, labelbottom=True, length=2)
    axes[0][0].set(ylim=(-0.02, 1.04), yticks=[0, 0.25, 0.5, 0.75, 1.0], xticks=range(6))
    axes[0][0].yaxis.set_major_formatter("{x:.0%}")
    for axis in axes.flatten()[len(types) :]:
        axis.set_axis_off()
    figure.text(0.5, 0.08 / height, "severity (0 = clean)", ha="center", fontsize=9)
    _legend(figure, names.values())
    return _svg(figure)


def _curve(
    axis: Any, conditions: Mapping[int, str], name: str, number: int, results: Mapping[str, dict[str, Any]]
) -> None:
    known = [(s, results[c][name]) for s, c in conditions.items() if name in results.get(c, {})]
    xs, look = [s for s, _ in known], _look(number)
    axis.plot(xs, [r["rate"] for _, r in known], markersize=3.5, linewidth=1.3, **look)
    low, high = [r["low"] for _, r in known], [r["high"] for _, r in known]
    axis.fill_between(xs, low, high, color=look["color"], alpha=0.16, linewidth=0)


def subset_map(summary: dict[str, Any]) -> str | None:
    """Heat map of the announced modality subsets, over all and per suite; ``None`` if fewer than eight were run."""
    cells = [c for c in summary["cells"] if is_subset(c["condition"])]
    names = reported(summary)
    if len(cells) < 8 or not names:
        return None
    lines: list[tuple[str, list[float]]] = []
    parts_of = {p["name"]: p["suites"] for p in summary["policies"]}
    suites = list(next(iter(parts_of.values())))
    for name, text in names.items():
        whole = [c["results"].get(name, {}) for c in cells]
        lines.append((text, [r.get("rate", np.nan) for r in whole]))
        for suite in suites:
            shown = parts_of[name][suite]["gate"]["passed"]
            parts = [r.get("suites", {}).get(suite, {}) if shown else {} for r in whole]
            lines.append((f"{name}, {suite.removeprefix('libero_')}", [p.get("rate", np.nan) for p in parts]))
    values = np.array([v for _, v in lines])
    height = 0.27 * len(lines) + 0.8
    left = max(1.75, 1.15 * _width((text for text, _ in lines), 8) + 0.1)  # bold ones are wider
    figure, ((axis,),) = _figure(WIDTH, height, left, 0.1, 0.72, 0.08)
    axis.pcolormesh(
        np.ma.masked_invalid(values), vmin=0, vmax=1, cmap=HEAT, edgecolors="white", linewidth=0.8
    )
    axis.invert_yaxis()
    axis.set_xticks(
        np.arange(len(cells)) + 0.5, [c["condition"][3:].replace("+", "\n") for c in cells], fontsize=7.5
    )
    axis.set_yticks(np.arange(len(lines)) + 0.5, [text for text, _ in lines], fontsize=8)
    for tick, (text, _) in zip(axis.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("bold" if text in names.values() else "normal")
    for block in range(len(suites) + 1, len(lines), len(suites) + 1):
        axis.axhline(block, color="#1b1b1f", linewidth=1)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    for y, x in np.argwhere(~np.isnan(values)):
        light = values[y, x] > 0.47
        axis.text(x + 0.5, y + 0.52, f"{100 * values[y, x]:.0f}", ha="center", va="center", fontsize=8,
                  color="black" if light else "white")  # fmt: skip
    return _svg(figure)


def task_map(summary: dict[str, Any], suite: str) -> str | None:
    """Success per task and condition, one panel per policy; ``None`` without episodes of the suite.

    Of policies whose robustness is not reported it shows the clean condition only.
    """
    tasks = [t for t in summary["tasks"] if t["suite"] == suite and t["cells"]]
    names = [p["name"] for p in summary["policies"]]
    conditions = [c["condition"] for c in summary["cells"]]
    if not tasks:
        return None
    named = len(conditions) <= NAMED_CONDITIONS
    panel, bottom = 0.17 * len(tasks) + 0.1, 1.45 if named else 0.3
    height = (panel + 0.28) * len(names) + bottom + 0.15
    figure, axes = _figure(
        WIDTH, height, 0.55, 0.1, bottom, 0.25, rows=len(names), sharex=True, gaps={"hspace": 0.3 / panel}
    )
    for axis, policy in zip(axes[:, 0], summary["policies"], strict=True):
        name = policy["name"]
        shown = policy["gate"]["passed"] and policy["suites"].get(suite, policy)["gate"]["passed"]
        drawn = [c if shown or c == "C0" else "" for c in conditions]
        counts = [[t["cells"].get(f"{name}|{c}", [0, 0]) for c in drawn] for t in tasks]
        k, n = np.moveaxis(np.array(counts, float), 2, 0)
        rates = np.ma.masked_invalid(np.divide(k, n, out=np.full_like(k, np.nan), where=n > 0))
        axis.imshow(rates, vmin=0, vmax=1, cmap=HEAT, aspect="auto", interpolation="nearest")
        axis.set_title(label(policy), fontsize=9, loc="left", pad=3, fontweight="bold")
        axis.set_yticks(range(len(tasks)), [str(t["task_id"]) for t in tasks], fontsize=7)
        axis.set_ylabel("task", fontsize=8)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    _name_conditions(axes[:, 0], conditions, named)
    return _svg(figure)


def _name_conditions(axes: Sequence[Any], conditions: Sequence[str], named: bool) -> None:
    """Names under the last panel, of the conditions or of their groups, and lines between groups."""
    if named:
        labels = [short(c) for c in conditions]
        axes[-1].set_xticks(
            range(len(conditions)), labels, fontsize=7.5, rotation=40, ha="right", rotation_mode="anchor"
        )
    ticks, labels, place = [], [], 0
    for group, members in groupby(conditions, key=lambda c: c.partition(":")[0]):
        count = len(list(members))
        ticks.append(place + (count - 1) / 2)
        labels.append(group)
        place += count
        for axis in axes:
            axis.axvline(place - 0.5, color="white", linewidth=1.6)
    if not named:
        axes[-1].set_xticks(ticks, labels, fontsize=8)

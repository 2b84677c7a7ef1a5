"""Plots of a summary as SVG text, for print and colour-blind readers: colour and marker both tell."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from multismolvla_eval.analysis.families import is_subset, short, soft_types, stream
from multismolvla_eval.analysis.statistics import Rate
from multismolvla_eval.analysis.summary import ConditionSummary, Summary

#: Okabe and Ito's colours, the yellow darkened for white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#7a6a00")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", ":", "-.")
HEAT = "cividis"
#: Of a figure [inches], and of the names in its legend [points].
WIDTH, LEGEND_SIZE = 8.4, 9
#: Conditions that a task map names one by one; of more it names the groups.
NAMED_CONDITIONS = 16


def reported(summary: Summary) -> dict[str, str]:
    """Names of the policies whose robustness may be shown, with their labels."""
    return {p.name: p.label for p in summary.policies if p.reportable}


def _rates(conditions: Iterable[ConditionSummary], name: str, suite: str | None = None) -> list[Rate | None]:
    """A policy's success under some conditions, over all suites or in one; ``None`` where it has not run."""
    figures = (condition.figures(name, suite) for condition in conditions)
    return [f.success if f else None for f in figures]


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
    """Colour, marker and line of a policy; no two of the first 36 share colour and marker."""
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
        handles=handles, frameon=False, ncols=_legend_columns(names), loc="upper center",
        fontsize=LEGEND_SIZE, bbox_to_anchor=(0.5, 1 - 0.02 / figure.get_figheight()), borderaxespad=0,
    )  # fmt: skip


def success_points(summary: Summary, groups: Sequence[str]) -> str | None:
    """Success per condition and policy with Wilson intervals; ``None`` if there is none."""
    names = reported(summary)
    conditions = [c for c in summary.conditions if c.group in ("C0", *groups)]
    if not names or not any(c.group in groups for c in conditions):
        return None
    step, legend = max(0.26, 0.13 * len(names) + 0.1), _legend_height(names.values())
    height = len(conditions) * step + 0.55 + legend
    labels = [short(c.condition) for c in conditions]
    figure, ((axis,),) = _figure(WIDTH, height, max(2.5, _width(labels, 8.5) + 0.15), 0.2, 0.55, legend)
    for number, name in enumerate(names):
        known = [(i, r) for i, r in enumerate(_rates(conditions, name)) if r]
        offset = (number - (len(names) - 1) / 2) * 0.13 / step
        rates = np.array([r.rate for _, r in known])
        spread = np.abs(np.array([(r.low, r.high) for _, r in known]).reshape(-1, 2).T - rates)
        axis.errorbar(
            rates, [i + offset for i, _ in known], xerr=spread, markersize=4.5, elinewidth=1.3, capsize=2,
            **{**_look(number), "linestyle": "none"},
        )  # fmt: skip
    for place in range(0, len(conditions), 2):
        axis.axhspan(place - 0.5, place + 0.5, color="#f3f4f8", linewidth=0, zorder=0)
    axis.set_yticks(range(len(conditions)), labels, fontsize=8.5)
    axis.set_ylim(len(conditions) - 0.5, -0.5)
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


def severity_curves(summary: Summary, modality: str) -> str | None:
    """Success over severity, one panel per corruption type; ``None`` if no type has three severities."""
    by_id = {c.condition: c for c in summary.conditions}
    known = soft_types(list(by_id))
    types = {t: s for t, s in known.items() if stream(t).partition(".")[0] == modality and len(s) >= 3}
    names = reported(summary)
    if not types or not names:
        return None
    columns = min(4, max(2, len(types)))
    rows = -(-len(types) // columns)
    legend = _legend_height(names.values()) + 0.1
    height = 1.62 * rows + 0.25 + legend
    figure, axes = _figure(
        WIDTH, height, 0.55, 0.1, 0.48, legend, rows=rows, columns=columns, sharex=True, sharey=True,
        gaps={"hspace": 0.32, "wspace": 0.1},
    )  # fmt: skip
    for axis, (type_, severities) in zip(axes.flatten(), types.items(), strict=False):
        curve = {0: by_id["C0"]} if "C0" in by_id else {}
        curve |= {severity: by_id[c] for severity, c in severities.items()}
        for number, name in enumerate(names):
            found = [(s, r) for s, r in zip(curve, _rates(curve.values(), name), strict=True) if r]
            xs, look = [s for s, _ in found], _look(number)
            axis.plot(xs, [r.rate for _, r in found], markersize=3.5, linewidth=1.3, **look)
            low, high = [r.low for _, r in found], [r.high for _, r in found]
            axis.fill_between(xs, low, high, color=look["color"], alpha=0.16, linewidth=0)
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


def subset_map(summary: Summary) -> str | None:
    """Heat map of the announced modality subsets, over all and per suite; ``None`` of fewer than eight."""
    conditions = [c for c in summary.conditions if is_subset(c.condition)]
    policies = [p for p in summary.policies if p.reportable]
    if len(conditions) < 8 or not policies:
        return None
    lines: dict[str, list[Rate | None]] = {}
    for policy in policies:
        lines[policy.label] = _rates(conditions, policy.name)
        for suite, part in policy.suites.items():
            rates = _rates(conditions, policy.name, suite)
            lines[f"{policy.name}, {suite.removeprefix('libero_')}"] = [
                r if part.reportable else None for r in rates
            ]
    values = np.array([[r.rate if r else np.nan for r in rates] for rates in lines.values()])
    height = 0.27 * len(lines) + 0.8
    left = max(1.75, 1.15 * _width(lines, 8) + 0.1)  # bold ones are wider
    figure, ((axis,),) = _figure(WIDTH, height, left, 0.1, 0.72, 0.08)
    axis.pcolormesh(
        np.ma.masked_invalid(values), vmin=0, vmax=1, cmap=HEAT, edgecolors="white", linewidth=0.8
    )
    axis.invert_yaxis()
    subsets = [c.condition[3:].replace("+", "\n") for c in conditions]
    axis.set_xticks(np.arange(len(conditions)) + 0.5, subsets, fontsize=7.5)
    axis.set_yticks(np.arange(len(lines)) + 0.5, list(lines), fontsize=8)
    block = len(summary.suites) + 1
    for number, tick in enumerate(axis.get_yticklabels()):
        tick.set_fontweight("normal" if number % block else "bold")
    for place in range(block, len(lines), block):
        axis.axhline(place, color="#1b1b1f", linewidth=1)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    for y, x in np.argwhere(~np.isnan(values)):
        light = values[y, x] > 0.47
        axis.text(x + 0.5, y + 0.52, f"{100 * values[y, x]:.0f}", ha="center", va="center", fontsize=8,
                  color="black" if light else "white")  # fmt: skip
    return _svg(figure)


def task_map(summary: Summary, suite: str) -> str | None:
    """Success per task and condition, one panel per policy; ``None`` without episodes of the suite.

    Of policies whose robustness is not reported it shows the clean condition only.
    """
    tasks = [t for t in summary.tasks if t.suite == suite and t.counts]
    conditions = [c.condition for c in summary.conditions]
    if not tasks:
        return None
    named, policies = len(conditions) <= NAMED_CONDITIONS, summary.policies
    panel, bottom = 0.17 * len(tasks) + 0.1, 1.45 if named else 0.3
    height = (panel + 0.28) * len(policies) + bottom + 0.15
    figure, axes = _figure(
        WIDTH, height, 0.55, 0.1, bottom, 0.25, rows=len(policies), sharex=True, gaps={"hspace": 0.3 / panel}
    )
    for axis, policy in zip(axes[:, 0], policies, strict=True):
        drawn = conditions if not policy.withheld_in(suite) else [c if c == "C0" else "" for c in conditions]
        counts = [[t.counts.get(f"{policy.name}|{c}", (0, 0)) for c in drawn] for t in tasks]
        k, n = np.moveaxis(np.array(counts, float), 2, 0)
        rates = np.ma.masked_invalid(np.divide(k, n, out=np.full_like(k, np.nan), where=n > 0))
        axis.imshow(rates, vmin=0, vmax=1, cmap=HEAT, aspect="auto", interpolation="nearest")
        axis.set_title(policy.label, fontsize=9, loc="left", pad=3, fontweight="bold")
        axis.set_yticks(range(len(tasks)), [str(t.task_id) for t in tasks], fontsize=7)
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

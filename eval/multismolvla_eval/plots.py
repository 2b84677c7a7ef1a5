"""Plots of a summary as SVG text, readable in print and for colour-blind readers (colour and hatching both tell)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from multismolvla.modalities import MODALITIES
from multismolvla_eval.summary import soft_types

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#7a6a00")
HATCHES = ("", "//", "..", "xx", "\\\\", "--")
MARKERS = ("o", "s", "^", "D", "v", "P")


def _svg(figure: Figure) -> str:
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    # A fixed salt and no date: the same results give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "multismolvla", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _tidy(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_ylim(0, 1.04)
    axis.yaxis.set_major_formatter("{x:.0%}")
    axis.yaxis.set_ticks([0, 0.25, 0.5, 0.75, 1.0])
    axis.grid(axis="y", color="#d0d0d0", linewidth=0.6)
    axis.set_axisbelow(True)


def success_bars(summary: dict[str, Any]) -> str:
    """Success per condition and policy with Wilson intervals, one horizontal group per condition."""
    names = [p["name"] for p in summary["policies"]]
    cells = summary["cells"]
    height = 0.8 / len(names)
    figure = Figure(figsize=(8.4, 1.0 + len(cells) * (0.2 * len(names) + 0.16)), layout="constrained")
    axis = figure.subplots()
    for number, name in enumerate(names):
        places, rates, errors = [], [], []
        for place, cell in enumerate(cells):
            result = cell["results"].get(name)
            if result is None:
                continue
            places.append(place + (number - (len(names) - 1) / 2) * height)
            rates.append(result["rate"])
            errors.append((result["rate"] - result["low"], result["high"] - result["rate"]))
        axis.barh(
            places, rates, height * 0.94, label=name, color=COLOURS[number % 6], hatch=HATCHES[number % 6],
            edgecolor="white", linewidth=0.5, xerr=list(zip(*errors, strict=True)) if errors else None,
            error_kw={"ecolor": "#222222", "elinewidth": 1.1, "capsize": 2.5},
        )  # fmt: skip
    axis.set_yticks(range(len(cells)), [_short(c["condition"]) for c in cells], fontsize=9)
    axis.set_ylim(len(cells) - 0.45, -0.55)
    axis.set_xlim(0, 1)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    axis.xaxis.set_major_formatter("{x:.0%}")
    axis.grid(axis="x", color="#d0d0d0", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("success rate, 95 % Wilson interval", fontsize=9)
    figure.legend(frameon=False, ncols=min(4, len(names)), loc="outside upper center", fontsize=9)
    return _svg(figure)


def _short(condition: str) -> str:
    if condition == "C0":
        return "clean"
    group, _, body = condition.partition(":")
    if body.startswith("camera="):
        return f"{group} no {body.removeprefix('camera=')}"
    if group == "C1":
        missing = [m for m in MODALITIES if m not in body.split("+")]
        return f"{group} no {'+'.join(missing)}" if 0 < len(missing) < 3 else f"{group} only {body}"
    return f"{group} {body}"


def severity_curves(summary: dict[str, Any]) -> str | None:
    """Success over severity, one panel per corruption type; ``None`` if no type has at least three severities."""
    types = {t: s for t, s in soft_types([c["condition"] for c in summary["cells"]]).items() if len(s) >= 3}
    if not types:
        return None
    by_condition = {c["condition"]: c["results"] for c in summary["cells"]}
    columns = min(4, len(types))
    rows = -(-len(types) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axis, (type_, severities) in zip(axes, types.items(), strict=False):
        conditions = {0: "C0", **severities}
        for number, policy in enumerate(summary["policies"]):
            points = [
                (s, by_condition[c].get(policy["name"])) for s, c in conditions.items() if c in by_condition
            ]
            known = [(s, r) for s, r in points if r is not None]
            xs = [s for s, _ in known]
            axis.plot(xs, [r["rate"] for _, r in known], color=COLOURS[number % 6], marker=MARKERS[number % 6],
                      markersize=3.5, linewidth=1.3, label=policy["name"])  # fmt: skip
            axis.fill_between(xs, [r["low"] for _, r in known], [r["high"] for _, r in known],
                              color=COLOURS[number % 6], alpha=0.15, linewidth=0)  # fmt: skip
        axis.set_title(type_, fontsize=8)
        _tidy(axis)
        axis.set_xticks(list(conditions))
    for axis in axes[len(types) :]:
        axis.set_axis_off()
    axes[0].legend(frameon=False, fontsize=7)
    figure.supxlabel("severity (0 = clean)", fontsize=9)
    return _svg(figure)


def subset_map(summary: dict[str, Any]) -> str | None:
    """Heat map of the announced modality subsets; ``None`` if fewer than eight were run."""
    cells = [c for c in summary["cells"] if c["group"] == "C1" and "camera=" not in c["condition"]]
    names = [p["name"] for p in summary["policies"]]
    if len(cells) < 8:
        return None
    values = [[c["results"].get(n, {}).get("rate", float("nan")) for c in cells] for n in names]
    figure = Figure(figsize=(1.6 + 0.62 * len(cells), 1.7 + 0.42 * len(names)), layout="constrained")
    axis = figure.subplots()
    axis.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axis.set_xticks(range(len(cells)), [c["condition"][3:].replace("+", "\n") for c in cells], fontsize=7)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    _write_values(axis, values)
    return _svg(figure)


def _write_values(axis: Any, values: Sequence[Sequence[float]]) -> None:
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value == value:
                axis.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=7,
                          color="black" if value > 0.55 else "white")  # fmt: skip

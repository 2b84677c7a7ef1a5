"""What a report's plots draw: the data behind the lines, and whether the policies can be told apart."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from report_readers import cells_of, summary_of

from multismolvla_eval.report import plots

NAMES = tuple(f"a-policy-with-a-rather-long-name-{i}" for i in range(8))


@pytest.fixture(autouse=True)
def figures(monkeypatch):
    """The plots' functions return their figures."""
    monkeypatch.setattr(plots, "_svg", lambda figure: figure)


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    """Two policies in two suites."""
    return summary_of(tmp_path_factory.mktemp("plots") / "run", suites=("toy", "game"))


def test_points_stand_at_the_rates_and_lines_reach_both_bounds(summary):
    (axis,) = plots.success_points(summary, ("C2", "C4")).axes
    assert [t.get_text() for t in axis.get_yticklabels()] == ["clean", "C2 rgb=zero", "C4 all=delay@2"]
    for name, drawn in zip(("ours", "vanilla"), axis.containers, strict=True):
        cells = cells_of(summary, name)
        known = [cells[c].success for c in ("C0", "C2:rgb=zero", "C4:all=delay@2")]
        points, _, (bars,) = drawn.lines
        assert points.get_xdata() == pytest.approx([r.rate for r in known])
        reach = [segment[:, 0] for segment in bars.get_segments()]
        assert np.array(reach) == pytest.approx(np.array([(r.low, r.high) for r in known]))
        assert all(r.low < r.rate < r.high for r in known)


def test_curves_begin_with_the_clean_rate_and_bands_reach_both_bounds(summary):
    axis = plots.severity_curves(summary, "rgb").axes[0]
    conditions = ["C0", *(f"C3:rgb=builtin_noise@{s}" for s in range(1, 6))]
    assert axis.get_title() == "builtin noise"
    for name, line, band in zip(("ours", "vanilla"), axis.lines, axis.collections, strict=True):
        known = [cells_of(summary, name)[c].success for c in conditions]
        assert line.get_xdata() == pytest.approx(range(6))
        assert line.get_ydata() == pytest.approx([r.rate for r in known])
        outline = band.get_paths()[0].vertices
        for severity, r in enumerate(known):
            bounds = outline[outline[:, 0] == severity, 1]
            assert (bounds.min(), bounds.max()) == pytest.approx((r.low, r.high))


def test_maps_show_the_rate_of_each_subset_suite_and_task(summary):
    (axis,) = plots.subset_map(summary).axes
    conditions = [c.condition for c in summary.conditions]
    subsets = [c for c in conditions if c.startswith("C1:")][:15]
    assert [t.get_text() for t in axis.get_yticklabels()] == [
        "ours", "ours, toy", "ours, game", "vanilla", "vanilla, toy", "vanilla, game"
    ]  # fmt: skip
    shown = np.asarray(axis.collections[0].get_array())
    for row, (name, suite) in enumerate((n, s) for n in ("ours", "vanilla") for s in (None, "toy", "game")):
        cells = cells_of(summary, name)
        parts = [cells[c].suites[suite] if suite else cells[c] for c in subsets]
        assert shown[row] == pytest.approx([p.success.rate for p in parts])
    panels = plots.task_map(summary, "game").axes
    tasks = [t.counts for t in summary.tasks if t.suite == "game"]
    for name, panel in zip(("ours", "vanilla"), panels, strict=True):
        expected = [[np.divide(*t[f"{name}|{c}"]) for c in conditions] for t in tasks]
        assert np.asarray(panel.images[0].get_array()) == pytest.approx(np.array(expected))


def test_no_two_policies_look_the_same():
    looks = [plots._look(i) for i in range(36)]
    assert len({(look["color"], look["marker"]) for look in looks}) == 36
    first, seventh = looks[0], looks[6]
    assert first["linestyle"] != seventh["linestyle"]
    assert first["markerfacecolor"] != seventh["markerfacecolor"]


def test_many_policies_with_long_names_fit(tmp_path):
    """Every name is inside the picture, no legend covers an axis, and curves look as the legend says."""
    many = summary_of(tmp_path / "run", names=NAMES, clean=(0.8,) * 8)
    assert len(plots.reported(many)) == 8
    for figure in (plots.success_points(many, ("C2",)), plots.severity_curves(many, "rgb")):
        FigureCanvasAgg(figure).draw()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
        tops = [axis.get_tightbbox().y1 for axis in figure.axes if axis.axison]
        assert box.y0 >= max(tops)
        assert [t.get_text() for t in legend.get_texts()] == list(NAMES)
    drawn, said = figure.axes[0].lines, legend.get_lines()
    for line, handle in zip(drawn, said, strict=True):
        assert (line.get_marker(), line.get_linestyle()) == (handle.get_marker(), handle.get_linestyle())
        assert to_hex(line.get_color()) == to_hex(handle.get_color())
    heat = plots.subset_map(many)
    FigureCanvasAgg(heat).draw()
    assert all(t.get_window_extent().x0 >= 0 for t in heat.axes[0].get_yticklabels())

"""The self-contained HTML page of a report: styles, plots and clips are inside, nothing is fetched."""

from __future__ import annotations

import base64
import logging
from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla.modalities import MODALITIES
from multismolvla_eval.analysis.families import GROUPS
from multismolvla_eval.report import format as texts
from multismolvla_eval.report import plots
from multismolvla_eval.report.tables import COSTS

if TYPE_CHECKING:
    import jinja2

logger = logging.getLogger(__name__)

#: A page must stay easy to send [bytes].
PAGE_LIMIT = 20_000_000
#: Clips that do not fit are left out and named; as text they are a third larger [bytes].
CLIP_BUDGET = 12_000_000
#: The picture of the modalities is left out beyond this [bytes].
PICTURE_BUDGET = 1_500_000


@dataclass(frozen=True)
class Figure:
    """A picture of the page.

    Attributes:
        uri: its data.
        name: what it is.
        caption: how to read it.
        alt: what a reader sees in it, for those who cannot.
    """

    uri: str
    name: str
    caption: str
    alt: str


def environment() -> jinja2.Environment:
    """Templates with the filters that they use."""
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(
        rate=texts.rate_text,
        met=texts.met_text,
        difference=texts.difference_text,
        percent=texts.percent,
        count=texts.count_text,
        power=texts.power_text,
        kept=texts.kept_text,
        interval=texts.with_interval,
        figure=texts.figure_text,
        points=texts.points_text,
        seeds=texts.seeds_text,
        left_out=texts.left_out_text,
    )
    found.globals.update(not_told=texts.NOT_TOLD)
    return found


def report_page(summary: dict[str, Any], results: Path, title: str) -> str:
    """The page of one run.

    Args:
        summary: from :func:`multismolvla_eval.analysis.summary.summarise`.
        results: folder with ``clips/`` and, if drawn, ``modalities.png``.
        title: of the page.
    """
    door = results / "modalities.png"
    shown = door.is_file() and door.stat().st_size <= PICTURE_BUDGET
    present = [g for g in GROUPS if any(c["group"] == g for c in summary["cells"])]
    content = {
        "s": summary,
        "title": title,
        "headline": texts.headline(summary),
        "families": texts.families_text(summary),
        "calibration": [
            line for n, f in summary["aggregates"].items() for line in texts.calibration_lines(n, f)
        ],
        "suite_calibration": [
            line
            for n, f in summary["aggregates"].items()
            for suite, part in f["suites"].items()
            for line in texts.calibration_lines(f"{n} in {suite}", part)
        ],
        "costs": COSTS,
        "by_name": {p["name"]: p for p in summary["policies"]},
        "suites": list(summary["policies"][0]["suites"]),
        "groups": {g: [c for c in summary["cells"] if c["group"] == g] for g in present},
        "titles": GROUPS,
        "figures": _figures(summary),
        "task_figures": _task_figures(summary),
        "door": _data_uri(door.read_bytes(), "image/png") if shown else None,
    }
    template = environment().get_template("report.html.j2")
    budget = CLIP_BUDGET
    while True:
        clips, left_out = _clips(summary, results, budget)
        page = template.render(**content, clips=clips, clips_left_out=left_out)
        excess = len(page.encode()) - PAGE_LIMIT
        if excess < 0 or not clips:
            if excess >= 0:
                logger.warning(
                    "The page has %.0f MB, more than %.0f MB, even without clips: browsers may be slow with it. Report fewer "
                    "conditions or suites at once.",
                    len(page.encode()) / 1e6,
                    PAGE_LIMIT / 1e6,
                )
            return page
        # The tables of a very large matrix need the room themselves.
        used = sum(len(c["uri"]) for group in clips for c in group["members"])
        budget = (used - excess) * 3 // 4


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _figures(summary: dict[str, Any]) -> dict[str, list[Figure]]:
    """Plots by group of conditions."""
    found: dict[str, list[Figure]] = defaultdict(list)

    withheld = [p["name"] for p in summary["policies"] if not p["gate"]["passed"]]
    missing = (
        f" Not drawn, because their robustness is not reported: {', '.join(withheld)}." if withheld else ""
    )

    untold = [p["name"] for p in summary["policies"] if p["reads_masks"] is False and p["gate"]["passed"]]
    black = f" Not told of a loss, which is a black picture for them: {', '.join(untold)}." if untold else ""

    def add(group: str, svg: str | None, name: str, caption: str, alt: str) -> None:
        if svg is not None:
            caption += (black if group == "C1" else "") + missing
            found[group].append(Figure(_data_uri(svg.encode(), "image/svg+xml"), name, caption, alt))

    points = "Points are success rates, lines 95 % Wilson intervals; the clean condition stands first."
    for group in ("C1", "C2", "C4", "C5"):
        cells = [c for c in summary["cells"] if c["group"] == group]
        add(group, plots.success_points(summary, (group,)), f"{GROUPS[group]}: success per condition", points,
            f"Success per condition. {_extremes(summary, cells)} The table below has all numbers.")  # fmt: skip
    cells = [c for c in summary["cells"] if c["group"] == "C1" and "camera=" not in c["condition"]]
    add("C1", plots.subset_map(summary), "Subsets of modalities",
        "Success in per cent when only the named modalities are left, over all suites and per suite.",
        f"Heat map of policies and subsets of modalities. {_extremes(summary, cells)} The table below has all numbers.")  # fmt: skip
    for modality in MODALITIES:
        prefix = f"C3:{modality}"
        cells = [c for c in summary["cells"] if c["condition"].startswith(prefix)]
        add("C3", plots.severity_curves(summary, modality), f"Success over severity: {modality}",
            "One panel per type; bands are 95 % Wilson intervals. Severity 0 is clean.",
            f"Curves of success over severity. {_extremes(summary, cells)} The table below has all numbers.")  # fmt: skip
    if "C3" not in found:
        cells = [c for c in summary["cells"] if c["group"] == "C3"]
        add("C3", plots.success_points(summary, ("C3",)), f"{GROUPS['C3']}: success per condition", points,
            f"Success per condition. {_extremes(summary, cells)} The table below has all numbers.")  # fmt: skip
    return dict(found)


def _extremes(summary: dict[str, Any], cells: list[dict[str, Any]]) -> str:
    """Per policy that is drawn, the best and the worst of some conditions, in words."""
    sentences = []
    for name in plots.reported(summary):
        found = {c["condition"]: c["results"][name] for c in cells if name in c["results"]}
        if found:
            best, worst = (extreme(found, key=lambda c: found[c]["rate"]) for extreme in (max, min))
            sentences.append(
                f"{name}: best {best}, {texts.rate_text(found[best])}; worst {worst}, {texts.rate_text(found[worst])}."
            )
    return " ".join(sentences)


def _task_figures(summary: dict[str, Any]) -> list[tuple[str, Figure]]:
    found = []
    for suite in summary["run"]["suites"]:
        svg = plots.task_map(summary, suite)
        if svg is not None:
            found.append(
                (
                    suite,
                    Figure(
                        _data_uri(svg.encode(), "image/svg+xml"),
                        f"Tasks of {suite}",
                        "One panel per policy, one row per task, one column per condition (the clean one only, where robustness is not reported); dark blue is 0 %, yellow 100 %.",
                        f"Heat map of success per task and condition of {suite}. The tables below have all numbers.",
                    ),
                )
            )
    return found


def _clips(summary: dict[str, Any], results: Path, budget: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of clips that start the same, the clean one first, then failures; and the paths that did not fit.

    A clean clip is in the page once per row: it is the same picture beside each failure.
    """
    descriptions = {c["condition"]: c["description"] for c in summary["cells"]}
    order = {name: i for i, name in enumerate(descriptions)}
    start = ("policy", "suite", "task_id", "seed", "episode")

    def rank(clip: dict[str, Any]) -> tuple[int, int]:
        kind = 0 if clip["condition"] == "C0" else 2 if clip["success"] else 1
        return kind, order.get(clip["condition"], 0)

    def begun(clip: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(clip[k] for k in start)

    # Beyond the first episode, a clean clip is there to stand beside a faulted one.
    faulted = {begun(c) for c in summary["clips"] if c["condition"] != "C0"}
    wanted = [c for c in summary["clips"] if c["episode"] == 0 or begun(c) in faulted]
    chosen, left_out = [], []
    for clip in sorted(wanted, key=rank):  # what is worth most gets its room first
        path = results / clip["path"]
        size = path.stat().st_size if path.is_file() else 0
        if size > budget:
            left_out.append(clip["path"])
        elif size:
            budget -= size
            chosen.append(clip)
    chosen.sort(key=lambda c: (*begun(c), *rank(c)))
    groups = []
    for key, members in groupby(chosen, key=begun):
        shown = [_clip(c, descriptions.get(c["condition"], ""), results) for c in members]
        groups.append({**dict(zip(start, key, strict=True)), "members": shown})
    return groups, left_out


def _clip(clip: dict[str, Any], description: str, results: Path) -> dict[str, Any]:
    failure = f"failed ({clip['cause'].replace('_', ' ') or 'unknown'})"
    return {
        "condition": clip["condition"],
        "description": description,
        "outcome": "success" if clip["success"] else failure,
        "success": clip["success"],
        "uri": _data_uri((results / clip["path"]).read_bytes(), "image/webp"),
    }

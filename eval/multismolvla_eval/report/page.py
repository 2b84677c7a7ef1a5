"""The pages of a report: Markdown, and HTML with styles, plots and clips inside, which fetches nothing."""

from __future__ import annotations

import base64
import logging
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from multismolvla.modalities import MODALITIES
from multismolvla_eval.analysis.families import GROUPS, is_subset
from multismolvla_eval.analysis.summary import Clip, ConditionSummary, Summary
from multismolvla_eval.report import format as wording
from multismolvla_eval.report import plots

if TYPE_CHECKING:
    import jinja2

logger = logging.getLogger(__name__)

#: A page must stay easy to send [bytes].
PAGE_LIMIT = 20_000_000
#: Clips that do not fit are left out and named; as text they are a third larger [bytes].
CLIP_BUDGET = 12_000_000
#: The picture of the modalities is left out beyond this [bytes].
PICTURE_BUDGET = 1_500_000
#: What the policies' time and memory mean.
_COSTS = (
    "Time per step is the policy's, actions that it has queued included. Peak memory is of the process that "
    "ran the episodes, with the simulator and all policies in it; not that of an accelerator, nor of a "
    "process that serves batches."
)


@dataclass(frozen=True)
class PagePicture:
    """A picture of the page."""

    uri: str
    name: str
    caption: str  # how to read it
    alt: str  # what is seen in it, for those who cannot


@dataclass(frozen=True)
class ShownClip:
    """A clip that is in the page."""

    clip: Clip
    description: str  # of its condition
    uri: str

    @property
    def outcome(self) -> str:
        """How the episode ended."""
        cause = self.clip.cause.replace("_", " ")
        return "success" if self.clip.success else f"failed ({cause})"


def environment() -> jinja2.Environment:
    """Templates with the filters that they use."""
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name is None or not name.endswith(".md.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(
        rate=wording.rate_text,
        met=wording.met_text,
        difference=wording.difference_text,
        percent=wording.percent,
        count=wording.count_text,
        power=wording.power_text,
        kept=wording.kept_text,
        figure=wording.figure_text,
        points=wording.points_text,
        repeats=wording.repeats_text,
        left_out=wording.left_out_text,
        weak=wording.weak_text,
        shell=shlex.join,
        cell=lambda cell, mask_reaches_policy: wording.cell_text(cell.success, cell.met, mask_reaches_policy),
    )
    found.globals.update(not_told=wording.NOT_TOLD, costs=_COSTS, titles=GROUPS)
    return found


def _content(summary: Summary, title: str) -> dict[str, object]:
    """What both pages of a run show."""
    groups = {g: [c for c in summary.conditions if c.group == g] for g in GROUPS}
    return {
        "s": summary,
        "title": title,
        "headline": wording.headline(summary),
        "families": wording.families_text(summary),
        "by_name": {p.name: p for p in summary.policies},
        "groups": {g: conditions for g, conditions in groups.items() if conditions},
    }


def markdown_page(summary: Summary, title: str) -> str:
    """The Markdown page of one run, fit for a model card."""
    figures = [line for scope, _, f in wording.scopes(summary) for line in wording.aggregate_lines(scope, f)]
    template = environment().get_template("report.md.j2")
    return template.render(**_content(summary, title), figures_text=figures)


def report_page(summary: Summary, results: Path, title: str) -> str:
    """The HTML page of one run.

    Args:
        summary: of the run.
        results: folder with ``clips/`` and, if drawn, ``modalities.png``.
        title: of the page.
    """
    picture = results / "modalities.png"
    shown = picture.is_file() and picture.stat().st_size <= PICTURE_BUDGET
    detections = [(suite, wording.detection_lines(scope, f)) for scope, suite, f in wording.scopes(summary)]
    content = {
        **_content(summary, title),
        "detection": [line for suite, lines in detections for line in lines if not suite],
        "suite_detection": [line for suite, lines in detections for line in lines if suite],
        "figures": _figures(summary),
        "task_figures": list(_task_figures(summary)),
        "inputs": _data_uri(picture.read_bytes(), "image/png") if shown else None,
    }
    template = environment().get_template("report.html.j2")
    budget = CLIP_BUDGET
    while True:
        clips, left_out = _clips(summary, results, budget)
        page = template.render(**content, clips=clips, clips_left_out=left_out)
        excess = len(page.encode()) - PAGE_LIMIT
        if excess >= 0 and not clips:
            logger.warning(
                "The page has %.0f MB, more than %.0f MB, even without clips: browsers may be slow with it. "
                "Report fewer conditions or suites at once.",
                len(page.encode()) / 1e6,
                PAGE_LIMIT / 1e6,
            )
        if excess < 0 or not clips:
            return page
        # The tables of a very large matrix need the room themselves.
        used = sum(len(c.uri) for members in clips for c in members)
        budget = (used - excess) * 3 // 4


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _figures(summary: Summary) -> dict[str, list[PagePicture]]:
    """Plots by group of conditions."""
    found: dict[str, list[PagePicture]] = {}
    withheld = [p.name for p in summary.policies if not p.reportable]
    missing = (
        f" Not drawn, because their robustness is not reported: {', '.join(withheld)}." if withheld else ""
    )
    untold = [p.name for p in summary.policies if p.reportable and not p.facts.mask_reaches_policy]
    black = f" Not told of a loss, which is a black picture for them: {', '.join(untold)}." if untold else ""

    def add(
        svg: str | None, conditions: Sequence[ConditionSummary], kind: str, name: str, caption: str
    ) -> None:
        if svg is not None:
            group = conditions[0].group
            caption += (black if group == "C1" else "") + missing
            alt = f"{kind}. {_extremes(summary, conditions)} The table below has all numbers."
            uri = _data_uri(svg.encode(), "image/svg+xml")
            found.setdefault(group, []).append(PagePicture(uri, name, caption, alt))

    for modality in MODALITIES:
        conditions = [c for c in summary.conditions if c.condition.startswith(f"C3:{modality}")]
        caption = "One panel per type; bands are 95 % Wilson intervals. Severity 0 is clean."
        name, kind = f"Success over severity: {modality}", "Curves of success over severity"
        add(plots.severity_curves(summary, modality), conditions, kind, name, caption)
    for group in ("C1", "C2", "C3", "C4", "C5", "C6"):
        if group not in found:  # the curves of C3
            conditions = [c for c in summary.conditions if c.group == group]
            caption = (
                "Points are success rates, lines 95 % Wilson intervals; the clean condition stands first."
            )
            name = f"{GROUPS[group]}: success per condition"
            add(plots.success_points(summary, (group,)), conditions, "Success per condition", name, caption)
    conditions = [c for c in summary.conditions if is_subset(c.condition)]
    caption = "Success in per cent when only the named modalities are left, over all suites and per suite."
    kind = "Heat map of policies and subsets of modalities"
    add(plots.subset_map(summary), conditions, kind, "Subsets of modalities", caption)
    return found


def _extremes(summary: Summary, conditions: Sequence[ConditionSummary]) -> str:
    """Per policy that is drawn, the best and the worst of some conditions, in words."""
    sentences = []
    for name in plots.reported(summary):
        found = {c.condition: c.cells[name].success for c in conditions if name in c.cells}
        if found:
            best, worst = (extreme(found, key=lambda c: found[c].rate) for extreme in (max, min))
            rates = [wording.rate_text(found[c]) for c in (best, worst)]
            sentences.append(f"{name}: best {best}, {rates[0]}; worst {worst}, {rates[1]}.")
    return " ".join(sentences)


def _task_figures(summary: Summary) -> Iterator[tuple[str, PagePicture]]:
    for suite in summary.manifest.suites:
        svg = plots.task_map(summary, suite)
        if svg is not None:
            alt = f"Heat map of success per task and condition of {suite}. The tables below have all numbers."
            yield (
                suite,
                PagePicture(
                    _data_uri(svg.encode(), "image/svg+xml"),
                    f"Tasks of {suite}",
                    "One panel per policy, one row per task, one column per condition (the clean one only, "
                    "where robustness is not reported); dark blue is 0 %, yellow 100 %.",
                    alt,
                ),
            )


def _clips(summary: Summary, results: Path, budget: int) -> tuple[list[list[ShownClip]], list[str]]:
    """Rows of clips that start the same, the clean one first, then failures; and the paths that did not fit.

    A clean clip is in the page once per row: it is the same picture beside each failure.
    """
    descriptions = {c.condition: c.description for c in summary.conditions}
    order = list(descriptions)

    def rank(clip: Clip) -> tuple[int, int]:
        kind = 0 if clip.condition == "C0" else 2 if clip.success else 1
        return kind, order.index(clip.condition)

    # Beyond the first episode, a clean clip is there to stand beside a faulted one.
    faulted = {c.start for c in summary.clips if c.condition != "C0"}
    wanted = [c for c in summary.clips if c.episode == 0 or c.start in faulted]
    chosen, left_out = [], []
    for clip in sorted(wanted, key=rank):  # what is worth most gets its room first
        path = results / clip.path
        size = path.stat().st_size if path.is_file() else 0
        if size > budget:
            left_out.append(clip.path)
        elif size:
            budget -= size
            uri = _data_uri(path.read_bytes(), "image/webp")
            chosen.append(ShownClip(clip, descriptions[clip.condition], uri))
    chosen.sort(key=lambda c: (*c.clip.start, *rank(c.clip)))
    return [list(members) for _, members in groupby(chosen, key=lambda c: c.clip.start)], left_out

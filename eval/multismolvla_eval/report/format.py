"""Figures as text: numbers with their intervals and n, and the sentences that a report's head is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from multismolvla_eval.analysis.aggregates import Aggregates, Figure, OverTypes
from multismolvla_eval.analysis.families import Comparison
from multismolvla_eval.analysis.statistics import Rate, UnpairedDifference
from multismolvla_eval.analysis.summary import Cell, PolicyAggregates, PolicySummary, Summary

#: What stands beside an announced loss of a policy that does not read the announcement.
NOT_TOLD = "not told: for this policy the same as a black picture"


def percent(value: float | None) -> str:
    """A share as whole per cent; a dash for ``None``."""
    return "–" if value is None else f"{100 * value:.0f} %"


def rate_text(rate: Rate | None) -> str:
    """``72 % (36/50, 58–83)``, with repetitions ``(108/150 of 50 starts, …)``; a dash for ``None``."""
    if rate is None:
        return "–"
    of = f" of {rate.starts} starts" if rate.starts < rate.n else ""
    return f"{percent(rate.rate)} ({rate.successes}/{rate.n}{of}, {100 * rate.low:.0f}–{100 * rate.high:.0f})"


def met_text(met: tuple[int, int] | None) -> str:
    """``met in 3 of 10 episodes``: how many ran long enough to meet the fault; empty where no row tells."""
    return f"met in {met[0]} of {met[1]} episodes" if met else ""


def cell_text(
    rate: Rate | None, met: tuple[int, int] | None, mask_reaches_policy: bool | None, mark: str = NOT_TOLD
) -> str:
    """A cell's rate, in how many episodes its fault was met, and a mark if the policy learns of no loss."""
    parts = (rate_text(rate), met_text(met), mark if mask_reaches_policy is False else "")
    return "; ".join(filter(None, parts))


def difference_text(difference: Comparison | UnpairedDifference | None) -> str:
    """``−12 (−20 to −4), p = 0.003``: points with interval and, if paired, Holm's p."""
    if difference is None:
        return "–"
    text = f"{points(difference.difference)} ({points(difference.low)} to {points(difference.high)})"
    if isinstance(difference, UnpairedDifference):
        return text
    return f"{text}, p < 0.001" if difference.p_holm < 0.001 else f"{text}, p = {difference.p_holm:.3f}"


def power_text(difference: Comparison | UnpairedDifference | None) -> str:
    """``5 (n = 400)``: the difference in points that such a comparison can show, and from how many pairs."""
    if difference is None:
        return "–"
    least = 100 * difference.detectable
    shown = f"{least:.0f}" if least < 100 else "nothing"
    return shown if isinstance(difference, UnpairedDifference) else f"{shown} (n = {difference.n})"


def kept_text(difference: Comparison | None) -> str:
    """``64 % (55–73, n = 400)``: the share of the clean success that is left; a dash if that is unknown."""
    if difference is None or difference.ratio is None:
        return "–"
    why = "" if difference.ratio_low is not None else "clean success too rare"
    figure = Figure(difference.ratio, difference.ratio_low, difference.ratio_high, why, difference.n)
    return figure_text(figure, 100, " %")


def figure_text(figure: Figure | None, scale: float = 1, unit: str = "", digits: int = 0) -> str:
    """``0.69 (0.66–0.73, n = 400)``, or ``1.00 (n = 400; no interval: all resamples are equal)``."""
    if figure is None:
        return "–"
    value, low, high = (
        None if x is None else f"{scale * x:.{digits}f}" for x in (figure.value, figure.low, figure.high)
    )
    return f"{value}{unit} ({_spread(low, high, '–', figure)})"


def points_text(figure: Figure) -> str:
    """``+12 (+5 to +20, n = 400)``: the same for a difference, in points."""
    low, high = (None if x is None else points(x) for x in (figure.low, figure.high))
    return f"{points(figure.value)} ({_spread(low, high, ' to ', figure)})"


def _spread(low: str | None, high: str | None, to: str, figure: Figure) -> str:
    if low is None or high is None:
        return f"n = {figure.n}; no interval: {figure.why}"
    return f"{low}{to}{high}, n = {figure.n}"


def points(share: float) -> str:
    """``+12``, ``−3`` or ``0``: a difference of shares in whole points."""
    value = round(100 * share)
    return f"+{value}" if value > 0 else f"−{-value}" if value < 0 else "0"


def count_text(number: int | None) -> str:
    """A count with thin spaces between thousands; a dash for ``None``."""
    return "–" if number is None else f"{number:,}".replace(",", " ")


def repeats_text(repeats: Sequence[Rate]) -> str:
    """Clean success of each repetition and how far they lie apart; a dash if it was run once."""
    if len(repeats) < 2:
        return "–"
    rates = [r.rate for r in repeats]
    listed = ", ".join(map(rate_text, repeats))
    return f"{listed}; {100 * (max(rates) - min(rates)):.0f} points between the lowest and the highest"


def headline(summary: Summary) -> list[str]:
    """The report in a few sentences, one per policy, and what is lost without colour pictures."""
    cells = {c.condition: c.cells for c in summary.conditions}
    return [_headline(policy, cells) for policy in summary.policies]


def _headline(policy: PolicySummary, cells: Mapping[str, Mapping[str, Cell]]) -> str:
    text = f"{policy.name}: {rate_text(policy.clean)} clean success"
    if policy.facts.privileged:
        return text + " (upper bound: reads the simulator's state)."
    if policy.facts.no_vision:
        text += " without pictures (no vision)"
    if not policy.reportable:
        return f"{text}; robustness not reported, because {policy.withheld}."
    gone = cells.get("C1:depth+seg+thermal", {}).get(policy.name)
    if gone is not None:
        text += f"; {rate_text(gone.success)} with RGB gone and announced"
        text += f" ({NOT_TOLD})" if gone.mask_reaches_policy is False else ""
        against = gone.versus_clean
        if against is not None and against.ratio is not None:
            text += f", which is {kept_text(against)} of its clean success from the same starts"
            text += f" [can show {power_text(against)} points]"
    black = cells.get("C2:rgb=zero", {}).get(policy.name)
    if black is not None:
        text += f"; {rate_text(black.success)} with RGB black and not announced"
    return text + (" (the baseline)." if policy.baseline else ".")


def scopes(summary: Summary) -> Iterator[tuple[str, str, Aggregates]]:
    """Figures over many conditions with their scope, for readers, and their suite, empty for all."""
    for name, whole in summary.aggregates.items():
        weak = weak_text(whole)
        yield (f"{name} ({weak})" if weak else name), "", whole
        yield from ((f"{name} in {suite}", suite, part) for suite, part in whole.suites.items())


def aggregate_lines(scope: str, figures: Aggregates) -> list[str]:
    """Figures over many conditions, in sentences."""
    lines = _type_lines("severity area (1 = nothing lost)", figures.severity_area, "", 2)
    error = "mean corruption error in per cent of the baseline's (below 100 = fewer failures)"
    lines += _type_lines(error, figures.mce, " %", 0)
    profile = figures.subset_profile
    if profile:
        marginal = ", ".join(f"{m} {points_text(v)}" for m, v in profile.marginal.items())
        lines.append(
            f"over {profile.subsets} subsets of modalities: mean {figure_text(profile.mean, 100, ' %')}, "
            f"worst {rate_text(profile.worst)} with {' + '.join(profile.worst_subset)}; value of having a "
            f"modality, in points: {marginal}"
        )
    return [f"{scope}: {line}." for line in lines] + detection_lines(scope, figures)


def weak_text(whole: PolicyAggregates) -> str:
    """``all suites, also hard, where …``: what figures over all suites hide; empty if nothing."""
    weak = whole.weak_suites
    return f"all suites, also {', '.join(weak)}, where its robustness is not reportable" if weak else ""


def detection_lines(scope: str, figures: Aggregates) -> list[str]:
    """Whether the modality weights show which sensor is corrupted, in sentences; none without weights."""
    return [
        f"{scope}: weight of {modality}: AUROC {d.auroc:.2f} for “this sensor is corrupted” ({d.corrupted} "
        f"corrupted, {d.sound} sound episodes; no interval: the same starts stand on both sides); it flags "
        f"{percent(d.sound_flagged / d.sound)} of the sound ones, too; success "
        f"{rate_text(d.success_flagged)} where it was flagged, {rate_text(d.success_missed)} where it was "
        "missed."
        for modality, d in figures.detection.items()
    ]


def _type_lines(what: str, figures: OverTypes | None, unit: str, digits: int) -> list[str]:
    if figures is None:
        return []

    def text(figure: Figure | None) -> str:
        return figure_text(figure, 1, unit, digits)

    lines = []
    if figures.mean is not None:
        kinds = {"that training may meet": figures.seen, "kept for testing": figures.unseen}
        parts = [f"{text(f)} over {_types(f)} {words}" for words, f in kinds.items() if f is not None]
        if len(figures.modalities) > 1:
            parts += [f"{m} {text(f)}" for m, f in figures.modalities.items()]
        also = f"; {', '.join(parts)}" if len(parts) > 1 else ""
        mean = f"{text(figures.mean)}, mean over {_types(figures.mean)} of corruption in all cameras"
        lines.append(f"{what} {mean}{also}")
    for camera, part in figures.cameras.items():
        lines.append(
            f"{what}, types in the camera {camera} alone (not in the mean above): {text(part.mean)}, mean "
            f"over {_types(part.mean)}"
        )
    if figures.left_out:
        lines.append(f"{what}: {left_out_text(figures)}")
    return lines


def _types(figure: Figure | None) -> str:
    count = figure.types if figure else 0
    return f"{count} type{'s' if count != 1 else ''}"


def left_out_text(figures: OverTypes) -> str:
    """``left out: depth, thermal types, which this policy does not read``; empty if nothing is."""
    parts = []
    for reason, names in figures.left_out.items():
        listed = ", ".join(names)
        if reason.endswith("does not read them"):
            parts.append(f"{listed} types, which {reason.removesuffix(' them')}")
        else:
            parts.append(f"{listed}, because {reason}")
    return f"left out: {'; '.join(parts)}" if parts else ""


def families_text(summary: Summary) -> str:
    """What the p-values are adjusted for, and how they go with the intervals."""
    sizes: dict[str, list[set[int]]] = {}
    for condition in summary.conditions:
        to_clean, to_baseline = sizes.setdefault(condition.family, [set(), set()])
        for cell in condition.cells.values():
            for part in (cell, *cell.suites.values()):
                to_clean |= {part.versus_clean.family_size} if part.versus_clean else set()
                to_baseline |= {part.versus_baseline.family_size} if part.versus_baseline else set()
    listed = ", ".join(f"{name} ({_family_sizes(*both)})" for name, both in sizes.items() if any(both))
    return (
        "Holm's adjustment runs over families: for each policy, comparison and suite, the conditions of one "
        "group that hit the same modality, all types and severities together. Families here (number of "
        f"conditions): {listed}. The interval is of one comparison and is not adjusted, and the bootstrap "
        "behind it draws tasks, too, which the test does not: where the interval leaves out 0 but p is not "
        "small, or the reverse, the difference is not settled."
    )


def _family_sizes(to_clean: set[int], to_baseline: set[int]) -> str:
    """``5``, or ``14 to clean, 15 to the baseline``; ``4–5`` where suites or policies differ."""
    clean, baseline = (
        "–".join(map(str, sorted({min(s), max(s)}))) if s else "" for s in (to_clean, to_baseline)
    )
    if clean and baseline and clean != baseline:
        return f"{clean} to clean, {baseline} to the baseline"
    return clean or baseline

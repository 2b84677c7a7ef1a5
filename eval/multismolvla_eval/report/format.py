"""Figures as text: numbers with their intervals and n, and the sentences that a report's head is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: What stands beside an announced loss of a policy that does not read the announcement.
NOT_TOLD = "not told: for this policy the same as a black picture"


def percent(value: float | None) -> str:
    """A share as whole per cent; a dash for ``None``."""
    return "–" if value is None else f"{100 * value:.0f} %"


def rate_text(rate: Mapping[str, Any] | None) -> str:
    """``72 % (36/50, 58–83)``: never a rate without count, n and interval; with repetitions ``(108/150 of 50 starts, …)``."""
    if rate is None:
        return "–"
    of = f" of {rate['starts']} starts" if rate["starts"] < rate["n"] else ""
    return f"{100 * rate['rate']:.0f} % ({rate['successes']}/{rate['n']}{of}, {100 * rate['low']:.0f}–{100 * rate['high']:.0f})"


def met_text(result: Mapping[str, Any] | None) -> str:
    """``met in 3 of 10 episodes``: how many ran long enough to meet the fault; empty where no row tells."""
    return "met in {} of {} episodes".format(*result["met"]) if result and result.get("met") else ""


def result_text(result: Mapping[str, Any] | None, told: bool | None = None) -> str:
    """A rate, in how many episodes its fault was met, and whether the policy missed the announcement."""
    return "; ".join(
        filter(None, (rate_text(result), met_text(result), NOT_TOLD if result and told is False else ""))
    )


def difference_text(difference: Mapping[str, Any] | None) -> str:
    """``−12 (−20 to −4), p = 0.003``: points with the interval and, of paired ones, Holm's p of the exact McNemar test."""
    if difference is None:
        return "–"
    text = f"{points(difference['difference'])} ({points(difference['low'])} to {points(difference['high'])})"
    p_value = difference.get("p_holm", difference.get("p_value"))
    if p_value is None:
        return text
    return f"{text}, p < 0.001" if p_value < 0.001 else f"{text}, p = {p_value:.3f}"


def power_text(difference: Mapping[str, Any] | None) -> str:
    """``5 (n = 400)``: the difference in points that such a comparison can show, and from how many pairs."""
    if difference is None:
        return "–"
    least = 100 * difference["detectable"]
    number = f"n = {difference['n']}" if "n" in difference else ""
    shown = f"{least:.0f}" if least < 100 else "nothing"
    return f"{shown} ({number})" if number else shown


def kept_text(difference: Mapping[str, Any] | None) -> str:
    """``64 % (55–73, n = 400)``: the share of the clean success that is left; no interval where a resample has none."""
    if difference is None or difference.get("ratio") is None:
        return "–"
    why = "" if difference["ratio_low"] is not None else "clean success too rare"
    return figure_text(
        {
            "value": difference["ratio"],
            "low": difference["ratio_low"],
            "high": difference["ratio_high"],
            "n": difference["n"],
            "why": why,
        },
        100,
        " %",
    )


def figure_text(figure: Mapping[str, Any] | None, scale: float = 1, unit: str = "", digits: int = 0) -> str:
    """``0.69 (0.66–0.73, n = 400)``, or ``1.00 (n = 400; no interval: all resamples are equal)``; a dash for ``None``."""
    if figure is None:
        return "–"
    value, low, high = (
        None if figure[k] is None else f"{scale * figure[k]:.{digits}f}" for k in ("value", "low", "high")
    )
    return f"{value}{unit} ({_spread(low, high, '–', figure)})"


def points_text(figure: Mapping[str, Any] | None) -> str:
    """``+12 (+5 to +20, n = 400)``: the same for a difference, in points."""
    if figure is None:
        return "–"
    low, high = (None if figure[k] is None else points(figure[k]) for k in ("low", "high"))
    return f"{points(figure['value'])} ({_spread(low, high, ' to ', figure)})"


def _spread(low: str | None, high: str | None, to: str, figure: Mapping[str, Any]) -> str:
    if low is None or high is None:
        return f"n = {figure['n']}; no interval: {figure['why']}"
    return f"{low}{to}{high}, n = {figure['n']}"


def with_interval(
    value: float, low: float | None, high: float | None, scale: float, unit: str, digits: int = 0
) -> str:
    """``0.69 (0.66–0.73)``: a value with its interval, if that is known."""
    text = f"{scale * value:.{digits}f}{unit}"
    if low is None or high is None:
        return text
    return f"{text} ({scale * low:.{digits}f}–{scale * high:.{digits}f})"


def points(share: float) -> str:
    """``+12``, ``−3`` or ``0``: a difference of shares in whole points."""
    value = round(100 * share)
    return f"+{value}" if value > 0 else f"−{-value}" if value < 0 else "0"


def count_text(number: int | None) -> str:
    """A count with thin spaces between thousands; a dash for ``None``."""
    return "–" if number is None else f"{number:,}".replace(",", " ")


def seeds_text(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Clean success of each repetition and how far they lie apart; a dash if it was run once."""
    if len(seeds) < 2:
        return "–"
    rates = [s["rate"] for s in seeds]
    listed = ", ".join(rate_text(s) for s in seeds)
    return f"{listed}; {100 * (max(rates) - min(rates)):.0f} points between the lowest and the highest"


def headline(summary: Mapping[str, Any]) -> list[str]:
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
            text += f" ({NOT_TOLD})" if gone["told"] is False else ""
            if gone["versus_clean"] is not None and gone["versus_clean"]["ratio"] is not None:
                text += (
                    f", which is {kept_text(gone['versus_clean'])} of its clean success from the same starts"
                )
                text += f" [can show {power_text(gone['versus_clean'])} points]"
        black = by_condition.get("C2:rgb=zero", {}).get(name)
        if black is not None:
            text += f"; {rate_text(black)} with RGB black and not announced"
        lines.append(text + (" (the baseline)." if policy["baseline"] else "."))
    return lines


def aggregate_lines(name: str, figures: Mapping[str, Any]) -> list[str]:
    """A policy's figures over many conditions, in sentences."""
    area, error, profile = figures["severity_area"], figures["mce"], figures["subset_profile"]
    lines = _type_lines("severity area (1 = nothing lost)", area, 1, "", 2)
    lines += _type_lines(
        "mean corruption error in per cent of the baseline's (below 100 = fewer failures)", error, 1, " %", 0
    )
    if profile:
        marginal = ", ".join(f"{m} {points_text(v)}" for m, v in profile["marginal"].items())
        lines.append(
            f"over {profile['subsets']} subsets of modalities: mean {figure_text(profile['mean'], 100, ' %')}, worst "
            f"{rate_text(profile['worst'])} with {' + '.join(profile['worst_subset'])}; value of having a modality, in "
            f"points: {marginal}"
        )
    return [f"{name}{_weak_suites(figures)}: {line}." for line in lines]


def _weak_suites(figures: Mapping[str, Any]) -> str:
    """`` (all suites, also hard, where …)``: what figures over all suites hide; empty if nothing or of one suite."""
    weak = figures.get("gate_fails_in")
    return f" (all suites, also {', '.join(weak)}, where it fails the gate)" if weak else ""


def _type_lines(
    what: str, figures: Mapping[str, Any] | None, scale: float, unit: str, digits: int
) -> list[str]:
    if figures is None:
        return []
    lines = []
    mean = figures["mean"]
    if mean is not None:
        parts = [
            f"{figure_text(figures[k], scale, unit, digits)} over {_types(figures[k])} {words}"
            for k, words in (("seen", "that training may meet"), ("unseen", "kept for testing"))
            if figures[k] is not None
        ]
        if len(figures["modalities"]) > 1:
            parts += [f"{m} {figure_text(f, scale, unit, digits)}" for m, f in figures["modalities"].items()]
        also = f"; {', '.join(parts)}" if len(parts) > 1 else ""
        lines.append(
            f"{what} {figure_text(mean, scale, unit, digits)}, mean over {_types(mean)} of corruption in all cameras{also}"
        )
    for camera, part in figures["cameras"].items():
        mean = part["mean"]
        lines.append(
            f"{what}, types in the camera {camera} alone (not in the mean above): "
            f"{figure_text(mean, scale, unit, digits)}, mean over {_types(mean)}"
        )
    left_out = left_out_text(figures)
    return [*lines, *([f"{what}: {left_out}"] if left_out else [])]


def _types(figure: Mapping[str, Any]) -> str:
    return f"{figure['types']} type{'s' if figure['types'] != 1 else ''}"


def left_out_text(figures: Mapping[str, Any] | None) -> str:
    """``left out: depth, thermal types, which this policy does not read``; empty if nothing is."""
    parts = []
    for reason, names in (figures or {"left_out": {}})["left_out"].items():
        listed = ", ".join(names)
        if reason.endswith("does not read them"):
            parts.append(f"{listed} types, which {reason.removesuffix(' them')}")
        else:
            parts.append(f"{listed}, because {reason}")
    return f"left out: {'; '.join(parts)}" if parts else ""


def calibration_lines(name: str, figures: Mapping[str, Any]) -> list[str]:
    """Whether a policy's gates know which sensor is corrupted, in sentences; none without gates."""
    lines = []
    for modality, entry in (figures["calibration"] or {}).items():
        lines.append(
            f"gate of {modality}: AUROC {entry['auroc']:.2f} for “this sensor is corrupted” ({entry['corrupted']} corrupted, "
            f"{entry['sound']} sound episodes; no interval: the same starts stand on both sides); it flags "
            f"{percent(entry['sound_flagged'] / entry['sound'])} of the sound ones, too; success "
            f"{rate_text(entry['success_flagged'])} where it was flagged, {rate_text(entry['success_missed'])} where it was missed"
        )
    return [f"{name}{_weak_suites(figures)}: {line}." for line in lines]


def families_text(summary: Mapping[str, Any]) -> str:
    """What the p-values are adjusted for, and how they go with the intervals."""
    sizes: dict[str, dict[str, set[int]]] = {}
    for cell in summary["cells"]:
        parts = [part for r in cell["results"].values() for part in (r, *r["suites"].values())]
        for comparison in ("clean", "baseline"):
            found = {e["family_size"] for part in parts if (e := part[f"versus_{comparison}"])}
            if found:
                sizes.setdefault(cell["family"], {}).setdefault(comparison, set()).update(found)
    listed = ", ".join(f"{name} ({_family_sizes(of_family)})" for name, of_family in sizes.items())
    return (
        "Holm's adjustment runs over families: for each policy, comparison and suite, the conditions of one group that hit "
        f"the same modality, all types and severities together. Families here (number of conditions): {listed}. The interval "
        "is of one comparison and is not adjusted, and the bootstrap behind it draws tasks, too, which the test does not: where "
        "the interval leaves out 0 but p is not small, or the reverse, the difference is not settled."
    )


def _family_sizes(of_family: Mapping[str, set[int]]) -> str:
    """``5``, or ``14 to clean, 15 to the baseline``; ``4–5`` where suites or policies ran different conditions."""
    ranges = {k: "–".join(map(str, sorted({min(s), max(s)}))) for k, s in of_family.items()}
    if len(set(ranges.values())) == 1:
        return next(iter(ranges.values()))
    return f"{ranges['clean']} to clean, {ranges['baseline']} to the baseline"

"""Statistics of paired success rates: intervals, tests, and summaries of robustness.

Numbers in, numbers out: nothing here knows files, policies or environments. Rates are fractions in [0, 1]; what a caller
prints as points is its own business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000
#: Seed of the bootstrap: the same results give the same report.
BOOTSTRAP_SEED = 20_240_607


@dataclass(frozen=True)
class Rate:
    """A success rate with its 95 % Wilson interval.

    Attributes:
        successes: k.
        n: episodes.
        rate: k / n.
        low: lower bound.
        high: upper bound.
    """

    successes: int
    n: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """Difference of two arms on the same episodes.

    Attributes:
        n: pairs.
        difference: rate of the second arm minus rate of the first.
        low: lower bound of the bootstrap interval.
        high: upper bound.
        gained: pairs that only the second arm solves.
        lost: pairs that only the first arm solves.
        p_value: exact McNemar, two-sided.
        detectable: the difference that n pairs can show with 80 % power (15 % discordant pairs).
    """

    n: int
    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p_value: float
    detectable: float


def wilson(successes: int, n: int) -> Rate:
    """Success rate with Wilson's score interval.

    Raises:
        ValueError: n is 0 or successes lie outside [0, n]; no rate is reported without episodes.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"A rate needs 0 <= successes <= n and n >= 1, got {successes} of {n}.")
    interval = stats.binomtest(successes, n).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return Rate(successes, n, successes / n, float(interval.low), float(interval.high))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar p-value of the discordant pairs; 1 without any."""
    discordant = gained + lost
    return float(stats.binomtest(gained, discordant, 0.5).pvalue) if discordant else 1.0


def detectable_difference(n: int, discordant: float = 0.15, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest true difference that ``n`` pairs show with the given power (normal approximation).

    Args:
        n: number of pairs.
        discordant: expected share of pairs in which exactly one arm succeeds.
        power: probability to find the difference.
        alpha: two-sided level.
    """
    z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)
    return float(z * math.sqrt(discordant / n))


def detectable_unpaired(n: int, rate: float = 0.8, power: float = 0.8, alpha: float = 0.05) -> float:
    """The same for two independent arms of ``n`` episodes around ``rate``: what pairing saves."""
    z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)
    return float(z * math.sqrt(2 * rate * (1 - rate) / n))


def paired_difference(pairs: Mapping[Any, Sequence[tuple[bool, bool]]]) -> PairedDifference:
    """Compare two arms on the same episodes.

    The interval comes from a bootstrap that resamples tasks and then episodes within each drawn task, because episodes
    of one task succeed and fail together.

    Args:
        pairs: per task the list of (success of the first arm, success of the second arm).

    Raises:
        ValueError: there are no pairs.
    """
    tasks = [np.asarray(p, dtype=np.int64).reshape(-1, 2) for p in pairs.values() if len(p)]
    if not tasks:
        raise ValueError("A paired difference needs at least one episode that both arms have run.")
    n = sum(len(t) for t in tasks)
    gained = sum(int(((t[:, 0] == 0) & (t[:, 1] == 1)).sum()) for t in tasks)
    lost = sum(int(((t[:, 0] == 1) & (t[:, 1] == 0)).sum()) for t in tasks)
    low, high = _bootstrap([t[:, 1] - t[:, 0] for t in tasks])
    return PairedDifference(
        n, (gained - lost) / n, low, high, gained, lost, mcnemar(gained, lost), detectable_difference(n)
    )


def _bootstrap(differences: Sequence[np.ndarray]) -> tuple[float, float]:
    """Percentile interval of the mean of values in {-1, 0, 1}, tasks first, then episodes.

    Resampling n values of three kinds is one multinomial draw, so the cost does not grow with the episodes.
    """
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    count = len(differences)
    drawn = rng.integers(count, size=(RESAMPLES, count))
    total = np.zeros((RESAMPLES, count))
    size = np.zeros((RESAMPLES, count))
    for index, values in enumerate(differences):
        chosen = drawn == index
        shares = [float((values == v).mean()) for v in (-1, 0)]
        multinomial = rng.multinomial(
            len(values), [*shares, max(0.0, 1 - sum(shares))], size=int(chosen.sum())
        )
        total[chosen] = multinomial[:, 2] - multinomial[:, 0]
        size[chosen] = len(values)
    means = total.sum(1) / size.sum(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def relative_robustness(perturbed: float, clean: float) -> float | None:
    """SR perturbed / SR clean; ``None`` when nothing succeeds on clean input. Flatters weak policies: show both."""
    return perturbed / clean if clean > 0 else None


def severity_area(rates: Sequence[float]) -> float | None:
    """Area under success over severity, relative to clean.

    Args:
        rates: success rates at severities 0 (clean), 1, 2, 3, 4, 5.

    Returns:
        Trapezoid area / (5 x clean rate): 1 = nothing lost. ``None`` when the clean rate is 0.

    Raises:
        ValueError: not exactly six rates; a partial curve has no comparable area.
    """
    if len(rates) != 6:
        raise ValueError(f"The severity area needs the rates at severities 0..5, got {len(rates)} of them.")
    if rates[0] == 0:
        return None
    return float(np.trapezoid(rates)) / (5 * rates[0])


def mean_corruption_error(
    rates: Mapping[str, Sequence[float]], baseline: Mapping[str, Sequence[float]]
) -> tuple[float | None, tuple[str, ...]]:
    """Mean corruption error against the baseline, in per cent; below 100 = fewer failures than the baseline.

    Args:
        rates: per corruption type the success rates, one per severity.
        baseline: the same of the baseline policy.

    Returns:
        The mean over the types, and the types left out because the baseline does not fail in them at all (or because
        the baseline was not run with the same severities). ``None`` when no type is left.
    """
    errors, left_out = [], []
    for type_, values in rates.items():
        reference = baseline.get(type_, ())
        failures = sum(1 - r for r in reference)
        if len(reference) != len(values) or failures <= 0:
            left_out.append(type_)
        else:
            errors.append(sum(1 - r for r in values) / failures)
    return (100 * float(np.mean(errors)) if errors else None), tuple(left_out)


@dataclass(frozen=True)
class SubsetProfile:
    """Success over the subsets of modalities that are left.

    Attributes:
        subsets: number of subsets measured.
        mean: mean rate over them.
        worst: rate of the worst subset.
        worst_subset: which one it is.
        marginal: per modality, mean rate over subsets with it minus mean rate over those without it.
    """

    subsets: int
    mean: float
    worst: float
    worst_subset: tuple[str, ...]
    marginal: dict[str, float]


def subset_profile(rates: Mapping[tuple[str, ...], float]) -> SubsetProfile | None:
    """Summarise a complete subset table; ``None`` when a subset of the modalities that occur is missing."""
    modalities = list(dict.fromkeys(m for subset in rates for m in subset))
    expected = {s for r in range(1, len(modalities) + 1) for s in combinations(modalities, r)}
    if {frozenset(s) for s in expected} != {frozenset(s) for s in rates} or not rates:
        return None
    worst_subset = min(rates, key=lambda s: (rates[s], len(s)))
    marginal = {}
    for m in modalities:
        with_it = [r for s, r in rates.items() if m in s]
        without = [r for s, r in rates.items() if m not in s]
        if without:
            marginal[m] = float(np.mean(with_it) - np.mean(without))
    return SubsetProfile(
        len(rates), float(np.mean(list(rates.values()))), rates[worst_subset], worst_subset, marginal
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    order = np.argsort(p_values)
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted

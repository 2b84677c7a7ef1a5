"""Statistics of paired success rates: intervals, tests, and summaries of robustness.

Numbers in, numbers out: nothing here knows files, policies or environments. Rates are fractions in [0, 1]; what a caller
prints as points is its own business. Intervals and tests are those of scipy and statsmodels; the bootstrap over tasks and
then episodes is here, because neither has one that resamples in two stages.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from scipy import special, stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

CONFIDENCE = 0.95
RESAMPLES = 10_000
#: Seed of the bootstrap: the same results give the same report.
BOOTSTRAP_SEED = 20_240_607
#: The share of pairs in which exactly one arm succeeds that the power statement assumes (protocol, section 3).
ASSUMED_DISCORDANT = 0.15
_TAIL = (1 - CONFIDENCE) / 2
#: Weights of so many episodes are made at once; bounds the memory of a bootstrap [numbers].
_BLOCK = 4_000_000
#: Comparisons per matrix product; bounds the memory, too.
_COLUMNS = 256
#: Weights of runs up to this size are kept [episodes]: 10,000 resamples of 500 are 20 MB.
_KEPT = 500


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
class Pairs:
    """Two arms on the same episodes.

    Attributes:
        first: success of the first arm, bool (n,).
        second: success of the second arm, bool (n,).
        clusters: number of the episode's task, int (n,), ascending.
    """

    first: np.ndarray
    second: np.ndarray
    clusters: np.ndarray


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
        detectable: the difference that n pairs can show with 80 % power, if 15 % of the pairs are discordant, or as many
            as were, if more.
        ratio: rate of the second arm over rate of the first (with clean as first arm: the relative robustness); ``None``
            where the first never succeeds. It flatters weak policies: show rates, too.
        ratio_low: lower bound of its bootstrap interval; ``None`` where a resample has no success of the first arm.
        ratio_high: upper bound.
    """

    n: int
    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p_value: float
    detectable: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None


@dataclass(frozen=True)
class UnpairedDifference:
    """Difference of two arms on different episodes.

    Attributes:
        difference: rate of the second arm minus rate of the first.
        low: lower bound of Newcombe's interval.
        high: upper bound.
        detectable: the difference that so many episodes can show with 80 % power.
    """

    difference: float
    low: float
    high: float
    detectable: float


@lru_cache(maxsize=65536)
def wilson(successes: int, n: int) -> Rate:
    """Success rate with Wilson's score interval.

    Raises:
        ValueError: n is 0 or successes lie outside [0, n]; no rate is reported without episodes.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"A rate needs 0 <= successes <= n and n >= 1, got {successes} of {n}.")
    low, high = proportion_confint(successes, n, alpha=1 - CONFIDENCE, method="wilson")
    return Rate(successes, n, successes / n, max(0.0, float(low)), min(1.0, float(high)))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar p-value of the discordant pairs; 1 without any."""
    return min(1.0, 2 * float(special.bdtr(min(gained, lost), gained + lost, 0.5)))


def detectable_difference(
    n: int, discordant: float = ASSUMED_DISCORDANT, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Smallest true difference that ``n`` pairs show with the given power (normal approximation).

    Args:
        n: number of pairs.
        discordant: expected share of pairs in which exactly one arm succeeds.
        power: probability to find the difference.
        alpha: two-sided level.
    """
    return _quantiles(power, alpha) * math.sqrt(discordant / n)


def detectable_unpaired(
    n: int, rate: float = 0.8, power: float = 0.8, alpha: float = 0.05, other: int | None = None
) -> float:
    """The same for two independent arms of ``n`` (and ``other``) episodes around ``rate``: what pairing saves."""
    variance = rate * (1 - rate) * (1 / n + 1 / (other or n))
    return _quantiles(power, alpha) * math.sqrt(variance)


@lru_cache
def _quantiles(power: float, alpha: float) -> float:
    return float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power))


def unpaired_difference(first: Rate, second: Rate) -> UnpairedDifference:
    """Compare two arms that ran different episodes (Newcombe's interval from the two Wilson intervals)."""
    low, high = confint_proportions_2indep(
        second.successes, second.n, first.successes, first.n, compare="diff", method="newcomb"
    )
    detectable = detectable_unpaired(first.n, other=second.n)
    return UnpairedDifference(second.rate - first.rate, float(low), float(high), detectable)


def paired_difference(pairs: Pairs) -> PairedDifference:
    """Compare two arms on the same episodes; see :func:`paired_differences`."""
    return paired_differences([pairs])[0]


def paired_differences(comparisons: Sequence[Pairs]) -> list[PairedDifference]:
    """Compare two arms on the same episodes, many times.

    Intervals come from a bootstrap that resamples tasks and then episodes within each drawn task, because episodes of one
    task succeed and fail together. Comparisons of the same numbers of episodes share their resamples, so that they are
    one matrix product.

    Raises:
        ValueError: a comparison has no pairs.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, pairs in enumerate(comparisons):
        if not len(pairs.first):
            raise ValueError("A paired difference needs at least one episode that both arms have run.")
        groups[_sizes(pairs.clusters)].append(place)
    results: dict[int, PairedDifference] = {}
    for sizes, members in groups.items():
        for start in range(0, len(members), _COLUMNS):
            places = members[start : start + _COLUMNS]
            arms = [getattr(comparisons[p], arm) for arm in ("first", "second") for p in places]
            first, second = np.split(resampled_means(np.stack(arms), sizes), 2)
            differences = _interval(second - first)
            ratios = _interval(second / np.where(first > 0, first, np.nan))
            for place, difference, ratio in zip(places, differences, ratios, strict=True):
                results[place] = _paired(comparisons[place], difference, ratio)
    return [results[p] for p in range(len(comparisons))]


def _interval(resamples: np.ndarray) -> np.ndarray:
    """Percentile interval over the last axis, which becomes (low, high); NaN where a resample is."""
    return np.moveaxis(np.quantile(resamples, [_TAIL, 1 - _TAIL], axis=-1, overwrite_input=True), 0, -1)


def _paired(pairs: Pairs, interval: np.ndarray, ratio_interval: np.ndarray) -> PairedDifference:
    n, before, after = len(pairs.first), pairs.first.astype(bool), pairs.second.astype(bool)
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return PairedDifference(
        n, (gained - lost) / n, float(interval[0]), float(interval[1]), gained, lost, mcnemar(gained, lost),
        detectable_difference(n, max(ASSUMED_DISCORDANT, (gained + lost) / n)), relative_robustness(after.mean(), before.mean()),
        _number(ratio_interval[0]), _number(ratio_interval[1]),
    )  # fmt: skip


def _number(value: np.floating) -> float | None:
    return None if np.isnan(value) else float(value)


def _sizes(clusters: np.ndarray) -> tuple[int, ...]:
    """Episodes per task, in order.

    Raises:
        ValueError: the tasks are not ascending.
    """
    if (np.diff(clusters) < 0).any():
        raise ValueError("Episodes must be sorted by task.")
    return tuple(int(c) for c in np.unique(clusters, return_counts=True)[1])


def resampled_means(values: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Means of resampled episodes.

    Args:
        values: one number per quantity and episode, (k, n), episodes sorted by task.
        sizes: episodes per task.

    Returns:
        float32 (k, RESAMPLES).
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    blocks = _kept_weights(sizes) if sum(sizes) <= _KEPT else _weights(sizes)
    return np.concatenate([values @ w.T for w in blocks], axis=1)


@lru_cache(maxsize=4)
def _kept_weights(sizes: tuple[int, ...]) -> list[np.ndarray]:
    """The same weights for all comparisons of a usual run: making them takes longer than using them."""
    return list(_weights(sizes))


def _weights(sizes: tuple[int, ...]) -> Iterator[np.ndarray]:
    """How much each episode counts in a resample, float32 (block, n), rows adding to 1; tasks are drawn, then episodes."""
    count = np.asarray(sizes)
    n, longest, first = int(count.sum()), int(count.max()), np.cumsum(count) - count
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    block = max(1, min(RESAMPLES, _BLOCK // max(n, longest * len(count))))
    for start in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - start)
        tasks = rng.integers(len(count), size=(rows, len(count), 1))
        drawn = rng.random((rows, len(count), longest), dtype=np.float32)
        # A float32 just below 1 times a size may round up to it.
        inside = np.minimum((drawn * count[tasks]).astype(np.int64), count[tasks] - 1)
        episodes = inside + first[tasks] + n * np.arange(rows)[:, None, None]
        used = np.broadcast_to(np.arange(longest) < count[tasks], episodes.shape)
        weights = np.bincount(episodes[used], minlength=rows * n).reshape(rows, n).astype(np.float32)
        yield weights / weights.sum(1, keepdims=True)


def mean_ratio_interval(
    numerators: np.ndarray, denominators: np.ndarray, clusters: np.ndarray
) -> tuple[float | None, float | None]:
    """Bootstrap interval of the mean over k quantities of (mean numerator / mean denominator).

    Severity area, mean corruption error and mean over subsets are of this kind.

    Args:
        numerators: (k, n), episodes sorted by task.
        denominators: (k, n).
        clusters: task of each episode, int (n,).

    Returns:
        Lower and upper bound; ``None`` where a resample has a denominator of zero.
    """
    values = np.concatenate([numerators, denominators])
    above, below = np.split(resampled_means(values, _sizes(clusters)), 2)
    low, high = _interval((above / np.where(below > 0, below, np.nan)).mean(0))
    return _number(low), _number(high)


def relative_robustness(perturbed: float, clean: float) -> float | None:
    """SR perturbed / SR clean; ``None`` when nothing succeeds on clean input. Flatters weak policies: show both."""
    return float(perturbed / clean) if clean > 0 else None


#: Trapezoid weights of the severities 0 to 5, divided by the five steps: their product with six rates is the mean rate.
AREA_WEIGHTS = np.array([0.5, 1, 1, 1, 1, 0.5]) / 5


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
    return float(AREA_WEIGHTS @ np.asarray(rates)) / rates[0] if rates[0] > 0 else None


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
    """Holm's step-down adjusted p-values, in the order given.

    The same numbers as statsmodels' ``multipletests(method="holm")``, which collects garbage at every call: with a
    family per policy, suite and group of conditions that took ten times as long as all the rest of a report.
    """
    order = np.argsort(p_values)
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def auroc(positive: np.ndarray, negative: np.ndarray) -> float | None:
    """Probability that a value of the first kind exceeds one of the second (ties count half); ``None`` without either."""
    if not len(positive) or not len(negative):
        return None
    statistic = stats.mannwhitneyu(positive, negative, method="asymptotic").statistic
    return float(statistic / (len(positive) * len(negative)))

"""Bootstrap over tasks and then starts: intervals of paired differences and of figures over many conditions.

Written here because neither scipy nor statsmodels has a bootstrap that resamples in two stages. The unit
below the task is the *start* (an initial state of a task), not the episode: repetitions of a start with other
policy noise succeed and fail together, so they stay together in a resample.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from multismolvla_eval.analysis.statistics import (
    ASSUMED_DISCORDANT,
    CONFIDENCE,
    detectable_difference,
    mcnemar,
    wilson,
)

RESAMPLES = 10_000
#: Seed of the bootstrap: the same results give the same report.
BOOTSTRAP_SEED = 20_240_607
_TAIL = (1 - CONFIDENCE) / 2
#: Weights of so many starts are made at once; bounds the memory of a bootstrap [numbers].
_BLOCK = 4_000_000
#: Comparisons per matrix product; bounds the memory, too.
_COLUMNS = 256
#: Bounds that differ by less are equal: resamples are float32.
_EQUAL = 1e-6
#: Weights of runs up to this size are kept [starts]: 10,000 resamples of 500 are 20 MB.
_KEPT = 500


@dataclass(frozen=True)
class Pairs:
    """Two cells on the same n starts."""

    first: np.ndarray  # share of the first cell's episodes that succeed, per start, float (n,) in [0, 1]
    second: np.ndarray  # the same of the second cell, in the same order, float (n,)
    clusters: np.ndarray  # number of the start's task, int (n,), ascending
    episodes: int  # per cell, at least n


@dataclass(frozen=True)
class PairedDifference:
    """Difference of two cells on the same starts, second minus first, with bootstrap intervals."""

    n: int  # pairs, one per start
    episodes: int  # per cell; more than n where starts are repeated
    difference: float
    low: float
    high: float
    gained: int  # starts at which the second cell succeeds more often
    lost: int  # starts at which the first cell does
    p_value: float  # exact McNemar, two-sided: the sign test over the starts that differ
    #: What n pairs can show with 80 % power, if 15 % of them are discordant, or as many as were, if more.
    detectable: float
    #: Rate of the second cell over that of the first (with clean as the first: the relative robustness);
    #: ``None`` where the first never succeeds. It flatters weak policies: show rates, too.
    ratio: float | None
    ratio_low: float | None  # None where a resample has no success of the first cell
    ratio_high: float | None


def paired_differences(comparisons: Sequence[Pairs]) -> list[PairedDifference]:
    """Compare two cells on the same starts, many times.

    The bootstrap resamples tasks and then starts within each drawn task, because episodes of one task succeed
    and fail together. Comparisons with the same numbers of starts share their resamples: one matrix product
    for all.

    Raises:
        ValueError: a comparison has no pairs.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, pairs in enumerate(comparisons):
        if not len(pairs.first):
            raise ValueError("A paired difference needs at least one episode that both cells have run.")
        groups[task_sizes(pairs.clusters)].append(place)
    results: dict[int, PairedDifference] = {}
    for sizes, members in groups.items():
        for start in range(0, len(members), _COLUMNS):
            places = members[start : start + _COLUMNS]
            shares = [comparisons[p].first for p in places] + [comparisons[p].second for p in places]
            first, second = np.split(resampled_means(np.stack(shares), sizes), 2)
            differences = percentile_interval(second - first)
            ratios = percentile_interval(second / np.where(first > 0, first, np.nan))
            for place, difference, ratio in zip(places, differences, ratios, strict=True):
                results[place] = _paired(comparisons[place], difference, ratio)
    return [results[p] for p in range(len(comparisons))]


def percentile_interval(resamples: np.ndarray) -> np.ndarray:
    """95 % interval over the last axis, which becomes (low, high); NaN where a resample is."""
    return np.moveaxis(np.quantile(resamples, [_TAIL, 1 - _TAIL], axis=-1, overwrite_input=True), 0, -1)


def _paired(pairs: Pairs, interval: np.ndarray, ratio_interval: np.ndarray) -> PairedDifference:
    """A comparison's figures.

    If all n pairs give the same, so do all resamples, and their interval has no width. But a kind of pair
    that did not occur among n may still make up a share of up to Wilson's bound for 0 of n: there the
    interval is what such a share of opposite pairs would make of the value.
    """
    change = pairs.second - pairs.first
    n, gained, lost = len(change), int((change > 0).sum()), int((change < 0).sum())
    difference, clean = float(change.mean()), float(pairs.first.mean())
    ratio = float(pairs.second.mean()) / clean if clean else None
    unseen = wilson(0, n).high
    low, high = map(float, interval)
    if high - low <= _EQUAL:
        low, high = difference - unseen * (1 + difference), difference + unseen * (1 - difference)
    ratio_low = ratio_high = None
    if ratio is not None and not np.isnan(ratio_interval).any():
        ratio_low, ratio_high = map(float, ratio_interval)
        if ratio_high - ratio_low <= _EQUAL:
            ratio_low = max(0.0, ratio - unseen / clean)
            ratio_high = min(1.0, clean * ratio + unseen) / clean
    discordant = max(ASSUMED_DISCORDANT, float(np.square(change).mean()))
    return PairedDifference(
        n, pairs.episodes, difference, low, high, gained, lost, mcnemar(gained, lost),
        detectable_difference(n, discordant), ratio, ratio_low, ratio_high,
    )  # fmt: skip


def task_sizes(clusters: np.ndarray) -> tuple[int, ...]:
    """Starts per task, in order.

    Raises:
        ValueError: the tasks are not ascending.
    """
    if (np.diff(clusters) < 0).any():
        raise ValueError("Starts must be sorted by task.")
    return tuple(int(c) for c in np.unique(clusters, return_counts=True)[1])


def resampled_means(values: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Means of resampled starts.

    Args:
        values: one number per quantity and start, (k, n), starts sorted by task.
        sizes: starts per task.

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
    """Weight of each start in resamples, float32 (block, n), rows adding to 1: draws tasks, then starts."""
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
        starts = inside + first[tasks] + n * np.arange(rows)[:, None, None]
        used = np.broadcast_to(np.arange(longest) < count[tasks], starts.shape)
        weights = np.bincount(starts[used], minlength=rows * n).reshape(rows, n).astype(np.float32)
        yield weights / weights.sum(1, keepdims=True)


def rate_interval(by_cluster: Sequence[np.ndarray]) -> tuple[float, float]:
    """95 % interval of a share of successes.

    With one cluster Wilson's interval of its starts. With more, such as training seeds, also the bootstrap of
    clusters and then of each one's starts, so that what differs from training to training is in it; the wider
    bound of both, because the bootstrap of nothing but failures has no width.

    Args:
        by_cluster: of each cluster the outcomes of its starts, 0 or 1.
    """
    outcomes = np.concatenate(by_cluster)
    rate = wilson(int(outcomes.sum()), len(outcomes))
    if len(by_cluster) == 1:
        return rate.low, rate.high
    low, high = percentile_interval(resampled_means(outcomes[None], tuple(map(len, by_cluster))))[0]
    return min(float(low), rate.low), max(float(high), rate.high)


def rate_text(by_cluster: Sequence[np.ndarray]) -> str:
    """``40/50 (67–89 %)``: successes with the interval of `rate_interval`, of at least one outcome."""
    outcomes = np.concatenate(by_cluster)
    low, high = rate_interval(by_cluster)
    return f"{outcomes.sum()}/{len(outcomes)} ({100 * low:.0f}–{100 * high:.0f} %)"


def pooled_auroc(runs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float, float]:
    """Area under the ROC curve, in the mean of several runs' own, with its 95 % interval.

    The bootstrap draws runs, then starts with both of their scores. What a start adds to the area is the
    share of the run's negatives that its positive exceeds, and of the positives that exceed its negative
    (DeLong et al. 1988). Where all resamples are equal, the interval is made as in `paired_differences`.

    Args:
        runs: of each run the scores of n starts, n > 0, in two cells: (positive, negative), float (n,) each.

    Returns:
        Area, lower and upper bound.
    """
    added = []
    for positive, negative in runs:
        above = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
        added.append(above.mean(1) + above.mean(0) - above.mean())
    values = np.concatenate(added)
    area = float(values.mean())
    low, high = percentile_interval(resampled_means(values[None], tuple(map(len, added))))[0]
    if high - low <= _EQUAL:
        unseen = wilson(0, len(values)).high
        return area, area * (1 - unseen), area + unseen * (1 - area)
    return area, max(0.0, float(low)), min(1.0, float(high))


def resampled_ratios(numerators: np.ndarray, denominators: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Resamples of k quantities of the kind (mean numerator / mean denominator), on the same starts.

    Severity areas and corruption errors are of this kind; the mean of some rows is a resample of the mean
    over types.

    Args:
        numerators: (k, n), starts sorted by task.
        denominators: (k, n).
        clusters: task of each start, int (n,).

    Returns:
        float32 (k, RESAMPLES); NaN where a resample has a denominator of zero.
    """
    values = np.concatenate([numerators, denominators])
    above, below = np.split(resampled_means(values, task_sizes(clusters)), 2)
    return above / np.where(below > 0, below, np.nan)


def interval_of(resamples: np.ndarray) -> tuple[float | None, float | None, str]:
    """Percentile interval of one quantity's resamples (RESAMPLES,), and the reason where there is none."""
    low, high = percentile_interval(np.array(resamples)).tolist()
    if math.isnan(low) or math.isnan(high):
        return None, None, "some resamples have nothing to divide by"
    if high - low <= _EQUAL:
        return None, None, "all resamples are equal"
    return low, high, ""

"""Bootstrap over tasks and then starts: intervals of paired differences and of figures over many conditions.

Numbers in, numbers out, as in :mod:`multismolvla_eval.analysis.statistics`. It is written here because neither scipy nor statsmodels
has a bootstrap that resamples in two stages. The unit below the task is the *start* (an initial state of a task), not the
episode: repetitions of a start with other policy noise succeed and fail together, so they stay together in a resample.
"""

from __future__ import annotations

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
    relative_robustness,
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
    """Two arms on the same starts.

    Attributes:
        first: share of the first arm's episodes that succeed, per start, float (n,) in [0, 1]; of one episode 0 or 1.
        second: the same of the second arm, in the same order, float (n,).
        clusters: number of the start's task, int (n,), ascending.
        episodes: episodes per arm, at least n.
    """

    first: np.ndarray
    second: np.ndarray
    clusters: np.ndarray
    episodes: int


@dataclass(frozen=True)
class PairedDifference:
    """Difference of two arms on the same starts.

    Attributes:
        n: pairs, one per start.
        episodes: episodes per arm; more than n where starts are repeated.
        difference: rate of the second arm minus rate of the first.
        low: lower bound of the bootstrap interval.
        high: upper bound.
        gained: starts at which the second arm succeeds more often.
        lost: starts at which the first arm does.
        p_value: exact McNemar, two-sided: the sign test over the starts that differ.
        detectable: the difference that n pairs can show with 80 % power, if 15 % of the pairs are discordant, or as many
            as were, if more.
        ratio: rate of the second arm over rate of the first (with clean as first arm: the relative robustness); ``None``
            where the first never succeeds. It flatters weak policies: show rates, too.
        ratio_low: lower bound of its bootstrap interval; ``None`` where a resample has no success of the first arm.
        ratio_high: upper bound.
    """

    n: int
    episodes: int
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
class Interval:
    """A bootstrap interval, or why there is none.

    Attributes:
        low: lower bound; ``None`` without an interval.
        high: upper bound.
        why: reason why there is none; empty if there is one.
    """

    low: float | None
    high: float | None
    why: str = ""


def paired_difference(pairs: Pairs) -> PairedDifference:
    """Compare two arms on the same starts; see :func:`paired_differences`."""
    return paired_differences([pairs])[0]


def paired_differences(comparisons: Sequence[Pairs]) -> list[PairedDifference]:
    """Compare two arms on the same starts, many times.

    Intervals come from a bootstrap that resamples tasks and then starts within each drawn task, because episodes of one
    task succeed and fail together. Comparisons of the same numbers of starts share their resamples, so that they are
    one matrix product.

    Raises:
        ValueError: a comparison has no pairs.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, pairs in enumerate(comparisons):
        if not len(pairs.first):
            raise ValueError("A paired difference needs at least one episode that both arms have run.")
        groups[task_sizes(pairs.clusters)].append(place)
    results: dict[int, PairedDifference] = {}
    for sizes, members in groups.items():
        for start in range(0, len(members), _COLUMNS):
            places = members[start : start + _COLUMNS]
            arms = [getattr(comparisons[p], arm) for arm in ("first", "second") for p in places]
            first, second = np.split(resampled_means(np.stack(arms), sizes), 2)
            differences = _quantiles(second - first)
            ratios = _quantiles(second / np.where(first > 0, first, np.nan))
            for place, difference, ratio in zip(places, differences, ratios, strict=True):
                results[place] = _paired(comparisons[place], difference, ratio)
    return [results[p] for p in range(len(comparisons))]


def _quantiles(resamples: np.ndarray) -> np.ndarray:
    """Percentile interval over the last axis, which becomes (low, high); NaN where a resample is."""
    return np.moveaxis(np.quantile(resamples, [_TAIL, 1 - _TAIL], axis=-1, overwrite_input=True), 0, -1)


def _paired(pairs: Pairs, interval: np.ndarray, ratio_interval: np.ndarray) -> PairedDifference:
    """A comparison's figures.

    If all n pairs give the same, so do all resamples, and their interval has no width. But a kind of pair that did not
    occur among n may still make up a share of up to Wilson's bound for 0 of n: there the interval is what such a share of
    opposite pairs would make of the value.
    """
    change = pairs.second - pairs.first
    n, gained, lost = len(change), int((change > 0).sum()), int((change < 0).sum())
    difference, clean = float(change.mean()), float(pairs.first.mean())
    ratio = relative_robustness(float(pairs.second.mean()), clean)
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
        n, pairs.episodes, difference, low, high, gained, lost, mcnemar(gained, lost), detectable_difference(n, discordant),
        ratio, ratio_low, ratio_high,
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
    """How much each start counts in a resample, float32 (block, n), rows adding to 1; tasks are drawn, then starts."""
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


def resampled_ratios(numerators: np.ndarray, denominators: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Resamples of k quantities of the kind (mean numerator / mean denominator), on the same starts.

    Severity areas and corruption errors are of this kind; the mean of some rows is a resample of the mean over types.

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


def interval_of(resamples: np.ndarray) -> Interval:
    """Percentile interval of one quantity's resamples (RESAMPLES,), or why it has none."""
    low, high = _quantiles(np.array(resamples))
    if np.isnan(low) or np.isnan(high):
        return Interval(None, None, "some resamples have nothing to divide by")
    if high - low <= _EQUAL:
        return Interval(None, None, "all resamples are equal")
    return Interval(float(low), float(high))

"""Statistics of success rates: intervals, tests, power, and summaries of robustness.

Numbers in, numbers out: nothing here knows files, policies or environments. Rates are fractions in [0, 1].
Intervals and tests are those of scipy and statsmodels; the bootstrap over tasks and then starts, which
neither has, is in `.bootstrap`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from scipy import special
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

CONFIDENCE = 0.95
#: Share of pairs in which exactly one cell succeeds that the power statement assumes (protocol, section 3).
ASSUMED_DISCORDANT = 0.15
#: Standard errors of a difference that is found with 80 % power at the two-sided level of 5 %.
_DETECTED = float(special.ndtri(1 - 0.05 / 2) + special.ndtri(0.8))


@dataclass(frozen=True)
class Rate:
    """A success rate with its 95 % Wilson interval."""

    successes: int
    n: int  # episodes
    rate: float
    low: float
    high: float
    starts: int  # different initial states of tasks among the episodes
    # Independent episodes that tell as much, for which the interval is; n if no start is repeated.
    effective: float


@dataclass(frozen=True)
class UnpairedDifference:
    """Difference of two cells on different episodes, second minus first, with Newcombe's interval."""

    difference: float
    low: float
    high: float
    detectable: float  # with 80 % power around the rate of both together


@lru_cache(maxsize=65536)
def wilson(successes: int, n: int) -> Rate:
    """Success rate with Wilson's score interval, of episodes with different starts.

    Raises:
        ValueError: n is 0 or successes lie outside [0, n]; no rate is reported without episodes.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"A rate needs 0 <= successes <= n and n >= 1, got {successes} of {n}.")
    return Rate(successes, n, successes / n, *_score_interval(successes / n, n), n, float(n))


def _score_interval(rate: float, n: float) -> tuple[float, float]:
    low, high = proportion_confint(rate * n, n, alpha=1 - CONFIDENCE, method="wilson")
    # At 0 and 1, statsmodels' bounds miss by a rounding.
    return 0.0 if rate == 0 else float(low), 1.0 if rate == 1 else float(high)


def clustered_rate(success: np.ndarray, starts: np.ndarray) -> Rate:
    """Success rate of episodes of which several may have the same start, as in the repeated clean condition.

    Repetitions of a start (other policy noise, same initial state) are no independent episodes: if the start
    decides, they tell nothing new; if chance decides, they tell as much as others. How much they tell is
    estimated as the design effect (Kish 1965): the variance of the rate that the spread between starts shows,
    over the variance of independent episodes. The interval is Wilson's for n / design effect episodes, which
    is at least the number of starts and at most n. Where all or none succeed there is no spread to see, and
    the number of starts counts.

    Args:
        success: bool (n,).
        starts: number of the episode's start, int (n,).

    Raises:
        ValueError: no episodes.
    """
    n, successes = len(success), int(success.sum())
    _, place, count = np.unique(starts, return_inverse=True, return_counts=True)
    clusters = len(count)
    if clusters == n:
        return wilson(successes, n)
    rate, effective = successes / n, float(clusters)
    if clusters > 1 and 0 < successes < n:
        residuals = np.bincount(place, success) - rate * count
        variance = clusters / (clusters - 1) * float(residuals @ residuals) / n**2
        worth = rate * (1 - rate) / variance if variance else math.inf
        effective = float(min(n, max(clusters, worth)))
    return Rate(successes, n, rate, *_score_interval(rate, effective), clusters, effective)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar p-value of the discordant pairs; 1 without any."""
    return min(1.0, 2 * float(special.bdtr(min(gained, lost), gained + lost, 0.5)))


def detectable_difference(n: int, discordant: float = ASSUMED_DISCORDANT) -> float:
    """Smallest true difference that ``n`` pairs show (normal approximation).

    Args:
        n: number of pairs.
        discordant: expected share of pairs in which exactly one cell succeeds.
    """
    return _DETECTED * math.sqrt(discordant / n)


def detectable_unpaired(n: float, rate: float = 0.8, other: float | None = None) -> float:
    """The same for two independent cells of ``n`` (and ``other``) episodes around ``rate``."""
    return _DETECTED * math.sqrt(rate * (1 - rate) * (1 / n + 1 / (other or n)))


def unpaired_difference(first: Rate, second: Rate) -> UnpairedDifference:
    """Compare two cells of different episodes (Newcombe 1998, method 10, from the two Wilson intervals)."""
    low, high = confint_proportions_2indep(
        second.rate * second.effective, second.effective, first.rate * first.effective, first.effective,
        compare="diff", method="newcomb", alpha=1 - CONFIDENCE,
    )  # fmt: skip
    # Two successes and two failures more (Agresti and Coull 1998): where all succeed, the chance is not 100
    # %.
    successes = first.rate * first.effective + second.rate * second.effective
    pooled = (successes + 2) / (first.effective + second.effective + 4)
    detectable = detectable_unpaired(first.effective, pooled, other=second.effective)
    return UnpairedDifference(second.rate - first.rate, float(low), float(high), detectable)


#: Trapezoid weights of the severities 0 to 5, divided by the five steps: their product with six rates is the
#: mean rate, and that over the clean rate is the severity area: 1 = nothing lost.
AREA_WEIGHTS = np.array([0.5, 1, 1, 1, 1, 0.5]) / 5


def marginal_weights(subsets: Sequence[Collection[str]]) -> dict[str, np.ndarray] | None:
    """What each modality is worth, as weights of the success rates over the subsets that are left.

    Args:
        subsets: of modalities, one per rate.

    Returns:
        Per modality float (subsets,): mean rate over the subsets with it minus mean rate over those without
        it. ``None`` when a subset of the modalities that occur is missing: a partial table has no fair mean.
    """
    modalities = list(dict.fromkeys(m for subset in subsets for m in subset))
    expected = {frozenset(s) for r in range(1, len(modalities) + 1) for s in combinations(modalities, r)}
    if not subsets or expected != {frozenset(s) for s in subsets}:
        return None
    found = {}
    for modality in modalities:
        with_it = np.array([modality in s for s in subsets])
        if not with_it.all():
            found[modality] = with_it / with_it.sum() - ~with_it / (~with_it).sum()
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (statsmodels' collect garbage at every call)."""
    values = np.asarray(p_values, float)
    order = np.argsort(values)
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1)
    return [float(p) for p in adjusted]


def auroc(positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray) -> float:
    """Probability that a value of the first kind exceeds one of the second; ties count half, none is NaN."""
    from scipy import stats

    if not len(positive) or not len(negative):
        return math.nan
    statistic = stats.mannwhitneyu(positive, negative, method="asymptotic").statistic
    return float(statistic / (len(positive) * len(negative)))

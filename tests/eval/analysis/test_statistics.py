"""Statistics against the reference values of the protocol and against direct computation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from multismolvla_eval.analysis.bootstrap import (
    Pairs,
    interval_of,
    paired_differences,
    pooled_auroc,
    rate_interval,
    resampled_ratios,
)
from multismolvla_eval.analysis.statistics import (
    AREA_WEIGHTS,
    auroc,
    clustered_rate,
    detectable_difference,
    detectable_unpaired,
    holm,
    marginal_weights,
    mcnemar,
    unpaired_difference,
    wilson,
)


def pairs_of(tasks):
    """Pairs from ``{task: [(success of the first cell, of the second)]}``."""
    rows = [(t, a, b) for t, pairs in tasks.items() for a, b in pairs]
    clusters, first, second = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return Pairs(first.astype(float), second.astype(float), clusters, len(rows))


def paired_difference(pairs):
    return paired_differences([pairs])[0]


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (30, 50, 46.2, 72.4),
        (0, 50, 0.0, 7.1),
        (85, 100, 76.7, 90.7),
        (340, 400, 81.2, 88.2),
        (425, 500, 81.6, 87.9),
        (1700, 2000, 83.4, 86.5),
    ],
)
def test_wilson_reference_values(k, n, low, high):
    rate = wilson(k, n)
    assert 100 * rate.low == pytest.approx(low, abs=0.06)
    assert 100 * rate.high == pytest.approx(high, abs=0.06)
    assert rate.rate == k / n


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_no_rate_without_episodes(k, n):
    with pytest.raises(ValueError, match="n >= 1"):
        wilson(k, n)


@pytest.mark.parametrize(("n", "points"), [(50, 15.3), (200, 7.7), (400, 5.4), (500, 4.9), (1000, 3.4)])
def test_detectable_difference_reference_values(n, points):
    assert 100 * detectable_difference(n) == pytest.approx(points, abs=0.06)


@pytest.mark.parametrize(("n", "points"), [(50, 22), (200, 11), (400, 7.9), (500, 7.1), (1000, 5.0)])
def test_detectable_unpaired_reference_values(n, points):
    assert 100 * detectable_unpaired(n) == pytest.approx(points, abs=0.5)


def test_mcnemar_is_the_exact_binomial_test():
    from statsmodels.stats.contingency_tables import mcnemar as reference

    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 6) == pytest.approx(2 * 0.5**6)
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) * 0.5**10)
    for gained, lost in ((9, 1), (3, 14), (120, 90)):
        assert mcnemar(gained, lost) == pytest.approx(reference([[5, gained], [lost, 5]], exact=True).pvalue)


def test_paired_difference_counts_and_signs():
    pairs = pairs_of({0: [(True, False)] * 8 + [(True, True)] * 2, 1: [(False, False)] * 9 + [(False, True)]})
    result = paired_difference(pairs)
    assert (result.n, result.lost, result.gained) == (20, 8, 1)
    assert result.difference == pytest.approx(-7 / 20)
    assert result.low <= result.difference <= result.high
    assert result.p_value == mcnemar(1, 8)
    assert result.ratio == pytest.approx(3 / 10)
    assert result.ratio_low is None, "a resample of the second task alone has no success of the first arm"
    assert paired_difference(pairs) == result, "the seed is fixed"
    flipped = paired_difference(Pairs(pairs.second, pairs.first, pairs.clusters, pairs.episodes))
    assert flipped.difference == -result.difference


def test_power_statement_uses_the_observed_discordance_where_it_is_worse():
    calm = pairs_of({0: [(True, True)] * 95 + [(True, False)] * 5})
    assert paired_difference(calm).detectable == detectable_difference(100)
    wild = pairs_of({0: [(True, False)] * 30 + [(False, True)] * 30 + [(True, True)] * 40})
    assert paired_difference(wild).detectable == pytest.approx(detectable_difference(100, discordant=0.6))


def test_bootstrap_matches_a_plain_implementation():
    rng = np.random.default_rng(0)
    sizes = (20, 12, 20, 7)  # tasks may have different numbers of episodes
    tasks = {
        t: [(bool(a), bool(b)) for a, b in rng.random((n, 2)) < (0.8, 0.3 + 0.1 * t)]
        for t, n in enumerate(sizes)
    }
    result = paired_difference(pairs_of(tasks))
    means, ratios = [], []
    for _ in range(4000):
        sample = []
        for task in rng.integers(4, size=4):
            episodes = tasks[int(task)]
            sample += [episodes[i] for i in rng.integers(len(episodes), size=len(episodes))]
        first, second = np.mean(sample, axis=0)
        means.append(second - first)
        ratios.append(second / first)
    low, high = np.quantile(means, [0.025, 0.975])
    assert result.low == pytest.approx(low, abs=0.03)
    assert result.high == pytest.approx(high, abs=0.03)
    low, high = np.quantile(ratios, [0.025, 0.975])
    assert result.ratio_low == pytest.approx(low, abs=0.03)
    assert result.ratio_high == pytest.approx(high, abs=0.03)


def test_tasks_widen_the_interval_where_episodes_of_a_task_go_together():
    together = pairs_of({t: [(True, t % 2 == 0)] * 10 for t in range(10)})
    mixed = pairs_of({t: [(True, True)] * 5 + [(True, False)] * 5 for t in range(10)})
    wide, narrow = (r.high - r.low for r in paired_differences([together, mixed]))
    assert wide > 2 * narrow


def test_many_comparisons_at_once_are_the_same_as_one_by_one():
    rng = np.random.default_rng(3)
    several = [
        pairs_of({t: rng.random((n, 2)) < 0.6 for t, n in enumerate(sizes)})
        for sizes in ((5, 5), (4, 6, 5), (5, 5), (1,))
    ]
    assert paired_differences(several) == [paired_difference(p) for p in several]


@pytest.mark.parametrize(
    ("outcome", "difference"), [((1, 1), 0), ((0, 0), 0), ((0, 1), 1), ((1, 0), -1)], ids=str
)
def test_pairs_that_are_all_equal_have_an_interval_of_some_width(outcome, difference):
    """The bootstrap alone would give no width, as if five pairs had settled it."""
    few, many = (paired_difference(pairs_of({0: [outcome] * n})) for n in (5, 500))
    for result in (few, many):
        assert result.difference == difference
        assert -1 <= result.low <= difference <= result.high <= 1
        assert result.ratio is None or result.ratio_low <= result.ratio <= result.ratio_high
    unseen = wilson(0, 5).high
    assert few.high - few.low == pytest.approx(2 * unseen)
    assert 0 < many.high - many.low < 0.02
    if outcome[0]:
        assert few.ratio_high - few.ratio_low == pytest.approx(unseen)


def test_a_paired_difference_needs_pairs_in_order():
    with pytest.raises(ValueError, match="at least one episode"):
        paired_difference(Pairs(np.zeros(0), np.zeros(0), np.zeros(0), 0))
    with pytest.raises(ValueError, match="sorted by task"):
        paired_difference(Pairs(np.ones(2), np.ones(2), np.array([1, 0]), 2))


def test_nothing_but_failures_is_not_certainty():
    low, high = rate_interval([np.zeros(21), np.zeros(21)])
    assert low == 0
    assert 0.05 < high < 0.15


def test_clusters_that_differ_widen_the_interval():
    alike = rate_interval([np.array([1, 0] * 10)] * 3)
    apart = rate_interval([np.zeros(20), np.ones(20), np.array([1, 0] * 10)])
    assert apart[0] < alike[0] - 0.1
    assert apart[1] > alike[1] + 0.1


@pytest.mark.parametrize("sign", [1, -1], ids=["false alarms", "missed faults"])
def test_an_area_under_the_curve_and_its_interval_match_a_plain_bootstrap(sign):
    rng = np.random.default_rng(0)
    negative = np.where(rng.random(60) < 0.2, 2, 0) + rng.normal(0, 0.5, 60).round(1)
    positive = negative * 0.2 + rng.normal(1, 0.5, 60).round(1)  # a start's scores go together
    if sign < 0:
        positive, negative = -negative, -positive
    area, low, high = pooled_auroc([(positive, negative)])
    assert area == pytest.approx(auroc(positive, negative))
    above = np.sign(positive[:, None] - negative) / 2 + 0.5
    drawn = (rng.integers(60, size=60) for _ in range(4000))
    bounds = np.quantile([above[np.ix_(i, i)].mean() for i in drawn], [0.025, 0.975])
    assert (low, high) == pytest.approx(bounds, abs=0.02)


def test_areas_are_of_scores_of_the_same_run():
    run = (np.array([3.0, 4.0, 5.0]), np.array([0.0, 1.0, 2.0]))
    far = tuple(scores + 10 for scores in run)
    area, low, high = pooled_auroc([run, far])
    assert (area, high) == (1, 1)
    assert low == pytest.approx(1 - wilson(0, 6).high), "six starts do not settle it"


def test_repetitions_of_a_start_count_as_much_as_they_tell():
    starts = np.repeat(np.arange(50), 3)
    decided = np.repeat(np.arange(50) < 30, 3)  # the start decides: three times the same
    rate = clustered_rate(decided, starts)
    assert (rate.successes, rate.n, rate.starts, rate.effective) == (90, 150, 50, 50)
    assert (rate.low, rate.high) == (wilson(30, 50).low, wilson(30, 50).high)
    chance = np.random.default_rng(0).random(3000) < 0.6  # noise decides
    rate = clustered_rate(chance, np.repeat(np.arange(1000), 3))
    assert 2500 < rate.effective <= 3000
    for k in (0, 150):  # nothing can be seen of the spread
        same = clustered_rate(np.arange(150) < k, starts)
        assert same.effective == 50
        assert same.high - same.low == pytest.approx(wilson(0, 50).high)
    assert clustered_rate(decided[::3], np.arange(50)) == wilson(30, 50), "nothing is repeated"
    order = np.random.default_rng(1).permutation(150)
    assert clustered_rate(decided[order], starts[order]).effective == 50


def test_intervals_of_repeated_starts_cover_the_truth():
    """Starts of different difficulty, three repetitions each; pooling gives too narrow an interval."""
    rng, starts = np.random.default_rng(0), np.repeat(np.arange(40), 3)
    covered = np.zeros(2)
    for _ in range(400):
        won = rng.random(120) < np.repeat(rng.beta(0.6, 0.4, 40), 3)
        for kind, rate in enumerate((clustered_rate(won, starts), wilson(int(won.sum()), 120))):
            covered[kind] += rate.low <= 0.6 <= rate.high
    clustered, pooled = covered / 400
    assert clustered > 0.92
    assert pooled < 0.9


def test_repeated_starts_are_one_pair_in_comparisons():
    tasks = np.array([0] * 10 + [1] * 10)
    once = Pairs(np.ones(20), np.r_[np.zeros(8), np.ones(12)], tasks, 20)
    thrice = paired_difference(Pairs(once.first, once.second, tasks, 60))
    single = paired_difference(once)
    assert (thrice.n, thrice.episodes) == (20, 60)
    for figure in ("low", "high", "p_value", "detectable", "lost"):
        assert getattr(thrice, figure) == getattr(single, figure)
    assert single.p_value == mcnemar(0, 8)
    mixed = paired_difference(Pairs(np.full(20, 2 / 3), np.full(20, 1 / 3), tasks, 60))
    assert (mixed.lost, mixed.difference) == (20, pytest.approx(-1 / 3))
    assert mixed.detectable == detectable_difference(20), "a third each way is a mean square below 15 %"


@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (3, 7), (81, 400)])
def test_the_bounds_of_wilsons_interval_solve_its_equation(k, n):
    """A bound is a rate p with |k / n - p| = 1.96 sqrt(p (1 - p) / n) (Wilson 1927), or 0 or 1."""
    rate = wilson(k, n)
    for bound, side in ((rate.low, 1), (rate.high, -1)):
        if not 0 < bound < 1:
            assert (k, bound) in ((0, 0.0), (n, 1.0))
        else:
            assert side * (k / n - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / n))


def test_unpaired_difference_is_newcombes():
    """Example of Newcombe (1998), method 10: 56/70 against 48/80 gives 0.0524 to 0.3339."""
    result = unpaired_difference(wilson(48, 80), wilson(56, 70))
    assert result.difference == pytest.approx(0.2)
    assert (result.low, result.high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))


def test_what_an_unpaired_difference_can_show_depends_on_the_rates():
    """By hand: (1.95996 + 0.84162) * sqrt(p (1 - p) (1 / 80 + 1 / 70)) with p = (48 + 56 + 2) / (150 + 4)."""
    middle, high, all_ = (
        unpaired_difference(wilson(a, 80), wilson(b, 70)).detectable
        for a, b in ((48, 56), (78, 69), (80, 70))
    )
    assert middle == pytest.approx(0.2124, abs=1e-4)
    assert high < 0.1
    assert 0.04 < all_ < high, "but never nothing"


def test_interval_of_a_mean_of_ratios():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(10), 20)
    clean = np.ones((2, 200))
    left = (rng.random((2, 200)) < [[0.5], [0.3]]).astype(float)
    low, high, why = interval_of(resampled_ratios(left, clean, clusters).mean(0))
    assert low < left.mean() < high
    assert high - low < 0.2
    assert not why
    same = interval_of(resampled_ratios(clean, clean, clusters).mean(0))
    assert same == (None, None, "all resamples are equal")
    undefined = interval_of(resampled_ratios(clean, 0 * clean, clusters).mean(0))
    assert undefined == (None, None, "some resamples have nothing to divide by")


def test_auroc():
    assert auroc(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1.0
    assert auroc(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0.5


def test_the_severity_area_is_a_trapezoid_rule():
    rates = np.array([0.9, 0.8, 0.5, 0.4, 0.1, 0.0])
    assert AREA_WEIGHTS @ rates == pytest.approx(np.trapezoid(rates) / 5)
    assert AREA_WEIGHTS.sum() == pytest.approx(1)


def test_marginal_values_need_all_subsets():
    weights = marginal_weights([("rgb",), ("depth",), ("rgb", "depth")])
    rates = np.array([0.6, 0.2, 0.8])
    assert weights["rgb"] @ rates == pytest.approx(0.7 - 0.2)
    assert weights["depth"] @ rates == pytest.approx(0.5 - 0.6)
    assert marginal_weights([("rgb",), ("rgb", "depth")]) is None
    assert marginal_weights([]) is None


def test_holm():
    p_values = [0.01, 0.2, 0.01, 0.04, 0.6, 0.004]
    assert holm(p_values) == pytest.approx([0.05, 0.4, 0.05, 0.12, 0.6, 0.024])
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert max(holm([0.9, 0.8])) == 1.0

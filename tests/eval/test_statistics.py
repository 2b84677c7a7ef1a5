"""Statistics against the reference values of the protocol and against direct computation."""

from __future__ import annotations

import numpy as np
import pytest

from multismolvla_eval.statistics import (
    AREA_WEIGHTS,
    Pairs,
    auroc,
    detectable_difference,
    detectable_unpaired,
    holm,
    mcnemar,
    mean_corruption_error,
    mean_ratio_interval,
    paired_difference,
    paired_differences,
    relative_robustness,
    severity_area,
    subset_profile,
    unpaired_difference,
    wilson,
)


def pairs_of(tasks):
    """Pairs from ``{task: [(success of the first arm, of the second)]}``."""
    rows = [(t, a, b) for t, pairs in tasks.items() for a, b in pairs]
    clusters, first, second = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return Pairs(first.astype(bool), second.astype(bool), clusters)


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
    flipped = paired_difference(Pairs(pairs.second, pairs.first, pairs.clusters))
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


def test_identical_arms_have_no_difference():
    result = paired_difference(pairs_of({0: [(True, True), (False, False)]}))
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="at least one episode"):
        paired_difference(pairs_of({0: []}))
    with pytest.raises(ValueError, match="sorted by task"):
        paired_difference(Pairs(np.ones(2, bool), np.ones(2, bool), np.array([1, 0])))


def test_unpaired_difference_is_newcombes():
    """Example of Newcombe (1998), method 10: 56/70 against 48/80 gives 0.0524 to 0.3339."""
    result = unpaired_difference(wilson(48, 80), wilson(56, 70))
    assert result.difference == pytest.approx(0.2)
    assert (result.low, result.high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))
    assert result.detectable == pytest.approx(detectable_unpaired(80, other=70))


def test_interval_of_a_mean_of_ratios():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(10), 20)
    clean = np.ones((2, 200))
    lost = (rng.random((2, 200)) < [[0.5], [0.3]]).astype(float)
    low, high = mean_ratio_interval(lost, clean, clusters)
    assert low < lost.mean() < high
    assert high - low < 0.2
    assert mean_ratio_interval(clean, clean, clusters) == pytest.approx((1, 1))
    assert mean_ratio_interval(clean, 0 * clean, clusters) == (None, None)


def test_auroc():
    assert auroc(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1.0
    assert auroc(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0.5
    assert auroc(np.array([1.0]), np.array([])) is None


def test_robustness_figures():
    assert relative_robustness(0.3, 0.6) == pytest.approx(0.5)
    assert relative_robustness(0.3, 0.0) is None
    assert severity_area([0.8] * 6) == pytest.approx(1.0)
    assert severity_area([1, 0, 0, 0, 0, 0]) == pytest.approx(0.1)
    assert severity_area([0] * 6) is None
    rates = [0.9, 0.8, 0.5, 0.4, 0.1, 0.0]
    assert severity_area(rates) == pytest.approx(np.trapezoid(rates) / (5 * rates[0]))
    assert AREA_WEIGHTS.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="severities 0..5"):
        severity_area([1, 0.5])


def test_mean_corruption_error_leaves_out_what_is_undefined():
    value, left_out = mean_corruption_error(
        {"noise": [0.9, 0.8], "blur": [0.5, 0.5], "fog": [0.5]},
        {"noise": [0.8, 0.6], "blur": [1.0, 1.0], "fog": [0.5, 0.5]},
    )
    assert value == pytest.approx(50.0)
    assert left_out == ("blur", "fog")
    assert mean_corruption_error({}, {}) == (None, ())


def test_subset_profile_needs_all_subsets():
    rates = {("rgb",): 0.6, ("depth",): 0.2, ("rgb", "depth"): 0.8}
    profile = subset_profile(rates)
    assert profile.worst_subset == ("depth",)
    assert profile.mean == pytest.approx(1.6 / 3)
    assert profile.marginal["rgb"] == pytest.approx(0.7 - 0.2)
    assert subset_profile({("rgb",): 0.6, ("rgb", "depth"): 0.8}) is None
    assert subset_profile({}) is None


def test_holm():
    from statsmodels.stats.multitest import multipletests

    p_values = [0.01, 0.2, 0.01, 0.04, 0.6, 0.004]
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert max(holm([0.9, 0.8])) == 1.0

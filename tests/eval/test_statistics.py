"""Statistics against the reference values of the protocol and against direct computation."""

from __future__ import annotations

import numpy as np
import pytest

from multismolvla_eval.statistics import (
    detectable_difference,
    detectable_unpaired,
    holm,
    mcnemar,
    mean_corruption_error,
    paired_difference,
    relative_robustness,
    severity_area,
    subset_profile,
    wilson,
)


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
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 6) == pytest.approx(2 * 0.5**6)
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) * 0.5**10)
    assert mcnemar(9, 1) == mcnemar(1, 9)


def test_paired_difference_counts_and_signs():
    pairs = {0: [(True, False)] * 8 + [(True, True)] * 2, 1: [(False, False)] * 9 + [(False, True)]}
    result = paired_difference(pairs)
    assert (result.n, result.lost, result.gained) == (20, 8, 1)
    assert result.difference == pytest.approx(-7 / 20)
    assert result.low <= result.difference <= result.high
    assert result.p_value == mcnemar(1, 8)
    assert paired_difference(pairs) == result, "the seed is fixed"
    flipped = paired_difference({t: [(b, a) for a, b in p] for t, p in pairs.items()})
    assert flipped.difference == -result.difference


def test_bootstrap_matches_a_plain_implementation():
    rng = np.random.default_rng(0)
    pairs = {t: [(bool(a), bool(b)) for a, b in rng.random((20, 2)) < (0.8, 0.3 + 0.1 * t)] for t in range(4)}
    result = paired_difference(pairs)
    means = []
    for _ in range(4000):
        sample = []
        for task in rng.integers(4, size=4):
            differences = [int(b) - int(a) for a, b in pairs[int(task)]]
            sample += [differences[i] for i in rng.integers(20, size=20)]
        means.append(np.mean(sample))
    low, high = np.quantile(means, [0.025, 0.975])
    assert result.low == pytest.approx(low, abs=0.03)
    assert result.high == pytest.approx(high, abs=0.03)


def test_identical_arms_have_no_difference():
    result = paired_difference({0: [(True, True), (False, False)]})
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="at least one episode"):
        paired_difference({0: []})


def test_robustness_figures():
    assert relative_robustness(0.3, 0.6) == pytest.approx(0.5)
    assert relative_robustness(0.3, 0.0) is None
    assert severity_area([0.8] * 6) == pytest.approx(1.0)
    assert severity_area([1, 0, 0, 0, 0, 0]) == pytest.approx(0.1)
    assert severity_area([0] * 6) is None
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
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert max(holm([0.9, 0.8])) == 1.0

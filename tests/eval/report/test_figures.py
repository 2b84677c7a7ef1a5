"""Figures of runs whose every success is known, so that the right value is, too."""

from __future__ import annotations

import pytest
from report_readers import cells_of, summary_of

from multismolvla_eval.protocol.levels import ALL_SUBSETS


def test_subset_profile_names_the_worst_subset_and_its_rate(tmp_path):
    """Three of five starts per task succeed under every subset, but one under depth alone."""

    def rate(episode):
        return float(episode.episode < (1 if episode.condition == "C1:depth" else 3))

    figures = summary_of(tmp_path / "run", texts=ALL_SUBSETS, rate=rate).aggregates["ours"]
    profile = figures.subset_profile
    assert profile.subsets == 15
    assert (profile.worst_subset, profile.worst.successes, profile.worst.n) == (("depth",), 2, 10)
    assert profile.mean.value == pytest.approx((14 * 0.6 + 0.2) / 15)
    with_depth, without_depth = (7 * 0.6 + 0.2) / 8, 0.6
    assert profile.marginal["depth"].value == pytest.approx(with_depth - without_depth)
    with_rgb, without_rgb = 0.6, (6 * 0.6 + 0.2) / 7
    assert profile.marginal["rgb"].value == pytest.approx(with_rgb - without_rgb)


def test_success_is_told_apart_by_what_the_weight_flagged(tmp_path):
    """The black picture's weight falls at two starts per task, and there alone the policy succeeds."""

    def change(row):
        flagged = row.condition == "C2:rgb=zero" and row.episode < 2
        row.modality_weight = {"rgb": 0.1 if flagged else 0.8, "depth": 0.9}
        row.fault_steps = row.fault_looks = 5
        row.success = flagged or row.condition == "C0"
        row.cause = None if row.success else "time_out"

    rgb = summary_of(tmp_path / "run", change, texts=["C2:rgb=zero"]).aggregates["ours"].detection["rgb"]
    assert (rgb.success_flagged.successes, rgb.success_flagged.n) == (4, 4)
    assert (rgb.success_missed.successes, rgb.success_missed.n) == (0, 6)
    assert rgb.auroc == pytest.approx(0.4 + 0.6 / 2), "flagged ones rank above all sound ones, the others tie"


def test_no_suite_tells_the_robustness_of_a_policy_that_is_not_reportable_over_all(tmp_path):
    """Clean, ours succeeds in 6 of 10 in the easy suite, never in the hard one, the baseline in 9 of 10."""
    wins = {("ours", "easy"): 6, ("ours", "hard"): 0, ("vanilla", "easy"): 9, ("vanilla", "hard"): 9}

    def rate(episode):
        return float(episode.episode < wins[episode.policy, episode.suite])

    suites = ("easy", "hard")
    summary = summary_of(tmp_path / "run", suites=suites, texts=["C2:rgb=zero"], rate=rate)
    ours = summary.policies[0]
    assert not ours.reportable
    assert ours.suites["easy"].reportable
    black = cells_of(summary, "ours")["C2:rgb=zero"]
    for part in (black, *black.suites.values()):
        assert part.versus_clean is part.versus_baseline is None


def test_every_suite_has_families_of_its_own(tmp_path):
    texts = [f"C3:rgb=builtin_noise@{s}" for s in range(1, 6)]
    summary = summary_of(tmp_path / "run", suites=("easy", "hard"), texts=texts)
    for name in ("ours", "vanilla"):
        for condition, cell in cells_of(summary, name).items():
            clean = condition == "C0"
            for part in (cell, *cell.suites.values()):
                assert (part.versus_clean is None) == clean
                assert (part.versus_baseline is None) == (name == "vanilla")
                for compared in filter(None, (part.versus_clean, part.versus_baseline)):
                    assert compared.family_size == (1 if clean else 5)

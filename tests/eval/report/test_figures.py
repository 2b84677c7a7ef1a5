"""Figures of runs whose every success is known, so that the right value is, too."""

from __future__ import annotations

import pytest
from report_readers import summary_of

from multismolvla_eval.protocol.levels import ALL_SUBSETS


def test_subset_profile_names_the_worst_subset_and_its_rate(tmp_path):
    """Three of five starts per task succeed under every subset, but one under depth alone."""

    def rate(episode):
        return float(episode.episode < (1 if episode.condition == "C1:depth" else 3))

    figures = summary_of(tmp_path / "run", texts=ALL_SUBSETS, rate=rate)["aggregates"]["ours"]
    profile = figures["subset_profile"]
    assert profile["subsets"] == 15
    assert (profile["worst_subset"], profile["worst"]["successes"], profile["worst"]["n"]) == (
        ("depth",),
        2,
        10,
    )
    assert profile["mean"]["value"] == pytest.approx((14 * 0.6 + 0.2) / 15)
    with_depth, without_depth = (7 * 0.6 + 0.2) / 8, 0.6
    assert profile["marginal"]["depth"]["value"] == pytest.approx(with_depth - without_depth)
    with_rgb, without_rgb = 0.6, (6 * 0.6 + 0.2) / 7
    assert profile["marginal"]["rgb"]["value"] == pytest.approx(with_rgb - without_rgb)


def test_success_is_told_apart_by_what_the_gate_flagged(tmp_path):
    """The gate flags the black picture of the first two starts per task, and there alone the policy succeeds."""

    def change(row):
        flagged = row["condition"] == "C2:rgb=zero" and row["episode"] < 2
        row.update(gate={"rgb": 0.1 if flagged else 0.8, "depth": 0.9}, fault_steps=5, fault_looks=5)
        row["success"] = flagged or row["condition"] == "C0"
        row["cause"] = None if row["success"] else "time_out"

    figures = summary_of(tmp_path / "run", change, texts=["C2:rgb=zero"])["aggregates"]["ours"]
    rgb = figures["calibration"]["rgb"]
    flagged, missed = rgb["success_flagged"], rgb["success_missed"]
    assert (flagged["successes"], flagged["n"]) == (4, 4)
    assert (missed["successes"], missed["n"]) == (0, 6)
    assert rgb["auroc"] == pytest.approx(0.4 + 0.6 / 2), (
        "flagged ones rank above all sound ones, the others tie"
    )


def test_no_suite_tells_the_robustness_of_a_policy_that_fails_the_gate_over_all(tmp_path):
    """Clean, ours succeeds in six of ten in the easy suite and never in the hard one, the baseline in nine of ten."""
    wins = {("ours", "easy"): 6, ("ours", "hard"): 0, ("vanilla", "easy"): 9, ("vanilla", "hard"): 9}

    def rate(episode):
        return float(episode.episode < wins[episode.policy, episode.suite])

    suites = ("easy", "hard")
    summary = summary_of(tmp_path / "run", suites=suites, texts=["C2:rgb=zero"], rate=rate)
    ours = summary["policies"][0]
    assert not ours["gate"]["passed"]
    assert ours["suites"]["easy"]["gate"]["passed"]
    black = next(c for c in summary["cells"] if c["condition"] == "C2:rgb=zero")["results"]["ours"]
    for part in (black, *black["suites"].values()):
        assert part["versus_clean"] is part["versus_baseline"] is None


def test_every_suite_has_families_of_its_own(tmp_path):
    texts = [f"C3:rgb=builtin_noise@{s}" for s in range(1, 6)]
    summary = summary_of(tmp_path / "run", suites=("easy", "hard"), texts=texts)
    for cell in summary["cells"]:
        for name, result in cell["results"].items():
            for part in (result, *result["suites"].values()):
                compared = {k: part[k] for k in ("versus_clean", "versus_baseline") if part[k]}
                assert set(compared) == {
                    *(["versus_clean"] if cell["condition"] != "C0" else []),
                    *(["versus_baseline"] if name == "ours" else []),
                }
                for entry in compared.values():
                    assert entry["family_size"] == (1 if cell["condition"] == "C0" else 5)

"""The comparison of two runs whose every success is known, so that the right difference is, too."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace
from synthetic import COMPARABLE, synthetic_run

from multismolvla_eval.report.command import main

NOISE = [f"C3:rgb=builtin_noise@{s}" for s in range(1, 6)]


def run(folder, wins, **changes):
    """A run in which the first ``wins(condition)`` episodes of each task succeed."""
    return synthetic_run(
        folder, texts=NOISE, episodes=10, rate=lambda e: float(e.episode < wins(e.condition)), **changes
    )


def compared(a, b):
    assert main([str(a), str(b), f"--output={a.parent / 'out'}"]) == 0
    return json.loads((a.parent / "out" / "comparison.json").read_text())["cells"]


def test_differences_are_second_minus_first_paired_or_not(tmp_path):
    a = run(tmp_path / "a", lambda c: 9)
    for folder, changes in (("same", {}), ("other", {"comparable": replace(COMPARABLE, seed=7)})):
        b = run(tmp_path / folder, lambda c: 4 if c == "C0" else 6, **changes)
        for cell in compared(a, b):
            difference = cell["difference"]
            assert cell["paired"] == (folder == "same")
            assert [s["success"]["rate"] for s in cell["runs"]] == [
                0.9,
                0.4 if cell["condition"] == "C0" else 0.6,
            ]
            assert difference["difference"] == pytest.approx(-0.5 if cell["condition"] == "C0" else -0.3)
            assert -1 < difference["low"] < difference["difference"] < difference["high"] < 0


def test_p_values_are_adjusted_over_the_severities_of_one_policy_and_suite(tmp_path):
    """One more start per task fails with each severity."""
    suites = ("toy", "game")
    a = run(tmp_path / "a", lambda c: 9, suites=suites)
    b = run(tmp_path / "b", lambda c: 9 - (0 if c == "C0" else int(c[-1])), suites=suites)
    cells = compared(a, b)
    assert len(cells) == 2 * 2 * 6, "policies, suites, conditions"
    for policy in ("ours", "vanilla"):
        for suite in suites:
            own = {
                c["condition"]: c["difference"]
                for c in cells
                if (c["policies"][0], c["suite"]) == (policy, suite)
            }
            assert own["C0"]["family_size"] == 1
            for number, condition in enumerate(reversed(NOISE)):
                lost = 2 * (5 - number)
                assert own[condition]["p_value"] == pytest.approx(2 / 2**lost, 1e-5), (
                    "all pairs lost, none gained"
                )
                assert own[condition]["family_size"] == 5
                # Holm: the smallest counts fivefold, the next fourfold, and so on.
                assert own[condition]["p_holm"] == pytest.approx(min(1, (5 - number) * 2 / 2**lost), 1e-5)

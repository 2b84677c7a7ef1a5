"""Faults in time: pure functions of seed and step."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multismolvla.corruption import TEMPORAL_TYPES, shown_step
from multismolvla.corruption.temporal import PARAMETERS, check_parameter

CASES = [(t, p) for t in TEMPORAL_TYPES for p in PARAMETERS.get(t, (None,))]
SEEDS = st.integers(0, 2**63 - 1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from(CASES), SEEDS, st.integers(1, 600), st.randoms(use_true_random=False))
def test_shows_the_past_in_order_and_does_not_depend_on_what_was_asked_before(case, seed, limit, shuffle):
    type_, parameter = case
    shown = [shown_step(type_, parameter, seed, step, limit) for step in range(limit + 1)]
    steps = list(range(limit + 1))
    shuffle.shuffle(steps)
    assert all(shown_step(type_, parameter, seed, step, limit) == shown[step] for step in steps)
    seen = [(step, s) for step, s in enumerate(shown) if s is not None]
    assert all(0 <= s <= step for step, s in seen)
    assert [s for _, s in seen] == sorted(s for _, s in seen)


@settings(deadline=None, derandomize=True)
@given(SEEDS, st.integers(20, 600), st.sampled_from(["burst", "burst_silent"]))
def test_a_burst_is_one_window_of_a_fifth_of_the_step_limit(seed, limit, type_):
    gone = [step for step in range(limit) if shown_step(type_, None, seed, step, limit) is None]
    assert len(gone) == max(1, round(0.2 * limit))
    assert gone == list(range(gone[0], gone[-1] + 1))
    assert all(shown_step(type_, None, seed, s, limit) == s for s in range(limit) if s not in gone)


@settings(deadline=None, derandomize=True)
@given(SEEDS, st.integers(2, 600))
def test_frozen_begins_in_the_first_half_and_never_ends(seed, limit):
    shown = [shown_step("frozen", None, seed, step, limit) for step in range(limit + 1)]
    start = shown[-1]
    assert start is not None
    assert start < limit / 2 or start == 0
    assert shown == [min(step, start) for step in range(limit + 1)]


def test_delay():
    assert [shown_step("delay", 2.0, 1, step, 9) for step in range(6)] == [0, 0, 0, 1, 2, 3]


@pytest.mark.parametrize("probability", PARAMETERS["frame_drop"])
def test_frames_are_lost_with_the_given_probability_and_the_last_one_stays(probability):
    lost = total = 0
    for seed in range(20):
        shown = [shown_step("frame_drop", probability, seed, step, 300) for step in range(301)]
        assert shown[0] == 0
        for step in range(1, 301):
            assert shown[step] in (step, shown[step - 1])
            lost += shown[step] != step
            total += 1
    assert lost / total == pytest.approx(probability, abs=0.02)


@pytest.mark.parametrize("type_", ["frozen", "burst"])
def test_windows_begin_anywhere(type_):
    rng = random.Random(0)
    starts = []
    for _ in range(400):
        seed = rng.randrange(2**63)
        changed = [s for s in range(100) if shown_step(type_, None, seed, s, 100) != s]
        starts.append(changed[0])
    latest = 50 if type_ == "frozen" else 80
    assert min(starts) <= latest * 0.05 + 1
    assert max(starts) >= latest * 0.95
    assert sum(starts) / len(starts) == pytest.approx(latest / 2, rel=0.1)


@pytest.mark.parametrize(
    ("type_", "parameter", "message"),
    [
        ("delay", None, "whole number"),
        ("delay", 2.5, "whole number"),
        ("delay", 0, "whole number"),
        ("delay", float("inf"), "whole number"),
        ("frame_drop", 1.0, "probability"),
        ("frame_drop", float("nan"), "probability"),
        ("burst", 3, "has no number"),
        ("burst", None, None),
        ("delay", 7, None),
    ],
)
def test_numbers_are_checked(type_, parameter, message):
    wrong = check_parameter(type_, parameter)
    assert wrong is None if message is None else message in wrong

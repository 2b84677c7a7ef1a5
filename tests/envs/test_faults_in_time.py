"""Faults in time mean what their definitions say, for any step limit and any episode; no simulator."""

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_env_multismolvla.faults import FaultWrapper
from multismolvla.corruption import parse_condition

EPISODES = {"limit": st.integers(5, 60), "task": st.integers(0, 10**6), "run_seed": st.integers(0, 10**6)}
quickly = settings(max_examples=30, deadline=None, derandomize=True)


def shown(env_class, text, limit, task, run_seed):
    """Per camera and step: number of the frame that is shown, ``None`` for nothing; and what ``info`` says.

    Runs a step longer than any policy gets to see.
    """
    env = FaultWrapper(env_class(limit, task), parse_condition(text), run_seed)
    frames = {c: [env_class.picture(c, n) for n in range(limit + 1)] for c in env_class.cameras}
    observation, info = env.reset()
    seen, active = {c: [] for c in frames}, []
    for number in range(limit + 1):
        for camera, past in frames.items():
            picture = observation["pixels"][camera]
            found = [n for n in range(number + 1) if np.array_equal(picture, past[n])]
            assert found or not picture.any(), "neither an earlier picture nor black"
            seen[camera].append(found[0] if found else None)
        active.append(info["fault_active"])
        observation, *_, info = env.step(None)
    return seen, active


@quickly
@given(k=st.integers(1, 20), **EPISODES)
def test_a_delay_of_k_shows_the_picture_of_k_steps_earlier(toy_env, k, limit, task, run_seed):
    seen, active = shown(toy_env, f"C4:rgb=delay@{k}", limit, task, run_seed)
    for numbers in seen.values():
        assert numbers == [max(0, n - k) for n in range(limit + 1)]
    assert active == [n > 0 for n in range(limit + 1)], "the first picture is on time"


@pytest.mark.parametrize("text", ["delay@3", "frame_drop@0.5", "frozen"])
def test_an_earlier_picture_comes_with_the_time_at_which_it_was_taken(toy_env, text):
    env = FaultWrapper(toy_env(20), parse_condition(f"C4:rgb.image2={text}"), run_seed=1)
    assert env.observation_space["captured"].shape == (8,)
    observation, _ = env.reset()
    late = 0
    for number in range(20):
        captured = observation["captured"].reshape(2, 4)  # rgb, depth, seg, thermal
        (shown,) = (
            n
            for n in range(number + 1)
            if np.array_equal(observation["pixels"]["image2"], toy_env.picture("image2", n))
        )
        expected = np.full((2, 4), number / 20, np.float32)
        expected[1, [0, 3]] = shown / 20  # thermal is computed of it
        np.testing.assert_allclose(captured, expected)
        late += shown < number
        observation, *_ = env.step(None)
    assert late
    assert "captured" not in FaultWrapper(toy_env(20), parse_condition("C1:-rgb"), 1).reset()[0]


@quickly
@given(p=st.sampled_from([0.1, 0.3, 0.5, 0.9]), **EPISODES)
def test_a_lost_frame_leaves_the_last_one_that_arrived(toy_env, p, limit, task, run_seed):
    seen, active = shown(toy_env, f"C4:rgb=frame_drop@{p}", limit, task, run_seed)
    for numbers in seen.values():
        assert numbers[0] == 0, "the first one always arrives"
        assert all(
            now in (n, before) for n, (before, now) in enumerate(zip(numbers, numbers[1:], strict=False), 1)
        )
    assert active == [any(numbers[n] != n for numbers in seen.values()) for n in range(limit + 1)]


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_frames_are_lost_with_probability_p_each_by_itself(toy_env, p):
    lost = []
    for task in range(60):
        seen, _ = shown(toy_env, f"C4:rgb=frame_drop@{p:g}", 40, task, 0)
        lost += [[n != step for step, n in enumerate(numbers)][1:] for numbers in seen.values()]
    losses = np.array(lost)  # (60 episodes x 2 cameras, 40 steps)
    assert losses.mean() == pytest.approx(p, abs=0.03)
    both = (losses[:, 1:] & losses[:, :-1]).mean()  # independent of the frame before
    assert both == pytest.approx(p * p, abs=0.03)
    assert (losses[0::2] & losses[1::2]).mean() == pytest.approx(p * p, abs=0.03)  # and of the other camera


@quickly
@given(type_=st.sampled_from(["burst", "burst_silent"]), **EPISODES)
def test_a_burst_is_one_gap_of_a_fifth_of_the_step_limit_in_all_cameras(
    toy_env, type_, limit, task, run_seed
):
    seen, active = shown(toy_env, f"C4:rgb={type_}", limit, task, run_seed)
    first, second = seen.values()
    gone = [n is None for n in first[:limit]]
    assert gone == [n is None for n in second[:limit]]
    assert [len(list(g)) for missing, g in groupby(gone) if missing] == [max(1, round(0.2 * limit))]
    assert all(n in (None, step) for step, n in enumerate(first))
    assert active == [n is None for n in first]


@quickly
@given(**EPISODES)
def test_a_frozen_camera_keeps_a_picture_of_the_first_half(toy_env, limit, task, run_seed):
    seen, _ = shown(toy_env, "C4:rgb=frozen", limit, task, run_seed)
    first, second = seen.values()
    start = first[-1]
    assert first == second == [min(n, start) for n in range(limit + 1)]
    assert start < limit / 2


@pytest.mark.parametrize(("type_", "latest"), [("burst", 0.8), ("frozen", 0.5)])
@pytest.mark.parametrize("length", [0.25, 0.5])
def test_an_episode_that_ends_early_meets_a_window_as_often_as_the_documentation_says(type_, latest, length):
    """P(met) = length / latest, lengths and latest begin as shares of the step limit."""
    from multismolvla.corruption import episode_seed, shown_step

    limit, episodes = 280, 1500
    met = 0
    for number in range(episodes):
        seed = episode_seed(0, "libero_object", 0, number, "", "", type_, 0.0)
        met += any(shown_step(type_, None, seed, n, limit) != n for n in range(round(length * limit)))
    assert met / episodes == pytest.approx(length / latest, abs=0.04)

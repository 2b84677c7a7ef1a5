"""LIBERO's scripted expert: its geometry, and that what a search finds happens again bit for bit."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libero_expert import MeasureConfig, MeasuredState, physics_env, table

from lerobot_env_multismolvla.libero.initial_states import state_numbers
from lerobot_env_multismolvla.libero_expert.geometry import (
    DOWN,
    grasp_height,
    hand_overlap,
    hand_rotation,
    narrowest_strip,
    shape_corners,
    strip_along,
    tilted,
    turn_between,
)


def rectangle(width: float, length: float, angle: float, center=(0.3, -0.2)) -> np.ndarray:
    """Corners (4, 2); ``width`` is the side that lies at ``angle``."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [width / 2, length / 2]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return corners @ turn.T + center


@given(
    width=st.floats(0.01, 0.1),
    ratio=st.floats(1.05, 4.0),
    angle=st.floats(0.0, 2 * np.pi),
    fill=st.integers(0, 2**31),
)
def test_calipers_find_the_narrow_side_whatever_lies_inside(width, ratio, angle, fill):
    corners = rectangle(width, ratio * width, angle)
    inner = np.random.default_rng(fill).dirichlet(np.ones(4), 20) @ corners
    strip = narrowest_strip(np.concatenate([inner, corners]))
    assert strip.width == pytest.approx(width, rel=1e-6)
    assert strip.length == pytest.approx(ratio * width, rel=1e-6)
    assert abs(strip.axis @ [np.cos(angle), np.sin(angle)]) == pytest.approx(1.0, abs=1e-6)
    assert strip.axis[1] >= 0
    np.testing.assert_allclose(strip.center, (0.3, -0.2), atol=1e-9)


def test_no_strip_is_narrower_than_the_calipers():
    points = np.random.default_rng(0).normal(size=(40, 2))
    best = narrowest_strip(points).width
    widths = [strip_along(points, [np.cos(a), np.sin(a)]).width for a in np.linspace(0, np.pi, 720)]
    assert best <= min(widths) + 1e-12
    assert best > 0.99 * min(widths)


def test_the_home_axis_wins_near_ties_only():
    nearly_square = rectangle(0.050, 0.052, 0.0)
    assert narrowest_strip(nearly_square, prefer=[0, 1], slack=0.004).axis @ [0, 1] == pytest.approx(1.0)
    assert narrowest_strip(nearly_square, prefer=[0, 1], slack=0.001).axis @ [1, 0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("bottom", "top", "depth", "height"),
    [(0.0, 0.131, 0.035, 0.096), (0.0, 0.018, 0.035, 0.012), (0.9, 0.94, 0.02, 0.92)],
)
def test_grasp_height_keeps_off_the_surface(bottom, top, depth, height):
    assert grasp_height(bottom, top, depth) == pytest.approx(height)


@given(axis=st.floats(0, 2 * np.pi), lean=st.floats(-1.0, 1.0))
def test_hand_rotations_are_rotations(axis, lean):
    pointing = np.array([np.sin(lean), 0.0, -np.cos(lean)])
    hand = hand_rotation([np.cos(axis), np.sin(axis)], pointing)
    np.testing.assert_allclose(hand @ hand.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(hand) == pytest.approx(1.0)
    np.testing.assert_allclose(hand[:, 2], pointing, atol=1e-12)


def test_half_a_turn_of_the_hand_is_no_turn():
    hand = hand_rotation([0, 1])
    assert np.linalg.norm(turn_between(hand, hand_rotation([0, -1]))) < 1e-9
    assert np.linalg.norm(turn_between(hand, hand_rotation([0, -1]), symmetric=False)) == pytest.approx(np.pi)
    turn = turn_between(hand, hand_rotation([np.sin(-0.3), np.cos(-0.3)]))
    np.testing.assert_allclose(turn, [0, 0, 0.3], atol=1e-9)
    np.testing.assert_allclose(turn_between(hand, tilted(hand, [2.0, 0, 0], 0.4)), [0.4, 0, 0], atol=1e-9)


def test_overlap_counts_a_tall_neighbour_under_the_palm_only():
    place, hand = np.array([0.0, 0.0, 0.01]), hand_rotation([0.0, 1.0], DOWN)
    beside = np.array([[[-0.02, 0.07, 0.0], [0.02, 0.09, 0.10]]])
    low = np.array([[[-0.02, 0.07, 0.0], [0.02, 0.09, 0.03]]])
    assert hand_overlap(place, hand, beside) > 0  # the palm reaches 10 cm along the finger axis
    assert hand_overlap(place, hand, low) == 0  # and begins 32 mm above the grip site
    assert hand_overlap(place, hand_rotation([1.0, 0.0], DOWN), beside) == 0
    assert hand_overlap(place, hand, np.zeros((0, 2, 3))) == 0


def test_shape_corners_enclose_the_shape():
    cylinder = shape_corners("cylinder", np.array([0.03, 0.05, 0.0]))
    assert np.ptp(cylinder, axis=0) == pytest.approx([0.06, 0.06, 0.10])
    assert np.ptp(shape_corners("box", np.array([0.01, 0.02, 0.03])), axis=0) == pytest.approx(
        [0.02, 0.04, 0.06]
    )
    with pytest.raises(ValueError, match="hfield"):
        shape_corners("hfield", np.zeros(3))


def test_states_are_named_and_checked():
    assert state_numbers("20-22,3") == [20, 21, 22, 3]
    for wrong in ("", "20-", "a", "50", "-3"):
        with pytest.raises(ValueError, match="nitial states"):
            state_numbers(wrong)
    with pytest.raises(ValueError, match="--suite=libero_90"):
        MeasureConfig(suite="libero_90")


def test_table_counts_and_bounds():
    rows = [MeasuredState(0, "x", i, i > 0, [int(i == 1)], 100, 1, 2.0) for i in range(10)]
    text = table(rows)
    assert "9/10" in text
    assert "59.6%  98.2%" in text  # Wilson's interval of 9 in 10
    assert "failed initial states: [0]" in text


@pytest.fixture(scope="module")
def basket_env(libero_assets):
    """libero_object's first task, physics only."""
    env = physics_env("libero_object", 0, libero_assets=str(libero_assets))
    env.reset(seed=0, options={"init_state_id": 27})
    yield env
    env.close()


@pytest.mark.libero
def test_own_step_equals_the_simulators_step_and_snapshots_restore_it(basket_env):
    from lerobot_env_multismolvla.libero_expert.world import World

    basket_env.reset(seed=0, options={"init_state_id": 30})
    world = World(basket_env.simulation)
    start = world.snapshot()
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 7))
    outcomes = []
    for step in (basket_env.simulation.step, world.step):
        world.restore(start)
        for action in actions:
            step(action)
        outcomes.append(world.snapshot())
    np.testing.assert_array_equal(outcomes[0].physics, outcomes[1].physics)
    assert not np.array_equal(outcomes[0].physics, start.physics)
    for key, value in outcomes[0].controller.items():
        np.testing.assert_array_equal(value, outcomes[1].controller[key])


@pytest.mark.libero
def test_expert_solves_a_held_out_state_step_by_step_as_the_search_did(basket_env):
    from lerobot_env_multismolvla.libero_expert.search import LiberoExpert

    basket_env.reset(seed=3, options={"init_state_id": 27})
    before = basket_env.simulation.sim.get_state().flatten()
    expert = LiberoExpert()
    plan = expert.reset(basket_env, 27)
    assert plan.solved
    np.testing.assert_array_equal(basket_env.simulation.sim.get_state().flatten(), before)
    for step in range(1, plan.steps + 1):
        action = expert.act(basket_env)
        assert action.shape == (7,)
        assert np.abs(action).max() <= 1.0
        _, reward, terminated, _, info = basket_env.step(action)
        assert terminated == (step == plan.steps)
    assert info["is_success"]
    assert reward == 1.0


@pytest.mark.libero
@pytest.mark.parametrize(
    ("task_id", "kinds"),
    [
        (6, ["PickAndPlace", "PickAndPlace"]),
        (9, ["SlideIn", "SwingShut"]),
    ],  # a region of the table; the microwave
)
def test_goals_become_skills(libero_assets, task_id, kinds):
    from lerobot_env_multismolvla.libero_expert.tasks import skills_for
    from lerobot_env_multismolvla.libero_expert.world import World

    env = physics_env("libero_10", task_id, libero_assets=str(libero_assets))
    env.reset(seed=0, options={"init_state_id": 0})
    assert [type(skill).__name__ for skill in skills_for(World(env.simulation))] == kinds
    env.close()


def test_a_door_is_pushed_from_outside_along_its_arc():
    from lerobot_env_multismolvla.libero_expert.microwave import SwingShut

    world = SimpleNamespace(joint_anchor=lambda body: np.array([1.0, 2.0, 0.5]))
    skill = SwingShut("microwave_1", "door")
    np.testing.assert_allclose(skill.contact(world, 0.0, 0.2, 0.03, 1.1), [1.2, 1.97, 1.1])
    np.testing.assert_allclose(skill.contact(world, -np.pi / 2, 0.2, 0.03, 1.1), [0.97, 1.8, 1.1])


def test_act_before_reset_says_what_to_do():
    from lerobot_env_multismolvla.libero_expert.search import LiberoExpert

    with pytest.raises(RuntimeError, match="before reset"):
        LiberoExpert().act(None)


def test_the_expert_is_measured_from_the_starts_that_the_evaluation_gives_it():
    from lerobot_env_multismolvla import MultiSmolVLALiberoConfig

    evaluation = MultiSmolVLALiberoConfig(task="libero_10").suite_kwargs("libero_10")["num_steps_wait"]
    assert MeasureConfig().settle_steps == evaluation

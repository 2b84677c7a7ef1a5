"""No unsafe action leaves the policy, alone or in a chunk, and persistent ones end the roll-out."""

from __future__ import annotations

import json

import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors

from lerobot_policy_multismolvla.processor_multismolvla import make_multismolvla_pre_post_processors
from lerobot_policy_multismolvla.safety.guard import PATIENCE, GuardStep, guard_of, put_guard
from lerobot_policy_multismolvla.safety.holding import standstill, stopped_numbers
from lerobot_policy_multismolvla.safety.stopping import PolicyStopError

#: Three numbers from -1 to 1 and a constant one; a tenth of a unit from frame to frame.
LOW, HIGH = torch.tensor([-1.0, -1.0, -1.0, 5.0]), torch.tensor([1.0, 1.0, 1.0, 5.0])
STEP = torch.tensor([0.2, 0.2, 2.0, 0.0])
STATS = {
    "action": {"mean": torch.full((7,), 0.5), "std": torch.full((7,), 2.0), "min": torch.full((7,), -1.0),
               "max": torch.full((7,), 1.0)},
    "observation.state": {"mean": torch.zeros(8), "std": torch.ones(8)},
}  # fmt: skip


def guard(step: torch.Tensor | None = STEP, start: torch.Tensor | None = None, **options) -> GuardStep:
    made = GuardStep(**options)
    made.learn(LOW, HIGH, step, start)
    return made


def row(value: float, *, gripper: float = 0.0, constant: float = 5.0) -> torch.Tensor:
    return torch.tensor([[value, value, gripper, constant]])


def test_safe_actions_pass_untouched():
    step = guard()
    for action in (row(0.0), row(0.25, gripper=1.0), row(0.3, gripper=-1.0), row(0.3, constant=5.00001)):
        assert step.action(action) is action
    chunk = torch.stack([row(0.1 * i) for i in range(8)], 1)
    assert step.action(chunk) is chunk


@pytest.mark.parametrize(
    ("unsafe", "words"),
    [
        (row(float("nan")), "number 0 is nan, expected a finite number"),
        (row(0.0, gripper=float("inf")), "number 2 is inf"),
        (row(0.0, gripper=-1.6), "number 2 is -1.6, expected -1.5 to 1.5"),
        (row(0.0, constant=5.1), "number 3 is 5.1"),
        (row(0.31), "number 0 is 0.31, a step of more than 0.3"),
    ],
)
def test_an_unsafe_action_is_replaced_by_the_last_safe_one(unsafe, words, caplog):
    step = guard()
    step.action(row(0.0, gripper=1.0))
    assert torch.equal(step.action(unsafe), row(0.0, gripper=1.0))
    assert torch.equal(step.action(unsafe), row(0.0, gripper=1.0))
    assert torch.equal(step.action(row(0.1)), row(0.1))
    assert caplog.text.count(words) == 1
    assert "safe again, after 2" in caplog.text


def test_a_delta_action_is_replaced_by_no_motion_and_the_same_grip():
    step = guard(stopped=[0, 1])
    step.action(row(0.3, gripper=1.0))
    assert torch.equal(step.action(row(float("nan"))), row(0.0, gripper=1.0))
    assert torch.equal(step.action(row(0.55)), row(0.55))  # the motion that was interrupted goes on


def test_a_policy_that_brakes_too_hard_is_at_rest_and_may_stay_there():
    fast, still = row(0.5, gripper=1.0), row(0.0, gripper=1.0)
    step = guard(stopped=[0, 1])
    step.action(row(0.25, gripper=1.0))
    step.action(fast)
    assert torch.equal(step.action(still), still)  # too sudden: replaced, by the same
    assert step.action(still) is still
    chunk = torch.stack([fast, still, still, row(0.2, gripper=1.0)], 1)
    assert torch.equal(guard(stopped=[0, 1]).action(chunk), chunk)


def test_a_policy_that_is_held_from_its_first_motion_on_may_begin_as_the_demonstrations_do():
    """Where they begin fast, all but an episode's first action would be a leap from rest."""
    turning, back = row(0.6), row(-0.6)
    step = guard(stopped=[0, 1], start=torch.tensor([0.6, 0.6, 0.0, 5.0]))
    step.action(back)
    assert torch.equal(step.action(turning), row(0.0))
    assert step.action(turning) is turning
    gentle = guard(stopped=[0, 1], start=torch.tensor([0.1, 0.1, 0.0, 5.0]))
    gentle.action(back)
    for _ in range(PATIENCE):
        assert torch.equal(gentle.action(turning), row(0.0))
    with pytest.raises(PolicyStopError, match="number 0 is 0.6, a step of more than 0.3"):
        gentle.action(turning)


def test_more_than_ten_in_a_row_end_the_rollout_and_a_safe_one_between_does_not():
    step = guard()
    step.action(row(0.0))
    for _ in range(3):
        for _ in range(PATIENCE):
            step.action(row(9.0))
        step.action(row(0.0))
    for _ in range(PATIENCE):
        step.action(row(9.0))
    with pytest.raises(PolicyStopError, match="11 unsafe actions in a row.*number 0 is 9.*-health fit"):
        step.action(row(9.0))


def test_without_a_safe_action_the_arm_does_not_begin_to_move():
    step = guard()
    with pytest.raises(PolicyStopError, match="first actions are unsafe.*has not moved"):
        step.action(row(9.0))
    step.reset()
    step.action(row(0.0))
    step.reset()  # the next episode has no last action either
    with pytest.raises(PolicyStopError, match="first actions"):
        step.action(row(9.0))


def test_the_unsafe_rows_of_a_chunk_stay_at_the_safe_one_before_and_the_first_at_the_first_safe_one():
    step = guard()
    rows = [row(9.0), row(0.1), row(float("nan")), row(0.9), row(0.2)]  # 0.9 is a leap
    safe = step.action(torch.stack(rows, 1))
    assert safe[0, :, 0].tolist() == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.2])
    delta = guard(stopped=[0, 1]).action(torch.stack(rows, 1))
    assert delta[0, :, 0].tolist() == pytest.approx([0.0, 0.1, 0.0, 0.0, 0.2])


def test_a_chunk_may_begin_anywhere_because_the_one_before_may_not_have_been_finished():
    step = guard()
    step.action(torch.stack([row(0.3 * i) for i in range(4)], 1))
    again = torch.stack([row(0.0), row(0.1)], 1)
    assert step.action(again) is again


def test_a_chunk_without_a_safe_row_stays_at_the_last_safe_one_and_a_long_one_is_refused():
    step = guard()
    step.action(torch.stack([row(0.1), row(0.2)], 1))
    bad = torch.full((1, PATIENCE, 4), float("nan"))
    assert step.action(bad)[0, :, 0].tolist() == pytest.approx([0.2] * PATIENCE)
    with pytest.raises(PolicyStopError, match="11 unsafe"):
        step.action(bad)
    fresh = guard()
    fresh.action(torch.stack([row(0.1), row(0.2)], 1))
    with pytest.raises(PolicyStopError, match="11 unsafe"):
        fresh.action(torch.full((1, 50, 4), 9.0))


def test_without_statistics_only_what_is_not_finite_is_unsafe():
    step = GuardStep()
    assert torch.equal(step.action(row(1e6)), row(1e6))
    assert torch.equal(step.action(row(float("nan"))), row(1e6))
    unfitted = guard(step=None)
    unfitted.action(row(-1.0))
    assert torch.equal(unfitted.action(row(1.0)), row(1.0))  # steps were not learned


def test_damaged_limits_are_named():
    with pytest.raises(ValueError, match="training range.*multismolvla-health fit"):
        GuardStep().learn(HIGH, LOW)


# -- in the pipeline -----------------------------------------------------------------------------------------


def test_the_guard_is_saved_with_the_checkpoint_and_sees_the_units_of_the_data(make_config, tmp_path):
    config = make_config(standstill=[0.0] * 6 + [None])
    pre, post = make_multismolvla_pre_post_processors(config, STATS)
    put_guard(post, config.stopped, torch.full((7,), 0.5), torch.full((7,), 0.7))
    for name, pipeline in (("policy_preprocessor", pre), ("policy_postprocessor", post)):
        pipeline.save_pretrained(tmp_path, config_filename=f"{name}.json")
    stored = json.loads((tmp_path / "policy_postprocessor.json").read_text())["steps"][-1]
    assert (stored["registry_name"], stored["config"]) == ("multismolvla_guard", {"stopped": list(range(6))})
    _, again = make_pre_post_processors(config, pretrained_path=str(tmp_path))
    assert torch.equal(guard_of(again).step, torch.full((7,), 0.5))
    assert torch.equal(guard_of(again).start, torch.full((7,), 0.7))
    # normalised 0.4 is 1.3, inside of -1.5 to 1.5; 0.6 is 1.7
    assert again(torch.full((1, 7), 0.4)) == pytest.approx(1.3)
    assert again(torch.full((1, 7), 0.6))[0].tolist() == pytest.approx([0.0] * 6 + [1.3])
    again.reset()
    with pytest.raises(PolicyStopError):
        again(torch.full((1, 7), 0.6))


def test_a_guard_follows_the_statistics_that_lerobot_put_into_the_pipeline(make_config, tmp_path):
    config = make_config()
    _, post = make_multismolvla_pre_post_processors(config, STATS)
    post.save_pretrained(tmp_path, config_filename="policy_postprocessor.json")
    other = {"action": STATS["action"] | {"max": torch.full((7,), 3.0)}}
    overrides = {"unnormalizer_processor": {"stats": other}}
    loaded = type(post).from_pretrained(
        tmp_path, config_filename="policy_postprocessor.json", overrides=overrides
    )
    assert guard_of(loaded).range[1, 0] == 1
    put_guard(loaded, ())
    assert guard_of(loaded).range[1, 0] == 3
    assert len(loaded.steps) == len(post.steps)


# -- what stands still ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "names", "stopped"),
    [
        ("absolute", ["shoulder_pan.pos", "gripper.pos"], []),
        ("absolute", ["arm_gripper.pos", "x.vel", "theta.vel"], [1, 2]),  # a LeKiwi
        ("delta", ["dx", "dy", "gripper"], [0, 1]),
        ("delta", ["left_gripper", "dx", "right_gripper", "dy"], [1, 3]),
        ("delta", ["", "", ""], [0, 1]),  # nobody knows: the last
    ],
)
def test_what_must_be_zero_for_a_robot_to_stand_still(kind, names, stopped):
    assert stopped_numbers(kind, names) == stopped


def test_standing_still_is_said_in_the_policys_units(make_config):
    names = {"dtype": "float32", "shape": (7,), "names": ["gripper", *"abcdef"]}
    still = standstill(make_config(action_kind="delta"), STATS, names)
    assert still[0] is None
    assert still[1:] == pytest.approx([-0.25] * 6)
    motors = names | {"names": {"motors": names["names"]}}
    assert standstill(make_config(action_kind="delta"), STATS, motors) == still
    assert standstill(make_config(), STATS, names) == [None] * 7

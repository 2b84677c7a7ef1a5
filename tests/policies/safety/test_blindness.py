"""What a policy does while nothing is left to see, and with its plan when a sensor is lost or back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from tiny_policy import canonical_batch, flow_inputs

from lerobot_policy_multismolvla.processor_multismolvla import (
    HealthStep,
    make_multismolvla_pre_post_processors,
)
from lerobot_policy_multismolvla.safety.guard import PATIENCE, put_guard
from lerobot_policy_multismolvla.safety.stopping import PolicyStopError
from multismolvla.modalities import default_view_map, padding_mask_key

VIEWS = default_view_map()
KEYS = [key for streams in VIEWS.values() for key in streams.values()]
RGB = [streams["rgb"] for streams in VIEWS.values()]
STILL = [-0.25] * 6 + [None]
HEALTH = HealthStep(views=VIEWS)
STATS = {
    "action": {"mean": torch.zeros(7), "std": torch.ones(7), "min": -torch.ones(7), "max": torch.ones(7)},
    "observation.state": {"mean": torch.zeros(8), "std": torch.ones(8)},
}


def look(seed: int = 0, *, absent=(), black=()):
    """One row of an observation as it leaves the pre-processor."""
    batch = {k: v[:1] for k, v in canonical_batch(seed=seed).items() if k != "action"}
    batch |= {key: torch.zeros_like(batch[key]) for key in black}
    return HEALTH.observation(batch | {padding_mask_key(k): torch.zeros(1, dtype=torch.bool) for k in absent})


def act(policy, batch):
    return policy.select_action(dict(batch), noise=flow_inputs(1)["noise"])


def plan(policy, batch, **rtc):
    return policy.predict_action_chunk(dict(batch), noise=flow_inputs(1)["noise"], **rtc)


@pytest.fixture
def looks(monkeypatch):
    """How often the policy has planned by its pictures."""
    from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy

    seen: list[int] = []
    original = MultiSmolVLAPolicy.visual_tokens

    def visual_tokens(policy, *args, **kwargs):
        seen.append(1)
        return original(policy, *args, **kwargs)

    monkeypatch.setattr(MultiSmolVLAPolicy, "visual_tokens", visual_tokens)
    return seen


# -- hold ----------------------------------------------------------------------------------------------------


def test_blind_between_two_steps_it_holds_its_last_goal_and_goes_on_when_it_sees_again(make_policy):
    policy = make_policy(n_action_steps=4)
    first, second = act(policy, look(0)), act(policy, look(1))
    assert not torch.equal(first, second)
    for seed in (2, 3, 4):
        assert torch.equal(act(policy, look(seed, absent=KEYS)), second)
    again = act(policy, look(5))
    assert not torch.equal(again, second)
    policy.reset()
    assert torch.equal(act(policy, look(5)), again)  # a new plan, not a row of the old one


def test_a_delta_policy_holds_without_motion_and_keeps_its_grip(make_policy):
    policy = make_policy(action_kind="delta", standstill=STILL)
    last = act(policy, look(0))
    held = act(policy, look(1, absent=KEYS))
    assert held[0].tolist() == pytest.approx([-0.25] * 6 + [last[0, 6].item()])


def test_what_a_delta_policy_must_know_to_hold_is_named(make_policy):
    policy = make_policy(action_kind="delta")
    act(policy, look(0))
    with pytest.raises(PolicyStopError, match="which delta action stands still.*multismolvla-export"):
        act(policy, look(1, absent=KEYS))


def test_black_pictures_blind_as_lost_ones_do(make_policy):
    policy = make_policy(views={"image": {"rgb": RGB[0]}, "image2": {"rgb": RGB[1]}})
    last = act(policy, look(0))
    assert torch.equal(act(policy, look(1, black=RGB)), last)


def test_one_sensor_is_enough_to_go_on(make_policy):
    policy = make_policy()
    last = act(policy, look(0))
    assert not torch.equal(act(policy, look(1, absent=KEYS[1:])), last)


def test_blind_at_the_start_is_an_error_before_the_first_command(make_policy):
    for on_blind in ("hold", "stop"):
        policy = make_policy(on_blind=on_blind)
        with pytest.raises(PolicyStopError, match=r"commanded nothing yet.*--policy.views.*on_blind=act"):
            act(policy, look(0, absent=KEYS))
        act(policy, look(0))
        policy.reset()  # the next episode has no last goal either
        with pytest.raises(PolicyStopError, match="commanded nothing yet"):
            act(policy, look(0, absent=KEYS))


def test_stop_ends_the_rollout_and_act_acts(make_policy):
    policy = make_policy(on_blind="stop")
    act(policy, look(0))
    with pytest.raises(PolicyStopError, match="on_blind=stop"):
        act(policy, look(1, absent=KEYS))
    policy = make_policy(on_blind="act")
    blind = act(policy, look(1, absent=KEYS))
    assert not torch.equal(act(policy, look(0)), blind)


def test_each_row_of_a_batch_holds_by_itself(make_policy):
    policy = make_policy()
    batch = {k: v for k, v in canonical_batch().items() if k != "action"}
    noise = flow_inputs()["noise"]
    last = policy.select_action(dict(batch), noise=noise)
    there = torch.tensor([True, False, True])
    seen = dict(batch) | {padding_mask_key(key): there for key in KEYS}
    held = policy.select_action(seen, noise=noise)
    assert torch.equal(held[1], last[1])
    assert torch.allclose(held[there], last[there], atol=1e-6)  # the same pictures, planned anew


# -- whole plans ---------------------------------------------------------------------------------------------


def test_a_plan_holds_what_was_to_be_done_of_the_one_before(make_policy):
    policy = make_policy(n_action_steps=2)
    before = plan(policy, look(0))
    held = plan(policy, look(1, absent=KEYS))
    assert torch.equal(held, before[:, 1:2].expand(1, 4, 7))


@pytest.mark.parametrize(("taken", "row"), [(1, 2), (2, 3), (3, 3)])
def test_under_rtc_it_holds_the_row_that_is_due(taken, row, make_policy):
    """Also where planning usually takes long: holding does not."""
    policy = make_policy(rtc_config=RTCConfig(enabled=True, execution_horizon=4))
    before = plan(policy, look(0), inference_delay=0, prev_chunk_left_over=None)
    left = torch.cat([before[0, taken:], torch.zeros(taken, 7)])  # filled up, as LeRobot does it
    held = plan(policy, look(1, absent=KEYS), inference_delay=3, prev_chunk_left_over=left)
    assert torch.equal(held, before[:, row, None].expand(1, 4, 7))
    drained = torch.zeros(4, 7)
    again = plan(policy, look(2, absent=KEYS), inference_delay=3, prev_chunk_left_over=drained)
    assert torch.equal(again, held)  # nothing is left: where the last plan led


# -- what the guard replaces ---------------------------------------------------------------------------------


@pytest.fixture
def guarded(make_policy, tmp_path):
    """A policy whose plans are its noise, and the post-processor behind it; both from the checkpoint."""
    tame = make_policy(n_action_steps=1)
    torch.nn.init.zeros_(tame.model.action_out_proj.weight)
    torch.nn.init.zeros_(tame.model.action_out_proj.bias)
    tame.save_pretrained(tmp_path)
    _, post = make_multismolvla_pre_post_processors(tame.config, STATS)
    put_guard(post, (), torch.full((7,), 0.2))
    post.save_pretrained(tmp_path)
    policy = type(tame).from_pretrained(tmp_path).eval()
    policy.reset()
    return policy, post


def noise(*rows: float) -> torch.Tensor:
    return torch.tensor(rows)[None, :, None].repeat(1, 1, 32)


@pytest.mark.parametrize("unsafe", [9.0, 0.9, float("nan")], ids=["range", "leap", "nan"])
def test_what_the_guard_has_replaced_is_not_held(unsafe, guarded):
    policy, post = guarded
    sent = [
        post(policy.select_action(look(i), noise=noise(*[value] * 4)))
        for i, value in enumerate([0.1, 0.2, unsafe])
    ]
    assert sent[2].tolist() == sent[1].tolist() == [pytest.approx([0.2] * 7)]
    for i in range(2 * PATIENCE):
        held = post(policy.select_action(look(3 + i, absent=KEYS), noise=flow_inputs(1)["noise"]))
        assert torch.equal(held, sent[1])


@pytest.mark.parametrize(("rows", "held"), [((0.1, 9.0, 0.3, 0.4), 0.1), ((9.0, 9.0, 0.3, 0.4), 0.3)])
def test_under_rtc_what_the_guard_puts_in_the_place_of_the_row_that_is_due_is_held(rows, held, guarded):
    policy, post = guarded
    policy.config.rtc_config = RTCConfig(enabled=True, execution_horizon=4)
    policy.init_rtc_processor()
    rtc = {"inference_delay": 0, "prev_chunk_left_over": None}
    chunk = policy.predict_action_chunk(look(0), noise=noise(*rows), **rtc)
    assert post(chunk)[0, 1].tolist() == pytest.approx([held] * 7)
    rtc["prev_chunk_left_over"] = chunk[0]
    after = post(plan(policy, look(1, absent=KEYS), **rtc))
    assert after.tolist() == [[pytest.approx([held] * 7)] * 4]


def test_what_stands_behind_a_policy_is_read_where_it_was_read_itself(guarded, make_policy, tmp_path):
    policy, _ = guarded
    assert policy._hold.guard.guard.range[1, 0] == 1
    policy.config.pretrained_path = Path("somewhere/else")  # where this one was trained from
    policy.save_pretrained(tmp_path)
    again = type(policy).from_pretrained(tmp_path).eval()
    again.reset()
    assert again._hold.guard.guard.range[1, 0] == 1
    new = make_policy()
    new.reset()
    assert new._hold.guard is None


# -- a change while a plan is carried out --------------------------------------------------------------------


def test_a_plan_is_dropped_when_a_sensor_is_lost_and_when_it_is_back(make_policy, looks):
    policy = make_policy(n_action_steps=4)
    lost = RGB[:1]
    for seed, (absent, planned) in enumerate(
        [((), 1), ((), 1), (lost, 2), (lost, 2), ((), 3), ((), 3), ((), 3), ((), 3), ((), 4)]
    ):
        act(policy, look(seed, absent=absent))
        assert len(looks) == planned, seed


def test_a_plan_may_be_finished_if_that_is_wanted(make_policy, looks):
    policy = make_policy(n_action_steps=4, finish_chunk=True)
    for seed, absent in enumerate([(), RGB[:1], KEYS, ()]):
        act(policy, look(seed, absent=absent))
    assert len(looks) == 1


def test_a_black_picture_drops_a_plan_and_an_unmarked_one_does_not(make_policy, looks):
    policy = make_policy(n_action_steps=4)
    for seed, black in enumerate([(), RGB[:1], RGB[:1], RGB[:1]]):
        act(policy, look(seed, black=black))
    assert len(looks) == 2
    careless = make_policy(n_action_steps=4, health="off")
    for seed, black in enumerate([(), RGB[:1], RGB[:1], RGB[:1]]):
        act(careless, look(seed, black=black))
    assert len(looks) == 3


def test_a_look_before_its_time_freezes_nothing_and_what_is_frozen_stays_so(make_policy, looks, caplog):
    """The robot moves, the pictures stay: equal a plan apart is frozen, equal a step apart may not be."""
    policy = make_policy(n_action_steps=2)
    still = look(0)
    states = [canonical_batch(seed=s)["observation.state"][:1] for s in range(9)]
    act(policy, still | {"observation.state": states[0]})
    early = look(0, absent=[VIEWS["image"]["thermal"]])
    act(policy, early | {"observation.state": states[1]})
    assert "frozen" not in caplog.text
    for state in states[2:8]:  # looks in time: the fourth, the sixth and the eighth
        assert "frozen" not in caplog.text
        act(policy, early | {"observation.state": state})
    assert "image.rgb (frozen)" in caplog.text
    seen = len(looks)
    act(policy, early | {"observation.state": states[8]})  # between two looks nothing changes
    assert len(looks) == seen

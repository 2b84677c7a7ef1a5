"""What LeRobot's real-time chunking hands over, put right: its own queue and tracker, without its thread."""

from __future__ import annotations

import subprocess
import sys
from itertools import count

import pytest
import torch
from lerobot.policies.rtc import ActionQueue, LatencyTracker
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.rollout.inference.rtc import _normalize_prev_actions_length
from processes import environment
from tiny_policies import save_ours
from tiny_policy import canonical_batch, flow_inputs

from lerobot_policy_multismolvla import modeling_multismolvla
from lerobot_policy_multismolvla.safety.real_time import PlanningTime, without_padding
from lerobot_policy_multismolvla.safety.stopping import PolicyStopError

RTC = RTCConfig(enabled=True, execution_horizon=4)


def plan(policy, left, delay=0):
    batch = {k: v[:1] for k, v in canonical_batch().items() if k != "action"}
    return policy.predict_action_chunk(
        batch, noise=flow_inputs(1)["noise"], inference_delay=delay, prev_chunk_left_over=left
    )


def left_of(chunk, taken):
    """What LeRobot's queue and engine make of a plan of which some rows were executed."""
    queue = ActionQueue(RTC)
    queue.merge(chunk[0], chunk[0], 0, 0)
    for _ in range(taken):
        queue.get()
    return _normalize_prev_actions_length(queue.get_left_over(), RTC.execution_horizon)


def test_a_plan_is_guided_by_the_rows_that_are_left_and_not_by_their_filling(make_policy):
    policy = make_policy(rtc_config=RTC)
    first = plan(policy, None)
    for taken in (1, 3):
        filled = left_of(first, taken)
        assert filled.shape == (4, 7)
        assert torch.equal(plan(policy, filled), plan(policy, first[0, taken:]))
        assert not torch.equal(plan(policy, filled), first)
    drained = left_of(first, 4)
    assert not drained.any()
    assert torch.equal(plan(policy, drained), first)  # else it would be pulled to the mean action


def test_only_zeros_at_the_end_are_filling():
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert torch.equal(without_padding(rows), rows[:2])
    assert torch.equal(without_padding(rows[None]), rows[None, :2])
    assert without_padding(None) is None
    assert without_padding(rows[:1]) is None


def periods(time, tracker, seconds: float, *, outside: float = 0.01, late: bool = True, fps=10, chunk=50):
    """One round of LeRobot's engine, whose pre- and post-processing take as long as they may."""
    slowest = tracker.max()
    found = time.periods(int(-(-slowest * fps // 1)) if slowest else 0, chunk, late=late)
    time.took(seconds)
    tracker.add(seconds + outside)
    return found


def test_one_slow_plan_is_forgotten_after_ten():
    time, tracker = PlanningTime(), LatencyTracker()
    found = [periods(time, tracker, seconds) for seconds in [0.19, 0.19, 1.99, *[0.19] * 12]]
    assert found[:3] == [0, 2, 2]
    assert found[3:13] == [20] * 10
    assert found[13:] == [2, 2]
    assert tracker.max() == 2.0  # LeRobot's figure stays


def test_a_stall_outside_the_policy_counts_at_no_later_plan():
    time, tracker = PlanningTime(), LatencyTracker()
    for _ in range(3):
        periods(time, tracker, 0.19)
    periods(time, tracker, 0.19, outside=9.0)
    assert [periods(time, tracker, 0.19) for _ in range(12)] == [2] * 12
    assert periods(time, tracker, 0.38) == 2
    assert periods(time, tracker, 0.19) == 4  # what the policy itself takes is known as before


def test_a_stall_outside_the_first_plan_ends_nothing_while_plans_arrive_in_time():
    """No rate is known without it, so LeRobot's figure stands; but the arm moves, as the old plans say."""
    time, tracker = PlanningTime(), LatencyTracker()
    periods(time, tracker, 0.19, outside=9.0)
    periods(time, tracker, 0.19)  # the one before was late
    for _ in range(12):
        assert periods(time, tracker, 0.19, late=False) == 92


def test_a_warm_up_that_lerobot_forgets_is_forgotten_here():
    time, tracker = PlanningTime(), LatencyTracker()
    for _ in range(2):
        periods(time, tracker, 60.0)
        tracker.reset()
    found = [periods(time, tracker, 0.49) for _ in range(3)]
    assert found == [0, 5, 5]


def test_plans_that_are_over_when_they_are_ready_are_refused_with_figures():
    time, tracker = PlanningTime(), LatencyTracker()
    for _ in range(3):
        periods(time, tracker, 5.99)
    with pytest.raises(PolicyStopError, match=r"takes 60 periods.*5\.99 s.*50 periods long.*--fps"):
        periods(time, tracker, 5.99)


def test_a_policy_is_given_up_only_when_nothing_is_left_of_its_plans(make_policy, monkeypatch):
    """What LeRobot says of the slowest plan may be long past."""
    monkeypatch.setattr(modeling_multismolvla, "perf_counter", count().__next__)  # every plan takes a second
    policy = make_policy(rtc_config=RTC)
    first = plan(policy, None)
    for _ in range(5):
        plan(policy, left_of(first, 1), delay=99)
    for _ in range(2):
        plan(policy, left_of(first, 4), delay=99)
    with pytest.raises(PolicyStopError, match="the arm would never move"):
        plan(policy, left_of(first, 4), delay=99)


def test_a_single_plan_that_takes_too_long_is_borne():
    time, tracker = PlanningTime(), LatencyTracker()
    for seconds in (0.2, 9.0, 0.2, 0.2, 9.0, 9.0, 0.2):
        periods(time, tracker, seconds)


ENDS_IN_A_PLAN = """
import sys, threading
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from tiny_policy import canonical_batch

policy = MultiSmolVLAPolicy.from_pretrained(sys.argv[1])
policy.config.rtc_config, policy.config.num_steps = RTCConfig(enabled=True, execution_horizon=4), 300
policy.init_rtc_processor()
batch = {k: v[:1] for k, v in canonical_batch().items() if k != "action"}
planning, denoise = threading.Event(), policy.model.denoise_step
policy.model.denoise_step = lambda *args, **kwargs: (planning.set(), denoise(*args, **kwargs))[1]

def plans():
    while True:
        policy.predict_action_chunk(batch, inference_delay=0, prev_chunk_left_over=None)
        print("planned", flush=True)

threading.Thread(target=plans, daemon=True).start()
planning.wait()
"""


def test_a_process_ends_after_the_plan_that_its_thread_is_making(tmp_path):
    """In the middle of it the interpreter would abort: exit code -6, and nothing printed."""
    checkpoint = save_ours(tmp_path) / "ours"
    done = subprocess.run(
        [sys.executable, "-c", ENDS_IN_A_PLAN, str(checkpoint)],
        env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("planned") == 1

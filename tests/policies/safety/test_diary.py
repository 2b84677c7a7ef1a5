"""What becomes of the sensors is said, with its cause and how often, in the log and in a file."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_policy import canonical_batch

from lerobot_policy_multismolvla.processor_multismolvla import HealthStep
from lerobot_policy_multismolvla.safety.watch import HealthLog
from multismolvla.modalities import default_view_map, padding_mask_key

VIEWS = default_view_map()
RGB, DEPTH = VIEWS["image"]["rgb"], VIEWS["image"]["depth"]


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(HealthLog, "clock", staticmethod(lambda: now[0]))
    return now


def look(*, black=(), absent=(), seed=0):
    batch = {k: v[:1] for k, v in canonical_batch(seed=seed).items() if k != "action"}
    batch |= {key: torch.zeros_like(batch[key]) for key in black}
    gone = {padding_mask_key(key): torch.zeros(1, dtype=torch.bool) for key in absent}
    return HealthStep(views=VIEWS).observation(batch | gone)


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_state_at_the_start_then_changes_with_cause_and_rate(make_policy, clock, tmp_path, caplog):
    caplog.set_level("INFO")
    file = tmp_path / "recorded" / "health.jsonl"
    policy = make_policy(health_log=str(file), n_action_steps=1)
    policy.select_action(look(absent=[DEPTH]))
    for hours, black in [(0.5, [RGB]), (0.6, []), (2.0, [RGB]), (2.0, [RGB])]:
        clock[0] = 1000.0 + 3600 * hours
        policy.select_action(look(absent=[DEPTH], black=black, seed=int(10 * hours)))
    start, *rest = lines(file)
    assert (start["time"], start["event"]) == (1000.0, "start")
    assert start["streams"] == {
        f"{view}.{m}": "not delivered" if (view, m) == ("image", "depth") else "there"
        for view, streams in VIEWS.items()
        for m in streams
    }
    assert [(r["event"], r["stream"], r["cause"], r["count"], r["per_hour"]) for r in rest] == [
        ("lost", "image.rgb", "zero", 1, 1.0),
        ("back", "image.rgb", None, 1, 1.0),
        ("lost", "image.rgb", "zero", 2, 1.0),
    ]
    assert "Sensors at the start: image.rgb (there), image.depth (not delivered)" in caplog.text
    assert "Sensor lost: image.rgb (zero). The policy goes on without it. It was lost 2 times" in caplog.text


def test_each_episode_begins_with_its_state(make_policy, clock, tmp_path):
    file = tmp_path / "health.jsonl"
    policy = make_policy(health_log=str(file))
    for _ in range(2):
        policy.reset()
        policy.select_action(look())
        policy.select_action(look(seed=1))
    assert [line["event"] for line in lines(file)] == ["start", "start"]


def test_blindness_is_written_once(make_policy, tmp_path):
    file = tmp_path / "health.jsonl"
    keys = [key for streams in VIEWS.values() for key in streams.values()]
    policy = make_policy(health_log=str(file))
    for seed, absent in enumerate([(), keys, keys, keys, ()]):
        policy.select_action(look(absent=absent, seed=seed))
    told = [(line["event"], line["then"]) for line in lines(file) if "then" in line]
    assert told == [("blind", "hold"), ("sees", None)]


def test_a_diary_that_cannot_be_written_does_not_stop_a_robot(make_policy, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    policy = make_policy(health_log=str(tmp_path / "file" / "health.jsonl"), n_action_steps=1)
    for black in ([], [RGB], []):
        assert policy.select_action(look(black=black)).isfinite().all()
    assert caplog.text.count("cannot be written") == 1

"""Ten minutes of healthy cameras in which nothing, or not much, happens: no alarm."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_policy import SIDE

from lerobot_policy_multismolvla.processor_multismolvla import HealthStep
from lerobot_policy_multismolvla.safety.watch import HealthLog, SensorWatch
from multismolvla.modalities import picture_key

KEY = picture_key("image", "rgb")
RATE, MINUTES = 5, 10


def test_no_alarm_in_ten_minutes_and_one_after_them(make_config, monkeypatch, tmp_path):
    """A noise-free picture of a scene at rest, and a moving robot before a camera at a quarter of its rate.

    The policy looks at every step, the hardest case: it sees each of the slow camera's pictures four times,
    and now and then five. Then that camera freezes.
    """
    now = [0.0]
    monkeypatch.setattr(HealthLog, "clock", staticmethod(lambda: now[0]))
    diary = tmp_path / "health.jsonl"
    config = make_config(views={"image": {"rgb": KEY}}, n_action_steps=1, health_log=str(diary))
    health, watch = HealthStep(views=config.views), SensorWatch(HealthLog())
    pictures = torch.rand(9, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    there = torch.zeros(2, 1, 4, dtype=torch.bool)
    there[..., 0] = True
    steps = 60 * MINUTES * RATE
    for step in range(steps + 10):
        now[0] = step / RATE
        shown = min(step, steps) // 4 - (step % 28 == 4)  # every seventh picture comes a step late
        state = torch.zeros(2, 8)
        state[0], state[1] = 0.001 * (step % 2), 0.1 * step
        batch = {KEY: torch.stack([pictures[8], pictures[shown % 8]]), "observation.state": state}
        fit = watch.look(config, health.observation(batch), there, steps=1)
        watch.tell(config, fit, None)
        if step < steps:
            assert fit.equal(there), step
    lines = [json.loads(line) for line in diary.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start"]
    assert fit[:, 0, 0].tolist() == [True, False]
    assert watch.verdict.score[1, 0] == pytest.approx(10.0)

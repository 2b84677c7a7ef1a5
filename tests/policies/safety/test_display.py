"""Where LeRobot shows a roll-out in rerun, a picture that is not used says so."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from lerobot.utils.rerun_visualization import log_rerun_data
from tiny_policy import canonical_batch

from lerobot_policy_multismolvla.processor_multismolvla import HealthStep
from multismolvla.modalities import default_view_map, padding_mask_key

rr = pytest.importorskip("rerun")

VIEWS = default_view_map()
RGB, DEPTH = VIEWS["image"]["rgb"], VIEWS["image"]["depth"]


def look(*, black=(), absent=(), seed=0):
    batch = {k: v[:1] for k, v in canonical_batch(seed=seed).items() if k != "action"}
    batch |= {key: torch.zeros_like(batch[key]) for key in black}
    gone = {padding_mask_key(key): torch.zeros(1, dtype=torch.bool) for key in absent}
    return HealthStep(views=VIEWS).observation(batch | gone)


def entities(path) -> dict[str, list]:
    """Entity -> all that was logged of it, with rerun's own reader."""
    from rerun.experimental import RrdReader

    found = defaultdict(list)
    for chunk in RrdReader(path).stream().to_chunks():
        entity = chunk.entity_path.lstrip("/").replace("\\", "")
        columns = chunk.to_record_batch().to_pydict()
        found[entity] += [(name, value) for name, values in columns.items() for value in values if value]
    return found


def test_a_lost_stream_is_named_in_its_picture_and_wiped_out_when_it_is_back(make_policy, tmp_path):
    file = tmp_path / "shown.rrd"
    rr.init("test")
    rr.save(file)
    try:
        # as lerobot-rollout --display_data=true does it
        robot = {
            "image": np.zeros((8, 8, 3), np.uint8),
            "image_depth": np.ones((8, 8, 1), np.uint16),
            "x.pos": 0.5,
        }
        log_rerun_data(robot, {"x.pos": 0.5})
        policy = make_policy(n_action_steps=1)
        policy.select_action(look(absent=[DEPTH]))
        policy.select_action(look(absent=[DEPTH], black=[RGB], seed=1))
        policy.select_action(look(absent=[DEPTH], seed=2))
    finally:
        rr.rerun_shutdown()
    found = entities(file)
    assert {"observation.image", "observation.image_depth", "observation.x.pos", "action.x.pos"} <= set(found)
    words = {
        name: [v for key, v in found[f"observation.{name}/health"] if key.endswith(":labels")]
        for name in ("image", "image_depth")
    }
    assert words == {"image": [["not used: zero"]], "image_depth": [["not used: not delivered"]]}
    cleared = [v for key, v in found["observation.image/health"] if "Clear" in key or "is_recursive" in key]
    assert len(cleared) >= 2, "at the start, and when it was back"
    texts = [v[0] for key, v in found["health"] if key.endswith(":text")]
    assert texts[-2:] == ["observation.image: not used, zero", "observation.image: used"]
    assert len(texts) == len([key for streams in VIEWS.values() for key in streams.values()]) + 2


def test_nothing_is_shown_where_nothing_is_displayed(make_policy, monkeypatch):
    monkeypatch.setattr(rr, "log", lambda *_, **__: pytest.fail("it was shown"))
    monkeypatch.setattr(rr, "get_global_data_recording", lambda: None)
    make_policy(n_action_steps=1).select_action(look(black=[RGB]))

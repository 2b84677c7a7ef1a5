"""A stream that was taken at another moment than its view's RGB acts as an absent one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from tiny_policy import all_features, canonical_batch, chunk, flow_inputs

from lerobot_policy_multismolvla.processor_multismolvla import (
    HealthStep,
    make_multismolvla_pre_post_processors,
)
from multismolvla.health import CERTAIN, Cause
from multismolvla.modalities import MODALITIES, captured_key, default_view_map, padding_mask_key

VIEWS = default_view_map()
RGB, DEPTH, THERMAL = (VIEWS["image"][m] for m in ("rgb", "depth", "thermal"))
NOW = 1.8e9  # seconds since 1970
LIMIT = {"max_skew_ms": 100.0}


def marked(batch):
    return HealthStep(views=VIEWS).observation(dict(batch))


def taken(**seconds_after_now: list[float]) -> dict[str, torch.Tensor]:
    """Capture times of streams of the first view."""
    return {
        captured_key(VIEWS["image"][m]): NOW + torch.tensor(after, dtype=torch.float64)
        for m, after in seconds_after_now.items()
    }


def masked(batch, key, there):
    return dict(batch) | {padding_mask_key(key): torch.tensor(there)}


def test_too_old_and_too_new_are_absent_row_by_row(make_policy, batch):
    policy = make_policy(**LIMIT)
    told = chunk(policy, marked(masked(batch, DEPTH, [True, False, False])))
    times = taken(rgb=[0.0, 0.0, 0.0], depth=[0.09, -0.11, 0.11], seg=[-0.05, 0.0, 0.05])
    policy.reset()
    assert torch.equal(chunk(policy, marked(batch) | times), told)
    verdict = policy.last_look().health
    depth = MODALITIES.index("depth")
    assert verdict.cause[:, depth].tolist() == [Cause.FIT, Cause.SKEW, Cause.SKEW]
    assert verdict.score[1:, depth].tolist() == [CERTAIN, CERTAIN]
    assert not verdict.cause[:, depth + 1 :].any()


def test_without_times_or_without_the_limit_nothing_is_compared(make_policy, batch):
    old = taken(rgb=[0.0] * 3, depth=[-9.0] * 3)
    alone = {captured_key(DEPTH): old[captured_key(DEPTH)]}
    unknown = taken(rgb=[torch.nan] * 3, depth=[-9.0] * 3)
    whole = chunk(make_policy(), marked(batch))
    assert not torch.equal(chunk(make_policy(**LIMIT), marked(batch) | old), whole)
    assert torch.equal(chunk(make_policy(), marked(batch) | old), whole)
    assert torch.equal(chunk(make_policy(**LIMIT, health="off"), marked(batch) | old), whole)
    for times in ({}, alone, unknown):
        assert torch.equal(chunk(make_policy(**LIMIT), marked(batch) | times), whole)


@pytest.mark.parametrize("how", ["masked", "black", "frozen"])
def test_rgb_that_is_lost_takes_nothing_along(how, make_policy, batch):
    """Its time is that of the last good picture."""
    policy = make_policy(**LIMIT)
    now = masked(batch, RGB, [False] * 3) if how == "masked" else dict(batch)
    if how == "black":
        now[RGB] = torch.zeros_like(batch[RGB])
    if how == "frozen":
        policy.reset()
        for seed in (7, 8, 9):  # long enough for a camera that is not slow
            chunk(policy, marked(canonical_batch(seed=seed) | {RGB: batch[RGB]}))
    chunk(policy, marked(now) | taken(rgb=[-2.0] * 3, depth=[0.0] * 3))
    cause = policy.last_look().health.cause
    assert not policy.last_look().inputs.present["rgb@64"].unflatten(0, (3, 2))[:, 0].any()
    assert not cause[:, MODALITIES.index("depth")].any()


def test_what_is_not_there_is_not_late(make_policy, batch):
    """An environment tells the times of all streams, also of one that it does not render."""
    policy = make_policy(**LIMIT)
    now = masked(batch, DEPTH, [True, False, True])
    del now[THERMAL]
    chunk(policy, marked(now) | taken(rgb=[0.0] * 3, depth=[-1.0] * 3, thermal=[-1.0] * 3))
    cause = policy.last_look().health.cause
    assert cause[:, MODALITIES.index("depth")].tolist() == [Cause.SKEW, Cause.FIT, Cause.SKEW]
    assert not cause[:, MODALITIES.index("thermal")].any()


def test_the_cause_is_logged(make_policy, batch, caplog):
    policy = make_policy(**LIMIT)
    on_time = taken(rgb=[0.0] * 3, depth=[0.0] * 3)
    with caplog.at_level("WARNING"):
        for times in (on_time, taken(rgb=[0.0] * 3, depth=[-1.0] * 3), on_time):
            chunk(policy, marked(batch) | times)
    assert caplog.text.count("Sensor lost: image.depth (skew)") == 1
    assert "Sensor back: image.depth" in caplog.text
    with pytest.raises(ValueError, match=f"{DEPTH} is skew.*health=strict"):
        chunk(
            make_policy(**LIMIT, health="strict"),
            marked(batch) | taken(rgb=[0.0] * 3, depth=[0.0, 0.0, -1.0]),
        )


def test_training_follows_the_same_rule(make_policy, batch):
    numbers = {"episode_index": torch.tensor([0, 7, 9]), "timestamp": torch.tensor([0.0, 1.5, 2.0])}
    late = marked(batch) | taken(rgb=[0.0] * 3, depth=[0.0, 0.5, 0.0]) | numbers
    options = {"stage": "robust", "curriculum_steps": 100, "dropout_mode": "none", **LIMIT}
    with pytest.raises(ValueError, match=rf"{DEPTH} is skew.*episode 7, 1\.50 s.*health=act"):
        make_policy(**options).train().forward(dict(late), **flow_inputs())
    policy = make_policy(**options, health="act").train()
    policy.forward(dict(late), **flow_inputs())
    present = policy.last_look().inputs.present["tok_depth@64"].flatten(1).any(1)
    assert present.tolist() == [True, True, False, True, True, True]


# -- the pre-processor ---------------------------------------------------------------------------------------


def raw(batch, times):
    pictures = {RGB: (batch[RGB] * 255).to(torch.uint8), DEPTH: batch[DEPTH], THERMAL: batch[THERMAL]}
    return pictures | {"observation.state": batch["observation.state"], "task": ["look"] * 3} | times


def test_times_pass_the_pre_processor_as_they_are(make_config, make_policy, batch):
    pre, _ = make_multismolvla_pre_post_processors(make_config(), None)
    times = taken(rgb=[0.0, 0.0, 0.0], depth=[0.0, -0.2, 0.0])
    seen = pre(raw(batch, {key: value[:, None] for key, value in times.items()}))  # as a data set has them
    for key, value in times.items():
        assert torch.equal(seen[key], value)
    policy = make_policy(**LIMIT)
    chunk(policy, seen)
    present = policy.last_look().inputs.present["tok_depth@64"].flatten(1).any(1).unflatten(0, (3, 2))
    assert present[:, 0].tolist() == [True, False, True]


def test_times_are_numbers_with_a_point(make_config, batch):
    pre, _ = make_multismolvla_pre_post_processors(make_config(), None)
    with pytest.raises(ValueError, match=rf"{captured_key(RGB)} has dtype torch\.int64. Expected seconds as"):
        pre(raw(batch, {captured_key(RGB): torch.full((3,), int(NOW))}))


@pytest.mark.parametrize("since", [0.0, 300_000.0], ids=["episode", "boot"])
def test_times_of_a_dataset_are_compared_where_float32_can_tell_them_apart(
    since, make_config, make_policy, batch, tmp_path
):
    """Recorded as float64, they are read by LeRobot as float32; 18 ms lie between RGB and depth."""
    moments = {captured_key(RGB): since + 5.0, captured_key(DEPTH): since + 4.982}
    features = {key: {"dtype": "float64", "shape": (1,), "names": None} for key in moments}
    options = {"root": tmp_path / "data", "fps": 10, "use_videos": False}
    data = LeRobotDataset.create("tests/times", features=features, **options)
    data.add_frame({key: np.array([at]) for key, at in moments.items()} | {"task": "push"})
    data.save_episode()
    data.finalize()
    frame = LeRobotDataset("tests/times", root=tmp_path / "data")[0]
    pre, _ = make_multismolvla_pre_post_processors(make_config(), None)
    seen = pre(raw(batch, {key: frame[key].expand(3, 1) for key in moments}))
    depth = MODALITIES.index("depth")
    chunk(make_policy(), seen)  # nothing is compared, so nothing is too coarse
    for limit, cause in ((20.0, Cause.FIT), (15.0, Cause.SKEW)):
        policy = make_policy(max_skew_ms=limit)
        if since:
            with pytest.raises(ValueError, match=rf"{captured_key(RGB)} reaches 300005 s.*steps of 35.8 ms"):
                chunk(policy, seen)
            continue
        chunk(policy, seen)
        assert policy.last_look().health.cause[:, depth].tolist() == [cause] * 3


def test_recorded_times_are_neither_normalised_nor_asked_of_a_robot(make_config):
    recorded = {captured_key(RGB): PolicyFeature(FeatureType.STATE, (1,))}
    config = make_config(input_features=all_features() | recorded)
    config.validate_features()
    assert captured_key(RGB) not in config.input_features


@pytest.mark.parametrize("limit", [0, -5.0, float("nan")])
def test_a_limit_must_be_positive(limit, make_config):
    with pytest.raises(ValueError, match=f"--policy.max_skew_ms={limit}.*above 0"):
        make_config(max_skew_ms=limit)

"""A misspelt camera is an error in training, and an absent one stays an absent sensor at run time."""

from __future__ import annotations

import logging

import pytest
from tiny_policy import chunk, flow_inputs

from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig

VIEWS = {
    "front": {"rgb": "observation.images.front", "depth": "observation.images.front_depth"},
    "wrist": {"rgb": "observation.images.wrist"},
}


def dataset(*cameras: str) -> dict[str, dict]:
    """Features of a dataset with depth and state, and the given RGB cameras."""
    depth = {"dtype": "video", "shape": (64, 64, 1), "info": {"is_depth_map": True}}
    pictures = {f"observation.images.{c}": {"dtype": "video", "shape": (64, 64, 3)} for c in cameras}
    state = {"observation.state": {"dtype": "float32", "shape": (8,)}}
    return {"observation.images.front_depth": depth, **pictures, **state}


def config(**options) -> MultiSmolVLAConfig:
    return MultiSmolVLAConfig(device="cpu", views=VIEWS, **options)


def test_a_misspelt_camera_is_named_with_what_the_data_have():
    with pytest.raises(
        ValueError, match=r"'observation.images.wrist'.*view 'wrist'.*\['observation.images.wirst'\]"
    ):
        config().set_dataset_feature_metadata(dataset("front", "wirst"))
    with pytest.raises(
        ValueError, match=r"'observation.images.wrist'.*\['observation.images.top'\].*absent_streams"
    ):
        config().set_dataset_feature_metadata(dataset("front", "top"))


@pytest.mark.parametrize("stream", ["wrist.rgb", "observation.images.wrist"])
def test_a_camera_may_be_absent_on_purpose(stream):
    config(absent_streams=[stream]).set_dataset_feature_metadata(dataset("front"))


def test_an_absent_stream_must_be_declared():
    with pytest.raises(ValueError, match=r"absent_streams='wirst.rgb'.*'wrist.rgb'"):
        config(absent_streams=["wirst.rgb"])


def test_other_modalities_may_be_missing():
    features = dataset("front", "wrist")
    del features["observation.images.front_depth"]
    config().set_dataset_feature_metadata(features)


def test_a_camera_that_no_view_declares_is_told(caplog):
    stray_depth = {"observation.images.front_seg": {"dtype": "image", "shape": (64, 64, 3)}}
    with caplog.at_level(logging.WARNING):
        config().set_dataset_feature_metadata(dataset("front", "wrist", "top") | stray_depth)
    (message,) = [r.getMessage() for r in caplog.records]
    assert "observation.images.top" in message


def test_a_checkpoint_is_checked_by_its_first_batch_because_keys_may_be_renamed(make_policy, batch):
    renamed = config(pretrained_path="some/checkpoint")
    renamed.set_dataset_feature_metadata(dataset("left", "right"))
    policy = make_policy(stage="robust", dropout_mode="none")
    key = policy.config.rgb_keys[1]
    without = {k: v for k, v in batch.items() if k != key}
    assert chunk(policy, without).isfinite().all()  # at run time it is an absent sensor
    with pytest.raises(ValueError, match=f"{key}.*absent_streams"):
        policy.train().forward(dict(without), **flow_inputs())
    declared = make_policy(stage="robust", dropout_mode="none", absent_streams=["image2.rgb"]).train()
    assert declared.forward(dict(without), **flow_inputs())[0].isfinite()

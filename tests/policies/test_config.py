"""The configuration: what is wrong is named with the option as typed, what is right survives config.json."""

from __future__ import annotations

import json

import draccus
import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from tiny_policy import SIDE, all_features, rgb_features

from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from lerobot_policy_multismolvla.training_data import check_cameras
from multismolvla.modalities import default_view_map, padding_mask_key, token_key

STATE = {"observation.state": PolicyFeature(FeatureType.STATE, (8,))}


def picture(channels: int) -> PolicyFeature:
    return PolicyFeature(FeatureType.VISUAL, (channels, SIDE, SIDE))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"views": {}}, "view map is empty"),
        ({"views": {"front": {"lidar": "observation.l"}}}, "unknown modality 'lidar'"),
        ({"vision_tower": "dino"}, "--policy.vision_tower='dino'.*'fourm', 'siglip', 'siglip.fourm'"),
        ({"stage": "three"}, "--policy.stage='three'.*'connector', 'robust'"),
        ({"tokenizers": "bpe"}, "--policy.tokenizers='bpe'"),
        ({"square": "fit"}, "--policy.square='fit'.*'crop', 'stretch', 'pad'"),
        ({"depth_unit": "cm"}, "--policy.depth_unit='cm'.*'m', 'mm'"),
        ({"provenance": {"lidar": "sensor"}}, "--policy.provenance keys='lidar'"),
        ({"provenance": {"depth": "guess"}}, "--policy.provenance.depth.='guess'.*'sensor', 'derived'"),
        (
            {"provenance": {"front": {"depth": "sensor"}}},
            "--policy.provenance keys='front'.*'image', 'image2'",
        ),
        ({"provenance": {"image": {"depth": "guess"}}}, "--policy.provenance.image.depth.='guess'"),
        ({"provenance": {"image": "derived"}}, "--policy.provenance keys='image'"),
        ({"half_turns": {"front": 1}}, "--policy.half_turns keys='front'.*'image', 'image2'"),
        ({"domains": {"lidar": "tok"}}, "--policy.domains keys='lidar'"),
        ({"depth_range_m": (2.0, 1.0)}, "--policy.depth_range_m=.2.0, 1.0.*0 <= near < far"),
        ({"add_image_special_tokens": True}, "add_image_special_tokens=true is only supported"),
        ({"dropout_mode": "cosine"}, "--policy.dropout_mode='cosine'"),
        ({"dropout_p_max": 1.0}, "--policy.dropout_p_max=1.0"),
        ({"dropout_ramp": 0.0}, "--policy.dropout_ramp=0.0"),
        ({"dropout_clean": 1.5}, "dropout_clean=1.5"),
        ({"n_action_steps": 51}, "n_action_steps"),
        ({"vision_tower": "siglip", "health": "strict"}, "--policy.health=strict needs a 4M tower.*siglip"),
    ],
)
def test_a_wrong_option_is_named(option, message):
    with pytest.raises(ValueError, match=message):
        MultiSmolVLAConfig(device="cpu", **option)


def test_defaults_that_protect_the_user():
    config = MultiSmolVLAConfig(device="cpu")
    assert config.type == "multismolvla"
    assert config.push_to_hub is False
    assert config.normalization_mapping["VISUAL"] is NormalizationMode.IDENTITY
    assert not any(config.is_derived(v, m) for v in config.views for m in config.views[v])
    assert config.rgb_keys == ["observation.images.image", "observation.images.image2"]


def test_config_json_gives_the_same_configuration_back(tmp_path):
    config = MultiSmolVLAConfig(
        device="cpu", views=default_view_map(("front",)), half_turns={"front": 1}, depth_range_m=(0.2, 3.0),
        stage="robust",
        provenance={"rgb": "sensor", "depth": "derived", "front": {"depth": "sensor"}}, curriculum_step=7,
        curriculum_stage="robust", encoder_hash="ab",
        input_features=all_features(), dropout_p_max=0.4,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["type"] == "multismolvla"
    again = PreTrainedConfig.from_pretrained(tmp_path)
    assert isinstance(again, MultiSmolVLAConfig)
    assert {k: v for k, v in vars(again).items() if not k.startswith("_")} == {
        k: v for k, v in vars(config).items() if not k.startswith("_")
    }


def test_options_are_typed_as_the_errors_say(tmp_path):
    MultiSmolVLAConfig(device="cpu").save_pretrained(tmp_path)
    # JSON, not YAML: lerobot 0.6.1 reads the overrides of a loaded configuration as JSON
    overrides = [
        '--views={"front": {"rgb": "observation.images.front", "depth": "observation.images.front_depth"}}',
        "--depth_range_m=[0.1, 2.0]",
        "--stage=robust",
        "--encoder_hash=null",
        '--half_turns={"front": 1}',
        '--provenance={"thermal": "derived", "front": {"depth": "derived"}}',
    ]
    config = PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=overrides)
    # draccus merges a dictionary into the saved one, so a view can be added to a checkpoint but not taken
    # away
    assert list(config.views) == ["image", "image2", "front"]
    assert config.views["front"] == {
        "rgb": "observation.images.front",
        "depth": "observation.images.front_depth",
    }
    assert tuple(config.depth_range_m) == (0.1, 2.0)
    assert config.half_turns == {"front": 1}
    assert config.encoder_hash is None
    assert config.is_derived("front", "depth")
    assert not config.is_derived("image", "depth")
    fresh = draccus.parse(MultiSmolVLAConfig, args=[overrides[0], "--device=cpu"])
    assert list(fresh.views) == ["front"]
    assert fresh.tower_modalities == ("rgb", "depth")


# -- features ------------------------------------------------------------------------------------------------


def validated(features: dict[str, PolicyFeature], **options) -> MultiSmolVLAConfig:
    config = MultiSmolVLAConfig(device="cpu", input_features=dict(features), **options)
    config.validate_features()
    return config


def test_declared_streams_that_the_data_lack_are_legal():
    assert set(validated(rgb_features()).input_features) == set(rgb_features())


def test_pictures_nobody_declared_are_dropped():
    stray = {"observation.images.side": picture(3), "observation.images.side_depth": picture(1)}
    config = validated(all_features() | stray)
    assert set(config.input_features) == set(all_features())


@pytest.mark.parametrize(
    ("key", "channels", "message"),
    [
        ("observation.images.image", 1, "image is declared as rgb of view 'image' and must have 3 channels"),
        ("observation.images.image_depth", 3, "image_depth is declared as depth.*must have 1 channels"),
        ("observation.images.image2_seg", 4, "image2_seg is declared as seg.*must have 1 or 3 channels"),
        ("observation.images.image_thermal", 2, "image_thermal is declared as thermal"),
    ],
)
def test_a_wrong_number_of_channels_is_named(key, channels, message):
    with pytest.raises(ValueError, match=message):
        validated(all_features() | {key: picture(channels)})


def test_a_camera_that_shows_nothing_is_named():
    small = PolicyFeature(FeatureType.VISUAL, (3, 4, 12))
    with pytest.raises(ValueError, match=r"image2 is 12x4 pixels.*at least 8x8"):
        validated(all_features() | {"observation.images.image2": small})


def test_keys_that_no_data_have_are_named_with_what_there_is():
    data = {"observation.images.cam_high": picture(3)} | STATE
    with pytest.raises(
        ValueError, match=r"observation.images.image'.*cam_high.*--policy.views.*--rename_map"
    ):
        validated(data)


def test_what_is_computed_of_pictures_does_not_pass_for_a_camera():
    batch = [f"{key}_health" for key in rgb_features()]
    with pytest.raises(ValueError, match=r"Undeclared keys of the data: \[\]\.[\s\S]*multismolvla-export"):
        check_cameras(validated(rgb_features()).views, [], batch)


def test_features_in_another_order_follow_the_view_map():
    # upstream walks the features, we walk the views: the teacher's tokens of one camera must not be the
    # target of another
    config = validated(dict(reversed(all_features().items())))
    assert [k for k in config.image_features if k in config.rgb_keys] == config.rgb_keys


def test_recorded_presence_flags_are_not_normalised(make_config):
    from lerobot_policy_multismolvla.processor_multismolvla import make_multismolvla_pre_post_processors

    # LeRobot types everything under "observation." that is no picture as STATE, which is normalised by mean
    # and spread
    flag = padding_mask_key("observation.images.image_depth")
    config = make_config(input_features=all_features() | {flag: PolicyFeature(FeatureType.STATE, (1,))})
    config.validate_features()
    stats = {
        k: {"mean": torch.full((n,), 0.5), "std": torch.full((n,), 0.1)}
        for k, n in ((flag, 1), ("observation.state", 8))
    }
    pre, _ = make_multismolvla_pre_post_processors(config, stats)
    frame = {"observation.images.image_depth": torch.ones(2, 1, 8, 8), flag: torch.tensor([[0.0], [1.0]])}
    out = pre(frame | {"observation.state": torch.zeros(2, 8), "task": ["a", "b"]})
    assert out[flag].dtype == torch.bool
    assert out[flag].tolist() == [False, True]


@pytest.mark.parametrize("tower", ["siglip", "fourm"])
def test_cached_ids_and_flags_of_streams_that_nobody_declared_are_no_inputs(tower):
    # a stage that reads RGB alone, on a dataset with ids and flags of everything: LeRobot types them all as
    # STATE
    rgb = {view: {"rgb": streams["rgb"]} for view, streams in default_view_map().items()}
    extra = {
        k: PolicyFeature(FeatureType.STATE, (4,))
        for view, streams in default_view_map().items()
        for m in ("depth", "seg", "thermal")
        for k in (token_key(view, m), padding_mask_key(streams[m]))
    }
    config = validated(rgb_features() | extra, views=rgb, vision_tower=tower)
    assert set(config.input_features) == set(rgb_features())


def test_help_of_the_whole_configuration_can_be_printed(capsys):
    with pytest.raises(SystemExit):
        draccus.parse(MultiSmolVLAConfig, args=["--help"])
    assert "--vision_tower" in capsys.readouterr().out

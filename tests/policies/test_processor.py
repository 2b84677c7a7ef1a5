"""The step that makes sensors canonical: units, validity, ids, orientation; and the pipelines saved with a
checkpoint.
"""

from __future__ import annotations

import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors
from tiny_policy import SIDE

from lerobot_policy_multismolvla.processor_multismolvla import (
    SensorStep,
    make_multismolvla_pre_post_processors,
)
from multismolvla.health import Cause
from multismolvla.modalities import default_view_map, padding_mask_key, valid_key
from multismolvla.sensors import SensorReader

VIEWS = default_view_map(("image",))
RGB, DEPTH, SEG, THERMAL = VIEWS["image"].values()


def step(**options) -> SensorStep:
    return SensorStep(**({"views": VIEWS} | options))


def run(observation: dict, **options) -> dict:
    return step(**options).observation(observation)


def metres(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


# -- depth ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "unit"),
    [
        (metres(0.0, 0.5, 1.25, 9.0), "m"),
        (metres(0.0, 500.0, 1250.0, 9000.0), "mm"),
        (
            torch.tensor([0, 500, 1250, 9000], dtype=torch.uint16).view(1, 1, 1, -1),
            "m",
        ),  # a RealSense: always mm
        (torch.tensor([0, 500, 1250, 9000], dtype=torch.uint16).view(1, 1, 1, -1), "mm"),
        (torch.tensor([0, 500, 1250, 9000]).view(1, 1, 1, -1), "m"),
        (metres(0.0, 0.5, 1.25, 9.0).double(), "m"),
    ],
)
def test_depth_becomes_metres_with_validity(raw, unit):
    out = run({DEPTH: raw}, depth_unit=unit)
    assert out[DEPTH].dtype == torch.float32
    assert torch.allclose(out[DEPTH], metres(0.0, 0.5, 1.25, 9.0))
    assert out[valid_key(DEPTH)].tolist() == [[[[False, True, True, True]]]]


def test_depth_out_of_range_is_invalid_and_zero():
    # 10 mm is how LeRobot 0.6.1 gives invalid pixels back from video
    out = run({DEPTH: metres(0.010, 0.012, 10.0, 10.5, torch.inf, -1.0)})
    assert out[valid_key(DEPTH)].flatten().tolist() == [False, True, True, False, False, False]
    assert out[DEPTH].flatten().tolist() == pytest.approx([0, 0.012, 10.0, 0, 0, 0])
    near = run({DEPTH: metres(0.2, 0.4, 3.0)}, depth_range_m=(0.3, 2.0))
    assert near[valid_key(DEPTH)].flatten().tolist() == [False, True, False]


def test_millimetres_declared_as_metres_are_named():
    with pytest.raises(ValueError, match=r"image_depth.*millimetres.*--dataset.depth_output_unit=m"):
        run({DEPTH: metres(0.0, 480.0, 1250.0, 900.0)})


def test_millimetres_with_mostly_invalid_pixels_are_named_too():
    # invalid pixels come as 10 mm, which as metres would even be a legal depth
    frame = torch.full((1, 1, 4, 4), 10.0)
    frame[..., :1, :3] = 850.0
    with pytest.raises(ValueError, match="looks like millimetres"):
        run({DEPTH: frame})


def test_metres_declared_as_millimetres_are_named():
    with pytest.raises(ValueError, match=r"1\.250.*metres.*--policy.depth_unit=m"):
        run({DEPTH: metres(0.0, 0.48, 1.25, 0.9)}, depth_unit="mm")


@pytest.mark.parametrize(("unit", "invalid"), [("m", 0.01), ("mm", 10.0), ("m", 0.0), ("mm", 0.0)])
def test_a_depth_camera_that_sees_nothing_is_no_error(unit, invalid):
    out = run({DEPTH: torch.full((2, 1, 4, 4), invalid)}, depth_unit=unit)
    assert not out[valid_key(DEPTH)].any()
    assert not out[DEPTH].any()


def test_no_return_as_infinity_is_no_unit_error():
    frame = torch.full((1, 1, 4, 4), torch.inf)
    frame[..., 0, 0] = 0.7
    assert run({DEPTH: frame})[valid_key(DEPTH)].sum() == 1


def test_nan_in_depth_is_a_pixel_without_measurement_but_an_error_in_the_dataset_tools():
    out = run({DEPTH: metres(0.5, torch.nan, torch.inf)})
    assert out[DEPTH].flatten().tolist() == [0.5, 0, 0]
    assert out[valid_key(DEPTH)].flatten().tolist() == [True, False, False]
    with pytest.raises(ValueError, match="image_depth.*NaN.*0"):
        SensorReader(VIEWS).read({DEPTH: metres(0.5, torch.nan)})


@pytest.mark.parametrize(
    ("key", "good", "bad", "cause"),
    [
        (DEPTH, metres(0.5, 0.6), metres(500.0, 600.0), Cause.DEPTH_SCALE),
        (
            SEG,
            torch.tensor([1, 2]).view(1, 1, 1, 2) / 255,
            torch.full((1, 1, 1, 2), 0.5019),
            Cause.OUT_OF_RANGE,
        ),
        (
            SEG,
            torch.tensor([1, 2]).view(1, 1, 1, 2),
            torch.tensor([1, -2]).view(1, 1, 1, 2),
            Cause.OUT_OF_RANGE,
        ),
        (RGB, torch.full((1, 3, 1, 2), 0.5), torch.full((1, 3, 1, 2), 2.0), Cause.OUT_OF_RANGE),
        (THERMAL, torch.full((1, 3, 1, 2), 0.5), torch.full((1, 3, 1, 2), torch.inf), Cause.NOT_FINITE),
    ],
)
def test_one_check_refuses_in_a_dataset_what_it_notes_on_a_robot(key, good, bad, cause):
    """A row of a mixed batch, too: the median of the whole batch would hide it."""
    both, reader, faults = torch.cat([good, good, bad]), SensorReader(VIEWS), {}
    with pytest.raises(ValueError, match=key):
        reader.read({key: both})
    out = reader.read({key: both}, faults)
    assert faults[key].tolist() == [Cause.FIT, Cause.FIT, cause]
    assert torch.equal(out[key][:2], reader.read({key: both[:2]})[key])
    assert not out[key][2].any()


def test_pixels_that_were_not_measured_do_not_tell_the_unit():
    faults = {}
    out = SensorReader(VIEWS, depth_unit="mm").read({DEPTH: metres(10.0, 10.0)}, faults)
    assert not faults
    assert not out[valid_key(DEPTH)].any()


# -- pictures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16])
def test_pictures_become_float32_in_the_unit_interval(dtype):
    raw = torch.arange(0, 256, 3, dtype=torch.uint8).repeat(3)[: 3 * 80].view(1, 3, 8, 10)
    given = raw if dtype == torch.uint8 else (raw.double() / 255).to(dtype)
    out = run({RGB: given, THERMAL: given, "observation.other": given})
    assert out[RGB].dtype == out[THERMAL].dtype == torch.float32
    assert torch.allclose(out[RGB], raw.float() / 255, atol=1e-3)
    assert torch.equal(out[THERMAL], out[RGB][:, :1])
    assert out["observation.other"] is given


@pytest.mark.parametrize("key", [RGB, THERMAL])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * 255, r"ranges from 0 to 255.*uint8, or float in \[0, 1\]"),
        (lambda x: x * 2 - 1, "ranges from -1 to 1"),
        (lambda x: x * torch.nan, "ranges from nan"),
        (lambda x: x.to(torch.int32), "dtype torch.int32.*uint8, or float"),
        (lambda x: x[:, :2], "has 2 channels"),
        (lambda x: x.permute(0, 2, 3, 1), "has 4 channels.*channels first"),
        (lambda x: x[0], r"shape \(3, 4, 5\).*\(B, C, H, W\)"),
        (lambda x: x.numpy(), r"is a ndarray.*tensor \(B, C, H, W\)"),
    ],
)
def test_a_wrong_picture_is_named(key, change, message):
    picture = torch.linspace(0, 1, 60).view(1, 3, 4, 5)
    with pytest.raises(ValueError, match=f"{key}.*{message}"):
        run({key: change(picture)})


def test_only_the_last_frame_of_a_history_counts():
    frames = torch.rand(2, 3, 3, 4, 4)
    depth = torch.rand(2, 3, 1, 4, 4) + 0.1
    out = run({RGB: frames, DEPTH: depth})
    assert torch.equal(out[RGB], frames[:, -1])
    assert torch.equal(out[DEPTH], depth[:, -1])


# -- ids -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["uint8", "int64", "int16", "float"])
def test_ids_come_back_exactly(channels, kind):
    ids = torch.arange(256).view(1, 1, 16, 16)
    raw = ids.expand(1, channels, 16, 16).clone()
    raw[:, 1:] = 99  # instance ids and padding in the other channels do not count
    given = raw.to(torch.uint8).float() / 255 if kind == "float" else raw.to(getattr(torch, kind))
    out = run({SEG: given}, num_labels=256)
    assert out[SEG].dtype == torch.int64
    assert torch.equal(out[SEG], ids)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.full((1, 1, 2, 2), 8), r"class id 8 .* label set of 8.*--policy.num_labels"),
        (torch.full((1, 1, 2, 2), -1), r"smallest -1"),
        (torch.full((1, 3, 2, 2), 9 / 255), r"class id 9 .* label set of 8"),
        (torch.full((1, 3, 2, 2), 3.0), r"float values up to 3.*uint8 ids divided by 255"),
        (torch.full((1, 1, 2, 2), 2.5 / 255), r"0\.0098 are not ids.*losslessly"),
        (torch.full((1, 1, 2, 2), torch.nan), "contains NaN"),
        (torch.zeros(1, 2, 2, 2, dtype=torch.int64), "has 2 channels"),
    ],
)
def test_wrong_ids_are_named(given, message):
    with pytest.raises(ValueError, match=f"{SEG}.*{message}"):
        run({SEG: given})


# -- orientation, presence, absence --------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_camera_upside_down_is_turned_in_every_modality(turns):
    g = torch.Generator().manual_seed(0)
    frames = {
        RGB: torch.rand(1, 3, 4, 6, generator=g),
        DEPTH: (500 + torch.arange(24)).to(torch.uint16).view(1, 1, 4, 6),
        SEG: torch.randint(0, 8, (1, 1, 4, 6), generator=g, dtype=torch.uint8),
        THERMAL: torch.rand(1, 1, 4, 6, generator=g),
    }
    upright, turned = run(dict(frames)), run(dict(frames), half_turns={"image": turns})
    for key in (*frames, valid_key(DEPTH)):
        assert torch.equal(turned[key], upright[key].flip(-1, -2) if turns == 1 else upright[key])


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.uint8])
def test_presence_becomes_one_flag_per_sample(shape, dtype):
    mask = padding_mask_key(RGB)
    out = run({RGB: torch.zeros(3, 3, 2, 2), mask: torch.tensor([1, 0, 1]).view(shape).to(dtype)})
    assert out[mask].dtype == torch.bool
    assert out[mask].tolist() == [True, False, True]


def test_missing_keys_stay_missing_and_others_pass():
    observation = {RGB: torch.zeros(1, 3, 2, 2), "observation.state": torch.ones(1, 8)}
    out = run(dict(observation))
    assert set(out) == set(observation)
    assert out["observation.state"] is observation["observation.state"]
    assert set(run({})) == set()


def test_the_callers_observation_is_left_alone():
    observation = {DEPTH: metres(0.5, 0.0)}
    run(observation)
    assert set(observation) == {DEPTH}


def test_canonical_pictures_pass_a_second_time_unchanged():
    first = run(
        {
            RGB: torch.rand(1, 3, 4, 4),
            THERMAL: torch.rand(1, 3, 4, 4),
            DEPTH: metres(0.0, 0.5),
            SEG: torch.ones(1, 1, 2, 2) / 255,
        }
    )
    second = run(dict(first))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_wrong_view_map_fails_when_the_step_is_made():
    with pytest.raises(ValueError, match="unknown modality 'lidar'"):
        step(views={"front": {"lidar": "observation.lidar"}})


# -- pipelines -----------------------------------------------------------------------------------------------


STATS = {
    "observation.state": {"mean": torch.arange(8.0), "std": torch.full((8,), 2.0)},
    "action": {"mean": torch.full((7,), 0.5), "std": torch.full((7,), 4.0)},
    DEPTH: {"mean": torch.full((1, 1, 1), 1.0), "std": torch.full((1, 1, 1), 0.1)},
}


@pytest.fixture
def config(make_config):
    return make_config(depth_unit="mm", num_labels=6, half_turns={"image": 1}, depth_range_m=(0.3, 2.5))


def a_frame() -> dict:
    """One unbatched observation as a robot or a dataset item delivers it."""
    g = torch.Generator().manual_seed(0)
    frame: dict = {"observation.state": torch.arange(8.0) + 2, "task": "lift the cube"}
    for streams in default_view_map().values():
        frame[streams["rgb"]] = torch.rand(3, SIDE, SIDE, generator=g)
        frame[streams["depth"]] = 200 + 3000 * torch.rand(1, SIDE, SIDE, generator=g)
        frame[streams["seg"]] = torch.randint(0, 6, (3, SIDE, SIDE), generator=g).to(torch.uint8)
        frame[streams["thermal"]] = torch.rand(3, SIDE, SIDE, generator=g)
    return frame


def same(a: dict, b: dict) -> bool:
    return set(a) == set(b) and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


def test_the_standard_steps_keep_their_names_and_order(config):
    pre, post = make_multismolvla_pre_post_processors(config, STATS)
    names = [getattr(type(s), "_registry_name", type(s).__name__) for s in pre.steps]
    assert names == [
        "rename_observations_processor",
        "to_batch_processor",
        "smolvla_new_line_processor",
        "tokenizer_processor",
        "device_processor",
        "multismolvla_sensors",
        "multismolvla_health",
        "normalizer_processor",
    ]
    names = [type(s)._registry_name for s in post.steps]
    assert names == ["unnormalizer_processor", "device_processor", "multismolvla_guard"]


def test_a_frame_comes_out_canonical_batched_and_normalised(config):
    pre, post = make_multismolvla_pre_post_processors(config, STATS)
    frame = a_frame()
    out = pre(dict(frame))
    assert torch.allclose(out["observation.state"], torch.ones(1, 8))
    turned = frame[DEPTH].flip(-1, -2) / 1000
    valid = (turned > 0.3) & (turned <= 2.5)
    assert torch.equal(out[valid_key(DEPTH)], valid[None])
    # statistics of pictures must not touch them, or metres would be metres no more
    assert torch.allclose(out[DEPTH], torch.where(valid, turned, 0.0)[None])
    assert out[SEG].shape == (1, 1, SIDE, SIDE)
    assert "observation.language.tokens" in out
    assert torch.allclose(post(torch.zeros(1, 7)), torch.full((1, 7), 0.5))


def test_saved_and_reloaded_it_is_the_same_step_and_the_same_numbers(config, tmp_path):
    pre, post = make_multismolvla_pre_post_processors(config, STATS)
    pre.save_pretrained(tmp_path)
    post.save_pretrained(tmp_path)
    again, back = make_pre_post_processors(config, pretrained_path=str(tmp_path))
    sensors = [s for s in again.steps if isinstance(s, SensorStep)]
    assert len(sensors) == 1
    assert sensors[0].get_config() == next(s for s in pre.steps if isinstance(s, SensorStep)).get_config()
    assert sensors[0].depth_range_m == (0.3, 2.5)
    assert same(again(a_frame()), pre(a_frame()))
    action = torch.randn(1, 7)
    assert torch.equal(back(action), post(action))


def test_the_overrides_of_lerobots_scripts_find_their_steps(config, tmp_path):
    for pipeline in make_multismolvla_pre_post_processors(config, STATS):
        pipeline.save_pretrained(tmp_path)
    features = {**config.input_features, **config.output_features}
    stats = {k: {n: v + 1 for n, v in s.items()} for k, s in STATS.items()}
    pre, post = make_pre_post_processors(
        config,
        pretrained_path=str(tmp_path),
        # as lerobot-train 0.6.1 starts the second stage; lerobot-eval gives the first and the last
        preprocessor_overrides={
            "device_processor": {"device": "cpu"},
            "normalizer_processor": {"features": features, "norm_map": config.normalization_mapping,
                "stats": stats},
            "rename_observations_processor": {"rename_map": {"observation.front": RGB}},
        },
        # ... and the asynchronous server the second
        postprocessor_overrides={
            "unnormalizer_processor": {
                "features": config.output_features, "norm_map": config.normalization_mapping, "stats": stats,
            },
            "device_processor": {"device": "cpu"},
        },
    )  # fmt: skip
    frame = a_frame()
    frame["observation.front"] = frame.pop(RGB)
    out = pre(frame)
    assert out[RGB].shape == (1, 3, SIDE, SIDE)
    assert torch.allclose(out["observation.state"][0], (torch.arange(8.0) + 2 - torch.arange(8.0) - 1) / 3)
    assert torch.allclose(post(torch.zeros(1, 7)), torch.full((1, 7), 1.5))


def test_a_dataset_in_millimetres_fails_at_the_first_batch(make_config):
    pre, _ = make_multismolvla_pre_post_processors(make_config(), STATS)
    with pytest.raises(ValueError, match="--dataset.depth_output_unit=m"):
        pre(a_frame())


def test_a_frame_without_some_sensors_passes(config):
    pre, _ = make_multismolvla_pre_post_processors(config, STATS)
    frame = {k: v for k, v in a_frame().items() if "image2" not in k and not k.endswith("depth")}
    out = pre(frame)
    assert not any("image2" in k or "depth" in k for k in out)

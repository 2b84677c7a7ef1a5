"""A picture that is not fit to be used acts as an absent one, whoever noticed it."""

from __future__ import annotations

import json

import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from safetensors.torch import save_file
from tiny_policy import canonical_batch, chunk, flow_inputs

from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from lerobot_policy_multismolvla.processor_multismolvla import (
    HealthStep,
    make_multismolvla_pre_post_processors,
)
from lerobot_policy_multismolvla.visual import _warn_of_unmarked
from multismolvla.health import FEATURES, Cause, StreamStatistics, health_key
from multismolvla.modalities import default_view_map, padding_mask_key

VIEWS = default_view_map()
RGB = [streams["rgb"] for streams in VIEWS.values()]
HEALTH = HealthStep(views=VIEWS)


def marked(batch):
    return HEALTH.observation(batch)


def masked(batch, keys):
    absent = torch.zeros(len(batch["observation.state"]), dtype=torch.bool)
    return dict(batch) | {padding_mask_key(key): absent for key in keys}


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_picture_without_structure_acts_as_an_absent_one(value, make_policy, batch):
    policy = make_policy()
    bad = dict(batch) | {key: torch.full_like(batch[key], value) for key in RGB}
    policy.reset()
    told = chunk(policy, masked(batch, RGB))
    policy.reset()
    assert torch.equal(chunk(policy, marked(bad)), told)
    careless = make_policy(health="off")
    assert not torch.allclose(chunk(careless, marked(bad)), told, atol=1e-4)


def test_a_camera_that_gives_nothing_loses_all_its_streams(make_policy, batch):
    policy = make_policy()
    keys = list(VIEWS["image"].values())
    black = {key: torch.zeros_like(batch[key]) for key in keys}
    black[f"{VIEWS['image']['depth']}_valid"] = torch.zeros_like(batch[RGB[0]][:, :1], dtype=torch.bool)
    told = chunk(policy, masked(batch, keys))
    policy.reset()
    assert torch.equal(chunk(policy, marked(dict(batch) | black)), told)


def test_healthy_pictures_are_left_alone(make_policy, batch):
    policy = make_policy()
    assert torch.equal(chunk(policy, marked(batch)), chunk(make_policy(health="off"), batch))


def test_one_bad_row_of_a_batch_is_one_absent_picture(make_policy, batch):
    policy = make_policy()
    bad = {key: batch[key].clone() for key in RGB}
    for picture in bad.values():
        picture[1] = 0
    there = torch.tensor([True, False, True])
    told = chunk(policy, dict(batch) | {padding_mask_key(key): there for key in RGB})
    policy.reset()
    assert torch.equal(chunk(policy, marked(dict(batch) | bad)), told)


def test_a_picture_that_stays_for_more_than_five_steps_is_absent_and_a_new_episode_forgets_it(make_policy):
    policy = make_policy(n_action_steps=4)
    looks = [canonical_batch(seed=s) for s in (1, 2, 3)]
    for look in looks[1:]:
        look |= {key: looks[0][key] for key in RGB}
    told = chunk(policy, masked(looks[2], RGB))
    policy.reset()
    chunk(policy, marked(looks[0]))
    chunk(policy, marked(looks[1]))
    assert policy.last_look().health.cause.max() == Cause.FIT, "a slow camera"
    assert torch.equal(chunk(policy, marked(looks[2])), told)
    policy.reset()
    assert not torch.allclose(chunk(policy, marked(looks[2])), told, atol=1e-4)


def test_the_cause_is_logged_once(make_policy, batch, caplog):
    policy = make_policy()
    black = dict(batch) | {RGB[0]: torch.zeros_like(batch[RGB[0]])}
    with caplog.at_level("WARNING"):
        for observation in (batch, black, black):
            chunk(policy, marked(observation))
    assert caplog.text.count("image.rgb (zero)") == 1


def test_strict_makes_it_an_error(make_policy, batch):
    black = dict(batch) | {RGB[1]: torch.zeros_like(batch[RGB[1]])}
    with pytest.raises(ValueError, match=f"{RGB[1]}.*zero.*health=strict"):
        chunk(make_policy(health="strict"), marked(black))


@pytest.mark.parametrize("stage", ["connector", "robust"])
def test_a_bad_picture_of_a_dataset_stops_training_unless_it_may_count_as_absent(stage, make_policy, batch):
    black = batch[RGB[0]].clone()
    black[1] = 0
    numbers = {"episode_index": torch.tensor([0, 7, 9]), "timestamp": torch.tensor([0.0, 1.5, 2.0])}
    bad = marked(dict(batch) | {RGB[0]: black}) | numbers
    options = {"stage": stage, "curriculum_steps": 100}
    with pytest.raises(ValueError, match=rf"{RGB[0]}.*zero.*episode 7, 1\.50 s.*health=act"):
        make_policy(**options).train().forward(dict(bad), **flow_inputs())
    policy = make_policy(**options, health="act", dropout_mode="none").train()
    policy.forward(dict(bad), **flow_inputs())
    present = policy.last_look().inputs.present["rgb@64"].flatten(1).any(1)
    assert present.tolist() == [True, True, False, True, True, True]


# -- the pre-processor ---------------------------------------------------------------------------------------


def raw(batch):
    """As a robot delivers it."""
    rgb = {key: (batch[key] * 255).to(torch.uint8) for key in RGB}
    return rgb | {"observation.state": batch["observation.state"], "task": ["look"] * 3}


def test_nan_from_the_start_is_a_mistake_and_later_a_fault(make_config, make_policy, batch):
    nan = raw(batch) | {RGB[0]: torch.full_like(batch[RGB[0]], torch.nan)}
    pre, _ = make_multismolvla_pre_post_processors(make_config(), None)
    with pytest.raises(ValueError, match=RGB[0]):
        pre(dict(nan))
    pre, _ = make_multismolvla_pre_post_processors(make_config(), None)
    pre(raw(batch))
    seen = pre(dict(nan))
    assert seen[RGB[0]].isfinite().all()
    policy = make_policy()
    told = chunk(policy, masked(pre(raw(batch)), RGB[:1]))
    policy.reset()
    assert torch.equal(chunk(policy, seen), told)


ONES = torch.ones(len(FEATURES))
NARROW = StreamStatistics(0 * ONES, 0.3 * ONES, ONES, threshold=0.1, change=0.5, constant=False, motion=1.0)


def fitted_processor(config, **about):
    """A pre-processor with statistics of one stream, and its step."""
    pre, _ = make_multismolvla_pre_post_processors(config, None)
    step = next(s for s in pre.steps if isinstance(s, HealthStep))
    states = torch.stack([torch.full((8,), -9.0), torch.full((8,), 9.0)])
    step.set_statistics({"image.rgb": NARROW}, {"dataset": "demo", **about}, states)
    return pre, step


def test_statistics_are_saved_with_the_checkpoint(make_config, batch, tmp_path):
    pre, _ = fitted_processor(make_config())
    before = pre(raw(batch))[health_key(RGB[0])]
    pre.save_pretrained(tmp_path)
    again = type(pre).from_pretrained(tmp_path, config_filename="policy_preprocessor.json")
    assert torch.equal(again(raw(batch))[health_key(RGB[0])], before)
    assert before[:, 1].min() > 0
    assert before[:, 2].tolist() == [1, 1, 1]
    far = raw(batch) | {"observation.state": torch.full_like(batch["observation.state"], 10.0)}
    assert again(far)[health_key(RGB[0])][:, 2].tolist() == [0, 0, 0]
    assert next(s for s in again.steps if isinstance(s, HealthStep)).fitted == {"dataset": "demo"}
    file = next(tmp_path.glob("*multismolvla_health*.safetensors"))
    save_file({"observation.state": torch.full((2, 8), torch.nan)}, file)
    with pytest.raises(ValueError, match=r"states.*NaN: True.*multismolvla-health fit"):
        type(pre).from_pretrained(tmp_path, config_filename="policy_preprocessor.json")
    save_file({"left.rgb": NARROW.to_tensor()}, file)
    with pytest.raises(ValueError, match=r"'left.rgb'.*multismolvla-health fit"):
        type(pre).from_pretrained(tmp_path, config_filename="policy_preprocessor.json")


def test_statistics_of_another_view_map_are_refused(make_config, tmp_path):
    other = {**VIEWS, "image": {**VIEWS["image"], "rgb": "observation.images.top"}}
    pre, _ = fitted_processor(make_config(), views=other)
    pre.save_pretrained(tmp_path)
    difference = f"image.rgb is observation.images.top instead of {RGB[0]}"
    with pytest.raises(ValueError, match=rf"{difference}\. .*multismolvla-health fit"):
        type(pre).from_pretrained(tmp_path, config_filename="policy_preprocessor.json")


def test_training_on_leaves_the_statistics_out(make_config, batch, caplog):
    """LeRobot replaces those of its own steps by the new data's, and knows nothing of ours."""
    pre, step = fitted_processor(make_config())
    row = raw(batch) | {"action": batch["action"][:, 0]}
    usual = pre(dict(row))[health_key(RGB[0])][:, 1]
    assert usual.min() > 0, "an action alone is no training"
    trained = pre(row | {"index": torch.arange(3)})[health_key(RGB[0])][:, 1]
    assert trained.max() == 0
    assert (step.fitted, step.state_dict()) == ({}, {})
    pre(row | {"index": torch.arange(3)})
    assert caplog.text.count("left out: they are of dataset=demo") == 1


def test_processors_of_other_views_are_named_with_the_policy(make_policy, tmp_path):
    policy, other = make_policy(), {"image": {"rgb": "observation.images.top"}}
    policy.save_pretrained(tmp_path)
    pre, post = make_multismolvla_pre_post_processors(policy.config, None)
    pre.save_pretrained(tmp_path)
    post.save_pretrained(tmp_path)
    MultiSmolVLAPolicy.from_pretrained(tmp_path)
    file = tmp_path / "policy_preprocessor.json"
    stored = json.loads(file.read_text())
    next(s for s in stored["steps"] if s["registry_name"] == "multismolvla_health")["config"]["views"] = other
    file.write_text(json.dumps(stored))
    difference = f"image.rgb is observation.images.top instead of {RGB[0]}, image.depth is not there instead"
    with pytest.raises(ValueError, match=f"{file}.*multismolvla_health.*{difference}"):
        MultiSmolVLAPolicy.from_pretrained(tmp_path)
    # adapters have the processors beside them, and name the policy below
    policy.save_pretrained(tmp_path / "below")
    config = PreTrainedConfig.from_pretrained(tmp_path / "below")
    config.pretrained_path = tmp_path
    with pytest.raises(ValueError, match=f"{file}.*multismolvla_health"):
        MultiSmolVLAPolicy.from_pretrained(tmp_path / "below", config=config)


def test_a_picture_without_marks_beside_marked_ones_is_an_error(make_policy, batch):
    half = HealthStep(views={"image2": VIEWS["image2"]}).observation(batch)
    with pytest.raises(ValueError, match=f"other views than the policy: it marks no {RGB[0]}"):
        chunk(make_policy(), half)
    with pytest.raises(ValueError, match=f"it marks no {RGB[0]}"):
        make_policy(stage="robust", curriculum_steps=100).train().forward(dict(half), **flow_inputs())
    chunk(make_policy(health="off"), half)


def test_pictures_at_which_nothing_looks_are_told_once(make_policy, batch, caplog):
    policy = make_policy()
    _warn_of_unmarked.cache_clear()
    for _ in range(2):
        policy.reset()
        chunk(policy, batch)
    assert caplog.text.count(f"Nothing looks at whether {RGB[0]}, ") == 1

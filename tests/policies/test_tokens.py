"""Cached token ids: the same tokens, loss and actions as live tokenisation, and a recipe that must agree."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.feature_utils import dataset_to_policy_features
from tiny_policy import chunk, flow_inputs

from lerobot_policy_multismolvla.processor_multismolvla import SensorStep
from multismolvla.fourm import MINI_DOMAINS
from multismolvla.modalities import default_view_map, padding_mask_key, token_key
from multismolvla_data.formats.workspace import WorkspaceError
from multismolvla_data.tokens import TokensConfig, cache_tokens

VIEWS = default_view_map()
TOKENIZED = {m: d for m, d in MINI_DOMAINS.items() if m != "rgb"}


@pytest.fixture(scope="module")
def cached(tiny_dataset, hub, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokens") / "tiny_tokens"
    cfg = TokensConfig(
        dataset=tiny_dataset, output=out, encoder=hub / "fourm", domains=TOKENIZED, batch_size=5
    )
    return cfg, cache_tokens(cfg)


def _batch(root, rows=(0, 7, 20)):
    data = LeRobotDataset("tests/tiny", root=root, depth_output_unit="m")
    items = [data[r] for r in rows]
    pictures = {k: torch.stack([i[k] for i in items]) for k in items[0] if k.startswith("observation.")}
    out = SensorStep(views=VIEWS).observation(pictures)
    g = torch.Generator().manual_seed(0)
    out["action"] = torch.randn(len(rows), 4, 7, generator=g)
    out["observation.language.tokens"] = torch.full((len(rows), 5), 20)
    out["observation.language.attention_mask"] = torch.ones(len(rows), 5, dtype=torch.bool)
    return out


def test_cached_and_live_ids_give_the_same_door_loss_and_actions(tiny_dataset, cached, make_policy):
    live, tokens = _batch(tiny_dataset), _batch(cached[1])
    assert not any("depth" in k and "images" in k for k in tokens)
    policy = make_policy()
    assert torch.equal(chunk(policy, live), chunk(policy, tokens))
    first = policy.last_look().inputs.fingerprint()
    chunk(policy, live)
    assert policy.last_look().inputs.fingerprint() == first
    losses = [policy.forward(dict(b), **flow_inputs())[0] for b in (live, tokens)]
    assert torch.equal(*losses)


def test_an_unmeasured_patch_is_an_absent_token(cached):
    data = LeRobotDataset("tests/tiny", root=cached[1])
    ids = data[0][token_key("image", "depth")].reshape(8, 8)
    # the top four pixel rows were not measured: half of the first row of patches, which is enough to keep it
    assert (ids >= 0).all()
    assert ids.dtype in (torch.int64, torch.int16)


def test_presence_flags_and_dropout_work_on_ids(cached, make_policy):
    policy = make_policy()
    tokens = _batch(cached[1])
    keys = [VIEWS[v]["depth"] for v in VIEWS]
    masked = tokens | {padding_mask_key(k): torch.zeros(3, dtype=torch.bool) for k in keys}
    without = {k: v for k, v in tokens.items() if k not in {token_key(v, "depth") for v in VIEWS}}
    assert torch.allclose(chunk(policy, masked), chunk(policy, without), atol=1e-6)
    assert not torch.allclose(chunk(policy, masked), chunk(policy, tokens), atol=1e-6)


def test_ids_are_never_normalised_and_their_pictures_are_expected_at_run_time(cached, make_config):
    info = json.loads((cached[1] / "meta/info.json").read_text())["features"]
    cfg = make_config(input_features=dataset_to_policy_features(info))
    cfg.set_dataset_feature_metadata(info)
    cfg.validate_features()
    assert not any("tokens" in k for k in cfg.input_features)
    assert cfg.input_features[VIEWS["image"]["depth"]].type is FeatureType.VISUAL


def test_a_camera_that_nobody_declared_may_stand_beside_ids(cached, make_config):
    from lerobot.policies.utils import validate_visual_features_consistency

    info = json.loads((cached[1] / "meta/info.json").read_text())["features"]
    stray = {"observation.images.side": dict(info[VIEWS["image"]["rgb"]])}
    for extra in ({}, stray):
        data = dataset_to_policy_features(info | extra)
        cfg = make_config(input_features=dict(data))
        cfg.validate_features()
        validate_visual_features_consistency(cfg, data)  # as LeRobot's factory does
    assert set(cfg.image_features) == set(cfg.rgb_keys)


@pytest.mark.parametrize(
    ("option", "value"), [("image_size", 32), ("num_labels", 7), ("half_turns", {"image": 1})]
)
def test_another_recipe_is_refused(option, value, cached, make_config):
    info = json.loads((cached[1] / "meta/info.json").read_text())["features"]
    with pytest.raises(ValueError, match=option):
        make_config(**{option: value}).set_dataset_feature_metadata(info)


def test_a_second_run_keeps_what_is_there_and_refuses_another_recipe(cached):
    cfg, out = cached
    before = (out / "meta/info.json").stat().st_mtime_ns
    assert cache_tokens(cfg) == out
    assert (out / "meta/info.json").stat().st_mtime_ns == before
    with pytest.raises(WorkspaceError, match="num_labels"):
        cache_tokens(TokensConfig(**{**vars(cfg), "num_labels": 5}))


def test_two_kilobytes_per_view_are_enough(cached):
    data = LeRobotDataset("tests/tiny", root=cached[1])
    size = sum(np.prod(data.features[token_key("image", m)]["shape"]) * 2 for m in TOKENIZED)
    assert size <= 2000


def test_recorded_presence_flags_work_beside_ids(cached, make_policy):
    """A dataset stores a flag as (B, 1); ids have no picture beside them."""
    flag = padding_mask_key(VIEWS["image"]["depth"])
    raw = _batch(cached[1]) | {flag: torch.tensor([[1.0], [0.0], [1.0]])}
    presence = make_policy().availability(SensorStep(views=VIEWS).observation(raw))
    assert presence[:, 0, 1].tolist() == [True, False, True]


def test_ids_of_derived_pictures_say_that_they_are_derived(tiny_dataset, hub, tmp_path, make_config):
    shutil.copytree(tiny_dataset, tmp_path / "source")
    path = tmp_path / "source/meta/info.json"
    info = json.loads(path.read_text())
    info["features"][VIEWS["image2"]["depth"]]["info"]["provenance"] = "derived"
    path.write_text(json.dumps(info))
    cfg = TokensConfig(
        dataset=tmp_path / "source",
        output=tmp_path / "ids",
        encoder=hub / "fourm",
        domains=TOKENIZED,
        batch_size=24,
    )
    made = json.loads((cache_tokens(cfg) / "meta/info.json").read_text())["features"]
    said = {key: f["info"]["provenance"] for key, f in made.items() if "provenance" in (f.get("info") or {})}
    assert said == {token_key("image2", "depth"): "derived"}
    config = make_config()
    config.set_dataset_feature_metadata(made)
    assert (config.is_derived("image", "depth"), config.is_derived("image2", "depth")) == (False, True)
    assert cache_tokens(cfg) == cfg.output  # the mark is no other recipe

"""The real policy with official domains, tokenizers and thermal routes: presence, cached ids, soft rows."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from safetensors.torch import load_file
from tiny_official import PICTURES, THERMAL, official_options, sources, write_official
from tiny_policy import canonical_batch, chunk, flow_inputs

from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from lerobot_policy_multismolvla.processor_multismolvla import SensorStep
from multismolvla.modalities import MODALITIES, default_view_map, padding_mask_key, token_key
from multismolvla_data.tokens import TokensConfig, cache_tokens

VIEWS = default_view_map()
SOFT = "model.tower.encoder.encoder_embeddings.soft_thermal@224."


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official(tmp_path_factory.mktemp("official"))


@pytest.fixture
def make(files, make_policy):
    def policy(route: str = "vision", **options) -> MultiSmolVLAPolicy:
        absent = {"absent_streams": ["image.rgb", "image2.rgb"]}  # as in `one_view` and where RGB is dead
        return make_policy(**(official_options(files, route) | absent | options))

    return policy


@pytest.fixture
def one_view(batch) -> dict[str, torch.Tensor]:
    """The batch of a robot with one camera, to be quick."""
    return {k: v for k, v in batch.items() if "image2" not in k}


@pytest.mark.parametrize("route", list(THERMAL))
def test_each_modality_changes_the_action(route, make, one_view):
    policy = make(route)
    other = canonical_batch(seed=5)
    before = chunk(policy, one_view)
    for modality in MODALITIES:
        key = VIEWS["image"][modality]
        changed = one_view | {k: other[k] for k in other if k in (key, f"{key}_valid")}
        assert (chunk(policy, changed) - before).abs().amax((1, 2)).min() > 1e-6, modality


@pytest.mark.parametrize("route", list(THERMAL))
def test_masking_thermal_equals_not_having_it(route, make, one_view):
    policy, key = make(route), VIEWS["image"]["thermal"]
    masked = one_view | {padding_mask_key(key): torch.zeros(3, dtype=torch.bool)}
    without = {k: v for k, v in one_view.items() if k != key}
    assert torch.allclose(chunk(policy, masked), chunk(policy, without), atol=1e-6)
    assert not torch.allclose(chunk(policy, masked), chunk(policy, one_view), atol=1e-6)


def test_a_robot_that_sees_only_global_tokens_acts_on_them(make, one_view):
    policy, key = make("bridge"), VIEWS["image"]["thermal"]
    blind = {k: v for k, v in one_view.items() if "images" not in k or k == key}
    images, masks = policy.prepare_images(dict(blind))
    assert all(m.all() for m in masks)
    absent = policy.model.bridge.absent  # grids of both views, then global tokens
    assert [torch.allclose(tokens, absent) for tokens in images] == [True, True, False, True]
    assert images[2].shape[1] == 16
    assert not torch.allclose(chunk(policy, blind), chunk(policy, blind | {key: 1 - blind[key]}), atol=1e-6)
    mixed = one_view | {
        padding_mask_key(VIEWS["image"][m]): torch.tensor([True, False, True]) for m in PICTURES
    }
    assert torch.allclose(chunk(policy, mixed)[1], chunk(policy, blind)[1], atol=1e-6)
    assert policy.train().forward(dict(blind), **flow_inputs())[0].isfinite()


# -- cached ids ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cached(tiny_dataset, files, tmp_path_factory) -> Path:
    options = official_options(files)
    names = ("tokenizers", "tokenizer_sources", "seg_labels", "imagebind", "imagebind_rows", "image_size")
    cfg = TokensConfig(
        dataset=tiny_dataset,
        output=tmp_path_factory.mktemp("tokens") / "ids",
        encoder=files / "fourm21",
        domains={m: d for m, d in options["domains"].items() if m != "rgb"},
        views={"image": VIEWS["image"]},
        **{name: options[name] for name in names},
    )
    return cache_tokens(cfg)


def features(root: Path) -> dict:
    return json.loads((root / "meta/info.json").read_text())["features"]


def frames(root: Path, rows=(0, 20)) -> dict[str, torch.Tensor]:
    data = LeRobotDataset("tests/tiny", root=root, depth_output_unit="m")
    items = [data[r] for r in rows]
    wanted = [k for k in items[0] if k.startswith("observation.") and "image2" not in k]
    out = SensorStep(views=VIEWS).observation({k: torch.stack([i[k] for i in items]) for k in wanted})
    out["action"] = torch.randn(len(rows), 4, 7, generator=torch.Generator().manual_seed(0))
    out["observation.language.tokens"] = torch.full((len(rows), 5), 20)
    out["observation.language.attention_mask"] = torch.ones(len(rows), 5, dtype=torch.bool)
    return out


def reader(make_config, files, cached, **options) -> MultiSmolVLAPolicy:
    """A policy that is trained on the dataset with ids, built as LeRobot's factory does."""
    torch.manual_seed(1)
    config = make_config(
        **(official_options(files) | {"stage": "robust", "views": {"image": VIEWS["image"]}} | options)
    )
    config.set_dataset_feature_metadata(features(cached))
    return MultiSmolVLAPolicy(config).eval()


def test_cached_and_live_ids_give_the_same_door_loss_and_actions(tiny_dataset, cached, files, make_config):
    live, ids = frames(tiny_dataset), frames(cached)
    assert ids[token_key("image", "thermal")].shape == (2, 256 + 16)
    assert not any("images" in k and k != VIEWS["image"]["rgb"] for k in ids)
    policy = reader(make_config, files, cached)
    actions = chunk(policy, ids)
    seen = policy.last_look().inputs.fingerprint()
    assert set(seen) == {*PICTURES.values(), *THERMAL["vision"].split("+")}
    loss = policy.train().forward(dict(ids), **flow_inputs(2))[0]
    assert not any(t.loaded for t in policy.model.tower.tokenizers.values())
    assert torch.equal(policy.forward(dict(live), **flow_inputs(2))[0], loss)
    assert policy.last_look().inputs.fingerprint() == seen
    assert all(t.loaded for t in policy.model.tower.tokenizers.values())
    assert torch.equal(chunk(policy.eval(), live), actions)


def test_the_tokenizers_are_read_and_run_before_the_first_look(
    tiny_dataset, cached, files, make_config, monkeypatch, caplog
):
    live = frames(tiny_dataset)
    late = reader(make_config, files, cached)
    wanted = chunk(late, live)
    policy = reader(make_config, files, cached)
    policy.train().reset()
    tokenizers = policy.model.tower.tokenizers
    assert not any(t.loaded for t in tokenizers.values())
    with caplog.at_level(logging.INFO):
        policy.eval().reset()
    assert all(t.loaded for t in tokenizers.values())
    for modality in tokenizers:
        assert re.search(rf"Reading the weights of the {modality} tokenizer: .*\(\d+ [kM]B\)", caplog.text)
    for tokenizer in tokenizers.values():
        monkeypatch.setattr(tokenizer, "build", None)  # a network that is built now is late
    policy.reset()
    assert torch.equal(chunk(policy, live), wanted)


def test_autocast_flips_no_id(tiny_dataset, files, make_config, cached):
    policy = reader(make_config, files, cached)
    live = frames(tiny_dataset)
    chunk(policy, live)
    plain = policy.last_look().inputs.fingerprint()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chunk(policy, live)
    assert policy.last_look().inputs.fingerprint() == plain


def test_training_from_ids_needs_no_tokenizer_and_says_so(cached, files, make_config, tmp_path, caplog):
    gone = {part: str(tmp_path / part) for part in sources(files)}
    with caplog.at_level("INFO"):
        policy = reader(
            make_config, files, cached, tokenizer_sources=gone, imagebind=str(tmp_path / "imagebind")
        )
    assert "Training reads cached ids of observation.tokens.image.depth" in caplog.text
    assert policy.train().forward(frames(cached), **flow_inputs(2))[0].isfinite()
    # what made the ids is remembered, so that acting later with other weights is refused
    recorded = dict(policy.config.tokenizer_hashes)
    assert set(recorded) == {"depth", "seg", "imagebind", "imagebind_global", "network"}
    policy.save_pretrained(tmp_path / "one")
    saved = json.loads((tmp_path / "one/config.json").read_text())
    assert saved["tokenizer_hashes"] == recorded


def test_ids_of_other_weights_are_refused(cached, files, make_config, tmp_path):
    other = write_official(tmp_path, seed=3)
    changes = {"tokenizer_sources": sources(other), "views": {"image": VIEWS["image"]}}
    config = make_config(**(official_options(files) | changes))
    with pytest.raises(ValueError, match="`multismolvla-annotate`"):
        config.set_dataset_feature_metadata(features(cached))
    policy = reader(make_config, files, cached)
    policy.save_pretrained(tmp_path / "one")
    saved = json.loads((tmp_path / "one/config.json").read_text())
    saved["tokenizer_sources"]["depth"] = str(other / "8k/depth")
    (tmp_path / "one/config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="depth at .*fingerprint"):
        MultiSmolVLAPolicy.from_pretrained(tmp_path / "one")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seg_labels", "libero"),
        ("imagebind_rows", "trunk"),
        ("depth_range_m", (0.5, 2.0)),
        ("tokenizers", "patch"),
    ],
)
def test_another_recipe_is_refused(option, value, cached, files, make_config):
    config = make_config(**(official_options(files) | {"views": {"image": VIEWS["image"]}, option: value}))
    with pytest.raises(ValueError, match=option):
        config.set_dataset_feature_metadata(features(cached))


def test_dropout_takes_all_domains_of_a_stream(cached, files, make_config):
    settings = {"dropout_mode": "fixed", "dropout_p_max": 0.5, "dropout_complete": 0.0}
    policy = reader(make_config, files, cached, **settings).train()
    ids = {k: v.repeat_interleave(4, 0) for k, v in frames(cached).items()}
    lost = 0
    for _ in range(3):
        policy.forward(dict(ids), **flow_inputs(8))
        dense, global_ = (
            policy.last_look().inputs.present[d].flatten(1).any(1) for d in THERMAL["vision"].split("+")
        )
        assert torch.equal(dense, global_)
        lost += (~dense).sum().item()
        policy.update()
    assert 0 < lost < 24


def test_a_family_of_two_grids_and_a_soft_domain_without_its_route_are_named(make):
    with pytest.raises(ValueError, match="thermal_route='vision'|soft_thermal@224"):
        make("vision", domains=PICTURES | {"thermal": THERMAL["soft"]})
    with pytest.raises(ValueError, match="thermal_route='bridge'.*--policy.domains.thermal"):
        make("bridge", domains=PICTURES | {"thermal": THERMAL["vision"]})


# -- soft rows -----------------------------------------------------------------------------------------------


def test_the_map_of_soft_rows_learns_in_stage_one_and_is_saved(make, one_view, tmp_path):
    policy = make("soft", stage="connector").train()
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert {n for n in trained if n.startswith(SOFT)} == {
        SOFT + n for n in ("mod_emb", "emb_proj.weight", "emb_proj.bias")
    }
    assert all(n.startswith((SOFT, "model.bridge.")) for n in trained)
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    optimizer = torch.optim.SGD(policy.get_optim_params(), lr=1.0)
    policy.forward(dict(one_view), **flow_inputs())[0].backward()
    optimizer.step()
    changed = {n for n, p in policy.named_parameters() if not torch.equal(p, before[n])}
    assert {n for n in changed if n.startswith("model.tower.")} == {n for n in trained if n.startswith(SOFT)}
    policy.eval().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {k for k in stored if "tower" in k} == {k for k in policy.state_dict() if k.startswith(SOFT)}
    again = MultiSmolVLAPolicy.from_pretrained(tmp_path)
    assert again.config.soft_width == 32
    assert torch.equal(chunk(again, one_view), chunk(policy, one_view))


def test_other_routes_have_no_trained_map_and_keep_no_activations(make, one_view):
    policy = make("vision", stage="connector").train()
    assert not any("soft" in n for n, _ in policy.named_parameters())
    policy.prepare_images(dict(one_view))
    assert not policy.model.tower.wants_gradient(policy.last_look().inputs)


def test_ids_beside_the_pictures_of_soft_rows_are_left_alone(make, make_config, files, cached, one_view):
    key = token_key("image", "thermal")
    config = make_config(**official_options(files, "soft"), views={"image": VIEWS["image"]})
    with pytest.raises(ValueError, match="--keep_pictures"):
        config.set_dataset_feature_metadata(features(cached))
    config.set_dataset_feature_metadata(features(cached) | {VIEWS["image"]["thermal"]: {"dtype": "image"}})
    assert config.cached_modalities == {"depth", "seg"}
    policy = make(
        "soft",
        stage="robust",
        corruption_probability=0.9,
        dropout_mode="none",
        curriculum_step=5,
        curriculum_steps=9,
    )
    ids = torch.zeros(3, 272, dtype=torch.int16)
    assert torch.equal(chunk(policy, one_view | {key: ids}), chunk(policy, one_view))
    assert policy.train().forward(one_view | {key: ids}, **flow_inputs())[0].isfinite()


def test_ids_of_a_modality_that_the_policy_does_not_read_are_no_matter(make_config, files, cached):
    only = {"domains": PICTURES, "imagebind_rows": "trunk", "views": {"image": VIEWS["image"]}}
    config = make_config(**(official_options(files) | only))
    config.set_dataset_feature_metadata(features(cached))
    assert config.cached_modalities == {"depth", "seg"}


def test_the_map_starts_from_imagebinds_embedding_where_the_encoder_has_one(make, files):
    stored = load_file(files / "fourm21/model.safetensors")
    kindred = stored["encoder_embeddings.tok_imagebind@224.mod_emb"]
    assert torch.equal(make("soft").state_dict()[SOFT + "mod_emb"], kindred)


def test_stage_two_trains_the_map_beside_the_adapters(make, one_view, tmp_path):
    from peft import PeftModel

    policy = make("soft", stage="connector")
    policy.save_pretrained(tmp_path / "one")
    config = policy.config
    config.stage, config.dropout_mode, config.pretrained_path = "robust", "none", tmp_path / "one"
    second = MultiSmolVLAPolicy.from_pretrained(tmp_path / "one", config=config)
    wrapped = second.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 2}).train()
    wrapped.forward(dict(one_view), **flow_inputs())[0].backward()
    learned = {
        n for n, p in wrapped.named_parameters() if p.grad is not None and p.grad.any() and "soft" in n
    }
    assert len(learned) == 3
    assert all("modules_to_save" in n for n in learned)
    torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.1).step()
    wrapped.save_pretrained(tmp_path / "two")
    fresh = MultiSmolVLAPolicy.from_pretrained(tmp_path / "one", config=config)
    again = PeftModel.from_pretrained(fresh, tmp_path / "two").eval()
    assert torch.equal(chunk(again, one_view), chunk(wrapped.eval(), one_view))

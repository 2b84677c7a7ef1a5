"""LoRA as lerobot-train applies it in stage 2: what is trained, what is saved, and that nothing is lost on
the way.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import make_policy as lerobot_make_policy
from lora import OVERRIDES, saved, stage_two, trained
from tiny_policy import actions, all_features, canonical_batch, chunk, flow_inputs

from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from multismolvla.modalities import MODALITIES, default_view_map

VIEWS = default_view_map()


@pytest.fixture(params=[True, False], ids=["expert_only", "everything"])
def stage_one(request, make_policy, tmp_path) -> Path:
    """A checkpoint of stage 1; with SmolVLA's default freezing (expert only) and without."""
    make_policy(
        stage="connector", train_expert_only=request.param, freeze_vision_encoder=request.param
    ).save_pretrained(tmp_path / "one")
    return tmp_path / "one"


class Metadata:
    """The part of a dataset's metadata that make_policy reads."""

    features = {
        **{k: {"dtype": "image", "shape": (f.shape[1], f.shape[2], f.shape[0]), "names": ["height", "width",
            "channels"]}
           for k, f in all_features().items() if len(f.shape) == 3},
        "observation.state": {"dtype": "float32", "shape": (8,), "names": None},
        "action": {"dtype": "float32", "shape": actions()["action"].shape, "names": None},
    }  # fmt: skip
    stats: dict = {}


def reloaded(path: Path):
    config = PreTrainedConfig.from_pretrained(path)
    config.pretrained_path = path
    return lerobot_make_policy(config, ds_meta=Metadata()).eval()


def test_trainable_are_lora_on_language_model_and_expert_the_projections_and_the_bridge(stage_one):
    wrapped = stage_two(stage_one)
    names = [n for n, p in wrapped.named_parameters() if p.requires_grad]
    assert all(".lora_" in n or ".bridge.modules_to_save." in n for n in names), names
    assert not any("tower" in n for n in names)
    for part in ("text_model.layers", "lm_expert.layers", "state_proj", "action_in_proj", "action_out_proj",
                 "action_time_mlp_in", "action_time_mlp_out", "bridge"):  # fmt: skip
        assert any(part in n for n in names), part
    layers = [n for n in names if "text_model.layers.0." in n]
    assert all(
        any(f".{p}_proj.lora_A" in n for n in layers) for p in ("q", "k", "v", "o", "gate", "up", "down")
    )
    optimized = wrapped.get_optim_params()
    assert {id(p) for p in optimized} == {id(p) for p in wrapped.parameters() if p.requires_grad}


def test_lora_reaches_the_encoders_last_blocks_where_asked(make_policy, batch, tmp_path):
    make_policy(stage="connector").save_pretrained(tmp_path / "one")
    plain = {n for n, p in stage_two(tmp_path / "one").named_parameters() if p.requires_grad}
    wrapped = stage_two(tmp_path / "one", options=["--encoder_lora_blocks=1"])
    names = {n for n, p in wrapped.named_parameters() if p.requires_grad}
    last = len(wrapped.get_base_model().model.tower.encoder.encoder) - 1
    layers = {
        re.sub(r"\.lora_[AB]\.default\.weight", "", n.partition(".encoder.encoder.")[2])
        for n in names - plain
    }
    assert layers == {
        f"{last}.{layer}" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "mlp.fc3")
    }
    assert plain < names
    again = reloaded(saved(trained(wrapped, batch), tmp_path / "two"))
    assert torch.equal(chunk(again, batch), chunk(wrapped, batch))
    adapters = [p for n, p in again.named_parameters() if "tower" in n and "lora_B" in n]
    assert all(p.abs().sum() > 0 for p in adapters)
    assert len(adapters) == 5


def test_adapters_on_the_encoder_that_would_not_be_there_are_named(make_policy, batch, tmp_path):
    make_policy(stage="connector").save_pretrained(tmp_path / "one")
    with pytest.raises(ValueError, match=r"encoder_lora_blocks=9, but the encoder at .* has 2"):
        stage_two(tmp_path / "one", options=["--encoder_lora_blocks=9"])
    with pytest.raises(ValueError, match=r"encoder_lora_blocks=-1: expected 0 or more"):
        make_policy(encoder_lora_blocks=-1)
    with pytest.raises(ValueError, match=r"encoder_lora_blocks=1: .*vision_tower=siglip"):
        make_policy(encoder_lora_blocks=1, vision_tower="siglip")
    policy = make_policy(stage="robust", encoder_lora_blocks=1).train()  # full fine-tuning
    with pytest.raises(ValueError, match=r"encoder_lora_blocks=1, but .* Set --peft.method_type=LORA"):
        policy.forward(dict(batch), **flow_inputs())


def test_gradients_reach_bridge_language_model_and_expert(stage_one, batch):
    wrapped = stage_two(stage_one).train()
    wrapped.forward(dict(batch), **flow_inputs())[0].backward()
    touched = {n for n, p in wrapped.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("text_model" in n for n in touched)
    assert any("lm_expert" in n for n in touched)
    assert any("bridge.modules_to_save" in n and "connector" in n for n in touched)
    for modality in MODALITIES:
        assert any("bridge.modules_to_save" in n and f"fusion.value.{modality}." in n for n in touched), (
            modality
        )
    assert not any("original_module" in n or "tower" in n for n in touched)


@pytest.mark.parametrize("view", list(VIEWS))
@pytest.mark.parametrize("modality", MODALITIES)
def test_each_modality_still_changes_the_action(modality, view, make_policy, batch, tmp_path):
    make_policy(stage="connector").save_pretrained(tmp_path)
    wrapped = trained(stage_two(tmp_path), batch)
    other, key = canonical_batch(seed=5), VIEWS[view][modality]
    changed = dict(batch) | {k: other[k] for k in other if k in (key, f"{key}_valid")}
    assert (chunk(wrapped, changed) - chunk(wrapped, batch)).abs().amax((1, 2)).min() > 1e-6


def test_saved_and_reloaded_through_lerobots_factory_it_acts_the_same(stage_one, batch, tmp_path):
    untouched = chunk(MultiSmolVLAPolicy.from_pretrained(stage_one), batch)
    wrapped = trained(stage_two(stage_one), batch)
    again = reloaded(saved(wrapped, tmp_path / "two"))
    assert torch.equal(chunk(again, batch), chunk(wrapped, batch))
    assert not torch.allclose(chunk(again, batch), untouched, atol=1e-3)


def test_what_is_saved_are_adapters_and_the_bridge(stage_one, batch, tmp_path):
    from safetensors.torch import load_file

    folder = saved(trained(stage_two(stage_one), batch), tmp_path / "two")
    keys = load_file(folder / "adapter_model.safetensors").keys()
    assert all("lora_" in k or ".bridge." in k for k in keys)
    assert any(".bridge.connector." in k for k in keys)


def test_merged_it_acts_the_same_and_is_a_full_checkpoint(stage_one, batch, tmp_path):
    wrapped = trained(stage_two(stage_one), batch)
    before = chunk(wrapped, batch)
    merged = wrapped.merge_and_unload()
    assert isinstance(merged, MultiSmolVLAPolicy)
    assert torch.allclose(chunk(merged, batch), before, atol=1e-5)
    merged.config.use_peft = False
    merged.save_pretrained(tmp_path / "merged")
    again = MultiSmolVLAPolicy.from_pretrained(tmp_path / "merged")
    assert torch.allclose(chunk(again, batch), before, atol=1e-5)


def test_stage_and_progress_survive_in_the_configuration(stage_one, batch, tmp_path):
    folder = saved(trained(stage_two(stage_one), batch, steps=4), tmp_path / "two")
    config = PreTrainedConfig.from_pretrained(folder)
    assert (config.stage, config.curriculum_stage, config.curriculum_step) == ("robust", "robust", 4)
    assert config.use_peft is True
    assert config.encoder_hash
    again = reloaded(folder)
    assert again.config.curriculum_step == 4
    again.update()
    assert again.config.curriculum_step == 5


def test_adapters_without_a_checkpoint_to_stand_on_are_refused(make_policy):
    with pytest.raises(ValueError, match=r"pretrained_path"):
        make_policy(stage="robust").wrap_with_peft(peft_cli_overrides=dict(OVERRIDES))


def test_the_gate_of_siglip_plus_fourm_is_trained_and_saved(make_policy, batch, tmp_path):
    make_policy(stage="connector", vision_tower="siglip+fourm").save_pretrained(tmp_path / "one")
    wrapped = trained(stage_two(tmp_path / "one"), batch)
    gates = {n: p for n, p in wrapped.named_parameters() if "gate" in n and p.requires_grad and "fourm" in n}
    assert gates
    again = reloaded(saved(wrapped, tmp_path / "two"))
    assert torch.equal(chunk(again, batch), chunk(wrapped, batch))


def test_a_roll_out_of_adapters_that_learned_a_refresh_does_not_claim_another(make_policy, tmp_path, caplog):
    """The checkpoint below the adapters is stage 1's, which estimated at every look."""
    make_policy(stage="connector").save_pretrained(tmp_path / "one")
    wrapped = stage_two(tmp_path / "one")
    recipe = {"model": "nobody/nowhere", "revision": None, "fingerprint": "f", "dtype": "float32"}
    learned = {
        "provenance": {"thermal": "derived"}, "estimators": {"thermal": recipe}, "refresh": {"thermal": 4},
        "missing_estimator": "absent",
    }  # fmt: skip
    for option, value in learned.items():
        setattr(wrapped.config, option, value)
    folder = saved(wrapped, tmp_path / "two")
    for overrides, told in (((), 0), (['--refresh={"thermal": 2}'], 1)):
        config = PreTrainedConfig.from_pretrained(folder, cli_overrides=list(overrides))
        config.pretrained_path = folder
        policy = lerobot_make_policy(config, ds_meta=Metadata()).eval()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            policy.reset()
        assert caplog.text.count("trained with refresh={'thermal': 4} (between: absent)") == told
        assert caplog.text.count("The policy was trained with") == told

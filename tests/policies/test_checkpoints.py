"""Rule 10 for weights: a base, an encoder or a checkpoint that does not fit is named, never half loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from safetensors.torch import load_file, save_file
from tiny_policy import actions, chunk, common_options, rgb_features

from lerobot_policy_multismolvla.checkpoints import tensors_hash
from lerobot_policy_multismolvla.losses import teacher_tokens
from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy


def rewrite(source: Path, target: Path, change) -> Path:
    """A copy of a checkpoint with its tensors changed."""
    shutil.copytree(source, target)
    state = load_file(source / "model.safetensors")
    change(state)
    save_file(state, target / "model.safetensors")
    return target


def cut(folder: Path) -> None:
    """Leave the first half of the weights, as a full disk or a broken download does."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


# -- base checkpoint -----------------------------------------------------------------------------------------


def test_the_bases_language_model_and_expert_are_taken(make_policy, hub):
    base = load_file(hub / "base" / "model.safetensors")
    state = make_policy(stage="robust").state_dict()
    shared = [k for k in state if k in base]
    assert len(shared) > 40
    assert all(torch.equal(state[k], base[k]) for k in shared)
    left = {k for k in base if k not in state}
    assert left
    assert all("vision_model" in k or "vlm.model.connector" in k for k in left)
    assert all(k.startswith(("model.tower.", "model.bridge.")) for k in state if k not in base)


def test_a_base_without_the_unused_head_is_fine(make_policy, hub, tmp_path):
    base = rewrite(hub / "base", tmp_path / "b", lambda s: [s.pop(k) for k in list(s) if "lm_head" in k])
    make_policy(base_checkpoint=str(base))


def test_a_base_of_another_size_is_named(make_policy, hub, tmp_path):
    wide = common_options(hub) | {"expert_width_multiplier": 1.0}
    torch.manual_seed(0)
    SmolVLAPolicy(
        SmolVLAConfig(**wide, input_features=rgb_features(), output_features=actions())
    ).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"shape \(.*\(.*expert_width_multiplier",
    ):
        make_policy(base_checkpoint=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.state_proj.weight"), "missing 'state_proj.weight' .1 missing, 0 unexpected"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected 'extra'"),
        # the original lerobot/smolvla_base: one set of statistics per dataset it was trained on
        (
            lambda s: s.update({"normalize_inputs.so100_buffer_observation_state.mean": torch.zeros(1)}),
            "before LeRobot's processors: it holds 'normalize_inputs.so100_.* "
            "-m lerobot.processor.migrate_policy_normalization --pretrained-path",
        ),
        (
            lambda s: s.update({"unnormalize_outputs.buffer_action.std": torch.zeros(1)}),
            "holds 'unnormalize_outputs.buffer_action.std' .1 such keys",
        ),
        (
            lambda s: s.update({k.replace("model.", "model._orig_mod.", 1): s.pop(k) for k in list(s)}),
            "holds '_orig_mod.action_in_proj.bias'",
        ),
        (
            lambda s: s.pop("model.vlm_with_expert.lm_expert.norm.weight"),
            "missing 'vlm_with_expert.lm_expert.norm",
        ),
    ],
)
def test_a_base_with_other_keys_is_named(make_policy, hub, tmp_path, change, message):
    base = rewrite(hub / "base", tmp_path / "b", change)
    with pytest.raises(ValueError, match=message):
        make_policy(base_checkpoint=str(base))


def test_the_migration_script_that_the_message_names_exists():
    import importlib.util

    assert importlib.util.find_spec("lerobot.processor.migrate_policy_normalization") is not None


def test_weights_stored_in_half_precision_are_taken(make_policy, hub, tmp_path):
    def halve(state):
        state.update({k: v.to(torch.bfloat16) for k, v in state.items()})

    policy = make_policy(stage="robust", base_checkpoint=str(rewrite(hub / "base", tmp_path / "b", halve)))
    key = "model.state_proj.weight"
    stored = load_file(hub / "base/model.safetensors")[key]
    assert torch.equal(policy.state_dict()[key], stored.to(torch.bfloat16).to(policy.state_dict()[key].dtype))


def test_one_of_our_own_checkpoints_is_no_base(make_policy, tmp_path):
    make_policy(stage="robust").save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match="missing 'vlm_with_expert.vlm.model.connector",
    ):
        make_policy(base_checkpoint=str(tmp_path))


@pytest.mark.parametrize("broken", ["base", "own"])
def test_a_truncated_file_is_named(broken, make_policy, hub, tmp_path):
    if broken == "base":
        shutil.copytree(hub / "base", tmp_path / "c")
    else:
        make_policy(stage="robust").save_pretrained(tmp_path / "c")
    cut(tmp_path / "c")
    with pytest.raises(ValueError, match=r"c/model.safetensors .*truncated"):
        make_policy(
            base_checkpoint=str(tmp_path / "c")
        ) if broken == "base" else MultiSmolVLAPolicy.from_pretrained(tmp_path / "c")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{tmp}", "has no model.safetensors"),
        ("{tmp}/nowhere", "neither a folder nor a hub id"),
        ("./nowhere", "neither a folder nor a hub id"),
        ("outputs/train/nowhere", "neither a folder nor a hub id"),
        (
            "someone/nothing",
            "(?s)Cannot get model.safetensors of 'someone/nothing'.*By hand: put model.safetensors",
        ),
        (
            "lerobot/smolvla_base",
            "(?s)Licence of lerobot/smolvla_base: Apache-2.0.*hf download lerobot/smolvla_base",
        ),
    ],
)
def test_a_base_that_is_not_there_is_named(source, message, make_policy, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=message):
        make_policy(base_checkpoint=source.format(tmp=tmp_path))


def test_stage_one_without_a_teacher_is_named(make_policy):
    with pytest.raises(
        ValueError, match="--policy.stage=connector.*--policy.base_checkpoint.*--policy.align_weight=0"
    ):
        make_policy(stage="connector", base_checkpoint=None)
    make_policy(stage="connector", base_checkpoint=None, align_weight=0.0)


def test_a_stage_one_checkpoint_acts_where_its_teacher_is_gone(make_policy, hub, batch, tmp_path):
    shutil.copytree(hub / "base", tmp_path / "base")
    policy = make_policy(stage="connector", base_checkpoint=str(tmp_path / "base"))
    policy.save_pretrained(tmp_path / "one")
    shutil.rmtree(tmp_path / "base")
    again = MultiSmolVLAPolicy.from_pretrained(tmp_path / "one")
    assert torch.equal(chunk(again, batch), chunk(policy, batch))
    with pytest.raises(FileNotFoundError, match="/base'"):
        again.train().forward(dict(batch))


def test_a_restored_stage_one_policy_has_the_same_teacher(make_policy, batch, tmp_path):
    policy = make_policy(stage="connector")
    policy.save_pretrained(tmp_path)
    again = MultiSmolVLAPolicy.from_pretrained(tmp_path)
    assert torch.equal(teacher_tokens(again, dict(batch))[0], teacher_tokens(policy, dict(batch))[0])


# -- the frozen encoder --------------------------------------------------------------------------------------


def test_another_encoder_than_the_one_trained_with_is_refused(make_policy, hub, tmp_path):
    make_policy(stage="robust").save_pretrained(tmp_path / "one")
    other = rewrite(hub / "fourm", tmp_path / "fourm", lambda s: next(iter(s.values())).add_(1e-3))
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    config["encoder"] = str(other)
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="--policy.encoder .*--policy.encoder_hash=null"):
        MultiSmolVLAPolicy.from_pretrained(tmp_path / "one")
    config["encoder_hash"] = None
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    assert MultiSmolVLAPolicy.from_pretrained(tmp_path / "one").config.encoder_hash


def test_an_encoder_that_is_not_there_is_named(make_policy, hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        make_policy(encoder=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="(?s)config.json.*'EPFL-VILAB/4M-21_B'"):
        make_policy(encoder="EPFL-VILAB/4M-21_B")
    shutil.copytree(hub / "fourm", tmp_path / "fourm")
    cut(tmp_path / "fourm")
    with pytest.raises(ValueError, match="truncated"):
        make_policy(encoder=str(tmp_path / "fourm"))


def test_a_domain_the_encoder_lacks_is_named(make_policy):
    with pytest.raises(ValueError, match="rgb@224"):
        make_policy(domains={"rgb": "rgb@224"})


def test_the_hash_covers_names_shapes_and_values():
    def net(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(2, 3))
        module[0].weight.data.mul_(scale)
        return module.to(dtype)

    assert tensors_hash(net()) == tensors_hash(net())
    different = [net(1 + 1e-6), net(dtype=torch.bfloat16), torch.nn.ModuleDict({"a": net()[0]})]
    assert len({tensors_hash(m) for m in (net(), *different)}) == 4


# -- own checkpoints -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.bridge.connector.gain"), "missing 'model.bridge.connector.gain'"),
        (lambda s: s.update({"model.bridge.other": torch.zeros(1)}), "unexpected 'model.bridge.other'"),
    ],
)
def test_a_checkpoint_with_other_keys_is_refused(make_policy, tmp_path, change, message):
    make_policy(stage="robust").save_pretrained(tmp_path / "one")
    damaged = rewrite(tmp_path / "one", tmp_path / "two", change)
    with pytest.raises(ValueError, match=f"{message}.*--policy.base_checkpoint"):
        MultiSmolVLAPolicy.from_pretrained(damaged)


def test_a_plain_smolvla_checkpoint_is_not_ours(make_config, hub):
    with pytest.raises(ValueError, match="--policy.base_checkpoint"):
        MultiSmolVLAPolicy.from_pretrained(hub / "base", config=make_config(stage="robust"))


def test_reloading_needs_no_base(make_policy, hub, batch, tmp_path):
    shutil.copytree(hub / "base", tmp_path / "base")
    policy = make_policy(stage="robust", base_checkpoint=str(tmp_path / "base"))
    policy.save_pretrained(tmp_path / "one")
    shutil.rmtree(tmp_path / "base")
    assert torch.equal(
        chunk(MultiSmolVLAPolicy.from_pretrained(tmp_path / "one"), batch), chunk(policy, batch)
    )

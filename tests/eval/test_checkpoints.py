"""Which folder a policy's path means, and what identifies its weights."""

from __future__ import annotations

import json

import pytest

from multismolvla_eval.checkpoints import checkpoint_hash, policy_hash, resolve_checkpoint


def test_checkpoint_paths(tmp_path):
    folder = tmp_path / "checkpoints" / "last" / "pretrained_model"
    folder.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        resolve_checkpoint(str(tmp_path))
    (folder / "config.json").write_text("{}")
    assert resolve_checkpoint(str(tmp_path)) == str(folder)
    assert resolve_checkpoint(str(folder)) == str(folder)
    assert resolve_checkpoint("lerobot/smolvla_base") == "lerobot/smolvla_base"
    with pytest.raises(FileNotFoundError, match="Train first"):
        resolve_checkpoint("./nowhere")


def test_an_adapter_on_other_weights_is_another_checkpoint(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"weights")
    (adapter / "adapter_model.safetensors").write_bytes(b"adapter")
    plain = checkpoint_hash(str(adapter))

    def stand_on(**fields):
        (adapter / "adapter_config.json").write_text(json.dumps(fields))
        return checkpoint_hash(str(adapter))

    first = stand_on(base_model_name_or_path=str(base))
    assert first == checkpoint_hash(str(adapter)) != plain
    (base / "model.safetensors").write_bytes(b"other weights")
    second = stand_on(base_model_name_or_path=str(base))
    (base / "config.json").write_text('{"chunk_size": 1}')
    third = stand_on(base_model_name_or_path=str(base))
    hub = (
        stand_on(base_model_name_or_path="user/base"),
        stand_on(base_model_name_or_path="user/base", revision="v2"),
    )
    assert len({plain, first, second, third, *hub}) == 6


def test_what_a_dry_run_compares_is_what_a_run_writes(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    weights = checkpoint_hash(str(tmp_path))
    assert policy_hash(str(tmp_path)) == weights
    assert policy_hash(f"blind:{tmp_path}") == f"blind:{weights}"
    assert policy_hash("builtin:zero") == "builtin:zero"
    assert policy_hash("builtin:expert").startswith("builtin:expert@")
    assert policy_hash("user/name") == "hub:user/name"

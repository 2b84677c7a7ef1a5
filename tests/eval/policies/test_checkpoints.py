"""Which folder a policy's path means, and what identifies its weights."""

from __future__ import annotations

import json

import pytest

from multismolvla_eval.policies.checkpoints import (
    checkpoint_hash,
    policy_hash,
    resolve_checkpoint,
    training_samples,
)


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


def test_a_mistyped_folder_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint("outputs/missing") == "outputs/missing"
    (tmp_path / "outputs").mkdir()
    with pytest.raises(FileNotFoundError, match=r"'outputs/missing'.*'outputs'"):
        resolve_checkpoint("outputs/missing")


@pytest.fixture
def download(tmp_path, monkeypatch):
    """Puts a file where the hub's client puts what it downloads."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(name, commit, file="config.json", content="{}", revision="main"):
        cache = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        for path, text in (
            (cache / "refs" / revision, commit),
            (cache / "snapshots" / commit / file, content),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return put


def test_a_hub_checkpoint_is_its_commit_and_not_its_name(download):
    with pytest.raises(FileNotFoundError, match=r"user/name.*hf download"):
        policy_hash("user/name")
    download("user/name", "a" * 40)
    assert policy_hash("user/name") == checkpoint_hash("user/name") == "hub:user/name@aaaaaaaaaaaa"
    download("user/name", "b" * 40)
    assert policy_hash("no_vision:user/name") == "no_vision:hub:user/name@bbbbbbbbbbbb"
    download("user/base", "c" * 40, "model.safetensors")
    download("user/name", "b" * 40, "adapter_config.json", '{"base_model_name_or_path": "user/base"}')
    assert policy_hash("user/name") == "hub:user/name@bbbbbbbbbbbb+hub:user/base@cccccccccccc"


def test_an_adapter_on_other_weights_is_another_checkpoint(tmp_path, download):
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
    download("user/base", "a" * 40, "model.safetensors")
    download("user/base", "b" * 40, "model.safetensors", revision="v2")
    hub = (
        stand_on(base_model_name_or_path="user/base"),
        stand_on(base_model_name_or_path="user/base", revision="v2"),
    )
    assert len({plain, first, second, third, *hub}) == 6


def test_samples_are_counted_over_all_stages_and_once_where_a_run_was_resumed(tmp_path):
    def save(name: str, step: int, began_from: str | None) -> str:
        folder = tmp_path / name / "checkpoints" / f"{step:06d}"
        (folder / "training_state").mkdir(parents=True)
        (folder / "pretrained_model").mkdir()
        state = {"step": step, "num_processes": 2, "batch_size": 8}
        (folder / "training_state/training_step.json").write_text(json.dumps(state))
        policy = {"pretrained_path": None, "base_checkpoint": began_from}
        (folder / "pretrained_model/train_config.json").write_text(json.dumps({"policy": policy}))
        return str(folder / "pretrained_model")

    weights = tmp_path / "weights"
    weights.mkdir()
    base = save("base", 100, str(weights))
    assert training_samples(base) == 1600
    assert training_samples(save("hub", 100, "user/name")) == 1600
    half = save("robust", 30, base)
    assert training_samples(half) == 2080
    assert training_samples(save("robust", 50, half)) == 2400
    assert training_samples(save("moved", 50, "outputs/gone/checkpoints/000100/pretrained_model")) is None
    assert training_samples(str(weights)) is None


def test_what_a_dry_run_compares_is_what_a_run_writes(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    weights = checkpoint_hash(str(tmp_path))
    assert policy_hash(str(tmp_path)) == weights
    assert policy_hash(f"no_vision:{tmp_path}") == f"no_vision:{weights}"
    assert policy_hash("builtin:zero") == "builtin:zero"
    assert policy_hash("builtin:expert").startswith("builtin:expert@")

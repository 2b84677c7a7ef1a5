"""Rules 8 and 9: LeRobot's own commands as real processes, hub offline, killed and resumed."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy, make_pre_post_processors
from processes import (
    allow_any_action,
    common,
    finish,
    logged,
    run,
    start,
)
from safetensors.torch import load_file
from tiny_dataset import REPO_ID

from multismolvla.dropout import dropout_probability, sample_presence, step_generator
from multismolvla.fourm import MINI_DOMAINS

SHARES = {"independent": 1 / 3, "cameras": 1 / 3, "modalities": 1 / 3}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

STEPS, SAVE = 12, 4


def kill_after_first_checkpoint(process: subprocess.Popen[str], folder: Path) -> int:
    """SIGKILL once the link to the first checkpoint stands; returns its step."""
    last = folder / "checkpoints" / "last"
    deadline = time.monotonic() + 200
    while not last.exists():
        assert process.poll() is None, folder.with_suffix(".log").read_text()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return int(last.resolve().name)


def stage_one(data: Path, hub: Path, folder: Path) -> list[str]:
    return [
        *common(data, folder, STEPS, SAVE), "--policy.type=multismolvla", "--policy.stage=connector",
        f"--policy.base_checkpoint={hub / 'base'}", f"--policy.vlm_model_name={hub / 'vlm'}",
        f"--policy.encoder={hub / 'fourm'}", f"--policy.domains={json.dumps(MINI_DOMAINS)}",
        "--policy.image_size=64",
        "--policy.load_vlm_weights=false", "--policy.fusion_grid=8", "--policy.connector_grid=8",
        "--policy.connector_hidden=64", "--policy.chunk_size=4", "--policy.n_action_steps=2",
        "--policy.num_vlm_layers=2",
        "--policy.resize_imgs_with_padding=[64,64]", "--policy.dtype=float32", "--policy.device=cpu",
        "--policy.num_steps=3",
    ]  # fmt: skip


def stage_two(data: Path, checkpoint: Path, folder: Path) -> list[str]:
    return [
        *common(data, folder, STEPS, SAVE), f"--policy.path={checkpoint}", "--policy.stage=robust",
        f"--policy.curriculum_steps={STEPS}",
        "--peft.method_type=LORA", "--peft.r=4",
    ]  # fmt: skip


def resume(folder: Path) -> list[str]:
    return [
        f"--config_path={folder / 'checkpoints/last/pretrained_model/train_config.json'}",
        "--resume=true",
    ]


def policy_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "checkpoints/last/pretrained_model/config.json").read_text())


@pytest.fixture(scope="module")
def connector_run(
    hub: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """Stage 1 twice: once in one go, once killed after its first checkpoint and resumed."""
    root = tmp_path_factory.mktemp("connector")
    whole, torn = root / "whole", root / "torn"
    uninterrupted = start(whole, *stage_one(tiny_dataset, hub, whole))
    killed_at = kill_after_first_checkpoint(start(torn, *stage_one(tiny_dataset, hub, torn)), torn)
    finish(uninterrupted, whole)
    torn.with_suffix(".log").rename(root / "before.log")
    log = finish(start(torn, *resume(torn)), torn)
    return {"whole": whole, "torn": torn, "killed_at": killed_at, "log": log}


@pytest.fixture(scope="module")
def robust_run(connector_run: dict[str, Any], tiny_dataset: Path) -> dict[str, Any]:
    """Stage 2 with LoRA from stage 1's checkpoint, killed after its first checkpoint and resumed."""
    base = connector_run["torn"] / "checkpoints/last/pretrained_model"
    torn = connector_run["torn"].with_name("robust")
    killed_at = kill_after_first_checkpoint(start(torn, *stage_two(tiny_dataset, base, torn)), torn)
    before = torn.with_suffix(".log").rename(torn.with_name("robust_before.log")).read_text()
    log = finish(start(torn, *resume(torn)), torn)
    return {"torn": torn, "killed_at": killed_at, "before": before, "log": log}


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints/last/pretrained_model" / name)


@pytest.mark.parametrize("stage", ["connector", "robust"])
def test_a_killed_run_resumes_without_losing_or_repeating_a_step(stage, request):
    run = request.getfixturevalue(f"{stage}_run")
    assert run["killed_at"] in (SAVE, 2 * SAVE)
    assert logged("step", run["log"]) == list(range(run["killed_at"] + 1, STEPS + 1))
    config = policy_config(run["torn"])
    assert config["curriculum_step"] == STEPS
    assert config["curriculum_stage"] == config["stage"] == stage
    state = json.loads((run["torn"] / "checkpoints/last/training_state/training_step.json").read_text())
    assert state["step"] == STEPS


def test_the_resumed_run_sees_the_frames_that_the_uninterrupted_one_saw(connector_run):
    whole = connector_run["whole"].with_suffix(".log").read_text()
    # a number that depends on the frames alone: the teacher is frozen and looks at clean pictures
    for name in ("align_plain_cosine_of_mean_token", "lr"):
        expected = logged(name, whole)
        assert len(set(expected)) > 4
        assert logged(name, connector_run["log"]) == expected[connector_run["killed_at"] :]


def test_the_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(connector_run):
    """Frames, optimizer, noise and time: all of it is where it was. (One thread, so sums have one order.)"""
    whole, torn = (weights(connector_run[run], "model.safetensors") for run in ("whole", "torn"))
    bridge = [k for k in whole if ".bridge." in k]
    assert bridge
    for key in bridge:
        assert torch.allclose(torn[key], whole[key], atol=1e-6), key


def test_the_curriculum_goes_on_where_it_was(robust_run):
    killed_at = robust_run["killed_at"]
    rows = {
        name: logged(name, robust_run["before"])[:killed_at] + logged(name, robust_run["log"])
        for name in ("dropout_p", "modalities_kept")
    }
    available = torch.ones(2, 2, 4, dtype=torch.bool)
    for step in range(STEPS):
        p = dropout_probability(step, STEPS)
        generator = step_generator(1, step)  # the run's --seed
        kept = sample_presence(available, p, generator, shares=SHARES).float().mean().item()
        assert rows["dropout_p"][step] == pytest.approx(p, abs=6e-4)
        assert rows["modalities_kept"][step] == pytest.approx(kept, abs=6e-4)
    assert rows["dropout_p"][0] == rows["dropout_p"][-1] == 0
    assert min(rows["modalities_kept"]) < 0.7


def test_checkpoints_hold_neither_tower_nor_teacher(connector_run, robust_run):
    full = weights(connector_run["whole"], "model.safetensors")
    assert not any("tower" in k or "vision_model" in k or "teacher" in k for k in full)
    adapters = weights(robust_run["torn"], "adapter_model.safetensors")
    assert all("lora_" in k or ".bridge." in k for k in adapters)
    assert any("text_model" in k for k in adapters)
    assert policy_config(connector_run["whole"])["encoder_hash"]


@pytest.mark.parametrize("stage", ["connector", "robust"])
def test_the_checkpoint_acts_through_lerobots_factories(stage, request, tiny_dataset):
    path = str(request.getfixturevalue(f"{stage}_run")["torn"] / "checkpoints/last/pretrained_model")
    item = LeRobotDataset(REPO_ID, root=tiny_dataset, depth_output_unit="m")[3]
    observation = {k: v for k, v in item.items() if k.startswith("observation.") or k == "task"}
    actions = []
    for _ in range(2):
        config = PreTrainedConfig.from_pretrained(path)
        config.pretrained_path = Path(path)
        policy = make_policy(config, ds_meta=LeRobotDatasetMetadata(REPO_ID, root=tiny_dataset)).eval()
        pre, post = make_pre_post_processors(
            config, pretrained_path=path, preprocessor_overrides={"device_processor": {"device": "cpu"}}
        )
        policy.reset()
        torch.manual_seed(0)
        actions.append(post(policy.select_action(pre(dict(observation)))))
    assert actions[0].shape == (1, 7)
    assert actions[0].isfinite().all()
    assert torch.equal(*actions)


def test_lerobot_eval_plays_an_episode_of_the_mini_suite(robust_run, tmp_path):
    pytest.importorskip("libero", reason="the LIBERO simulator is not installed")
    run(
        "lerobot-eval",
        f"--policy.path={robust_run['torn'] / 'checkpoints/last/pretrained_model'}", "--policy.device=cpu",
        "--env.type=multismolvla_libero", "--env.task_ids=[0]", "--env.episode_length=6",
        "--env.condition=C1:-rgb",
        "--eval.n_episodes=1", "--eval.batch_size=1", "--eval.use_async_envs=false",
        f"--output_dir={tmp_path}", "--seed=3",
    )  # fmt: skip
    result = json.loads((tmp_path / "eval_info.json").read_text())
    assert result["overall"]["n_episodes"] == 1
    assert "multismolvla_mini" in result["per_group"]


def test_what_was_trained_has_a_guard_and_knows_what_stands_still(robust_run):
    folder = robust_run["torn"] / "checkpoints/last/pretrained_model"
    assert json.loads((folder / "config.json").read_text())["standstill"] == [None] * 7  # goals
    last = json.loads((folder / "policy_postprocessor.json").read_text())["steps"][-1]
    assert last["registry_name"] == "multismolvla_guard"
    assert load_file(folder / last["state_file"])["range"].shape == (2, 7)


@pytest.fixture(scope="module")
def unbounded(robust_run: dict[str, Any]) -> Path:
    """Stage 2's checkpoint with a guard that lets it act."""
    folder = robust_run["torn"].with_name("unbounded")
    shutil.copytree(robust_run["torn"] / "checkpoints/last/pretrained_model", folder)
    allow_any_action(folder)
    return folder


def test_lerobot_rollout_moves_an_arm_that_has_two_of_the_eight_sensors(unbounded, tmp_path):
    report = tmp_path / "report.json"
    run(
        "lerobot-rollout",
        f"--policy.path={unbounded}", "--policy.device=cpu",
        "--device=cpu",
        "--robot.discover_packages_path=fake_arm", "--robot.type=fake_arm", "--robot.id=test",
        f"--robot.report={report}",
        "--task=put the cube in the basket", "--fps=20", "--duration=1.5", "--play_sounds=false",
        "--return_to_initial_position=false",
    )  # fmt: skip
    told = json.loads(report.read_text())["actions"]
    assert len(told) > 3
    assert all(math.isfinite(v) for action in told for v in action.values())
    assert set(told[0]) == {f"a{i}.pos" for i in range(7)}

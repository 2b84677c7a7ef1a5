"""Statistics of healthy pictures go into a policy's pre-processor, and into nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.policies.factory import make_pre_post_processors
from policy_fixtures import hub, make_config, make_policy, tiny_dataset  # noqa: F401
from synthetic import suite, synthetic_run, write_rows
from tiny_dataset import REPO_ID, write_dataset

from lerobot_policy_multismolvla.processor_multismolvla import (
    HealthStep,
    make_multismolvla_pre_post_processors,
)
from lerobot_policy_multismolvla.safety.guard import guard_of
from multismolvla.system.command import CommandError, parse_options
from multismolvla_eval.records.schema import HealthRecord
from multismolvla_eval.records.store import read_run
from multismolvla_run.health import HealthOptions, fit, report


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "five", episodes=5)


@pytest.fixture
def checkpoint(make_policy, dataset, tmp_path) -> Path:  # noqa: F811
    """As a training on a GPU leaves it."""
    folder, policy = tmp_path / "policy", make_policy()
    policy.save_pretrained(folder)
    stats = LeRobotDatasetMetadata(REPO_ID, root=dataset).stats
    pre, post = make_multismolvla_pre_post_processors(policy.config, stats)
    pre.save_pretrained(folder, config_filename="policy_preprocessor.json")
    post.save_pretrained(folder, config_filename="policy_postprocessor.json")
    for name in ("config.json", "policy_preprocessor.json"):  # a post-processor ends on the CPU
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"device": "cpu"', '"device": "cuda"'))
    return folder


def steps(folder: Path) -> dict:
    stored = json.loads((folder / "policy_preprocessor.json").read_text())["steps"]
    return {s["registry_name"]: s.get("config") for s in stored}


def test_the_statistics_are_read_again_and_the_rest_of_the_policy_stays(checkpoint, dataset):
    before = steps(checkpoint)
    text = fit(HealthOptions(policy=checkpoint, dataset=dataset))
    assert "3 episodes for the ranges, 1 for the thresholds" in text
    fitted = {"dataset": "five", "episodes": 3, "held_out": 1}
    after = steps(checkpoint)
    assert after.pop("multismolvla_health") == before.pop("multismolvla_health") | {"fitted": fitted}
    assert after == before  # the device of the GPU among it
    pre, _ = make_pre_post_processors(
        make_config_of(checkpoint),
        pretrained_path=str(checkpoint),
        preprocessor_overrides={"device_processor": {"device": "cpu"}},
    )
    step = next(s for s in pre.steps if isinstance(s, HealthStep))
    assert len(step.statistics) == 8
    summary = json.loads((checkpoint / "health.json").read_text())
    assert summary["fitted"] == fitted
    assert set(summary["streams"]) == set(step.statistics)


def test_the_guard_learns_range_and_steps_of_the_data(checkpoint, dataset):
    fit(HealthOptions(policy=checkpoint, dataset=dataset))
    _, post = make_pre_post_processors(
        make_config_of(checkpoint),
        pretrained_path=str(checkpoint),
        preprocessor_overrides={"device_processor": {"device": "cpu"}},
    )
    data = LeRobotDataset(REPO_ID, root=dataset)
    actions = torch.stack([data[i]["action"] for i in range(len(data))])
    episodes = torch.tensor([int(data[i]["episode_index"]) for i in range(len(data))])
    guard = guard_of(post)
    assert torch.allclose(guard.range, torch.stack([actions.amin(0), actions.amax(0)]))
    moves = [actions[episodes == e].diff(dim=0).abs().amax(0) for e in range(5)]
    assert torch.allclose(guard.step, torch.stack(moves).amax(0))
    assert not torch.allclose(guard.step, actions.diff(dim=0).abs().amax(0))  # from one episode to the next


def make_config_of(folder: Path):
    from lerobot.configs.policies import PreTrainedConfig

    return PreTrainedConfig.from_pretrained(folder)


def test_fitted_twice_is_fitted_the_same(checkpoint, dataset):
    fit(HealthOptions(policy=checkpoint, dataset=dataset))
    file = next(checkpoint.glob("*multismolvla_health*.safetensors"))
    first = file.read_bytes()
    fit(HealthOptions(policy=checkpoint, dataset=dataset))
    assert file.read_bytes() == first


def test_one_evaluation_is_reported_or_several_together(tmp_path):
    folders = [
        synthetic_run(tmp_path / n, texts=("C0", "C2:rgb=zero"), suites={"toy": suite(fps=10)}) for n in "ab"
    ]
    for folder in folders:
        _, rows = read_run(folder)
        for row in rows:
            row.health = {"image.rgb": HealthRecord(5)}
        write_rows(folder, rows)

    def reported(results: str) -> str:
        return report(parse_options(HealthOptions, ["report", "--results", results], ("command",)))

    assert "0/10" in reported(str(folders[0]))
    assert "0/20" in reported(str([*map(str, folders)]))


def test_what_cannot_be_fitted_is_named(checkpoint, tiny_dataset, tmp_path):  # noqa: F811
    with pytest.raises(CommandError, match="2 episodes"):
        fit(HealthOptions(policy=checkpoint, dataset=tiny_dataset))
    with pytest.raises(CommandError, match="missing"):
        fit(HealthOptions(policy=tmp_path / "missing", dataset=tiny_dataset))
    with pytest.raises(ValueError, match="--dataset"):
        HealthOptions(policy=checkpoint)
    with pytest.raises(ValueError, match="'guess'"):
        HealthOptions(command="guess")

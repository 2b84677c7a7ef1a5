"""Statistics of healthy pictures go into a policy's pre-processor, and into nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.dataset_tools import add_features
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.policies.factory import make_pre_post_processors
from policy_fixtures import hub, make_config, make_policy, tiny_dataset  # noqa: F401
from safetensors.torch import load_file, save_file
from synthetic import suite, synthetic_run, write_rows
from tiny_dataset import REPO_ID, write_dataset

from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from lerobot_policy_multismolvla.processor_multismolvla import (
    HealthStep,
    make_multismolvla_pre_post_processors,
)
from lerobot_policy_multismolvla.safety.guard import guard_of
from multismolvla.health import FEATURES, Picture, StreamStatistics, inspect
from multismolvla.modalities import default_view_map, padding_mask_key
from multismolvla.system.command import CommandError, parse_options
from multismolvla_eval.records.schema import HealthRecord
from multismolvla_eval.records.store import read_run
from multismolvla_run.health import HealthOptions, fit, main, report, split_order

THERMAL = default_view_map()["image"]["thermal"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "five", episodes=5)


@pytest.fixture(scope="module")
def blackened(tmp_path_factory) -> Path:
    """The same but for two thermal pictures: a black one and a grey one."""

    def spoil(episode, step, made):
        if (episode, step) in ((1, 4), (3, 6)):
            made[THERMAL] = np.full_like(made[THERMAL], {1: 0, 3: 90}[episode])

    return write_dataset(tmp_path_factory.mktemp("data") / "blackened", episodes=5, spoil=spoil)


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
    fitted = {
        "dataset": "five", "frames": 60, "episodes": 3, "held_out": 1, "views": default_view_map(),
    }  # fmt: skip
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
    assert not summary["left_out"]
    assert not summary["rules_off"]


@pytest.mark.parametrize("recorded", ["task after task", "in turn"])
def test_each_part_of_the_episodes_is_of_all_tasks(recorded):
    tasks = [[f"task {i // 16 if recorded == 'task after task' else i % 10}"] for i in range(160)]
    order = split_order(tasks, 32)
    assert sorted(order) == list(range(160))
    for part in (order[:32], order[32:-32], order[-32:]):
        assert {tasks[i][0] for i in part} == {f"task {n}" for n in range(10)}


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
    firsts = [actions[episodes == e][0].abs() for e in range(5)]
    assert torch.allclose(guard.start, torch.stack(firsts).amax(0))
    assert not torch.allclose(guard.step, actions.diff(dim=0).abs().amax(0))  # from one episode to the next


def thermal(folder: Path) -> StreamStatistics:
    file = next(folder.glob("*multismolvla_health*.safetensors"))
    return StreamStatistics.from_tensor(load_file(file)["image.thermal"])


def test_pictures_that_show_nothing_are_left_out_and_told(checkpoint, dataset, blackened):
    fit(HealthOptions(policy=checkpoint, dataset=dataset))
    sound = thermal(checkpoint)
    text = fit(HealthOptions(policy=checkpoint, dataset=blackened))
    assert "1 of 30 pictures of image.thermal, zero (first: episode 1, frame 4)" in text
    assert "1 of 30 pictures of image.thermal, constant (first: episode 3, frame 6)" in text
    spoilt = thermal(checkpoint)
    assert not spoilt.constant
    assert spoilt.low[FEATURES.index("mean")] >= sound.low[FEATURES.index("mean")] > 0.2
    covered = torch.rand(1, 1, 64, 64) * 0.08
    far = [s.distance(inspect([Picture(covered, "thermal")]).features[:, 0]) for s in (sound, spoilt)]
    assert far[0] > 1
    assert far[1] > 1


def test_pictures_that_are_said_to_be_absent_are_left_out(checkpoint, dataset, tmp_path):
    there = np.arange(60) % 12 != 2
    feature = {"dtype": "bool", "shape": (1,), "names": None}
    source = LeRobotDataset(REPO_ID, root=dataset)
    flagged = add_features(source, {padding_mask_key(THERMAL): (there, feature)}, tmp_path / "flagged").root
    text = fit(HealthOptions(policy=checkpoint, dataset=flagged))
    assert "5 of 30 pictures of image.thermal, said to be absent (first: episode 0, frame 2)" in text
    assert "unfit at 0 of 6 looks" in text


def test_what_will_not_be_found_is_told(checkpoint, tmp_path):
    depth = default_view_map()["image2"]["depth"]

    def spoil(episode, step, made):
        made[THERMAL] = np.zeros_like(made[THERMAL])  # a dead camera
        rgb = made[default_view_map()["image"]["rgb"]]
        rgb[:] = 100 + (rgb > 100) * 16  # hardly any structure

    source = write_dataset(tmp_path / "dull", episodes=5, without=[depth], spoil=spoil)
    text = fit(HealthOptions(policy=checkpoint, dataset=source))
    told = [line for line in text.splitlines() if line.startswith("Will not be found: ")]
    assert [line.partition(": ")[2] for line in told] == [
        "constant pictures of image.rgb, since healthy ones have hardly any structure.",
        "what needs statistics of image.thermal, since the data set has too few fit pictures.",
        f"what needs statistics of image2.depth, since the data set lacks {depth}.",
    ]
    assert len(json.loads((checkpoint / "health.json").read_text())["rules_off"]) == 3


@pytest.mark.parametrize(
    ("step", "damage"),
    [("health", "truncated"), ("health", "nan"), ("health", "missing"), ("guard", "garbage")],
)
def test_damaged_statistics_are_named_and_fitted_anew(step, damage, checkpoint, dataset):
    fit(HealthOptions(policy=checkpoint, dataset=dataset))
    file = next(checkpoint.glob(f"*multismolvla_{step}*.safetensors"))
    whole = file.read_bytes()
    if damage == "nan":
        save_file({name: torch.full_like(row, torch.nan) for name, row in load_file(file).items()}, file)
    elif damage == "missing":
        file.unlink()
    else:
        file.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"no such thing")
    with pytest.raises(ValueError, match=f"{file}.*multismolvla-health fit"):
        MultiSmolVLAPolicy.from_pretrained(checkpoint, config=on_cpu(checkpoint))
    fit(HealthOptions(policy=checkpoint, dataset=dataset))
    assert file.read_bytes() == whole
    MultiSmolVLAPolicy.from_pretrained(checkpoint, config=on_cpu(checkpoint))


def test_a_policy_from_before_the_step_gets_it(checkpoint, dataset):
    file = checkpoint / "policy_preprocessor.json"
    stored = json.loads(file.read_text())
    stored["steps"] = [s for s in stored["steps"] if s["registry_name"] != "multismolvla_health"]
    file.write_text(json.dumps(stored))
    fit(HealthOptions(policy=checkpoint, dataset=dataset))
    assert steps(checkpoint)["multismolvla_health"]["fitted"]["dataset"] == "five"


def test_another_data_set_than_that_of_the_training_is_refused_unless_it_is_asked_for(checkpoint, tmp_path):
    other = write_dataset(tmp_path / "other", episodes=5, seed=1)
    with pytest.raises(CommandError, match="other is not what the policy was trained on.*--other_data=true"):
        fit(HealthOptions(policy=checkpoint, dataset=other))
    assert steps(checkpoint)["multismolvla_health"]["fitted"] == {}
    fit(HealthOptions(policy=checkpoint, dataset=other, other_data=True))
    assert steps(checkpoint)["multismolvla_health"]["fitted"]["dataset"] == "other"


def on_cpu(folder: Path):
    config = make_config_of(folder)
    config.device = "cpu"
    return config


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
    with pytest.raises(ValueError, match="--held_out=0.7"):
        HealthOptions(policy=checkpoint, dataset=tiny_dataset, held_out=0.7)


def test_a_data_set_without_the_policys_pictures_is_refused(checkpoint, tmp_path):
    keys = [key for streams in default_view_map().values() for key in streams.values()]
    with pytest.raises(CommandError, match=f"none of the policy's pictures.*{keys[0]}.*ids are not enough"):
        fit(HealthOptions(policy=checkpoint, dataset=write_dataset(tmp_path / "ids", 3, without=keys)))


def test_help_shows_the_words_that_the_documentation_uses(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["multismolvla-health", "--help"])
    with pytest.raises(SystemExit):
        main()
    said = " ".join(capsys.readouterr().out.split())
    assert "multismolvla-health fit" in said
    assert "multismolvla-health report" in said

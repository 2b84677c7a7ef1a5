"""A finished policy is fine-tuned on another robot: other cameras, another state, another action."""

from __future__ import annotations

import json
import re
from pathlib import Path

import lora
import numpy as np
import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_pre_post_processors
from processes import finish, start

from lerobot_policy_multismolvla.export import export_for_finetuning, export_policy
from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from lerobot_policy_multismolvla.processor_multismolvla import make_multismolvla_pre_post_processors
from lerobot_policy_multismolvla.safety.guard import guard_of
from multismolvla.health import health_key
from multismolvla_run.export import main
from multismolvla_run.health import HealthOptions, fit

JOINTS = 6
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
#: ``image2`` is a view of the checkpoint, ``front`` is not.
VIEWS = {"front": {"rgb": FRONT}, "image2": {"rgb": WRIST}}


def write_so101(root: Path, joints: int = JOINTS) -> Path:
    """Three episodes of an SO-101: six joints, two 48x64 cameras."""
    joint = {"dtype": "float32", "shape": (joints,), "names": [f"joint_{n}.pos" for n in range(joints)]}
    camera = {"dtype": "image", "shape": (48, 64, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": joint, "action": dict(joint), FRONT: camera, WRIST: dict(camera)}
    data = LeRobotDataset.create(
        "tests/so101", 10, features, root=root, robot_type="so101_follower", use_videos=False
    )
    rng = np.random.default_rng(0)
    for _ in range(3):
        for _ in range(8):
            pictures = {key: rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for key in (FRONT, WRIST)}
            state = rng.normal(30, 10, joints).astype(np.float32)
            data.add_frame(
                {"observation.state": state, "action": state + 1, "task": "pick the lego"} | pictures
            )
        data.save_episode()
    data.finalize()
    return root


@pytest.fixture(scope="module")
def so101(tmp_path_factory) -> Path:
    return write_so101(tmp_path_factory.mktemp("so101") / "data")


@pytest.fixture
def finished(make_policy, batch, tmp_path) -> Path:
    """A policy after both stages, its adapters not merged."""
    stage_one = make_policy(stage="connector")
    with torch.no_grad():
        for embedding in stage_one.model.bridge.view_embedding.values():
            embedding.normal_()
    stage_one.save_pretrained(tmp_path / "one")
    return lora.saved(lora.trained(lora.stage_two(tmp_path / "one"), batch), tmp_path / "two")


def test_what_is_known_is_kept_and_what_is_new_is_told(finished, so101, tmp_path, capsys):
    words = [f"--checkpoint={finished}", f"--dataset={so101}", f"--views={json.dumps(VIEWS)}"]
    assert main([*words, f"--output={tmp_path / 'start'}"]) == 0
    said = capsys.readouterr().out
    for line in (
        r"tower, fusion, connector *all weights of rgb *without depth, seg, thermal, which no view has",
        r"pictures *64 pixels, square=crop *cameras of 64x48 pixels",
        r"view front *its embedding, at zero",
        r"view image2 *its embedding\n",
        r"state *projection *8 -> 6 numbers",
        r"action *projection *7 -> 6 numbers",
        r"actions *absolute \(goals\)\n",
        r"chunk *\d+ steps of the data set, \d+ of them carried out\n",
        r"guard, hold *ranges of the data set",
        r"health *no statistics",
    ):
        assert re.search(line, said), line
    config = PreTrainedConfig.from_pretrained(tmp_path / "start")
    policy = MultiSmolVLAPolicy.from_pretrained(tmp_path / "start", config=config).eval()
    export_policy(finished, tmp_path / "whole")
    whole = MultiSmolVLAPolicy.from_pretrained(tmp_path / "whole").state_dict()
    made = policy.state_dict()
    embeddings = {key.rpartition(".")[2]: value for key, value in made.items() if ".view_embedding." in key}
    assert set(embeddings) == {"front", "image2"}
    assert not embeddings["front"].any()
    assert embeddings["image2"].any()
    new = {key for key in made if key.endswith("view_embedding.front")}
    assert all(torch.equal(made[key], whole[key]) for key in made.keys() - new)


def test_the_start_looks_with_the_new_cameras_and_acts_in_the_new_units(finished, so101, tmp_path):
    export_for_finetuning(finished, tmp_path / "start", views=VIEWS, dataset=so101)
    config = PreTrainedConfig.from_pretrained(tmp_path / "start")
    policy = MultiSmolVLAPolicy.from_pretrained(tmp_path / "start", config=config).eval()
    pre, post = make_pre_post_processors(config, pretrained_path=str(tmp_path / "start"))
    item = LeRobotDataset("tests/so101", root=so101)[3]
    raw = {key: item[key] for key in (FRONT, WRIST, "observation.state")} | {"task": item["task"]}
    seen = pre(raw)
    assert health_key(FRONT) in seen
    torch.manual_seed(0)
    action = post(policy.select_action(seen))
    assert action.shape == (1, JOINTS)
    assert 0 < action.mean() < 62  # joint angles of the data set are 31 +- 10
    dark = pre(raw | {FRONT: torch.rand_like(raw[FRONT])})
    policy.reset()
    torch.manual_seed(0)
    assert not torch.equal(post(policy.select_action(dark)), action)


def from_libero(make_policy, tmp_path, **options) -> Path:
    """A policy whose actions are displacements, as LIBERO's."""
    policy = make_policy(stage="robust", dropout_mode="none", action_kind="delta", **options)
    policy.save_pretrained(tmp_path / "libero")
    unit = {
        key: {"mean": torch.zeros(n), "std": torch.ones(n), "min": -torch.ones(n), "max": torch.ones(n)}
        for key, n in (("observation.state", 8), ("action", 7))
    }
    for steps in make_multismolvla_pre_post_processors(policy.config, unit):
        steps.save_pretrained(tmp_path / "libero")
    return tmp_path / "libero"


def test_joints_are_not_driven_to_zero_by_a_checkpoint_of_displacements(make_policy, so101, tmp_path, capsys):
    """From LIBERO to an SO-101: what stands still there would be a goal here."""
    words = [f"--checkpoint={from_libero(make_policy, tmp_path)}", f"--dataset={so101}"]
    words += [f"--views={json.dumps(VIEWS)}", f"--output={tmp_path / 'start'}"]
    assert main(words) == 1
    assert "joint_0.pos, joint_1.pos" in (said := capsys.readouterr().err)
    assert "--action_kind=absolute" in said
    assert main([*words, "--action_kind=absolute"]) == 0
    assert re.search(r"actions  +absolute \(goals\)", capsys.readouterr().out)
    config = PreTrainedConfig.from_pretrained(tmp_path / "start")
    _, post = make_pre_post_processors(config, pretrained_path=str(tmp_path / "start"))
    guard = guard_of(post)
    assert (config.action_kind, config.stopped, guard.stopped) == ("absolute", [], [])
    goals = torch.full((1, JOINTS), 31.0)
    assert torch.equal(guard.action(goals), goals)
    assert torch.equal(guard.action(goals + 500), goals)


def test_a_checkpoint_is_not_of_another_kind_of_actions_by_option(make_policy, tmp_path):
    """Its guard is read from its files."""
    config = PreTrainedConfig.from_pretrained(from_libero(make_policy, tmp_path))
    config.action_kind = "absolute"
    with pytest.raises(ValueError, match=r"guard are of delta actions.*--action_kind=absolute"):
        MultiSmolVLAPolicy.from_pretrained(tmp_path / "libero", config=config)


def numbers(count: int, name: str = "n") -> dict:
    """LeRobot's description of a state or an action."""
    return {"dtype": "float32", "shape": (count,), "names": [f"{name}{n}" for n in range(count)]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": numbers(6)}, r"action has the shape \(6,\), the checkpoint's \(7,\)"),
        ({"observation.state": numbers(40)}, r"observation.state has the shape \(40,\)"),
        ({"action": numbers(7) | {"names": [f"j{n}.pos" for n in range(7)]}}, r"j0\.pos.*driven to 0"),
    ],
)
def test_a_checkpoint_is_not_trained_on_for_another_robot(change, message, make_policy, tmp_path):
    config = PreTrainedConfig.from_pretrained(from_libero(make_policy, tmp_path))
    config.pretrained_path = tmp_path / "libero"
    data = {
        key: {"dtype": "image", "shape": (*f.shape[1:], f.shape[0]), "names": None}
        for key, f in config.input_features.items()
        if len(f.shape) == 3
    } | {"observation.state": numbers(8), "action": numbers(7)}
    config.set_dataset_feature_metadata(data)  # its own robot
    with pytest.raises(ValueError, match=message + r"[\s\S]*multismolvla-export"):
        config.set_dataset_feature_metadata(data | change)


def test_other_cameras_are_told_before_lerobot_asks_for_a_rename_map(make_policy, so101, tmp_path, caplog):
    config = PreTrainedConfig.from_pretrained(from_libero(make_policy, tmp_path))
    config.pretrained_path = tmp_path / "libero"
    features = LeRobotDataset("tests/so101", root=so101).meta.features
    config.action_kind = "absolute"
    config.set_dataset_feature_metadata({k: f for k, f in features.items() if "image" in k})
    assert "observation.images.front" in caplog.text
    assert "multismolvla-export --checkpoint=... --views=..." in caplog.text
    caplog.clear()
    known, *others = config.rgb_keys
    config.set_dataset_feature_metadata(dict.fromkeys([known, WRIST], features[WRIST]))
    assert f"lack the checkpoint's cameras {others}" in caplog.text
    caplog.clear()
    config.set_dataset_feature_metadata(dict.fromkeys(config.rgb_keys, features[WRIST]))
    assert "cameras" not in caplog.text


def test_vanilla_has_no_embeddings_of_views_to_tell_of(make_policy, so101, tmp_path, capsys):
    views = {"image": {"rgb": "observation.images.image"}, "image2": {"rgb": "observation.images.image2"}}
    make_policy(stage="robust", vision_tower="siglip", views=views).save_pretrained(tmp_path / "vanilla")
    words = [f"--checkpoint={tmp_path / 'vanilla'}", f"--dataset={so101}", f"--views={json.dumps(VIEWS)}"]
    assert main([*words, f"--output={tmp_path / 'start'}"]) == 0
    said = capsys.readouterr().out
    assert "state" in said
    assert "its embedding" not in said


def test_segmentation_of_other_classes_is_named(make_policy, tmp_path):
    config = PreTrainedConfig.from_pretrained(from_libero(make_policy, tmp_path))
    key = config.views["image"]["seg"]

    def data(names) -> dict:
        return {key: {"dtype": "image", "shape": (64, 64, 3), "names": None, "info": {"labels": names}}}

    names = [f"class {n}" for n in range(config.num_labels)]
    config.pretrained_path = tmp_path / "libero"
    with pytest.raises(
        ValueError, match=r"name 5 segmentation classes, but --policy.num_labels=8\. Set it to 5"
    ):
        config.set_dataset_feature_metadata(data(names[:5]))
    config.set_dataset_feature_metadata(data(names))
    assert config.seg_classes == names
    with pytest.raises(ValueError, match=r"Id 7 is 'class 7' there and 'cup' here"):
        config.set_dataset_feature_metadata(data([*names[:7], "cup"]))
    with pytest.raises(ValueError, match=r"knows 8 segmentation classes, the data have 7\."):
        config.set_dataset_feature_metadata(data(names[:7]))


def test_a_depth_that_the_checkpoint_never_saw_is_refused(make_policy, so101, tmp_path):
    make_policy(stage="connector", views={"image": {"rgb": "observation.images.image"}}).save_pretrained(
        tmp_path / "rgb"
    )
    views = {"front": {"rgb": FRONT, "depth": f"{FRONT}_depth"}}
    with pytest.raises(ValueError, match=r"depth.*trained with rgb alone"):
        export_for_finetuning(tmp_path / "rgb", tmp_path / "start", views=views, dataset=so101)
    assert not (tmp_path / "start").exists()


def test_cameras_and_sizes_that_do_not_fit_are_named(finished, so101, tmp_path, capsys):
    elsewhere = {"front": {"rgb": "observation.images.top"}}
    with pytest.raises(ValueError, match=r"observation\.images\.top"):
        export_for_finetuning(finished, tmp_path / "start", views=elsewhere, dataset=so101)
    humanoid = write_so101(tmp_path / "humanoid", joints=40)
    with pytest.raises(ValueError, match=r"observation\.state has 40 numbers; the checkpoint holds 32"):
        export_for_finetuning(finished, tmp_path / "start", views=VIEWS, dataset=humanoid)
    assert main([f"--checkpoint={finished}", f"--dataset={so101}", f"--output={tmp_path / 'start'}"]) == 1
    assert "--views and --dataset belong together" in capsys.readouterr().err
    assert not (tmp_path / "start").exists()


def test_other_views_for_a_finished_policy_are_refused(make_policy, tmp_path):
    """Its processors would go on reading its own."""
    make_policy(stage="connector").save_pretrained(tmp_path / "one")
    config = PreTrainedConfig.from_pretrained(tmp_path / "one")
    config.views = VIEWS
    with pytest.raises(ValueError, match=r"processors read .*image2.*multismolvla-export"):
        MultiSmolVLAPolicy.from_pretrained(tmp_path / "one", config=config)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_lerobot_trains_on_from_the_start(finished, so101, tmp_path):
    export_for_finetuning(finished, tmp_path / "start", views=VIEWS, dataset=so101)
    fit(HealthOptions(policy=tmp_path / "start", dataset=so101))
    run = tmp_path / "run"
    words = [
        "--dataset.repo_id=tests/so101", f"--dataset.root={so101}", f"--policy.path={tmp_path / 'start'}",
        f"--output_dir={run}", "--steps=3", "--batch_size=2", "--num_workers=0", "--save_freq=3",
        "--log_freq=1", "--env_eval_freq=0", "--policy.push_to_hub=false", "--policy.curriculum_steps=3",
        "--policy.stage=robust", "--dataset.use_imagenet_stats=false", "--wandb.enable=false",
    ]  # fmt: skip
    log = finish(start(run, *words), run)
    assert "step:3" in log
    made = run / "checkpoints/last/pretrained_model"
    steps = json.loads((made / "policy_preprocessor.json").read_text())["steps"]
    views = [s["config"]["views"] for s in steps if "views" in s.get("config", {})]
    assert views == [VIEWS, VIEWS]  # of both steps of ours
    assert json.loads((made / "config.json").read_text())["views"] == VIEWS
    # what was fitted before is of other data, for all that LeRobot tells
    assert log.count("health statistics are left out: they are of dataset=data, frames=24") == 1
    assert [s["config"]["fitted"] for s in steps if s["registry_name"] == "multismolvla_health"] == [{}]
    assert not list(made.glob("*multismolvla_health*.safetensors"))

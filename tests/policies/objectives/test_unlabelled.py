"""Unlabelled frames of a second data set: which are read, what of them, and what they change."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from tiny_dataset import REPO_ID, write_dataset
from tiny_policy import flow_inputs
from torch.utils.data import default_collate
from training_batch import TASKS

from lerobot_policy_multismolvla.flow import FlowDraw
from lerobot_policy_multismolvla.objectives import unlabelled
from lerobot_policy_multismolvla.objectives.step import TrainingStep, draw_sensors
from lerobot_policy_multismolvla.objectives.unlabelled import UnlabelledFrames
from lerobot_policy_multismolvla.processor_multismolvla import make_multismolvla_pre_post_processors
from lerobot_policy_multismolvla.visual import available_sensors, encoder_inputs
from multismolvla.modalities import MODALITIES, default_view_map
from multismolvla.objectives.options import ObjectivesOptions, RobultOptions

VIEWS = default_view_map()
STATE = torch.zeros(4, 8)


@pytest.fixture
def reading(train, pictures_alone):
    """Policies in training that read the second data set; options of Robult by keyword."""

    def make(folder=pictures_alone, policy_options=None, **options):
        robult = {"weight": 1.0, "unlabelled": str(folder), "unlabelled_workers": 0, **options}
        return train(robult=robult, **({"dropout_mode": "none"} | (policy_options or {})))

    return make


def rows_at(policy, *numbers: int) -> list[list[int]]:
    frames = policy.unlabelled_frames
    return [frames.batch(step, STATE)["index"].tolist() for step in numbers]


def step_of(policy, batch) -> TrainingStep:
    sensors = draw_sensors(policy, policy.availability(batch), policy.curriculum_seed)
    visual = policy.visual_tokens(batch, sensors.presence, sensors.faults)
    return TrainingStep(policy, batch, sensors, visual, FlowDraw())


# -- which frames --------------------------------------------------------------------------------------------


def test_a_step_always_reads_the_same_frames_and_another_step_others(reading):
    whole = rows_at(reading(), 0, 1, 2, 3)
    assert len({tuple(rows) for rows in whole}) == 4
    assert rows_at(reading(), 2, 3) == whole[2:]  # resumed
    assert rows_at(reading(), 0, 0, 1, 3, 1) == [whole[n] for n in (0, 0, 1, 3, 1)]
    assert rows_at(reading(policy_options={"curriculum_seed": 1}), 0, 1) != whole[:2]


def test_reading_draws_nothing_from_the_global_generator(reading):
    policy = reading()
    state = torch.get_rng_state()
    rows_at(policy, 0, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_ranks_read_together_what_one_process_with_the_whole_batch_does(reading, monkeypatch):
    alone = reading().unlabelled_frames.batch(5, STATE)["index"].tolist()
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(unlabelled, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(unlabelled, "world", lambda: 2)
        shares += reading().unlabelled_frames.batch(5, STATE[:2])["index"].tolist()
    assert shares == alone


def test_a_last_batch_that_is_smaller_takes_a_part_of_the_same_frames(reading):
    policy = reading()
    (whole,) = rows_at(policy, 0)
    small = policy.unlabelled_frames
    rows = [small.batch(1, STATE[:3])["index"].tolist(), small.batch(2, STATE)["index"].tolist()]
    assert rows == [rows_at(reading(), 1)[0][:3], rows_at(reading(), 2)[0]]
    assert reading().unlabelled_frames.batch(0, STATE[:3])["index"].tolist() == whole[:3]


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 2), (1.5, 6), (0.01, 1)])
def test_the_ratio_says_how_many(ratio, count, reading):
    frames = reading(unlabelled_ratio=ratio).unlabelled_frames
    assert len(frames.batch(0, STATE)["index"]) == count


@pytest.mark.slow
def test_processes_of_its_own_read_the_same(reading):
    assert rows_at(reading(unlabelled_workers=2), 3, 4, 5) == rows_at(reading(), 3, 4, 5)


# -- what of them --------------------------------------------------------------------------------------------


def test_the_encoder_gets_what_the_policys_own_pre_processor_makes_of_them(reading, pictures_alone):
    policy = reading()
    read = policy.unlabelled_frames.batch(0, STATE)
    data = LeRobotDataset(REPO_ID, pictures_alone, return_uint8=True, depth_output_unit="m")
    stored = default_collate([data[row] for row in read["index"].tolist()])
    assert stored[VIEWS["image"]["depth"]].max() > 1  # metres, not canonical yet
    stored["observation.state"] = torch.zeros(4, 8)
    prepared = make_multismolvla_pre_post_processors(policy.config)[0](stored)
    there = available_sensors(policy.config, prepared)
    assert there[:, :2].all()
    expected, found = (encoder_inputs(policy, b, there, None) for b in (prepared, read))
    assert found.fingerprint() == expected.fingerprint()
    assert torch.equal(available_sensors(policy.config, read), there)


def test_neither_state_nor_actions_nor_instruction_are_read(reading, tmp_path):
    policy = reading(write_dataset(tmp_path / "with_all"))
    keys = policy.unlabelled_frames._keys({**policy.unlabelled_frames._frames._data.features})
    assert not {"observation.state", "action", "task", "task_index"} & {*keys}
    read = policy.unlabelled_frames.batch(0, STATE)
    assert not {"action", "task", "task_index"} & read.keys()
    assert read["observation.state"].shape == (4, 0)


def test_modalities_that_the_tower_does_not_read_are_not_read(make_config, pictures_alone):
    robult = RobultOptions(weight=1.0, unlabelled=str(pictures_alone), unlabelled_workers=0)
    options = {"domains": {"rgb": "rgb@64"}, "objectives": ObjectivesOptions(robult=robult, tasks=TASKS)}
    config = make_config(**options)
    read = UnlabelledFrames(config, 0).batch(0, STATE)
    assert {k for k in read if k in config.stream_keys()} == {*config.rgb_keys}
    config.views, config.domains = {"image": {"depth": "observation.images.none"}}, {"depth": "tok_depth@64"}
    with pytest.raises(ValueError, match="shows other views.*lacks all that the tower reads"):
        UnlabelledFrames(config, 0)


def test_what_the_second_data_set_does_not_have_is_absent(reading, batch, tmp_path):
    depth = [streams["depth"] for streams in VIEWS.values()]
    policy = reading(write_dataset(tmp_path / "less", without=depth))
    there = available_sensors(policy.config, policy.unlabelled_frames.batch(0, STATE))
    assert there.any(0).any(0).tolist() == [m != "depth" for m in MODALITIES]
    loss, _ = policy.forward(dict(batch), **flow_inputs(4))
    assert loss.isfinite()


def test_the_stages_curricula_strike_them_too(reading, batch):
    options = {"dropout_mode": "fixed", "dropout_p_max": 0.5, "dropout_complete": 0.0}
    options |= {"corruption_probability": 1.0, "corruption_ramp": 1e-6, "curriculum_step": 50}
    options |= {"curriculum_stage": "robust", "corruption_source": "live"}
    policy = reading(policy_options=options)
    read = policy.unlabelled_frames.batch(50, STATE)
    one, other = (draw_sensors(policy, policy.availability(read), seed) for seed in (1, 2))
    assert 0 < one.presence.sum() < one.available.sum()
    assert not torch.equal(one.presence, other.presence)
    assert (one.faults.severity > 0).any()
    made = step_of(policy, batch)
    assert made.unlabelled().unimodal.modality == made.unimodal().modality


# -- what they change ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["connector", "robust"])
def test_they_join_the_term_and_nothing_else(stage, reading, train, batch):
    policy = reading(policy_options={"stage": stage})
    plain = train(robult={"weight": 1.0}, dropout_mode="none", stage=stage)
    (loss, logs), (own, without) = (p.forward(dict(batch), **flow_inputs(4)) for p in (policy, plain))
    assert logs["robult_labelled"] == 0.5
    assert without["robult_labelled"] == 1
    assert logs["robult_contrastive"] != without["robult_contrastive"]
    assert (loss - logs["robult"]).item() == pytest.approx((own - without["robult"]).item(), rel=1e-4)
    loss.backward()
    made = step_of(policy, batch).unlabelled()
    assert (made.episode < 0).all()
    assert made.seen.features.requires_grad


def test_only_training_opens_them(reading, pictures_alone, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(pictures_alone, folder)
    policy = reading(folder)
    policy.save_pretrained(tmp_path / "two")
    shutil.rmtree(folder)
    again = type(policy).from_pretrained(tmp_path / "two")
    assert again.unlabelled_frames is None
    with pytest.raises(FileNotFoundError, match="moved is not the folder of a LeRobotDataset"):
        again.train()


# -- errors before training starts ---------------------------------------------------------------------------


def test_a_second_data_set_of_other_cameras_is_refused(reading, tmp_path):
    lost = [*VIEWS["image2"].values()]
    folder = write_dataset(tmp_path / "one_camera", without=lost)
    with pytest.raises(ValueError, match=r"one_camera shows other views.*lacks \['observation.images.image2"):
        reading(folder)
    policy = reading(folder, policy_options={"absent_streams": ["image2.rgb"]})
    assert not available_sensors(policy.config, policy.unlabelled_frames.batch(0, STATE))[:, 1].any()


def test_a_stream_that_was_made_in_another_way_is_refused(reading, pictures_alone, tmp_path):
    folder = tmp_path / "estimated"
    shutil.copytree(pictures_alone, folder)
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"][VIEWS["image"]["depth"]]["info"]["provenance"] = "derived"
    (folder / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(
        ValueError, match="estimated: --policy.provenance.*contradicts.*image.depth is derived"
    ):
        reading(folder, policy_options={"provenance": {"depth": "sensor"}})


def test_pictures_that_are_not_fit_are_an_error_that_names_the_data_set(reading, monkeypatch):
    policy = reading()
    frames = policy.unlabelled_frames
    frames.batch(0, STATE)
    one = frames._read
    black = one | {VIEWS["image"]["rgb"]: torch.zeros_like(one[VIEWS["image"]["rgb"]])}
    monkeypatch.setattr(frames, "_reading", lambda step: iter([black]))
    with pytest.raises(ValueError, match="unlabelled=.*observation.images.image is .*--policy.health=act"):
        frames.batch(7, STATE)
    policy.config.health = "act"
    there = policy.availability(frames.batch(20, STATE))[:, :, 0]
    assert there.tolist() == [[False, True]] * 4


def test_a_missing_an_empty_and_a_torn_data_set_are_named(reading, pictures_alone, tmp_path):
    with pytest.raises(FileNotFoundError, match="unlabelled=.*nowhere is not the folder of a LeRobotDataset"):
        reading(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="unlabelled=.*empty has no frames"):
        reading(write_dataset(tmp_path / "empty", episodes=0))
    shutil.copytree(pictures_alone, tmp_path / "torn")
    shutil.rmtree(tmp_path / "torn/data")
    with pytest.raises(FileNotFoundError, match="unlabelled=.*torn lacks some of its own files"):
        reading(tmp_path / "torn")


def test_a_data_set_that_nothing_reads_is_named(reading, batch, tmp_path, caplog):
    for weight in (0.0, 1.0):
        folder = write_dataset(tmp_path / f"weight_{weight:g}")
        reading(folder, weight=weight).forward(dict(batch), **flow_inputs(4))
    said = [r.message for r in caplog.records if r.levelname == "WARNING" and "unlabelled=" in r.message]
    assert len(said) == 1
    assert re.search("weight_0 is not read: --policy.objectives.robult.weight=0", said[0])


@pytest.mark.parametrize("ratio", [0.0, -1.0, 11.0, float("nan")])
def test_a_ratio_out_of_range_is_named(ratio, reading):
    with pytest.raises(ValueError, match=re.escape(f"unlabelled_ratio={ratio} must")):
        reading(unlabelled_ratio=ratio)

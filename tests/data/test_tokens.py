"""The id cache as a data set: LeRobot's own tools work on it, and no ids of nothing are in it."""

import numpy as np
import pytest
import torch
from lerobot.datasets.dataset_tools import add_features, delete_episodes
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from tiny_dataset import write_dataset

from multismolvla.modalities import default_view_map, padding_mask_key
from multismolvla_data.tokens import TokensConfig, cache_tokens

THERMAL, DEPTH = (default_view_map()["image2"][m] for m in ("thermal", "depth"))
THERMAL_IDS, DEPTH_IDS, SEG_IDS = (f"observation.tokens.image2.{m}" for m in ("thermal", "depth", "seg"))


def spoilt(root, key, value, **options):
    """Two episodes; the picture ``key`` of frame 5 of the second one shows ``value`` and nothing else."""

    def spoil(episode, step, made):
        if (episode, step) == (1, 5):
            made[key] = np.full_like(made[key], value)

    return write_dataset(root, spoil=spoil, **options)


def test_episodes_can_be_deleted_where_pictures_gave_way_to_ids(record, tmp_path):
    """lerobot 0.6.1 keeps the statistics of removed pictures in each episode, and then stumbles over them."""
    source = record(tmp_path / "source", depth="image", episodes=2)
    views = {"front": {"rgb": "observation.images.front", "depth": "observation.images.front_depth"}}
    domains = {"depth": "tok_depth@64"}
    root = cache_tokens(TokensConfig(dataset=source, output=tmp_path / "ids", views=views, domains=domains))
    cached = LeRobotDataset("tests/ids", root=root)
    assert "observation.images.front_depth" not in cached.features
    rest = delete_episodes(cached, [0], tmp_path / "rest", "tests/rest")
    assert (rest.num_episodes, len(rest)) == (1, 5)
    assert (
        rest[0]["observation.tokens.front.depth"].tolist()
        == cached[6]["observation.tokens.front.depth"].tolist()
    )


def test_pictures_that_no_view_declares_are_not_copied(record, tmp_path):
    """Reading a row decodes every picture it has."""
    source = record(tmp_path / "source", depth="image", episodes=1)
    views = {"front": {"rgb": "observation.images.front", "depth": "observation.images.front_depth"}}
    options = {"dataset": source, "views": views, "domains": {"depth": "tok_depth@64"}}
    ids = cache_tokens(TokensConfig(output=tmp_path / "ids", **options))
    assert LeRobotDataset("tests/ids", root=ids).meta.camera_keys == ["observation.images.front"]
    kept = cache_tokens(TokensConfig(output=tmp_path / "kept", keep_pictures=True, **options))
    assert "observation.images.wrist" in LeRobotDataset("tests/kept", root=kept).meta.camera_keys


@pytest.mark.parametrize(("value", "cause"), [(0, "zero"), (120, "constant")])
def test_a_thermal_picture_that_shows_nothing_is_no_stream_of_the_ids(value, cause, tmp_path, caplog):
    source = spoilt(tmp_path / "source", THERMAL, value)
    with pytest.raises(ValueError, match=rf"{THERMAL} is {cause} in episode 1, frame 5.*--health=act"):
        cache_tokens(TokensConfig(dataset=source, output=tmp_path / "ids", batch_size=4))
    assert not (tmp_path / "ids").exists()
    root = cache_tokens(TokensConfig(dataset=source, output=tmp_path / "ids", batch_size=4, health="act"))
    assert (
        caplog.text.count(f"{THERMAL} is {cause} in episode 1, frame 5: such pictures count as absent") == 1
    )
    ids = torch.stack([row[THERMAL_IDS] for row in LeRobotDataset("tests/ids", root=root)])
    absent = (ids == -1).all(1)
    assert absent.nonzero().flatten().tolist() == [12 + 5]
    assert not (ids[~absent] == -1).any()


def test_a_picture_that_is_said_to_be_absent_may_show_nothing(tmp_path):
    there = np.arange(24) != 12 + 5
    source = add_features(
        LeRobotDataset("tests/source", root=spoilt(tmp_path / "spoilt", THERMAL, 0)),
        {padding_mask_key(THERMAL): (there, {"dtype": "bool", "shape": (1,), "names": None})},
        tmp_path / "source",
    ).root
    cached = LeRobotDataset(
        "tests/ids", root=cache_tokens(TokensConfig(dataset=source, output=tmp_path / "ids"))
    )
    flags = [bool(row[padding_mask_key(THERMAL)]) for row in cached]
    assert flags == there.tolist()
    assert not (cached[12 + 5][THERMAL_IDS] == -1).any()  # the flag says it


def test_depth_without_a_valid_pixel_is_absent_in_its_ids_and_an_empty_scene_is_there(tmp_path):
    root = cache_tokens(TokensConfig(dataset=spoilt(tmp_path / "a", DEPTH, 0), output=tmp_path / "depth"))
    ids = torch.stack([row[DEPTH_IDS] for row in LeRobotDataset("tests/ids", root=root)])
    assert (ids == -1).all(1).nonzero().flatten().tolist() == [12 + 5]
    segmentation = default_view_map()["image2"]["seg"]
    root = cache_tokens(
        TokensConfig(dataset=spoilt(tmp_path / "b", segmentation, 0), output=tmp_path / "seg")
    )
    assert (LeRobotDataset("tests/ids", root=root)[12 + 5][SEG_IDS] == 0).all()


def test_what_shall_become_of_such_pictures_is_one_of_two_words():
    with pytest.raises(ValueError, match="--health='off' is unknown. Expected strict or act"):
        TokensConfig(health="off")

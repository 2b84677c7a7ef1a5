"""The id cache as a data set: LeRobot's own tools work on it."""

from lerobot.datasets.dataset_tools import delete_episodes
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from multismolvla_data.tokens import TokensConfig, cache_tokens


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

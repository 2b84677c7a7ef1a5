"""LIBERO's initial states: equal to what upstream reads, and no file can make us run anything."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from lerobot_env_multismolvla.libero.initial_states import (
    EVALUATION_STATES,
    read_states,
    split_of,
    split_ranges,
    split_states,
)
from lerobot_env_multismolvla.libero.setup import libero_package_folder

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")


@pytest.mark.parametrize("suite", SUITES)
def test_states_are_upstreams(suite):
    files = sorted((libero_package_folder() / "init_files" / suite).glob("*.pruned_init"))
    assert len(files) == (90 if suite == "libero_90" else 10)
    for file in files:
        states = read_states(file)
        upstream = torch.load(file, weights_only=False)  # files of the installed package
        assert states.dtype == upstream.dtype == np.float64
        assert states.shape[0] == 50
        assert np.array_equal(states, upstream)


class Malice:
    """A pickled object that writes a file when it is loaded."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def torch_file(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("wrapped", ["alone", "in an array", "bare pickle"])
def test_a_file_that_asks_for_code_is_refused_unread(tmp_path, wrapped):
    trap, file = tmp_path / "trap", tmp_path / "task.pruned_init"
    content = np.array([Malice(trap)], dtype=object) if wrapped == "in an array" else Malice(trap)
    file.write_bytes(pickle.dumps(content) if wrapped == "bare pickle" else torch_file(content))
    with pytest.raises(ValueError, match="refused as a file of initial states"):
        read_states(file)
    assert not trap.exists()
    if wrapped != "bare pickle":  # the trap works: upstream's loader falls into it
        torch.load(file, weights_only=False)
        assert trap.exists()


def test_damage_and_other_contents_are_named(tmp_path):
    file = tmp_path / "task.pruned_init"
    with pytest.raises(FileNotFoundError, match="hf-libero"):
        read_states(file)
    whole = torch_file(np.zeros((50, 47)))
    for content in (b"", whole[: len(whole) // 2], b"not a pickle"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="refused"):
            read_states(file)
    for other in (torch.zeros(3, 4), np.zeros(5), {"states": 1}):
        file.write_bytes(torch_file(other))
        with pytest.raises(ValueError, match="expected float64"):
            read_states(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme", "no torch file")
    with pytest.raises(ValueError, match="refused"):
        read_states(file)


def test_splits_are_disjoint_and_together_everything():
    states = np.arange(50.0)[:, None]
    evaluation, train = split_states(states, "eval"), split_states(states, "train")
    assert len(evaluation) == EVALUATION_STATES
    assert np.array_equal(np.concatenate([evaluation, train]), split_states(states, "all"))


@pytest.mark.parametrize(
    ("split", "ranges"),
    [
        ("eval", {"eval": (0, 19)}),
        ("train", {"train": (0, 29)}),
        ("all", {"eval": (0, 19), "train": (20, 49)}),
    ],
)
def test_every_state_is_known_by_its_split(split, ranges):
    assert split_ranges(split, 20, 30) == ranges
    stored = np.arange(50)
    offered = split_states(stored, split)
    for number in range(120):  # after the last one the first follows again
        state = offered[number % len(offered)]
        assert split_of(ranges, number) == ("eval" if state < EVALUATION_STATES else "train")


def test_an_environment_that_draws_its_states_tells_no_split():
    assert split_ranges("all", 0, 0) == {}
    assert split_of({}, 3) is None


def test_the_recorder_and_the_evaluation_mean_the_same_states():
    from multismolvla_data.record.config import EVALUATION_STATES as KEPT_FROM_RECORDING
    from multismolvla_data.record.config import RECORDING_STATES

    assert list(KEPT_FROM_RECORDING) == list(range(EVALUATION_STATES))
    assert f"{EVALUATION_STATES}-49" == RECORDING_STATES


@pytest.mark.sim
def test_the_mini_suite_tells_the_split_of_each_state(mini_env):
    env = mini_env(0, init_split="all")
    assert env.unwrapped.init_state_splits == {"eval": (0, 999), "train": (1000, 1999)}
    for number, split in ((0, "eval"), (999, "eval"), (1000, "train"), (2000, "eval")):
        assert env.reset(seed=0, options={"init_state_id": number})[1]["init_split"] == split

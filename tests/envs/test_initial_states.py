"""LIBERO's initial states: equal to what upstream reads, and no file can make us run anything."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from lerobot_env_multismolvla.initial_states import EVALUATION_STATES, read_states, split_states
from lerobot_env_multismolvla.libero_setup import libero_package_folder

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

"""LIBERO's demonstration files: what is read is what is there; what is damaged or foreign is named."""

import h5py
import numpy as np
import pytest
from demo_file import write_libero_hdf5
from hypothesis import given
from hypothesis import strategies as st

from multismolvla_data.formats.libero_hdf5 import (
    DemoFileError,
    Demonstration,
    find_demo_files,
    fixture_poses,
    inspect_demo_file,
    noop_mask,
    read_demo,
)

ATTRIBUTES = {
    "bddl_file_name": "somewhere/bddl_files/suite/open_it.bddl",
    "env_args": {"env_kwargs": {"control_freq": 20, "controller_configs": {"type": "OSC_POSE"}}},
}


def demonstration(steps: int = 4, width: int = 9, seed: int = 0) -> Demonstration:
    rng = np.random.default_rng(seed)
    return Demonstration(rng.uniform(-1, 1, (steps, 7)), rng.normal(size=(steps, width)), "<mujoco/>")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "open_it_demo.hdf5"
    write_libero_hdf5(path, [demonstration(seed=i) for i in range(11)], ATTRIBUTES)
    return path


def test_what_is_written_is_read_again_in_numeric_order(file):
    inspected = inspect_demo_file(file)
    assert inspected.task == "open_it"
    assert list(inspected.noops) == [f"demo_{i}" for i in range(11)]
    read, written = read_demo(file, "demo_10"), demonstration(seed=10)
    assert np.array_equal(read.actions, written.actions)
    assert np.array_equal(read.states, written.states)
    assert read.model_xml == "<mujoco/>"
    with h5py.File(file) as stored:
        assert stored["data"].attrs["total"] == 44
        assert stored["data/demo_3/dones"][()].tolist() == [0, 0, 0, 1]
        assert np.array_equal(stored["data/demo_3"].attrs["init_state"], demonstration(seed=3).states[0])


def test_the_digest_tells_contents_apart(file):
    before = inspect_demo_file(file).digest
    assert inspect_demo_file(file).digest == before
    with h5py.File(file, "r+") as stored:
        stored["data/demo_7/actions"][2, 3] += 1e-9
    assert inspect_demo_file(file).digest != before


def test_strings_of_fixed_length_are_read(file):
    with h5py.File(file, "r+") as stored:
        stored["data"].attrs["bddl_file_name"] = np.bytes_(b"bddl_files/open_it.bddl")
        stored["data/demo_0"].attrs["model_file"] = np.bytes_(b"<mujoco model='x'/>")
    assert inspect_demo_file(file).task == "open_it"
    assert read_demo(file, "demo_0").model_xml == "<mujoco model='x'/>"


def rename(stored):
    stored.move("data", "episodes")


def drop_states(stored):
    del stored["data/demo_2/states"]


def drop_demo(stored):
    del stored["data/demo_2"]


def drop_all(stored):
    for name in list(stored["data"]):
        del stored["data"][name]


def narrow_actions(stored):
    actions = stored["data/demo_2/actions"][:, :6]
    del stored["data/demo_2/actions"]
    stored["data/demo_2/actions"] = actions


def fewer_states(stored):
    states = stored["data/demo_2/states"][:-1]
    del stored["data/demo_2/states"]
    stored["data/demo_2/states"] = states


def not_a_number(stored):
    stored["data/demo_2/states"][3, 1] = np.nan


def other_task(stored):
    stored["data"].attrs["bddl_file_name"] = "close_it.bddl"


def other_rate(stored):
    stored["data"].attrs["env_args"] = '{"env_kwargs": {"control_freq": 10}}'


def other_controller(stored):
    stored["data"].attrs["env_args"] = '{"env_kwargs": {"controller_configs": {"type": "JOINT_POSITION"}}}'


def no_json(stored):
    stored["data"].attrs["env_args"] = "{"


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (rename, "no group 'data' but \\['episodes'\\]"),
        (drop_states, "demo_2 lacks \\['states'\\]"),
        (drop_demo, "announces 11 demonstrations and has 10"),
        (drop_all, "no demonstration"),
        (narrow_actions, "shape \\(4, 6\\); expected \\(steps, 7\\)"),
        (fewer_states, "beside 4 actions"),
        (not_a_number, "demo_2/states has a value that is not finite, first in row 3"),
        (other_task, "name it close_it_demo.hdf5"),
        (other_rate, "10 Hz"),
        (other_controller, "JOINT_POSITION"),
        (no_json, "env_args is not JSON"),
    ],
)
def test_damage_is_named(file, damage, match):
    with h5py.File(file, "r+") as stored:
        damage(stored)
    with pytest.raises(DemoFileError, match=match):
        inspect_demo_file(file)


@pytest.mark.parametrize("keep", [0, 100, 3000])
def test_a_truncated_file_is_named(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DemoFileError, match=f"{file.name} cannot be read as HDF5.*unfinished download"):
        inspect_demo_file(file)


def test_sources_without_demonstrations_are_named(tmp_path):
    with pytest.raises(DemoFileError, match="--source=.*<task>_demo.hdf5"):
        find_demo_files(tmp_path)
    with pytest.raises(DemoFileError, match="nowhere"):
        find_demo_files(tmp_path / "nowhere")
    (tmp_path / "data.hdf5").touch()
    with pytest.raises(DemoFileError, match="data.hdf5"):
        find_demo_files(tmp_path / "data.hdf5")
    write_libero_hdf5(tmp_path / "x_demo.hdf5", [demonstration()], {})
    with pytest.raises(DemoFileError, match="demo_99 does not exist"):
        read_demo(tmp_path / "x_demo.hdf5", "demo_99")


def test_noops_are_those_of_the_common_rule():
    still, tremor = [0.0] * 6, [5e-5, 0, 0, 0, 0, -5e-5]
    actions = np.array(
        [
            [*still, -1],  # dropped: nothing was kept before, so motion alone decides
            [0.1, 0, 0, 0, 0, 0, -1],
            [*tremor, -1],  # dropped
            [*still, 1],  # kept: the gripper closes
            [*still, 1],  # dropped
            [0, 0, 2e-4, 0, 0, 0, 1],
            [*still, -1],  # kept: the gripper opens
        ]
    )
    assert noop_mask(actions).tolist() == [True, False, True, False, True, False, False]


@given(st.lists(st.tuples(st.sampled_from([0.0, 5e-5, 0.3]), st.sampled_from([-1.0, 1.0])), max_size=30))
def test_filtering_twice_drops_nothing_more(moves):
    actions = np.array([[x, 0, 0, 0, 0, 0, grip] for x, grip in moves]).reshape(-1, 7)
    kept = actions[~noop_mask(actions)]
    assert not noop_mask(kept).any()
    assert (np.abs(kept[:1, 0]) > 0).all()
    assert (actions[:, 0] == 0.3).sum() <= len(kept)


def test_fixtures_stand_where_the_demonstration_says():
    bodies = '<body name="a" pos="1 2 3" quat="2 0 0 0"><body name="b"/></body>'
    xml = f"<mujoco><worldbody>{bodies}</worldbody></mujoco>"
    poses = fixture_poses(xml, ["a", "b"])
    assert poses["a"].tolist() == [1, 2, 3, 1, 0, 0, 0]
    assert poses["b"].tolist() == [0, 0, 0, 1, 0, 0, 0]
    with pytest.raises(DemoFileError, match="no fixture 'stove'"):
        fixture_poses(xml, ["stove"])
    with pytest.raises(DemoFileError, match="not XML"):
        fixture_poses("<mujoco>", ["a"])

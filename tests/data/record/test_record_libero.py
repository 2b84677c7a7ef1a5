"""Recording LIBERO's suites: the states that may be recorded, and one episode from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest

from multismolvla_data.formats.workspace import METADATA_FILE, open_workspace
from multismolvla_data.record.command import RecordConfig, record
from multismolvla_data.record.config import LiberoEpisodeSettings, check_states
from multismolvla_data.record.libero import SIM_STATE


def test_evaluation_states_are_refused_unless_forced():
    assert check_states("20-49", False) == tuple(range(20, 50))
    with pytest.raises(ValueError, match=r"states \[18, 19\] are for evaluation"):
        check_states("18-21", False)
    assert check_states("18-21", True) == (18, 19, 20, 21)
    with pytest.raises(ValueError, match="allow_evaluation_states"):
        RecordConfig(suite="libero_object", init_states="0-3")


def test_options_of_one_suite_are_refused_for_the_other():
    with pytest.raises(ValueError, match="--init_states"):
        RecordConfig(init_states="20-49")
    with pytest.raises(ValueError, match="--init_split"):
        RecordConfig(suite="libero_goal", init_split="eval")
    with pytest.raises(ValueError, match="--task_ids"):
        RecordConfig(suite="libero_goal", task_ids=[10])
    assert RecordConfig(suite="libero_10").task_ids == list(range(10))
    with pytest.raises(ValueError, match="--settle_steps"):
        RecordConfig(suite="libero_goal", settle_steps=-1)


def test_defaults_depend_on_the_suite():
    mini, libero = RecordConfig(), RecordConfig(suite="libero_10", episodes_per_task=3)
    assert (mini.size, mini.repo_id, mini.episodes) == (64, "multismolvla/mini", 50)
    assert (libero.size, libero.repo_id, libero.episodes) == (256, "multismolvla/libero_10", 3)


def test_starts_go_round_with_another_seed():
    settings = LiberoEpisodeSettings("libero_object", 64, "fast", "train", 1.0, 7, (20, 25), 20)
    assert [settings.start(n) for n in range(5)] == [(20, 7), (25, 7), (20, 8), (25, 8), (20, 9)]


@pytest.fixture(scope="module")
def recorded(libero_assets, tmp_path_factory) -> tuple[RecordConfig, Path]:
    """One episode of libero_object, recorded in this process."""
    import multismolvla_data.record.command as module
    from multismolvla_data.record.libero import record_libero_episode

    config = RecordConfig(
        output=tmp_path_factory.mktemp("libero") / "object",
        suite="libero_object",
        task_ids=[5],
        episodes_per_task=1,
        init_states="31",
        size=64,
        render_quality="fast",
        workers=1,
        libero_assets=str(libero_assets),
    )
    folder = open_workspace(config) / "episodes"
    # In this process: starting a worker costs as much as the episode. The recorder finds the file and goes on.
    frames = record_libero_episode(config.settings, 5, 0, module._episode_file(folder, 5, 0))
    assert frames > 50
    return config, record(config)


@pytest.mark.sim
@pytest.mark.libero
def test_recorded_episode_is_whole_and_repeatable(recorded):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from lerobot_env_multismolvla.libero_expert.search import episode_seed
    from multismolvla_data.formats import simulators
    from multismolvla_data.record import libero as libero_recording

    config, output = recorded
    metadata = json.loads((output / METADATA_FILE).read_text())
    assert metadata["starts"] == {"5": [{"init_state": 31, "seed": 0}]}
    assert metadata["failed_starts"] == {"5": []}
    assert metadata["tasks"] == {"5": "pick up the tomato sauce and place it in the basket"}
    assert metadata["recording"] == config.fingerprint()
    assert record(config) == output  # nothing to do
    dataset = LeRobotDataset(config.repo_id, root=output, depth_output_unit="m")
    assert [len(dataset)] == metadata["episode_lengths"]
    item = dataset[0]
    assert item["observation.images.image"].shape == (3, 64, 64)
    assert item["task"] == metadata["tasks"]["5"]
    states = np.stack([dataset[i]["observation.state"].numpy() for i in range(len(dataset))])
    assert np.abs(np.diff(states[:, 3:6], axis=0)).max() < 0.2  # radians: no jump by 2 pi
    actions = np.stack([dataset[i]["action"].numpy() for i in range(len(dataset))])
    with np.load(output / libero_recording.STATES_FOLDER / "episode_000000.npz") as kept:
        simulation, executed = kept[SIM_STATE.partition(".")[2]], kept["executed_action"]
    assert len(simulation) == len(executed) == len(dataset)
    assert not np.array_equal(actions, executed)  # disturbed
    # What was executed leads from each state kept to the next, and from the last to success.
    env = next(iter(simulators._OPEN.values()))[0]
    env.reset(seed=episode_seed(0, 5, 31), options={"init_state_id": 31})
    for step, action in enumerate(executed):
        np.testing.assert_array_equal(env.simulation.sim.get_state().flatten(), simulation[step])
        env.simulation.step(action)
    assert env.simulation._check_success()

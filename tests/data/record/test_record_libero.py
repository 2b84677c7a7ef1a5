"""Recording LIBERO's suites: the states that may be recorded, and one episode from end to end."""

from pathlib import Path

import numpy as np
import pytest

from multismolvla_data.formats.dataset_writer import STATES_FOLDER
from multismolvla_data.formats.metadata import Start, read_metadata
from multismolvla_data.formats.simulators import SimulatorSettings, simulator
from multismolvla_data.formats.workspace import Workspace
from multismolvla_data.record.config import EpisodeSettings, RecordConfig, check_states
from multismolvla_data.record.episode import record_episode
from multismolvla_data.record.job import COMMAND, TaskProgress, record


def test_evaluation_states_are_refused_unless_forced():
    assert check_states("20-49", False) == tuple(range(20, 50))
    with pytest.raises(ValueError, match=r"\[18, 19\]"):
        check_states("18-21", False)
    assert check_states("18-21", True) == (18, 19, 20, 21)
    with pytest.raises(ValueError, match="allow_evaluation_states"):
        RecordConfig(suite="libero_object", init_states="0-3")
    with pytest.raises(ValueError, match=r"--init_split=eval: .*allow_evaluation_states"):
        RecordConfig(init_split="eval")
    assert (
        RecordConfig(init_split="eval", allow_evaluation_states=True).settings.simulator.init_split == "eval"
    )


def test_recorded_evaluation_states_are_told():
    def split(states: str, **more: bool) -> str:
        return RecordConfig(suite="libero_goal", init_states=states, **more).recorded_split

    assert split("20-49") == "train"
    assert split("19-30", allow_evaluation_states=True) == "eval"
    assert RecordConfig(init_split="eval", allow_evaluation_states=True).recorded_split == "eval"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"seed": -1}, "--seed=-1"),
        ({"noise": float("nan")}, "--noise=nan"),
        ({"size": 100_000}, "--size=100000"),
    ],
)
def test_numbers_out_of_range_are_named_before_a_simulator_starts(option, message):
    with pytest.raises(ValueError, match=message):
        RecordConfig(**option)


def test_options_of_one_suite_are_refused_for_the_other():
    with pytest.raises(ValueError, match="--init_states"):
        RecordConfig(init_states="20-49")
    with pytest.raises(ValueError, match="--init_split"):
        RecordConfig(suite="libero_goal", init_split="eval")
    with pytest.raises(ValueError, match="--task_ids"):
        RecordConfig(suite="libero_goal", task_ids=[10])
    with pytest.raises(ValueError, match=r"--size=32: expected at least 64 pixels for libero_goal"):
        RecordConfig(suite="libero_goal", size=32)
    with pytest.raises(ValueError, match="Initial states ''"):
        RecordConfig(suite="libero_goal", init_states="")
    assert RecordConfig(suite="libero_10").task_ids == list(range(10))
    assert (RecordConfig(suite="libero_10").after_success, RecordConfig().after_success) == (16, 0)
    with pytest.raises(ValueError, match=r"--after_success=16: expected 0: the mini suite"):
        RecordConfig(after_success=16)
    with pytest.raises(ValueError, match=r"--after_success=-1: expected 0 or more"):
        RecordConfig(suite="libero_10", after_success=-1)
    with pytest.raises(ValueError, match="--settle_steps"):
        RecordConfig(suite="libero_goal", settle_steps=-1)


def test_defaults_depend_on_the_suite():
    mini, libero = RecordConfig(), RecordConfig(suite="libero_10", episodes=3)
    assert (mini.size, mini.repo_id, mini.episodes) == (64, "multismolvla/mini", 50)
    assert (libero.size, libero.repo_id, libero.episodes) == (256, "multismolvla/libero_10", 3)


def test_starts_go_round_with_another_seed():
    settings = EpisodeSettings(SimulatorSettings("libero_object", 64, "fast"), 1.0, 7, (20, 25))
    starts = [(20, 7), (25, 7), (20, 8), (25, 8), (20, 9)]
    assert [settings.start(n) for n in range(5)] == [Start(*start) for start in starts]


@pytest.fixture(scope="module")
def recorded(libero_assets, tmp_path_factory) -> tuple[RecordConfig, Path]:
    """One episode of libero_object, recorded in this process."""
    config = RecordConfig(
        output=tmp_path_factory.mktemp("libero") / "object",
        suite="libero_object",
        task_ids=[5],
        episodes=1,
        init_states="31",
        size=64,
        render_quality="fast",
        workers=1,
        libero_assets=str(libero_assets),
    )
    workspace = Workspace(COMMAND, config.output, config.identity())
    workspace.open()
    # In this process: starting a worker costs as much as the episode. The recorder finds the file and goes
    # on.
    assert record_episode(config.settings, 5, 0, TaskProgress(5, workspace.episodes).episode_file(0))
    return config, record(config)


@pytest.mark.sim
@pytest.mark.libero
def test_recorded_episode_is_whole_and_repeatable(recorded):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from lerobot_env_multismolvla.libero_expert.search import recording_seed

    config, output = recorded
    metadata = read_metadata(output)
    assert metadata.starts == {"5": [Start(31, 0)]}
    assert metadata.failed_starts == {"5": []}
    assert metadata.tasks == {"5": "pick up the tomato sauce and place it in the basket"}
    assert metadata.identities == {COMMAND: config.identity()}
    assert record(config) == output  # nothing to do
    dataset = LeRobotDataset(config.repo_id, root=output, depth_output_unit="m")
    assert len(dataset) > 50
    assert [len(dataset)] == metadata.episode_lengths
    item = dataset[0]
    assert item["observation.images.image"].shape == (3, 64, 64)
    assert item["task"] == metadata.tasks["5"]
    states = np.stack([dataset[i]["observation.state"].numpy() for i in range(len(dataset))])
    assert np.abs(np.diff(states[:, 3:6], axis=0)).max() < 0.2  # radians: no jump by 2 pi
    actions = np.stack([dataset[i]["action"].numpy() for i in range(len(dataset))])
    with np.load(output / STATES_FOLDER / "episode_000000.npz") as kept:
        simulation, executed = kept["state"], kept["executed_action"]
    assert len(simulation) == len(executed) == len(dataset)
    closed = np.flatnonzero(actions[:, 6] > 0)
    assert len(actions) - 1 - closed[-1] >= 5  # it lets go
    assert not np.array_equal(actions, executed)  # disturbed
    # What was executed leads from each state kept to the next, and from the last to success.
    env = simulator(config.settings.simulator, 5).env
    env.reset(seed=recording_seed(0, 5, 31), options={"init_state_id": 31})
    for step, action in enumerate(executed):
        np.testing.assert_array_equal(env.simulation.sim.get_state().flatten(), simulation[step])
        env.simulation.step(action)
    assert env.simulation._check_success()

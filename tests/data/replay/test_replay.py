"""The replay: what succeeded is rendered as the environment shows it, what failed is reported."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from demo_file import write_demo_file, write_libero_hdf5

from multismolvla.system.command import CommandError
from multismolvla_data.formats.episode_files import load_episode
from multismolvla_data.formats.libero_hdf5 import (
    DemoFileError,
    Demonstration,
    fixture_poses,
    inspect_demo_file,
    read_demo,
)
from multismolvla_data.formats.metadata import read_metadata
from multismolvla_data.formats.simulators import SimulatorSettings, close_simulators, simulator, suite_tasks
from multismolvla_data.formats.workspace import Workspace, WorkspaceError
from multismolvla_data.replay import job as replay_job
from multismolvla_data.replay.config import ReplayConfig, ReplaySettings
from multismolvla_data.replay.episode import SETTLE_ACTION, execute_actions, replay_demo
from multismolvla_data.replay.job import REPORT_FILE, replay
from multismolvla_data.replay.plan import Failure, PlannedDemo, plan_replay

MINI = "multismolvla_mini"
SIZE = 32


def settings(suite: str = MINI, libero_assets: str | None = None, **changes) -> ReplaySettings:
    options = {"mode": "actions", "filter_noops": True, "settle_steps": 10, "keep_failed": False, "seed": 0}
    scenes = SimulatorSettings(suite, SIZE, "default", settle_steps=0, libero_assets=libero_assets)
    return ReplaySettings(scenes, **{**options, **changes})


def planned(path: Path, demo: str, task_id: int = 0) -> PlannedDemo:
    noops = inspect_demo_file(path).noops[demo]
    return PlannedDemo(task_id, path, demo, int((~noops).sum()), int(noops.sum()))


def begun(config: ReplayConfig) -> Workspace:
    """The workspace of a replay that was stopped before its first demonstration."""
    workspace = Workspace(replay_job.COMMAND, config.output, plan_replay(config).identity(config))
    workspace.open()
    return workspace


def with_noops(demo: Demonstration) -> Demonstration:
    """The same with two pauses, one before the first action and one on the way."""
    pause = np.repeat([[0, 0, 0, 0, 0, 0, -1.0]], 4, axis=0)
    actions = np.concatenate([pause, demo.actions[:20], pause, demo.actions[20:]])
    rows = np.concatenate([[0] * 4, range(20), [20] * 4, range(20, len(demo.states))])
    return Demonstration(actions, demo.states[rows], demo.model_xml)


def broken(demo: Demonstration) -> Demonstration:
    """The same with all sideways motion reversed: it closes the fingers beside the cube."""
    return Demonstration(demo.actions * [1, -1, 1, 1, 1, 1, 1], demo.states, demo.model_xml)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A folder with one official file of three demonstrations: good, with pauses, spoilt."""
    folder = tmp_path_factory.mktemp("demos")
    path = write_demo_file(folder, task_id=0, init_states=[0])
    good = read_demo(path, "demo_0")
    write_libero_hdf5(
        path, [good, with_noops(good), broken(good)], {"bddl_file_name": f"{path.stem[:-5]}.bddl"}
    )
    yield folder
    close_simulators()


@pytest.fixture(scope="module")
def continued(source, tmp_path_factory) -> tuple[Path, list[float], float]:
    """A replay killed after its first demonstration and then continued; that episode's time stamps."""
    output = tmp_path_factory.mktemp("replay") / "mini"
    config = ReplayConfig(source=source, suite=MINI, output=output, size=SIZE, workers=1)
    folder = begun(config).episodes
    first = plan_replay(config).demos[0]
    assert replay_demo(config.settings, first, folder) is None
    stamp = first.episode_file(folder).stat().st_mtime
    (folder / ".task000_demo_1.npz.1.npz").write_bytes(b"half an episode")
    assert not output.exists()
    stamps = []

    def load(path: Path) -> dict[str, np.ndarray]:
        stamps.append(path.stat().st_mtime)
        return load_episode(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_job, "load_episode", load)
        replay(config)
    return output, stamps, stamp


@pytest.mark.sim
def test_a_killed_replay_continues_and_repeats_nothing(continued, source):
    output, stamps, stamp = continued
    assert len(stamps) == 2
    assert stamps[0] == stamp, "the finished demonstration was replayed again"
    assert not (output.parent / ".mini.unfinished").exists()
    config = ReplayConfig(source=source, suite=MINI, output=output, size=SIZE)
    assert replay(config) == output  # nothing to do
    config.settle_steps = 0
    with pytest.raises(WorkspaceError, match="settle_steps"):
        replay(config)


@pytest.mark.sim
def test_what_failed_is_reported_and_not_written(continued, source):
    output, _, _ = continued
    report = json.loads((output / "meta" / REPORT_FILE).read_text())
    steps = len(read_demo(next(source.iterdir()), "demo_2").actions)
    assert report["failed"] == [
        {
            "file": "put_the_cube_in_the_basket_demo.hdf5",
            "demo": "demo_2",
            "reason": "the goal was never reached",
            "step": steps,
            "dropped_noops": 0,
        }
    ]
    assert (report["demonstrations"], report["succeeded"], report["written"]) == (3, 2, 2)
    metadata = read_metadata(output)
    assert [d.demo for d in metadata.demonstrations] == ["demo_0", "demo_1"]
    assert metadata.provenance == dict.fromkeys(("rgb", "depth", "seg", "thermal"), "sensor")
    assert (output / "preview.png").stat().st_size > 1000


@pytest.mark.sim
def test_noops_are_dropped_and_leave_the_episode_as_it_was(continued, source):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    output, _, _ = continued
    lengths = read_metadata(output).episode_lengths
    report = json.loads((output / "meta" / REPORT_FILE).read_text())
    dataset = LeRobotDataset("multismolvla/mini", root=output, depth_output_unit="m")
    original = read_demo(next(source.iterdir()), "demo_0").actions.astype(np.float32)
    assert report["dropped_noops"] == 8
    assert lengths == [len(original)] * 2
    assert dataset.meta.features["observation.images.image_seg"]["info"]["labels"][3] == "cube"
    for t in (0, 20, 21, len(original) - 1):
        item, twin = dataset[t], dataset[lengths[0] + t]
        assert item["task"] == "put the cube in the basket"
        assert np.array_equal(item["action"].numpy(), original[t])
        for key in (k for k in item if k.startswith(("observation", "action")) and "thermal" not in k):
            assert np.array_equal(item[key].numpy(), twin[key].numpy()), key


@pytest.mark.sim
def test_frames_are_what_a_policy_would_have_seen(continued, source):
    """Rendered from states, they equal what the environment shows while it executes the actions."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    output, _, _ = continued
    dataset = LeRobotDataset("multismolvla/mini", root=output, depth_output_unit="m")
    demo = read_demo(next(source.iterdir()), "demo_0")
    opened = simulator(settings().simulator, 0)
    env = opened.env
    env.reset(seed=0)
    env.restore(demo.states[0])
    for _ in range(10):
        raw = env.step(SETTLE_ACTION)[0]
    for t, action in enumerate(demo.actions):
        if t % 15 == 0:
            live, stored = opened.frame(raw), dataset[t]
            assert np.abs(live["observation.state"] - stored["observation.state"].numpy()).max() < 2e-3
            for camera in ("image", "image2"):
                key = f"observation.images.{camera}"
                picture = stored[key].permute(1, 2, 0).numpy() * 255
                assert np.abs(picture - live[key]).mean() < 1.5, (t, key)
                depth = stored[f"{key}_depth"].permute(1, 2, 0).numpy()
                assert np.median(np.abs(depth - live[f"{key}_depth"])) < 1e-3, (t, key)
        raw = env.step(action)[0]
    assert env.simulation._check_success()


@pytest.mark.sim
def test_states_are_shown_as_recorded(source, tmp_path):
    path = next(source.iterdir())
    # The spoilt actions do not matter here: the states are those of a success.
    assert replay_demo(settings(mode="states"), planned(path, "demo_2"), tmp_path) is None
    shown = load_episode(tmp_path / "task000_demo_2.npz")
    opened = simulator(settings().simulator, 0)
    demo = read_demo(path, "demo_2")
    for t in (0, 40, len(demo.states) - 1):
        wanted = opened.frame(opened.env.restore(demo.states[t]))
        for key in ("observation.state", "observation.images.image2_depth", "observation.images.image"):
            assert np.array_equal(shown[key][t], wanted[key]), (t, key)
        assert np.array_equal(shown["action"][t], demo.actions[t].astype(np.float32))


@pytest.mark.sim
def test_failures_can_be_kept(source, tmp_path):
    path = next(source.iterdir())
    short = Demonstration(
        *(a[:5] for a in (read_demo(path, "demo_0").actions, read_demo(path, "demo_0").states))
    )
    still = Demonstration(short.actions * 0.0, short.states)
    target = tmp_path / path.name
    write_libero_hdf5(target, [short, still], {})
    for mode, reason in (
        ("actions", "the goal was never reached"),
        ("states", "the goal does not hold at the end"),
    ):
        options = settings(mode=mode, keep_failed=True)
        assert replay_demo(options, planned(target, "demo_0"), tmp_path) == Failure(reason, 5)
        assert len(load_episode(tmp_path / "task000_demo_0.npz")["action"]) == 5
        assert replay_demo(options, planned(target, "demo_1"), tmp_path) == Failure("only no-ops", 0)
        assert not (tmp_path / "task000_demo_1.npz").exists()
        (tmp_path / "task000_demo_0.npz").unlink()


@pytest.mark.sim
def test_without_any_success_there_is_a_report_and_no_data_set(source, tmp_path, capsys):
    path = next(source.iterdir())
    (tmp_path / "demos").mkdir()
    write_libero_hdf5(tmp_path / "demos" / path.name, [read_demo(path, "demo_2")], {})
    config = ReplayConfig(
        source=tmp_path / "demos", suite=MINI, output=tmp_path / "mini", size=SIZE, workers=1
    )
    folder = begun(config).episodes
    replay_demo(config.settings, plan_replay(config).demos[0], folder)
    with pytest.raises(CommandError, match="None of 1 demonstrations succeeded"):
        replay(config)
    assert not config.output.exists()
    report = json.loads((folder.parent / REPORT_FILE).read_text())
    assert report["failed"][0]["demo"] == "demo_0"
    assert "demo_0: the goal was never reached" in capsys.readouterr().err


@pytest.mark.sim
def test_a_state_of_another_scene_is_refused(source, tmp_path):
    path = next(source.iterdir())
    demo = read_demo(path, "demo_0")
    target = tmp_path / path.name
    write_libero_hdf5(target, [Demonstration(demo.actions, demo.states[:, :-2])], {})
    with pytest.raises(DemoFileError, match=r"demo_0.*\(\d+,\)"):
        replay_demo(settings(), planned(target, "demo_0"), tmp_path)


class ScriptedProblem:
    """A simulator whose goal holds after the steps ``good`` and whose state breaks at ``breaks``."""

    horizon = 20

    def __init__(self, good=(), breaks=99):
        self.good, self.breaks, self.steps = good, breaks, 0

    @property
    def simulation(self):
        return self

    @property
    def state(self):
        return np.array([self.steps, np.nan if self.steps >= self.breaks else 0.0])

    def step(self, action):
        self.steps += 1
        return {}, 0.0, self.steps in self.good, {}


@pytest.mark.parametrize(
    ("problem", "steps", "failure", "frames"),
    [
        (ScriptedProblem(good=(3, 4, 5)), 5, None, 5),
        (ScriptedProblem(good=(2, 3)), 5, Failure("the goal was reached and lost again", 4), 5),
        (ScriptedProblem(), 5, Failure("the goal was never reached", 5), 5),
        (ScriptedProblem(good=(5,), breaks=2), 5, Failure("the simulation became unstable", 2), 0),
        (ScriptedProblem(), 21, Failure("longer than the simulator's horizon of 20 steps", 20), 0),
    ],
)
def test_success_is_what_holds_after_the_last_action(problem, steps, failure, frames):
    demo = Demonstration(np.ones((steps, 7)), np.zeros((steps, 2)))
    states, found = execute_actions(problem, demo, np.arange(steps), 0)
    assert found == failure
    assert [s[0] for s in states] == list(range(frames)), "each state is the one before its action"


def test_unknown_tasks_are_named_with_the_known_ones(tmp_path):
    demo = Demonstration(np.ones((2, 7)), np.ones((2, 5)))
    write_libero_hdf5(tmp_path / "fly_away_demo.hdf5", [demo], {})
    config = ReplayConfig(source=tmp_path, suite=MINI, output=tmp_path / "out")
    with pytest.raises(ValueError, match="'fly_away'.*put_the_cube_in_the_basket, "):
        plan_replay(config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "both"}, "--mode=both"),
        ({"settle_steps": -1}, "--settle_steps=-1"),
        ({"episodes": -1}, "--episodes=-1"),
        ({"size": 4}, "--size=4"),
        ({"size": 100}, "--size=100: expected a multiple of 16"),
        ({"workers": -2}, "--workers=-2"),
        ({"render_quality": "best"}, "--render_quality"),
    ],
)
def test_bad_options_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        ReplayConfig(source=Path("demos"), suite=MINI, **options)


def test_a_dry_run_lists_and_writes_nothing(tmp_path, monkeypatch, capsys):
    from multismolvla_data.replay import command as module

    actions = np.ones((10, 7))
    actions[4:7, :6] = 0
    name = list(suite_tasks(MINI))[1]
    demo = Demonstration(actions, np.ones((10, 5)))
    write_libero_hdf5(tmp_path / f"{name}_demo.hdf5", [demo] * 3, {})
    command = ["multismolvla-replay", f"--source={tmp_path}", f"--suite={MINI}", "--dry_run=true"]
    monkeypatch.setattr(sys, "argv", [*command, f"--output={tmp_path}/out", "--episodes=2"])
    assert module.main() == 0
    table = capsys.readouterr().out.splitlines()
    assert table[1].split(maxsplit=3) == ["2", "20", "14", "put the can on the plate"]
    assert "14 frames to render" in table[2]
    assert [p.name for p in tmp_path.iterdir()] == [f"{name}_demo.hdf5"]


def test_help_answers_without_the_simulator(help_of):
    assert "--settle_steps" in help_of(
        "multismolvla_data.replay.command", "torch", "mujoco", "lerobot", "h5py"
    )


@pytest.mark.sim
@pytest.mark.libero
def test_a_libero_scene_is_shown_with_its_fixtures_where_they_stood(libero_assets, tmp_path):

    options = settings(
        suite="libero_spatial", mode="states", keep_failed=True, libero_assets=str(libero_assets)
    )
    env = simulator(options.simulator, 0).env
    env.reset(seed=3)
    state, xml = env.state, env.simulation.sim.model.get_xml()
    recorded = fixture_poses(xml, env.fixture_bodies)
    assert len(recorded) == 2
    env.reset(seed=options.seed)
    model = env.simulation.sim.model
    elsewhere = np.array([model.body_pos[model.body_name2id(name)] for name in recorded])
    path = tmp_path / f"{env.task}_demo.hdf5"
    actions = np.full((2, 7), 0.1)
    write_libero_hdf5(path, [Demonstration(actions, np.stack([state, state]), xml)], {})
    assert replay_demo(options, planned(path, "demo_0"), tmp_path).step == 2
    for number, (name, pose) in enumerate(recorded.items()):
        body = model.body_name2id(name)
        assert np.allclose(model.body_pos[body], pose[:3], atol=1e-6)
        assert np.abs(model.body_pos[body] - elsewhere[number]).max() > 1e-4, "the test would prove nothing"
    frame = {k: v[0] for k, v in load_episode(tmp_path / "task000_demo_0.npz").items()}
    seg = frame["observation.images.image_seg"][..., 0]
    assert {"robot", "plate", "akita_black_bowl", "wooden_cabinet"} <= {env.labels[i] for i in np.unique(seg)}
    rows = np.flatnonzero((seg == env.labels.index("robot")).any(axis=1))
    assert rows.min() < SIZE // 4, "the arm hangs from above: upright pictures have it at their top"
    assert 0.3 < np.median(frame["observation.images.image_depth"]) < 5

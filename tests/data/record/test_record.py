"""The recorder: what it writes is what the environment shows, and killing it loses nothing."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_env_multismolvla import mini
from multismolvla_data.formats.dataset_writer import DatasetWriter, features
from multismolvla_data.formats.episode_files import load_episode, store_episode
from multismolvla_data.formats.metadata import DatasetMetadata, Start, read_metadata, write_metadata
from multismolvla_data.formats.simulators import simulator
from multismolvla_data.formats.workspace import Workspace, WorkspaceError
from multismolvla_data.record import job as record_job
from multismolvla_data.record.config import RecordConfig
from multismolvla_data.record.job import record
from multismolvla_run.process import installed_program

pytestmark = pytest.mark.sim

OPTIONS = {"episodes": 2, "size": 32, "workers": 1, "task_ids": [0]}


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory) -> tuple[Path, float]:
    """A recording killed after its first episode and then continued; time stamp of that episode."""
    output = tmp_path_factory.mktemp("recording") / "mini"
    command = [
        sys.executable,
        "-m",
        "multismolvla_data.record.command",
        f"--output={output}",
        "--episodes=2",
        "--size=32",
    ]
    command += ["--workers=1", "--task_ids=[0]"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    episodes = output.parent / ".mini.unfinished" / "episodes"
    deadline = time.monotonic() + 180
    while not list(episodes.glob("task*.npz")):
        assert process.poll() is None, "the recorder ended before its first episode"
        assert time.monotonic() < deadline, "no episode within 180 s"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists(), "half a data set must not appear under the output's name"
    first = next(iter(sorted(episodes.glob("task*.npz"))))
    stamp = first.stat().st_mtime
    (episodes / ".task0_start00001.npz.1.npz").write_bytes(b"half an episode")
    kept = []

    def load(file: Path) -> dict[str, np.ndarray]:
        kept.append(file.stat().st_mtime)
        return load_episode(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_job, "load_episode", load)
        record(RecordConfig(output=output, **OPTIONS))
    assert kept[0] == stamp, "the finished episode was recorded again"
    return output, stamp


def test_resumed_recording_is_whole(killed_and_resumed):
    output, _ = killed_and_resumed
    metadata = read_metadata(output)
    assert len(metadata.episode_lengths) == 2
    assert metadata.starts == {"0": [Start(0, 0), Start(1, 0)]}
    assert metadata.failed_starts == {"0": []}
    assert metadata.provenance == dict.fromkeys(("rgb", "depth", "seg", "thermal"), "sensor")
    assert (output / "preview.png").stat().st_size > 1000
    assert not (output.parent / ".mini.unfinished").exists()
    assert record(RecordConfig(output=output, **OPTIONS)) == output  # nothing to do


def test_frames_equal_what_the_environment_shows(killed_and_resumed):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from lerobot_env_multismolvla.mini.expert import ActionNoise, MiniExpert, snapshot

    output, _ = killed_and_resumed
    dataset = LeRobotDataset("multismolvla/mini", root=output, depth_output_unit="m")
    lengths = read_metadata(output).episode_lengths
    assert len(dataset) == sum(lengths)
    opened = simulator(RecordConfig(output=output, **OPTIONS).settings.simulator, 0)
    env = opened.env
    # The second episode: an environment that has run before must show the same as the worker's.
    raw, _ = env.reset(seed=0, options={"init_state_id": 1})
    expert, noise = MiniExpert(0), ActionNoise(np.random.default_rng([0, 0, 1]), 1.0)
    for step in range(lengths[1]):
        clean = expert.action(snapshot(env.simulation, 0))
        if step % 10 == 0:
            item, frame = dataset[lengths[0] + step], opened.frame(raw)
            for key, picture in frame.items():
                if key == "observation.state":
                    assert np.array_equal(item[key].numpy(), picture)
                    continue
                assert item[key].shape == (picture.shape[2], 32, 32)
                stored = item[key].permute(1, 2, 0).numpy()
                scale = 1.0 if key.endswith("_depth") else 255.0
                assert np.abs(stored * scale - picture).max() < 1e-3, key
            assert np.array_equal(item["action"].numpy(), clean)
            assert item["task"] == "put the cube in the basket"
        raw, _, done, _, _ = env.step(noise.disturb(clean, expert.phase))
    assert done, "the recorded episode must end with success"
    assert dataset.meta.features["observation.images.image_depth"]["info"]["depth_unit"] == "m"
    assert dataset.meta.features["observation.images.image_seg"]["info"]["labels"][3] == "cube"


def test_other_settings_and_foreign_data_are_refused(killed_and_resumed, tmp_path):
    output, _ = killed_and_resumed
    with pytest.raises(WorkspaceError, match=r"episodes \(2, .*3\)"):
        record(RecordConfig(output=output, **{**OPTIONS, "episodes": 3}))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "data.txt").write_text("precious")
    with pytest.raises(WorkspaceError, match="no meta/multismolvla.json"):
        record(RecordConfig(output=tmp_path / "foreign", **OPTIONS))
    assert (tmp_path / "foreign" / "data.txt").read_text() == "precious"
    Workspace(record_job.COMMAND, tmp_path / "begun", {"episodes": 7}).open()
    with pytest.raises(WorkspaceError, match=r"simulator"):
        record(RecordConfig(output=tmp_path / "begun", **OPTIONS))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"episodes": 0}, "--episodes=0"),
        ({"suite": "libero_90"}, "--suite=libero_90"),
        ({"task_ids": [5]}, "--task_ids"),
        ({"size": 4}, "--size=4"),
        ({"size": 100}, "--size=100: expected a multiple of 16"),
        ({"noise": -1.0}, "--noise"),
        ({"init_split": "all"}, "--init_split"),
        ({"render_quality": "best"}, "--render_quality"),
    ],
)
def test_bad_options_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        RecordConfig(**options)


def test_lerobots_commands_edit_and_show_a_recording(killed_and_resumed, tmp_path):
    """Each command reads what the one before wrote."""
    source, _ = killed_and_resumed

    def call(program: str, *words: str) -> None:
        command = [installed_program(program), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    call(
        "lerobot-edit-dataset", "--repo_id=multismolvla/mini", f"--root={source}", f"--new_root={tmp_path}",
        "--operation.type=split", '--operation.splits={"one": [0], "two": [1]}',
    )  # fmt: skip
    call(
        "lerobot-edit-dataset", "--new_repo_id=local/merged", f"--new_root={tmp_path / 'merged'}",
        "--operation.type=merge", "--operation.repo_ids=['local/one', 'local/two']",
        f"--operation.roots={[str(tmp_path / name) for name in ('one', 'two')]}",
    )  # fmt: skip
    call(
        "lerobot-edit-dataset", "--repo_id=local/merged", f"--root={tmp_path / 'merged'}",
        "--new_repo_id=local/rest", f"--new_root={tmp_path / 'rest'}",
        "--operation.type=delete_episodes", "--operation.episode_indices=[0]",
    )  # fmt: skip
    call(
        "lerobot-dataset-viz", "--repo-id=local/rest", f"--root={tmp_path / 'rest'}", "--episode-index=0",
        "--num-workers=0", "--save=1", f"--output-dir={tmp_path / 'viz'}",
    )  # fmt: skip
    assert list((tmp_path / "viz").glob("*.rrd"))
    whole = LeRobotDataset("multismolvla/mini", root=source)
    rest = LeRobotDataset("local/rest", root=tmp_path / "rest")
    first = whole.meta.episodes[1]["dataset_from_index"]
    assert (rest.num_episodes, len(rest)) == (1, len(whole) - first)
    for n in (0, len(rest) - 1):
        before, after = whole[first + n], rest[n]
        assert all(torch.equal(before[key], after[key]) for key in whole.meta.camera_keys)
        assert before["task"] == after["task"]


def test_failed_starts_are_told_and_kept(tmp_path, caplog):
    # State 1 of task 0 failed in an earlier start of this recording, the others need no simulator either.
    config = RecordConfig(output=tmp_path / "mini", **OPTIONS)
    workspace = Workspace(record_job.COMMAND, config.output, config.identity())
    workspace.open()
    for state in (0, 2):
        store_episode([black_frame(config.size)] * 3, workspace.episodes / f"task0_start{state:05d}.npz")
    (workspace.episodes / "task0_start00001.failed").touch()
    with caplog.at_level("INFO", "multismolvla_data.record.job"):
        record(config)
    metadata = read_metadata(config.output)
    assert metadata.starts == {"0": [Start(0, 0), Start(2, 0)]}
    assert metadata.failed_starts == {"0": [Start(1, 0)]}
    assert "expert: 2 of 3 starts solved" in caplog.text


def black_frame(size: int) -> dict[str, np.ndarray]:
    """A frame of the data set in which nothing is to be seen."""
    declared = features("multismolvla_mini", size)
    return {
        key: np.zeros(f["shape"], np.float32 if f["dtype"] != "image" or key.endswith("_depth") else np.uint8)
        for key, f in declared.items()
    }


def test_colour_as_video_leaves_the_other_modalities_lossless(tmp_path):
    root, size = tmp_path / "video", 64
    writer = DatasetWriter(root, "tests/video", "multismolvla_mini", size, video=True)
    rng = np.random.default_rng(0)
    declared = features("multismolvla_mini", size, video=True)
    smooth = np.linspace(0, 255, size, dtype=np.uint8)[None, :, None].repeat(size, 0).repeat(3, 2)
    episode = {
        key: np.stack([smooth] * 4)
        if f["dtype"] == "video"
        else rng.integers(0, 200, (4, *f["shape"])).astype(np.uint8 if f["shape"][-1] == 3 else np.float32)
        for key, f in declared.items()
    }
    writer.append(episode, "look")
    writer.finish(DatasetMetadata())
    item = LeRobotDataset("tests/video", root=root, return_uint8=True, depth_output_unit="m")[2]
    depth, seg = "observation.images.image_depth", "observation.images.image_seg"
    np.testing.assert_allclose(item[depth].numpy()[0], episode[depth][2, ..., 0])
    assert (item[seg].numpy().transpose(1, 2, 0) * 255 == episode[seg][2]).all()
    colour = item["observation.images.image"].numpy().transpose(1, 2, 0)
    assert colour.dtype == np.uint8
    assert abs(colour.astype(int) - smooth).mean() < 4
    assert len(list((root / "videos").glob("*/*/*.mp4"))) == len(mini.CAMERAS)
    assert (root / "README.md").is_file()


@pytest.mark.parametrize(("name", "value"), [("MINI_VERSION", -1), ("assets_hash", lambda: "other")])
def test_data_of_another_suite_do_not_pass_for_this_one(tmp_path, monkeypatch, name, value):
    config = RecordConfig(output=tmp_path / "mini")
    (config.output / "meta").mkdir(parents=True)
    write_metadata(config.output, DatasetMetadata(identities={record_job.COMMAND: config.identity()}))
    assert record(config) == config.output  # complete
    monkeypatch.setattr(mini, name, value)
    with pytest.raises(WorkspaceError, match="made with another"):
        record(config)


def test_help_answers_without_the_simulator(help_of):
    assert "--episodes" in help_of("multismolvla_data.record.command", "torch", "mujoco", "lerobot")

"""``lerobot-rollout``'s strategies and RTC on the simulated arm, as processes; what they record trains."""

from __future__ import annotations

import json
import math
import os
import pty
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import OBS_STATE
from processes import command, common, environment, finish, logged, start, wait_until
from safetensors.torch import load_file
from tiny_policies import save_ours
from tiny_policy import all_features

from lerobot_robot_multismolvla.simulated.arm import ACTION, STATE
from multismolvla.modalities import picture_key

pytestmark = [pytest.mark.sim, pytest.mark.slow, pytest.mark.timeout(900)]
TASK = "put the cube in the basket"
FPS = 5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of what is recorded here."""
    streams = {modality: picture_key("image", modality) for modality in ("rgb", "depth")}
    features = {k: f for k, f in all_features().items() if k in (OBS_STATE, *streams.values())}
    root = tmp_path_factory.mktemp("policies")
    return save_ours(root, views={"image": streams}, input_features=features) / "ours"


class Rollout:
    """A roll-out with a terminal for its keys.

    Attributes:
        said: the file to which it writes.
    """

    def __init__(self, checkpoint: Path, folder: Path, *words: str) -> None:
        self.said = folder / "rollout.log"
        self._keys, terminal = pty.openpty()
        common = [
            f"--policy.path={checkpoint}", "--policy.device=cpu", "--device=cpu",
            "--robot.type=multismolvla_sim_arm", "--robot.id=test", f"--robot.calibration_dir={folder}",
            "--robot.pictures=[image, image_depth]", "--robot.clock=lockstep",
            f"--robot.report={folder / 'report.json'}", f"--task={TASK}",
            f"--fps={FPS}", "--play_sounds=false", "--return_to_initial_position=false",
        ]  # fmt: skip
        with self.said.open("w") as log:
            self._process = subprocess.Popen(
                [command("lerobot-rollout"), *common, *words],
                env=environment(),
                stdin=terminal,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        os.close(terminal)

    def press(self, key: bytes) -> None:
        os.write(self._keys, key)

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.said.read_text(), self._process, self.said)

    def end(self, timeout_s: float = 400) -> None:
        """Wait for its end, which must be a clean one."""
        try:
            code = self._process.wait(timeout_s)
        finally:
            self._process.kill()
            os.close(self._keys)
        assert code == 0, self.said.read_text()[-4000:]


def recording(name: str, root: Path, **options: object) -> list[str]:
    """Options of a data set that is recorded."""
    values = {"single_task": TASK, "push_to_hub": "false", "num_episodes": 1, **options}
    return [
        f"--strategy.type={name}", f"--dataset.repo_id=tests/rollout_{name}", f"--dataset.root={root}",
        *(f"--dataset.{key}={value}" for key, value in values.items()),
    ]  # fmt: skip


def loaded(name: str, root: Path, episodes: int) -> LeRobotDataset:
    """The recorded data set, of which every frame can be read and the depth is in metres."""
    data = LeRobotDataset(f"tests/rollout_{name}", root=root, depth_output_unit="m")
    assert data.num_episodes == episodes
    assert data.meta.features["observation.state"]["names"] == list(STATE)
    assert data.meta.features["action"]["names"] == list(ACTION)
    assert len(data) >= 1
    for number in range(len(data)):
        frame = data[number]
        assert frame["task"] == TASK
        assert frame["observation.images.image"].shape == (3, 64, 64)
        assert 0.05 < frame["observation.images.image"].mean() < 0.95
        depth = frame["observation.images.image_depth"]
        assert 0.3 < np.median(depth[depth > 0.02]) < 2.0
    return data


def test_episodic(checkpoint, tmp_path):
    root = tmp_path / "data"
    options = recording("episodic", root, num_episodes=2, episode_time_s=1.5, reset_time_s=0.2)
    rollout = Rollout(checkpoint, tmp_path, *options)
    rollout.end()
    loaded("episodic", root, episodes=2)


def test_sentry(checkpoint, tmp_path):
    root = tmp_path / "data"
    rollout = Rollout(checkpoint, tmp_path, *recording("sentry", root), "--duration=3")
    rollout.end()
    loaded("sentry", root, episodes=1)


def test_dagger_with_its_keys(checkpoint, tmp_path):
    root = tmp_path / "data"
    actions = [dict.fromkeys(ACTION, 0.25)]
    operator = [
        "--teleop.type=multismolvla_scripted",
        "--teleop.id=test",
        f"--teleop.calibration_dir={tmp_path}",
    ]
    rollout = Rollout(
        checkpoint, tmp_path, *recording("dagger", root), "--strategy.smooth_handover=false",
        *operator, f"--teleop.actions={json.dumps(actions)}",
    )  # fmt: skip
    rollout.wait_for("DAgger corrections-only recording started")
    rollout.press(b" ")
    rollout.wait_for("autonomous -> paused")
    rollout.press(b"\t")
    rollout.wait_for("paused -> correcting")
    time.sleep(4.0)  # the correction
    rollout.press(b"\t")
    rollout.end()
    data = loaded("dagger", root, episodes=1)
    frames = [data[number] for number in range(len(data))]
    assert all(frame["intervention"].item() for frame in frames)
    assert all(np.allclose(frame["action"], 0.25) for frame in frames)

    trained = tmp_path / "trained"
    words = [
        *common(root, trained, 2, 2), f"--policy.path={checkpoint}", "--policy.device=cpu",
        "--policy.push_to_hub=false", "--policy.stage=robust", "--policy.curriculum_steps=2",
    ]  # fmt: skip
    log = finish(start(trained, *words), trained)
    losses = logged("loss", log)
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    last = trained / "checkpoints" / "last" / "pretrained_model" / "model.safetensors"
    before, after = load_file(checkpoint / "model.safetensors"), load_file(last)
    assert any(not torch.equal(after[name], weight) for name, weight in before.items())


RTC = (
    "--inference.type=rtc", "--inference.queue_threshold=4",
    "--inference.rtc.execution_horizon=4",  # not more than the policy's chunk
    "--robot.episode_length=6", "--robot.episodes=1", "--fps=1",
)  # fmt: skip
SIX_STEPS = [{"init_state_id": 0, "success": False, "steps": 6}]


def test_rtc(checkpoint, tmp_path):
    rollout = Rollout(checkpoint, tmp_path, *RTC)
    rollout.end()
    report = json.loads((tmp_path / "report.json").read_text())
    said = rollout.said.read_text()
    assert report == SIX_STEPS, said[-4000:]
    assert "Success 0/1" in said


def test_rtc_compiled(checkpoint, tmp_path, monkeypatch):
    """The arm waits until the network is compiled, for guided plans, too; that does not count as planning."""
    monkeypatch.setenv("TORCH_LOGS", "recompiles")
    rollout = Rollout(checkpoint, tmp_path, *RTC, "--use_torch_compile=true", "--policy.compile_mode=default")
    rollout.end(timeout_s=800)
    report = json.loads((tmp_path / "report.json").read_text())
    said = rollout.said.read_text()
    assert report == SIX_STEPS, said[-4000:]
    warm_up, acting = said.split("flushing stale state")
    assert "Compile warmup complete (2 inferences)" in warm_up
    assert "Recompiling function denoise_step" in warm_up  # for guided plans
    assert "Recompiling function sample_actions" not in acting
    assert "Recompiling function denoise_step" not in acting

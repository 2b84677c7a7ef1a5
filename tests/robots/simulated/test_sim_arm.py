"""The mini suite behind LeRobot's driver interface is the mini suite."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from lerobot.robots import make_robot_from_config
from lerobot.utils.errors import DeviceNotConnectedError

from lerobot_env_multismolvla import MultiSmolVLALiberoConfig
from lerobot_env_multismolvla.mini.expert import MiniExpert, snapshot
from lerobot_env_multismolvla.processor_multismolvla_libero import add_batch_axis
from lerobot_robot_multismolvla import SimArmConfig
from lerobot_robot_multismolvla.simulated.arm import ACTION, STATE, SimArm, summary
from lerobot_robot_multismolvla.simulated.simulator import Outcome

SEED = 11


def test_the_robots_package_imports_neither_simulator_nor_environment():
    code = (
        "import sys, lerobot_robot_multismolvla, lerobot_robot_multismolvla.simulated.arm\n"
        "bad = {'mujoco', 'robosuite', 'libero', 'lerobot_env_multismolvla', 'lerobot_policy_multismolvla'}\n"
        "assert not bad & set(sys.modules), bad & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clock": "fast"}, "--robot.clock=fast: expected one of"),
        ({"init_split": "all"}, "--robot.init_split=all: expected one of"),
        ({"episodes": -1}, "--robot.episodes=-1 must not be negative"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SimArmConfig(**options)


def test_unknown_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--robot.pictures has \['top'\]; the suite has \['image', "):
        SimArm(SimArmConfig(pictures=["image", "top"], calibration_dir=tmp_path))


def test_success_is_said_with_its_interval():
    outcomes = tuple(Outcome(i, i < 3, 50) for i in range(10))
    assert summary(outcomes) == "Success 3/10 (95 % interval 0.11 to 0.60)."


@pytest.fixture
def expert_episode():
    """The expert's actions and what each shows: raw observation, of task 0's third state."""
    config = MultiSmolVLALiberoConfig(task_ids=[0])
    env = config.env_maker(config.suites[0], 0)()
    observation, _ = env.reset(seed=SEED, options={"init_state_id": 2})
    expert, actions, observations, success = MiniExpert(0), [], [observation], False
    while not success:
        action = expert.action(snapshot(env.simulation, 0))
        observation, _, _, _, info = env.step(action)
        success = info["is_success"]
        actions.append(action)
        observations.append(observation)
    env.close()
    return config, actions, observations


@pytest.mark.sim
@pytest.mark.slow
def test_in_lockstep_it_shows_what_the_environment_shows_until_the_experts_success(expert_episode, tmp_path):
    config, actions, observations = expert_episode
    report = tmp_path / "report.json"
    settings = {"init_state_id": 2, "seed": SEED, "report": report, "calibration_dir": tmp_path}
    arm = make_robot_from_config(SimArmConfig(clock="lockstep", **settings))
    assert isinstance(arm, SimArm)
    with pytest.raises(DeviceNotConnectedError):
        arm.get_observation()
    arm.connect()
    try:
        for step, action in enumerate(actions):
            if step % 9 == 0:
                same_as_in_datasets(arm, config, observations[step])
            arm.send_action(dict(zip(ACTION, action.tolist(), strict=True)))
        again = arm.get_observation()
        assert not np.array_equal(again["image"], observations[-1]["pixels"]["image"][::-1, ::-1])
    finally:
        arm.disconnect()
    assert json.loads(report.read_text()) == [{"init_state_id": 2, "success": True, "steps": len(actions)}]


def same_as_in_datasets(arm: SimArm, config: MultiSmolVLALiberoConfig, observation) -> None:
    from lerobot.envs.utils import preprocess_observation

    process, _ = config.get_env_processors()
    wanted = process(preprocess_observation(add_batch_axis(observation)))
    seen = arm.get_observation()
    state = np.array([seen[name] for name in STATE], np.float32)
    assert torch.equal(torch.from_numpy(state), wanted["observation.state"][0])
    pictures = [name for name in arm.observation_features if name not in STATE]
    assert {f"observation.images.{name}" for name in pictures} == {
        key for key in wanted if key.startswith("observation.images.") and "padding" not in key
    }
    for name in pictures:
        assert seen[name].shape == arm.observation_features[name]
        picture = torch.from_numpy(seen[name]).permute(2, 0, 1)
        if picture.dtype == torch.uint8:
            picture = picture.float() / 255
        assert torch.equal(picture, wanted[f"observation.images.{name}"][0]), name


@pytest.mark.sim
@pytest.mark.slow
def test_after_time_out_the_next_episode_begins_and_the_last_one_stops_the_process(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("os.kill", lambda process, number: asked.append(number))
    settings = {"episode_length": 2, "episodes": 2, "pictures": ["image"], "calibration_dir": tmp_path}
    arm = SimArm(SimArmConfig(clock="lockstep", **settings))
    arm.connect()
    try:
        pictures = []
        for step in range(6):
            pictures.append(arm.get_observation()["image"])
            arm.send_action(dict.fromkeys(ACTION, 0.5))
            assert len(asked) == (step >= 3)
        outcomes = arm._simulator.frame.outcomes
        assert outcomes == (Outcome(0, False, 2), Outcome(1, False, 2))
        assert not np.array_equal(pictures[0], pictures[2]), "another start"
        assert np.array_equal(pictures[4], pictures[5]), "after the last episode nothing moves"
        with pytest.raises(ValueError, match="An action of .* has"):
            arm.send_action({"elbow.pos": 1.0})
    finally:
        arm.disconnect()


@pytest.mark.sim
@pytest.mark.slow
def test_places_bring_the_hand_back_and_keep_the_gripper(tmp_path):
    settings = {"pictures": ["image"], "calibration_dir": tmp_path}
    arm = SimArm(SimArmConfig(clock="lockstep", **settings))
    arm.connect()
    try:
        start = arm.get_observation()
        home = {name: start[name] for name in STATE}
        for _ in range(8):
            arm.send_action({**dict.fromkeys(ACTION, 0.0), "x.vel": 1.0, "gripper.pos": 1.0})
        away = arm.get_observation()
        assert away["x.pos"] - start["x.pos"] > 0.05
        for _ in range(40):
            arm.send_action(home)
        back = arm.get_observation()
        assert back["x.pos"] == pytest.approx(start["x.pos"], abs=0.01)
        assert back["finger_left.pos"] < away["finger_left.pos"] + 0.002 < start["finger_left.pos"]
    finally:
        arm.disconnect()


@pytest.mark.sim
@pytest.mark.slow
def test_under_the_real_clock_time_passes_while_nobody_acts(tmp_path):
    settings = {"episode_length": 8, "pictures": ["image"], "calibration_dir": tmp_path}
    arm = SimArm(SimArmConfig(**settings))
    arm.connect()
    try:
        deadline = time.monotonic() + 100
        while not arm._simulator.look().outcomes:
            assert time.monotonic() < deadline
        assert not arm._simulator.frame.outcomes[0].success
    finally:
        arm.disconnect()

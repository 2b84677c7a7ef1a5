"""LeRobot's own SO-101 driver and zmq camera on the emulated arm, which is a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import zmq
from emulated import EMULATE, Emulated, emulated_so101
from processes import environment

from multismolvla.system.command import CommandError
from multismolvla_run.emulate import EmulateOptions, emulate

pytest.importorskip("scservo_sdk", reason="the extra `deploy` is not installed")

from lerobot.cameras.zmq import ZMQCamera, ZMQCameraConfig  # noqa: E402
from lerobot.motors import MotorCalibration  # noqa: E402

pytestmark = [
    pytest.mark.sim,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    # LeRobot's reading thread ends with an error when its camera is gone
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]
UPRIGHT = {
    **{f"{m}.pos": 0.0 for m in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")},
    "gripper.pos": 50.0,
}


@pytest.fixture(scope="module")
def so101(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulated]:
    with emulated_so101(tmp_path_factory.mktemp("so101"), "front", "wrist") as arm:
        yield arm


def camera(arm: Emulated, name: str) -> ZMQCamera:
    port = arm.port + list(arm.cameras).index(name)
    place = {"server_address": "127.0.0.1", "port": port, "camera_name": name, "timeout_ms": 500}
    return ZMQCamera(ZMQCameraConfig(**place, width=320, height=240, fps=20))


def eventually(holds: Callable[[], bool], seconds: float = 200.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_lerobots_driver_connects_without_a_question_moves_the_arm_and_lets_it_drop(so101, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda text: pytest.fail(f"it asked: {text}"))
    follower = so101.connected()
    start = follower.get_observation()
    assert start["shoulder_lift.pos"] < -90

    def there() -> bool:
        follower.send_action(UPRIGHT)
        now = follower.get_observation()
        return all(abs(now[key] - goal) < 1.5 for key, goal in UPRIGHT.items())

    assert eventually(there)
    bus = follower.bus
    assert bus.read("Lock", "gripper") == 1
    assert bus.read("Max_Torque_Limit", "gripper") == 500
    assert bus.broadcast_ping(num_retry=20) == dict.fromkeys(range(1, 7), 777)
    bus.disable_torque()  # as LeRobot does when it disconnects
    assert eventually(lambda: follower.get_observation()["shoulder_lift.pos"] > 15), "it dropped"
    follower.disconnect()


def test_another_calibration_is_written_to_the_motors_and_moves_the_zero(so101):
    follower = so101.connected()
    bus = follower.bus
    bus.disable_torque()  # otherwise the arm moves until it reads the goal again

    def pan() -> int:
        return bus.read("Present_Position", "shoulder_pan", normalize=False)

    assert bus.is_calibrated
    before = pan()
    stored = dict(bus.calibration)
    shifted = {**stored, "shoulder_pan": MotorCalibration(1, 0, -100, 900, 3400)}
    bus.write_calibration(shifted)
    try:
        assert bus.is_calibrated
        assert eventually(lambda: abs(pan() - before - 100) <= 1)
    finally:
        bus.write_calibration(stored)
        follower.disconnect()


def test_cameras_show_the_arm_in_their_colours(so101):
    front, wrist = (camera(so101, name) for name in ("front", "wrist"))
    follower = so101.connected()
    front.connect()
    wrist.connect()
    pictures = [front.read().astype(int), wrist.read().astype(int)]
    assert [picture.shape for picture in pictures] == [(240, 320, 3)] * 2
    red, green, blue = np.moveaxis(pictures[0], -1, 0)
    assert ((red > 100) & (green < 60) & (blue < 60)).sum() > 100, "the block is red"
    assert ((blue > 100) & (red < 90)).sum() > 300, "the tray is blue"

    def moved() -> bool:
        follower.send_action({**UPRIGHT, "shoulder_pan.pos": 60.0})
        now = [front.read().astype(int), wrist.read().astype(int)]
        return all(np.abs(a - b).mean() > 3 for a, b in zip(now, pictures, strict=True))

    assert eventually(moved)
    for device in (front, wrist, follower):
        device.disconnect()


def test_a_killed_camera_is_silent_until_it_is_started_again(so101):
    wrist = camera(so101, "wrist")
    wrist.connect()
    os.kill(so101.cameras["wrist"], signal.SIGKILL)

    def silent() -> bool:
        try:
            wrist.read_latest(max_age_ms=500)
        except (TimeoutError, RuntimeError):  # too old; LeRobot's reading thread has given up
            return True
        return False

    assert eventually(silent)
    wrist.disconnect()
    words = [f"--folder={so101.folder}", "--cameras=[wrist]", f"--port={so101.port + 1}"]
    again = subprocess.Popen([*EMULATE, "camera", *words], env=environment())
    try:
        listener = zmq.Context().socket(zmq.SUB)
        listener.setsockopt_string(zmq.SUBSCRIBE, "")
        listener.connect(f"tcp://127.0.0.1:{so101.port + 1}")
        assert listener.poll(200_000), "LeRobot's camera must find it open"
        wrist = camera(so101, "wrist")
        wrist.connect()
        assert wrist.read().any()
        wrist.disconnect()
    finally:
        again.kill()
        again.wait()


def test_stopped_motors_are_a_lost_bus(so101):
    follower = so101.connected()
    so101.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(ConnectionError, match="no status packet"):
            follower.get_observation()
    finally:
        so101.process.send_signal(signal.SIGCONT)
    assert follower.get_observation()
    follower.disconnect()


def test_it_prints_a_command_with_guarded_cameras(so101):
    (line,) = (line for line in so101.said.splitlines() if line.startswith("lerobot-rollout"))
    words = dict(word[2:].split("=", 1) for word in shlex.split(line)[1:])
    cameras = json.loads(words["robot.cameras"])
    assert {name: c["inner"]["port"] for name, c in cameras.items()} == {
        "front": so101.port,
        "wrist": so101.port + 1,
    }
    assert {c["type"] for c in cameras.values()} == {"multismolvla_guarded"}
    assert words["robot.port"] == str(so101.folder / "port")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "so100"}, "'so100' is no device; expected one of so101, camera"),
        ({"cameras": ["side"]}, "expected each of .* at most once"),
        ({"cameras": ["front", "front"]}, "expected each of .* at most once"),
        ({"device": "camera"}, "a camera by itself is one"),
        ({"fps": 0}, "--fps=0 must be at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EmulateOptions(**options)


def test_a_second_arm_in_the_same_folder_or_on_the_same_ports_is_refused(so101, tmp_path):
    with pytest.raises(CommandError, match="Another one runs in"):
        emulate(EmulateOptions(folder=so101.folder))
    taken = [f"--folder={tmp_path}", f"--port={so101.port}", "--cameras=[front]"]
    done = subprocess.run(
        [*EMULATE, "so101", *taken], env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1
    assert f"Camera front cannot use port {so101.port}" in done.stderr
    assert "Camera front could not begin" in done.stderr
    assert not (tmp_path / "port").exists()

"""A guarded camera goes on when the camera inside does not, and a robot with it does, too."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import draccus
import grpc
import numpy as np
import pytest
import zmq
from lerobot.cameras.configs import CameraConfig
from lerobot.cameras.opencv import OpenCVCameraConfig
from lerobot.cameras.realsense import RealSenseCameraConfig, camera_realsense
from lerobot.cameras.utils import make_cameras_from_configs
from lerobot.cameras.zmq import ZMQCameraConfig
from processes import environment, free_port, publish_pictures
from scripted_camera import HEIGHT, WIDTH, Scripted, ScriptedConfig, picture

import lerobot_policy_multismolvla  # noqa: F401  as LeRobot's plugin discovery
from lerobot_robot_multismolvla import GuardedCameraConfig, inner
from lerobot_robot_multismolvla.guarded import COLOUR, DEPTH, GuardedCamera, Loss


@pytest.fixture
def world(request):
    made = SimpleNamespace(
        colour=picture(), depth=None, shut=None, sticks=False, opened=0, knows={}, missing=None, harmed=0
    )
    Scripted.worlds = {"a": made}
    return made


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(t=100.0)
    monkeypatch.setattr(GuardedCamera, "clock", staticmethod(lambda: now.t))
    return now


def config(**options: Any) -> GuardedCameraConfig:
    return GuardedCameraConfig(
        **({"inner": ScriptedConfig(), "width": WIDTH, "height": HEIGHT, "fps": 30} | options)
    )


@pytest.fixture
def opened(world, clock):
    cameras = []

    def make(**options: Any) -> GuardedCamera:
        camera = make_cameras_from_configs({"front": config(**options)})["front"]
        assert isinstance(camera, GuardedCamera)  # LeRobot finds the class by its configuration
        camera.connect()
        cameras.append(camera)
        return camera

    yield make
    for camera in cameras:
        camera.disconnect()


def until(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_a_healthy_camera_is_passed_through(opened, world):
    camera = opened()
    assert camera.is_connected
    for value in (1, 2):
        world.colour = picture(value)
        assert np.array_equal(camera.read_latest(), picture(value))
        assert np.array_equal(camera.async_read(), picture(value))
    assert camera.losses == {COLOUR: None}
    assert not camera.use_depth


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        (TimeoutError("too old"), Loss.OLD),
        (RuntimeError("read thread is not running"), Loss.ERROR),
        (OSError("No such device"), Loss.ERROR),
        (zmq.ZMQError(), Loss.ERROR),
        (grpc.RpcError(), Loss.ERROR),
        (struct.error("unpack requires a buffer of 4 bytes"), Loss.ERROR),
        (EOFError(), Loss.ERROR),
        (AssertionError(), Loss.ERROR),
        (np.zeros((HEIGHT + 1, WIDTH, 3), np.uint8), Loss.SHAPE),
        (np.zeros((HEIGHT, WIDTH, 3), np.float32), Loss.SHAPE),
    ],
)
def test_a_lost_camera_shows_nothing_and_raises_nothing(failure, cause, opened, world, caplog):
    camera = opened()
    world.colour = failure
    for _ in range(3):
        found = camera.read_latest()
        assert found.shape == (HEIGHT, WIDTH, 3)
        assert found.dtype == np.uint8
        assert not found.any()
        assert not camera.async_read().any()
    assert camera.losses == {COLOUR: cause}
    assert camera.is_connected  # else the robot would call itself disconnected
    assert caplog.text.count("rgb is lost") == 1


def test_errors_of_libraries_are_known_by_name_and_nothing_is_imported_for_them(monkeypatch):
    for name in inner.LIBRARY_ERRORS:
        module, _, error = name.rpartition(".")
        assert getattr(importlib.import_module(module), error) in inner.camera_errors()
    monkeypatch.delitem(sys.modules, "grpc")
    assert grpc.RpcError not in inner.camera_errors()
    assert "grpc" not in sys.modules


def test_a_fault_of_the_program_is_none_of_the_camera(opened, world):
    class OwnError(Exception):
        pass

    camera = opened()
    world.colour = OwnError()
    with pytest.raises(OwnError):
        camera.read_latest()


def test_it_is_shown_again_when_it_has_been_steady(opened, world, clock, caplog):
    """Also when it is lost for the first time soon after it was opened."""
    camera = opened()
    assert camera.read_latest().any()
    world.colour = TimeoutError("too old")
    camera.read_latest()
    world.colour = picture(9)
    for waited, shown in ((0.0, False), (0.3, False), (0.6, True)):
        clock.t = 100.0 + waited
        assert camera.read_latest().any() == shown
    assert caplog.text.count("rgb is back") == 1


def test_a_flapping_camera_changes_seldom(opened, world, clock, caplog):
    """Five times a second for half a minute, then it is sound."""
    camera = opened()
    for step in range(30 * 30):
        clock.t = 100.0 + step / 30
        world.colour = picture() if int(step / 3) % 2 else TimeoutError("too old")
        camera.read_latest()
    assert caplog.text.count("is lost") == 1
    assert "is back" not in caplog.text
    world.colour = picture()
    for _ in range(60):
        clock.t += 1 / 30
        camera.read_latest()
    assert caplog.text.count("is back") == 1


def test_slow_flaps_need_more_patience_each_time(opened, world, clock):
    camera = opened()
    seconds = []
    for _ in range(4):
        world.colour = TimeoutError("too old")
        camera.read_latest()
        world.colour, lost = picture(), clock.t
        while not camera.read_latest().any():
            clock.t += 0.1
        seconds.append(clock.t - lost)
    assert seconds == sorted(seconds)
    assert seconds[-1] > 3 * seconds[0]
    clock.t += 100.0  # a calm minute and it is trusted as at first
    camera.read_latest()
    world.colour = TimeoutError("too old")
    camera.read_latest()
    world.colour, lost = picture(), clock.t
    while not camera.read_latest().any():
        clock.t += 0.1
    assert clock.t - lost < 1


def test_depth_is_lost_by_itself(opened, world):
    world.depth = np.full((HEIGHT, WIDTH, 1), 900, np.uint16)
    camera = opened()
    assert camera.use_depth
    assert np.array_equal(camera.read_latest_depth(), world.depth)
    world.depth = RuntimeError("no depth frame")
    empty = camera.read_latest_depth()
    assert (empty.dtype, empty.shape, empty.any()) == (np.uint16, (HEIGHT, WIDTH, 1), False)
    assert camera.read_latest().any()
    assert camera.losses == {COLOUR: None, DEPTH: Loss.ERROR}


def test_depth_with_nan_is_lost(opened, world):
    world.depth = np.full((HEIGHT, WIDTH, 1), 0.9, np.float32)
    camera = opened()
    assert camera.read_latest_depth().dtype == np.float32
    world.depth = np.full((HEIGHT, WIDTH, 1), np.nan, np.float32)
    empty = camera.read_latest_depth()
    assert (empty.dtype, empty.any()) == (np.float32, False)
    assert camera.losses[DEPTH] is Loss.NOT_FINITE


def test_a_dead_camera_is_opened_again(world, monkeypatch):
    """Real time: its thread does it, also when the old one cannot be closed."""
    monkeypatch.setattr("lerobot_robot_multismolvla.guarded.REOPEN_S", 0.05)
    camera = GuardedCamera(config())
    camera.connect()
    try:
        world.sticks, world.shut = True, OSError("No such device")
        world.colour = RuntimeError("read thread is not running")
        camera.read_latest()
        assert until(lambda: world.opened >= 3)  # it keeps trying
        assert not camera.read_latest().any()
        world.shut, world.colour = None, picture(5)
        assert until(lambda: bool(camera.read_latest().any()))
        assert camera.losses == {COLOUR: None}
    finally:
        camera.disconnect()


def test_a_camera_is_not_closed_under_a_thread_that_waits_for_its_picture(world, monkeypatch, caplog):
    """LeRobot 0.6.1 does that after two seconds; with OpenCV the process crashes when the picture comes."""
    monkeypatch.setattr("lerobot_robot_multismolvla.guarded.REOPEN_S", 0.05)
    monkeypatch.setattr(inner, "READER_S", 0.05)
    caplog.set_level(logging.DEBUG)
    world.hang = threading.Event()
    camera = GuardedCamera(config())
    camera.connect()
    world.colour = TimeoutError("too old")
    camera.read_latest()
    assert until(lambda: caplog.text.count("still waits for a picture from when it was open last") >= 2)
    assert (world.opened, world.harmed) == (1, 0)
    world.colour = picture(5)
    world.hang.set()
    assert until(lambda: bool(camera.read_latest().any()))
    assert (world.opened, world.harmed) == (2, 0)
    world.hang.clear()
    camera._reopen()
    camera.disconnect()
    assert "is left open" in caplog.text
    assert world.harmed == 0
    world.hang.set()


def test_a_camera_that_never_delivers_is_not_closed_under_its_thread_either(world, monkeypatch):
    monkeypatch.setattr(inner, "READER_S", 0.05)
    world.hang, world.colour = threading.Event(), TimeoutError("none came")
    with pytest.raises(ConnectionError, match=r"none came.*required=false"):
        GuardedCamera(config()).connect()
    camera = GuardedCamera(config(required=False))
    camera.connect()
    assert camera.losses == {COLOUR: Loss.ABSENT}
    camera.disconnect()
    assert world.harmed == 0
    world.hang.set()


def test_a_camera_whose_constructor_does_not_find_it_is_opened_when_it_is_there(world, monkeypatch):
    monkeypatch.setattr("lerobot_robot_multismolvla.guarded.REOPEN_S", 0.05)
    world.missing = ConnectionError("nobody has that name")
    with pytest.raises(ConnectionError, match=r"cannot be opened: nobody has that name.*required=false"):
        GuardedCamera(config()).connect()
    camera = GuardedCamera(config(required=False))
    camera.connect()
    try:
        assert camera.losses == {COLOUR: Loss.ABSENT}
        for _ in range(2):
            world.missing, world.colour = None, picture(5)
            assert until(lambda: bool(camera.read_latest().any()))
            world.missing = world.colour = ConnectionError("nobody has that name")
            assert until(lambda: camera.losses == {COLOUR: Loss.ABSENT} and not camera.read_latest().any())
    finally:
        camera.disconnect()


@pytest.fixture
def realsenses(monkeypatch):
    """No hardware and no librealsense: what LeRobot's driver finds plugged in, by name."""
    found: list[dict[str, str]] = []
    monkeypatch.setattr(camera_realsense, "require_package", lambda *_, **__: None)
    monkeypatch.setattr(camera_realsense.RealSenseCamera, "find_cameras", staticmethod(lambda: found))
    return found


def test_a_realsense_that_is_named_and_not_plugged_in_may_be_absent(realsenses):
    named = RealSenseCameraConfig(serial_number_or_name="Intel RealSense D435", use_depth=True)
    camera = GuardedCamera(config(inner=named, required=False))
    assert str(camera) == "GuardedCamera(intelrealsense(Intel RealSense D435))"
    assert (camera.use_rgb, camera.use_depth) == (True, True)
    camera.connect()
    try:
        assert camera.losses == {COLOUR: Loss.ABSENT, DEPTH: Loss.ABSENT}
    finally:
        camera.disconnect()
    with pytest.raises(ConnectionError, match="No RealSense camera found with name 'Intel RealSense D435'"):
        GuardedCamera(config(inner=named)).connect()
    realsenses += [{"name": "Intel RealSense D435", "id": number} for number in "12"]
    with pytest.raises(ValueError, match="Multiple RealSense cameras"):
        GuardedCamera(config(inner=named, required=False))


def test_a_camera_that_is_another_one_than_before_is_closed_again(world, monkeypatch):
    monkeypatch.setattr("lerobot_robot_multismolvla.guarded.REOPEN_S", 0.05)
    world.depth, world.knows = np.zeros((HEIGHT, WIDTH, 1), np.uint16), {"depth_scale": 0.001}
    camera = GuardedCamera(config(depth_scale=0.001))
    camera.connect()
    world.knows = {"depth_scale": 0.0001}
    world.colour = world.depth = OSError("No such device")
    camera.read_latest()
    camera.read_latest_depth()
    assert until(lambda: world.opened >= 3)
    camera.disconnect()
    assert world.closed == world.opened


def test_cameras_that_share_a_log_can_be_told_apart_in_it(tmp_path, caplog):
    log = tmp_path / "cameras.jsonl"
    guarded = [
        GuardedCamera(config(inner=OpenCVCameraConfig(index_or_path=700 + n), required=False, log=log))
        for n in range(2)
    ]
    for camera in guarded:
        camera.connect()
        camera.disconnect()
    names = ["GuardedCamera(OpenCVCamera(700))", "GuardedCamera(OpenCVCamera(701))"]
    assert [json.loads(line)["camera"] for line in log.read_text().splitlines()] == names
    assert all(caplog.text.count(f"{name}: rgb is lost") == 1 for name in names)


def test_a_camera_that_has_no_name_is_called_by_its_configuration(world):
    assert str(GuardedCamera(config())) == "GuardedCamera(tests_scripted)"


def test_losses_are_written_with_their_cause(opened, world, clock, tmp_path):
    captured = time.perf_counter() - 3600  # as LeRobot's cameras say it
    world.knows = {"latest_timestamp": captured}
    camera = opened(log=tmp_path / "new" / "folder" / "camera.jsonl")
    world.colour = TimeoutError("frame is too old: 613 ms")
    camera.read_latest()
    world.colour = picture()
    camera.read_latest()
    clock.t += 1.0
    camera.read_latest()
    text = (tmp_path / "new" / "folder" / "camera.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["state"], line["cause"]) for line in lines] == [("lost", "old"), ("back", None)]
    assert "613 ms" in lines[0]["why"]
    for line in lines:  # both of one clock; a microsecond is lost in numbers of this size
        assert 3600 - 1e-5 < line["time"] - line["captured"] < time.perf_counter() - captured + 1e-5


def test_a_log_that_cannot_be_written_is_refused_and_later_does_not_stop_a_robot(
    opened, world, tmp_path, caplog
):
    (tmp_path / "file").touch()
    for log in (tmp_path, tmp_path / "file" / "camera.jsonl"):
        with pytest.raises(ValueError, match=f"log={log} cannot be written"):
            GuardedCamera(config(log=log)).connect()
    assert world.opened == 0
    (tmp_path / "file").unlink()
    camera = opened(log=tmp_path / "file" / "camera.jsonl")
    assert not (tmp_path / "file").exists()  # it may be a data set's, which LeRobot makes later
    (tmp_path / "file").touch()
    world.colour = TimeoutError("too old")
    assert not camera.read_latest().any()
    assert "cannot write" in caplog.text


def test_a_camera_that_cannot_be_opened_stops_the_robot_unless_it_may_be_absent(world, opened):
    world.shut = OSError("No such device")
    with pytest.raises(ConnectionError, match=r"No such device.*required=false"):
        GuardedCamera(config()).connect()
    camera = opened(required=False)
    assert camera.is_connected
    assert not camera.read_latest().any()


@pytest.mark.parametrize("when", ["missing", "shut"])
def test_a_wrong_option_is_an_error_also_of_a_camera_that_may_be_absent(when, world):
    setattr(world, when, ValueError("exposure=-1; expected more"))
    for required in (True, False):
        with pytest.raises(ValueError, match="exposure=-1"):
            GuardedCamera(config(required=required)).connect()


def test_another_size_than_agreed_stops_the_robot_before_it_moves(world):
    world.colour = np.zeros((HEIGHT, WIDTH + 4, 3), np.uint8)
    for required in (True, False):
        with pytest.raises(ValueError, match="delivers pictures of 12x6, expected 8x6"):
            GuardedCamera(config(required=required)).connect()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"inner": GuardedCameraConfig(inner=ScriptedConfig(width=8, height=6, fps=30))},
            "Guard a camera once",
        ),
        ({"inner": ScriptedConfig(width=640)}, r"width=8, but inner.width=640"),
        ({"fps": None}, "fps is not given"),
        ({"max_age_ms": 30}, "less than two pictures at 30 per second.*at least 67"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_the_age_follows_the_rate_and_the_size_may_be_said_inside():
    assert config().max_age_ms == 100
    assert config(fps=10).max_age_ms == 300
    inside = GuardedCameraConfig(inner=ScriptedConfig(width=8, height=6, fps=15))
    assert (inside.width, inside.height, inside.fps) == (8, 6, 15)


def test_it_is_said_in_a_line_of_options():
    @dataclass
    class Robot:
        cameras: dict[str, CameraConfig]

    text = (
        "{front: {type: multismolvla_guarded, inner: {type: opencv, index_or_path: 0}, "
        "width: 640, height: 480, fps: 30}}"
    )
    parsed = draccus.parse(Robot, args=[f"--cameras={text}"]).cameras["front"]
    assert isinstance(parsed, GuardedCameraConfig)
    assert isinstance(parsed.inner, OpenCVCameraConfig)
    assert (parsed.inner.index_or_path, parsed.inner.width, parsed.inner.fps) == (0, 640, 30)


# -- LeRobot's own camera, and a publisher that dies --------------------------------------------------------


@pytest.mark.slow
def test_a_publisher_that_is_stopped_killed_and_started_again():
    port = free_port()

    inner = ZMQCameraConfig(
        server_address="127.0.0.1", port=port, camera_name="front", warmup_s=1, timeout_ms=500
    )
    camera = GuardedCamera(
        GuardedCameraConfig(inner=inner, width=WIDTH, height=HEIGHT, fps=30, max_age_ms=250)
    )
    process = publish_pictures(port, WIDTH, HEIGHT)
    try:
        camera.connect()
        assert camera.read_latest().any()
        os.kill(process.pid, signal.SIGSTOP)
        assert until(lambda: camera.losses[COLOUR] is not None or not camera.read_latest().any(), 2)
        assert camera.losses[COLOUR] is Loss.OLD
        os.kill(process.pid, signal.SIGCONT)
        assert until(lambda: bool(camera.read_latest().any()), 30)
        process.kill()
        process.wait()
        assert until(lambda: not camera.read_latest().any(), 2)
        time.sleep(0.5)
        assert not camera.read_latest().any()
        process = publish_pictures(port, WIDTH, HEIGHT)
        assert until(lambda: bool(camera.read_latest().any()), 60)
    finally:
        process.kill()
        process.wait()
        if camera.is_connected:
            camera.disconnect()


@pytest.mark.slow
def test_an_opencv_camera_that_stalls_and_goes_on_does_not_end_the_process(tmp_path):
    """LeRobot's own OpenCV camera, in a process of its own because a crash ends it."""
    words = [sys.executable, "-m", "stalling_camera.stalls", str(tmp_path / "pipe")]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout.split()) == (0, ["shown", "back", "left"]), done.stderr
    assert "is left open" in done.stderr

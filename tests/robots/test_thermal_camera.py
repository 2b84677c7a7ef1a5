"""Grey levels of a thermal camera mean temperatures, always the same ones; what has none is refused."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cv2
import draccus
import numpy as np
import pytest
from lerobot.cameras.configs import CameraConfig
from lerobot.cameras.utils import make_cameras_from_configs
from scripted_camera import Scripted, ScriptedConfig

import lerobot_policy_multismolvla  # noqa: F401  as LeRobot's plugin discovery
from lerobot_robot_multismolvla import GuardedCameraConfig, ThermalCameraConfig
from lerobot_robot_multismolvla.thermal import ThermalCamera
from multismolvla.thermal.ranges import check_ranges, open_ranges

WIDTH, HEIGHT = 8, 6
RANGE = (10.0, 61.0)  # 0.2 degrees a grey level
ROOM = 29315  # hundredths of a kelvin: 20 degrees Celsius, grey level 50


def frame(value: int = ROOM, rows: int = HEIGHT) -> np.ndarray:
    return np.full((rows, WIDTH), value, np.uint16)


@pytest.fixture
def recorded(tmp_path):
    """Makes a camera that shows frames from a file; closes it."""
    cameras = []

    def make(frames: np.ndarray, **options: Any) -> ThermalCamera:
        file = tmp_path / f"{len(cameras)}.npy"
        np.save(file, frames)
        base = {"range_c": RANGE, "index_or_path": file, "width": WIDTH, "height": HEIGHT, "fps": 50}
        config = ThermalCameraConfig(**(base | options))
        camera = make_cameras_from_configs({"hot": config})["hot"]
        assert isinstance(camera, ThermalCamera)  # LeRobot finds the class by its configuration
        cameras.append(camera)
        camera.connect()
        return camera

    yield make
    for camera in cameras:
        if camera.is_connected:
            camera.disconnect()


# -- what is shown -------------------------------------------------------------------------------------------


def test_a_grey_level_is_a_temperature_whatever_else_is_in_the_picture(recorded):
    for other in (ROOM, 28315 + 5100, 40000):
        picture = frame()
        picture[0] = other
        shown = recorded(picture[None]).read_latest()
        assert (shown.dtype, shown.shape) == (np.uint8, (HEIGHT, WIDTH, 3))
        assert (shown[1:] == 50).all()
        assert (shown[0] == (50 if other == ROOM else 255)).all()
    assert not recorded(frame(20000 + 8315)[None]).read_latest().any()  # the lowest, and all below


def test_a_lepton_has_rows_of_telemetry(recorded):
    picture = frame(rows=HEIGHT + 2)
    picture[HEIGHT:] = 7
    assert (recorded(picture[None], layout="lepton").read_latest() == 50).all()
    small = ThermalCameraConfig(range_c=RANGE, index_or_path=0, layout="lepton", width=80, height=60, fps=9)
    assert small.rows == 63


def test_the_lower_half_of_an_infiray_p2_has_64ths_of_a_kelvin(recorded):
    picture = np.concatenate([frame(3), frame(round(64 * 293.15))])
    assert (recorded(picture[None], layout="infiray_p2").read_latest() == 50).all()


def test_recorded_frames_come_one_after_the_other_and_again(recorded):
    camera = recorded(np.stack([frame(ROOM + 100 * i) for i in range(3)]))
    seen = [int(camera.async_read(5000)[0, 0, 0]) for _ in range(5)]
    start = [50, 55, 60].index(seen[0])
    assert seen == [[50, 55, 60][(start + i) % 3] for i in range(5)]


# -- what has no temperatures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((1, HEIGHT, WIDTH, 3), np.uint8), r"shape \(1, 6, 8, 3\), expected frames"),
        (np.zeros((1, HEIGHT, WIDTH), np.uint8), "8 bits a pixel.*automatic gain.*radiometric"),
        (np.zeros((1, HEIGHT, 3 * WIDTH), np.uint8), "colour picture"),
        (np.full((1, HEIGHT, WIDTH), 8000, np.uint16), "is -193 degrees Celsius.*automatic gain off"),
        (np.full((1, HEIGHT + 1, WIDTH), ROOM, np.uint16), r"another size or type.*uint16 \(6, 8\)"),
    ],
)
def test_what_has_no_temperatures_stops_the_robot_before_it_moves(frames, message, recorded):
    with pytest.raises(ValueError, match=message):
        recorded(frames)
    assert not open_ranges


@pytest.mark.parametrize("required", [True, False])
def test_it_is_an_error_of_a_guarded_camera_too_even_of_one_that_may_be_absent(required, tmp_path):
    np.save(tmp_path / "gain.npy", np.zeros((1, HEIGHT, WIDTH), np.uint8))
    hot = ThermalCameraConfig(range_c=RANGE, index_or_path=tmp_path / "gain.npy")
    config = GuardedCameraConfig(inner=hot, width=WIDTH, height=HEIGHT, fps=50, required=required)
    with pytest.raises(ValueError, match="automatic gain"):
        make_cameras_from_configs({"hot": config})["hot"].connect()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "seek"}, "layout='seek' is unknown"),
        ({"range_c": (60.0, 10.0)}, r"range_c=\[60\.0, 10\.0\]; expected \[lowest, highest\]"),
        ({"index_or_path": None}, "index_or_path or inner, one of them"),
        ({"inner": ScriptedConfig()}, "index_or_path or inner, one of them"),
    ],
)
def test_bad_options_are_named(options, message):
    base = {"range_c": RANGE, "index_or_path": 0, "width": WIDTH, "height": HEIGHT, "fps": 9}
    with pytest.raises(ValueError, match=message):
        ThermalCameraConfig(**(base | options))


def test_size_and_rate_must_be_said():
    with pytest.raises(ValueError, match="width, fps not given"):
        ThermalCamera(ThermalCameraConfig(range_c=RANGE, index_or_path=0, height=HEIGHT))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    config = ThermalCameraConfig(
        range_c=RANGE, index_or_path=tmp_path / "none.npy", width=WIDTH, height=HEIGHT, fps=9
    )
    with pytest.raises(ConnectionError, match=r"none\.npy.*cannot be read"):
        ThermalCamera(config).connect()


# -- a video device: no hardware, so OpenCV's own interface is played ----------------------------------------


class Device:
    """What ``cv2.VideoCapture`` is to a thermal camera."""

    def __init__(self, fourcc: str, picture: np.ndarray) -> None:
        self.options: dict[int, float] = {}
        self.fourcc, self.picture, self.dead, self.released = fourcc, picture, False, False
        self.flows, self.waits, self.reading = threading.Event(), threading.Event(), threading.Lock()
        self.flows.set()

    def set(self, option: int, value: float) -> bool:
        self.options[option] = value
        return True

    def get(self, option: int) -> float:
        assert option == cv2.CAP_PROP_FOURCC
        return float(cv2.VideoWriter.fourcc(*self.fourcc))

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def read(self) -> tuple[bool, np.ndarray]:
        with self.reading:
            if not self.flows.is_set():
                self.waits.set()
            self.flows.wait()
            time.sleep(0.01)
        return not self.dead, self.picture

    def release(self) -> None:
        assert not self.reading.locked(), "OpenCV would crash"
        self.released = True


@pytest.fixture
def video(monkeypatch):
    def make(device: Device) -> ThermalCamera:
        monkeypatch.setattr(cv2, "VideoCapture", lambda where, backend: device)
        return ThermalCamera(
            ThermalCameraConfig(
                range_c=RANGE, index_or_path=2, layout="lepton", width=WIDTH, height=HEIGHT, fps=9
            )
        )

    return make


@pytest.mark.parametrize("flat", [False, True])
def test_a_device_is_asked_for_raw_frames_and_may_give_them_as_bytes(flat, video):
    raw = frame(rows=HEIGHT + 2)
    device = Device("Y16 ", raw.view(np.uint8).reshape(1, -1) if flat else raw)
    camera = video(device)
    camera.connect()
    assert (camera.read_latest(1000) == 50).all()
    assert device.options[cv2.CAP_PROP_CONVERT_RGB] == 0
    assert device.options[cv2.CAP_PROP_FRAME_HEIGHT] == HEIGHT + 2
    camera.disconnect()
    assert device.released


def test_a_device_that_stays_with_colour_is_refused(video):
    device = Device("YUYV", frame())
    with pytest.raises(ValueError, match="delivers 'YUYV', expected 'Y16 '"):
        video(device).connect()
    assert device.released


def test_a_device_that_dies_raises_as_lerobots_cameras_do(video):
    device = Device("Y16 ", frame(rows=HEIGHT + 2))
    camera = video(device)
    camera.connect()
    device.dead = True
    camera.thread.join(10)
    with pytest.raises(RuntimeError, match="delivers no frame"):
        camera.read_latest()
    camera.disconnect()


def test_a_device_is_not_closed_before_it_has_answered(video, monkeypatch, caplog):
    device = Device("Y16 ", frame(rows=HEIGHT + 2))
    camera = video(device)

    def answers_late() -> None:
        assert "stays open" in caplog.text
        assert not device.released
        device.flows.set()
        camera.thread.join(10)
        assert device.released
        device.released = False
        caplog.clear()

    camera.connect()
    monkeypatch.setattr("lerobot_robot_multismolvla.thermal._FIRST_S", 0.1)
    device.flows.clear()
    assert device.waits.wait(10)
    camera.disconnect()
    answers_late()
    device.flows.clear()
    with pytest.raises(ConnectionError, match="no picture comes"):
        camera.connect()
    answers_late()


def test_an_old_picture_is_not_shown(recorded, monkeypatch):
    camera = recorded(frame()[None])
    now = time.monotonic()
    monkeypatch.setattr(ThermalCamera, "clock", staticmethod(lambda: now + 60))
    camera.latest_timestamp = now
    with camera._new, pytest.raises(TimeoutError, match="more than 100"):
        camera._shown(100)


# -- beside others -------------------------------------------------------------------------------------------


def test_it_is_guarded_and_may_read_another_camera(monkeypatch):
    world = SimpleNamespace(colour=frame()[..., None], depth=None, shut=None, sticks=False, opened=0)
    Scripted.worlds = {"a": world}
    monkeypatch.setattr(
        Scripted, "async_read", lambda self, timeout_ms=200: (time.sleep(0.01), self.read_latest())[1]
    )
    inner = ThermalCameraConfig(range_c=RANGE, inner=ScriptedConfig())
    config = GuardedCameraConfig(inner=inner, width=WIDTH, height=HEIGHT, fps=30, max_age_ms=10_000)
    camera = make_cameras_from_configs({"hot": config})["hot"]
    camera.connect()
    try:
        assert (camera.read_latest() == 50).all()
        world.colour = np.zeros((HEIGHT, WIDTH, 3), np.uint8)  # somebody switched colour on
        end = time.monotonic() + 10
        while camera.read_latest().any() and time.monotonic() < end:
            time.sleep(0.02)
        assert not camera.read_latest().any()
    finally:
        camera.disconnect()


def test_the_camera_that_it_reads_is_not_closed_before_its_thread_has_ended(monkeypatch):
    monkeypatch.setattr("lerobot_robot_multismolvla.inner.READER_S", 0.05)
    monkeypatch.setattr("lerobot_robot_multismolvla.thermal._FIRST_S", 0.2)
    world = SimpleNamespace(
        colour=frame()[..., None], depth=None, shut=None, sticks=False, opened=0, closed=0, harmed=0
    )
    world.hang = threading.Event()
    Scripted.worlds = {"a": world}
    camera = ThermalCamera(
        ThermalCameraConfig(range_c=RANGE, inner=ScriptedConfig(), width=WIDTH, height=HEIGHT, fps=30)
    )
    camera.connect()
    camera.disconnect()
    assert world.closed == 0
    world.colour = TimeoutError("none came")
    with pytest.raises(ConnectionError, match="none came"):
        camera.connect()
    assert world.closed == 0
    world.hang.set()
    camera.thread.join(10)
    assert (world.closed > 0, world.harmed) == (True, 0)


def test_the_policys_range_is_compared_with_that_of_the_open_cameras(recorded):
    check_ranges(None)  # no camera: nothing to compare
    camera = recorded(frame()[None])
    check_ranges([10.0, 61.0])
    with pytest.raises(ValueError, match=r"shows range_c=\[10\.0, 61\.0\].*knows \[0\.0, 40\.0\]"):
        check_ranges([0.0, 40.0])
    with pytest.raises(ValueError, match="does not say which it was trained with"):
        check_ranges(None)
    camera.disconnect()
    check_ranges([0.0, 40.0])


def test_it_is_said_in_a_line_of_options():
    @dataclass
    class Robot:
        cameras: dict[str, CameraConfig]

    text = (
        "{hot: {type: multismolvla_thermal, layout: lepton, range_c: [10, 60], index_or_path: /dev/video2, "
        "width: 160, height: 120, fps: 9}}"
    )
    parsed = draccus.parse(Robot, args=[f"--cameras={text}"]).cameras["hot"]
    assert parsed.range_c == (10.0, 60.0)
    assert str(parsed.index_or_path) == "/dev/video2"
    assert draccus.parse(Robot, args=["--cameras=" + text.replace("/dev/video2", "2")]).cameras[
        "hot"
    ].index_or_path in (2,)

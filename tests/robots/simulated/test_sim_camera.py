"""Simulated cameras: what they show, and scripted faults behind the guard that must survive them."""

from __future__ import annotations

import time

import numpy as np
import pytest
from lerobot.cameras.utils import make_cameras_from_configs
from lerobot.utils.errors import DeviceNotConnectedError

from lerobot_robot_multismolvla import GuardedCameraConfig, SimArmConfig, SimCameraConfig
from lerobot_robot_multismolvla.simulated.arm import ACTION, SimArm
from lerobot_robot_multismolvla.simulated.camera import COLDEST_CK, NEAR_M, SimCamera
from lerobot_robot_multismolvla.simulated.faults import Fault, Kind, parse_faults

SIZE = {"width": 64, "height": 48, "fps": 10}


class Clock:
    """Time that the test lets pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def to(self, step: int) -> None:
        self.now = (step + 0.5) / SIZE["fps"]


def open_camera(monkeypatch, **options) -> tuple[SimCamera, Clock]:
    clock = Clock()
    monkeypatch.setattr(SimCamera, "clock", clock)
    camera = make_cameras_from_configs({"a": SimCameraConfig(**SIZE, **options)})["a"]
    assert isinstance(camera, SimCamera)
    with pytest.raises(DeviceNotConnectedError):
        camera.read_latest()
    camera.connect()
    return camera, clock


def test_it_says_when_its_last_picture_was_captured(monkeypatch):
    """By the clock of LeRobot's cameras; a guarded one writes it down."""
    camera, clock = open_camera(monkeypatch, faults=["stale@1"])
    assert camera.latest_timestamp is None
    before = time.perf_counter()
    camera.read_latest()
    captured = camera.latest_timestamp
    assert before <= captured <= time.perf_counter()
    clock.to(1)
    with pytest.raises(TimeoutError):
        camera.read_latest()
    assert camera.latest_timestamp == captured


def test_scripts_are_read():
    assert parse_faults(["lost@4", "black@5-7", "frozen@8-"]) == (
        Fault(Kind.LOST, 4, 4),
        Fault(Kind.BLACK, 5, 7),
        Fault(Kind.FROZEN, 8, None),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"faults": ["gone@3"]}, r"faults has 'gone@3'; expected KIND@FIRST"),
        ({"faults": ["lost"]}, r"faults has 'lost'; expected KIND@FIRST"),
        ({"faults": ["lost@9-3"]}, "ends before it begins"),
        ({"output": "ir"}, "output='ir'; expected one of rgb, rgbd, y16"),
        ({"depth_scale": 0.0}, "depth_scale=0.0; expected metres per unit"),
        ({"picture": "image", "depth_shift_m": 0.1}, "Leave out depth_shift_m, or picture"),
        ({"width": None}, "width is not given"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SimCameraConfig(**(SIZE | options))


@pytest.mark.parametrize("scale", [0.001, 0.0001])
def test_depth_has_the_scale_and_the_place_that_the_camera_says(monkeypatch, scale):
    camera, clock = open_camera(monkeypatch, output="rgbd", depth_scale=scale, depth_shift_m=0.05)
    clock.to(5)
    colour, depth = camera.read_latest(), camera.read_latest_depth()
    assert (colour.shape, colour.dtype) == ((48, 64, 3), np.uint8)
    assert (depth.shape, depth.dtype) == ((48, 64, 1), np.uint16)
    metres = depth[..., 0] * camera.depth_scale
    near = metres < 1
    assert metres[near] == pytest.approx(NEAR_M, abs=1e-3)
    # from the depth sensor's pixels through space to those of colour
    lens, rows_columns = camera.intrinsics, np.argwhere(near)
    points = np.ones((4, len(rows_columns)))
    points[0] = (rows_columns[:, 1] - lens.cx) / lens.fx * NEAR_M
    points[1] = (rows_columns[:, 0] - lens.cy) / lens.fy * NEAR_M
    points[2] = NEAR_M
    x, y, z, _ = camera.depth_to_colour @ points
    columns, rows = (
        np.rint(lens.fx * x / z + lens.cx).astype(int),
        np.rint(lens.fy * y / z + lens.cy).astype(int),
    )
    aligned = np.zeros_like(near)
    aligned[rows, columns] = True
    red = (colour[..., 0] > 200) & (colour[..., 1] < 100)
    assert red.sum() > 100
    assert np.array_equal(aligned, red)
    assert not np.array_equal(near, red)


def test_a_y16_camera_gives_hundredths_of_a_kelvin(monkeypatch):
    camera, clock = open_camera(monkeypatch, output="y16", faults=["drift@10-"])
    before = camera.read_latest()
    assert (before.shape, before.dtype) == ((48, 64, 1), np.uint16)
    assert before.min() > COLDEST_CK
    clock.to(30)
    drifted = camera.read_latest()
    assert int(drifted.max()) - int(before.max()) == 200


def test_each_fault_is_there_from_its_first_step_to_its_last(monkeypatch):
    faults = [
        "lost@10-11", "stale@12", "frozen@15-18", "black@20", "white@21", "size@22", "rotated@23",
        "depth_invalid@24", "depth_x10@25", "depth_nan@26", "covered@30", "noise@31-32", "frozen@31-32",
        "delayed@40",
    ]  # fmt: skip
    camera, clock = open_camera(monkeypatch, output="rgbd", faults=faults)
    clean, _ = open_camera(monkeypatch, output="rgbd")
    clean.clock = camera.clock = clock
    clean._opened = camera._opened = 0.0
    seen: dict[int, np.ndarray] = {}
    for step in range(45):
        clock.to(step)
        colour, depth = clean.read_latest(), clean.read_latest_depth()
        seen[step] = colour
        if step in (10, 11):
            with pytest.raises(ConnectionError):
                camera.read_latest()
            camera.disconnect()
            with pytest.raises(ConnectionError):
                camera.connect()
            camera._connected = True
            continue
        if step == 12:
            with pytest.raises(TimeoutError):
                camera.read_latest_depth()
            continue
        shown, shown_depth = camera.read_latest(), camera.read_latest_depth()
        wanted = {
            **dict.fromkeys(range(15, 19), seen.get(15)),
            20: np.zeros_like(colour),
            21: np.full_like(colour, 255),
            22: colour[:24],
            23: colour[::-1, ::-1],
            40: seen.get(30),
        }.get(step, colour)
        noisy = np.abs(shown.astype(int) - seen[31]).max() if step in (31, 32) else 0
        if step == 30:
            assert (shown.any(), shown.max() < 40, shown.std() > 0) == (True, True, True)
        elif step in (31, 32):
            assert 0 < noisy < 20
            seen[step] = shown
        else:
            assert np.array_equal(shown, wanted), step
        if step in (20, 24):
            assert not shown_depth.any()
        elif step == 25:
            assert np.array_equal(shown_depth, 10 * depth)
        elif step == 26:
            assert shown_depth.dtype == np.float32
            assert np.isnan(shown_depth).mean() == pytest.approx(0.25)
        elif step in (14, 27, 44):
            assert np.array_equal(shown_depth, depth), "as without faults"


def test_the_guard_survives_a_lost_camera_and_shows_zeros(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(SimCamera, "clock", clock)
    inner = SimCameraConfig(**SIZE, faults=["lost@10-"])
    camera = make_cameras_from_configs({"a": GuardedCameraConfig(inner=inner, max_age_ms=300)})["a"]
    camera.connect()
    try:
        assert camera.read_latest().any()
        clock.to(10)
        assert not camera.read_latest().any()
    finally:
        camera.disconnect()


@pytest.mark.sim
@pytest.mark.slow
def test_cameras_of_the_simulated_arm_show_its_pictures_and_lose_them_at_their_step(tmp_path):
    size = {"width": 64, "height": 64, "fps": 20}
    lost = SimCameraConfig(**size, picture="image", output="rgbd", faults=["lost@2-3"])
    cameras = {
        "image": GuardedCameraConfig(inner=lost, **size),
        "heat": SimCameraConfig(**size, picture="image", output="y16"),
    }
    arm = SimArm(SimArmConfig(clock="lockstep", cameras=cameras, calibration_dir=tmp_path))
    assert arm.observation_features["image_depth"] == (64, 64, 1)
    with pytest.raises(ConnectionError, match="0 simulated arms are connected"):
        arm.cameras["heat"].connect()
    arm.connect()
    try:
        for step in range(4):
            seen, own = arm.get_observation(), arm._simulator.frame.pictures
            if step < 2:
                assert np.array_equal(seen["image"], own["image"])
                assert np.abs(seen["image_depth"] * 0.001 - own["image_depth"]).max() < 0.00051
            else:
                assert not seen["image"].any()
                assert not seen["image_depth"].any()
            assert np.array_equal((seen["heat"] - COLDEST_CK) // 10, own["image_thermal"][..., :1])
            arm.send_action(dict.fromkeys(ACTION, 0.5))
    finally:
        arm.disconnect()

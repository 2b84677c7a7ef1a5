"""Depth leaves a guarded camera in millimetres, seen from the colour camera, or the robot does not start."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import draccus
import numpy as np
import pytest
from lerobot.cameras.configs import CameraConfig
from scripted_camera import HEIGHT, WIDTH, Scripted, ScriptedConfig, picture

import lerobot_policy_multismolvla  # noqa: F401  as LeRobot's plugin discovery
from lerobot_robot_multismolvla import GuardedCameraConfig
from lerobot_robot_multismolvla.calibration import Calibration, Pinhole
from lerobot_robot_multismolvla.depth import Aligner, calibration_of
from lerobot_robot_multismolvla.guarded import DEPTH, GuardedCamera, Loss

LENS = Pinhole(WIDTH, HEIGHT, 10.0, 10.0, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)
OTHER = Pinhole(9, 6, 10.0, 10.0, 4.0, 2.5)
#: The colour sensor sits 0.1 m to the right: what is 1 m ahead moves 1 pixel to the left.
SHIFTED = Calibration(LENS, LENS, translation=[-0.1, 0.0, 0.0])


@pytest.fixture
def world():
    made = SimpleNamespace(colour=picture(), depth=None, shut=None, sticks=False, opened=0, knows={})
    made.depth = np.full((HEIGHT, WIDTH, 1), 1000, np.uint16)
    Scripted.worlds = {"a": made}
    return made


@pytest.fixture
def opened(world):
    cameras = []

    def make(**options: Any) -> GuardedCamera:
        base = {"inner": ScriptedConfig(), "width": WIDTH, "height": HEIGHT, "fps": 30}
        camera = GuardedCamera(GuardedCameraConfig(**(base | options)))
        camera.connect()
        cameras.append(camera)
        return camera

    yield make
    for camera in cameras:
        camera.disconnect()


# -- scale ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["auto", 0.0001])
def test_a_unit_of_a_tenth_of_a_millimetre_becomes_millimetres(scale, opened, world):
    """A D405's; LeRobot would hand on ten metres."""
    world.knows = {"depth_scale": 0.0001}
    world.depth[0, 0], world.depth[0, 1], world.depth[0, 2] = 0, 10006, 65535
    shown = opened(depth_scale=scale).read_latest_depth()
    assert (shown.dtype, shown.shape) == (np.uint16, (HEIGHT, WIDTH, 1))
    assert shown[0, :4, 0].tolist() == [0, 1001, 6554, 100]
    assert world.depth[0, 1] == 10006  # the driver's own picture stays


def test_a_coarse_unit_ends_at_the_farthest_number(opened, world):
    world.depth[0, 0] = 60000
    assert opened(depth_scale=0.01).read_latest_depth()[0, :2, 0].tolist() == [65535, 10000]


def test_millimetres_stay_as_they_are(opened, world):
    world.knows = {"depth_scale": 0.001}
    for options in ({}, {"depth_scale": "auto"}, {"depth_scale": 0.001}):
        assert np.array_equal(opened(**options).read_latest_depth(), world.depth)


@pytest.mark.parametrize(
    ("knows", "options", "message"),
    [
        ({"depth_scale": 0.0001}, {}, r"a unit of depth is 0\.0001 m.*depth_scale: auto"),
        ({"depth_scale": 0.0001}, {"depth_scale": 0.001}, r"is 0\.0001 m, but depth_scale is 0\.001"),
        ({}, {"depth_scale": "auto"}, "does not say its depth scale"),
        ({}, {"depth_scale": 0.001, "align": True}, "does not say where depth and colour are measured"),
        (
            {},
            {"depth_scale": 0.001, "align": True, "calibration": Calibration(LENS, OTHER)},
            "calibration of colour is for 9x6, the pictures are 8x6",
        ),
        (
            {"rotation": 1},
            {"depth_scale": 0.001, "align": True, "calibration": SHIFTED},
            "inner.rotation turns the pictures",
        ),
    ],
)  # fmt: skip
def test_what_is_not_known_stops_the_robot_before_it_moves(knows, options, message, opened, world):
    world.knows = knows
    for required in (True, False):
        with pytest.raises(ValueError, match=message):
            opened(**options, required=required)


def test_a_scale_without_depth_is_an_error(opened, world):
    world.depth = None
    with pytest.raises(ValueError, match=r"has no depth.*inner.use_depth"):
        opened(depth_scale="auto")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth_scale": "guess"}, "depth_scale=guess; expected auto"),
        ({"depth_scale": 1000.0}, r"depth_scale=1000\.0; expected auto"),
        ({"align": True}, "align=true, but depth_scale is not given"),
        ({"depth_scale": "auto", "calibration": SHIFTED}, "align=false uses none"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GuardedCameraConfig(inner=ScriptedConfig(width=8, height=6, fps=30), **options)


def test_damaged_calibrations_are_named():
    with pytest.raises(ValueError, match=r"calibration.translation.*3 finite numbers"):
        Calibration(LENS, LENS, translation=[0.0])
    with pytest.raises(ValueError, match=r"calibration.rotation.*is no rotation"):
        Calibration(LENS, LENS, rotation=[2.0, 0, 0, 0, 1, 0, 0, 0, 1])


# -- alignment -----------------------------------------------------------------------------------------------


def test_a_picture_aligned_to_itself_is_itself():
    depth = np.random.default_rng(0).integers(300, 5000, (HEIGHT, WIDTH, 1)).astype(np.uint16)
    depth[2, 3] = 0
    assert np.array_equal(Aligner(Calibration(LENS, LENS))(depth), depth)


def test_near_things_move_and_cover_far_ones(opened, world):
    world.depth[:] = 60000  # too far away to move
    world.depth[2:4, 4] = 1000  # a post, one pixel to the left of where depth sees it
    world.depth[5, :] = 0
    world.knows = {"depth_scale": 0.001, "intrinsics": LENS, "depth_to_colour": np.eye(4)}
    world.knows["depth_to_colour"][0, 3] = -0.1
    for options in ({}, {"calibration": SHIFTED}):
        shown = opened(depth_scale="auto", align=True, **options).read_latest_depth()[..., 0]
        assert shown[2].tolist() == [60000, 60000, 60000, 1000, 0, 60000, 60000, 60000]
        assert not shown[5].any()


def test_the_nearer_surface_stays_from_either_side():
    depth = np.full((HEIGHT, WIDTH, 1), 60000, np.uint16)
    depth[:, 4] = 1000
    for side, place in ((-0.1, 3), (0.1, 5)):
        shown = Aligner(Calibration(LENS, LENS, translation=[side, 0.0, 0.0]))(depth)
        assert (shown[:, place] == 1000).all()
        assert not shown[:, 4].any()


def test_a_finer_colour_picture_has_no_gaps():
    fine = Pinhole(4 * WIDTH, 4 * HEIGHT, 40.0, 40.0, (4 * WIDTH - 1) / 2, (4 * HEIGHT - 1) / 2)
    depth = np.full((HEIGHT, WIDTH, 1), 1000, np.uint16)
    shown = Aligner(Calibration(LENS, fine))(depth)
    assert shown.shape == (4 * HEIGHT, 4 * WIDTH, 1)
    assert (shown == 1000).all()


def test_a_turned_sensor_sees_what_the_rotation_says():
    """The depth sensor's right is the colour sensor's left, and its down the other's up."""
    turned = Calibration(LENS, LENS, rotation=[-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0])
    depth = np.random.default_rng(0).integers(300, 5000, (HEIGHT, WIDTH, 1)).astype(np.uint16)
    assert np.array_equal(Aligner(turned)(depth), depth[::-1, ::-1])


def test_depth_of_another_type_is_lost(opened, world):
    camera = opened(depth_scale=0.001)
    world.depth = world.depth.astype(np.float32)
    assert not camera.read_latest_depth().any()
    assert camera.losses[DEPTH] is Loss.SHAPE


# -- LeRobot's RealSense driver ------------------------------------------------------------------------------


def test_a_realsense_is_asked_through_its_profile(monkeypatch, opened, world):
    """No hardware: what librealsense answers, by its own names. It writes rotations column by column."""

    def stream(focal):
        lens = SimpleNamespace(width=WIDTH, height=HEIGHT, fx=focal, fy=focal, ppx=LENS.cx, ppy=LENS.cy)
        between = SimpleNamespace(rotation=[0, 1, 0, -1, 0, 0, 0, 0, 1], translation=[-0.1, 0.0, 0.0])
        profile = SimpleNamespace(get_intrinsics=lambda: lens, get_extrinsics_to=lambda other: between)
        return SimpleNamespace(as_video_stream_profile=lambda: profile)

    kinds = SimpleNamespace(depth="depth", color="color")
    monkeypatch.setitem(sys.modules, "pyrealsense2", SimpleNamespace(stream=kinds))
    sensor = SimpleNamespace(get_depth_scale=lambda: 0.0001)
    streams = {"depth": stream(10.0), "color": stream(20.0)}
    profile = SimpleNamespace(
        get_device=lambda: SimpleNamespace(first_depth_sensor=lambda: sensor), get_stream=streams.__getitem__
    )
    found = calibration_of(SimpleNamespace(rs_profile=profile))
    assert (found.depth.fx, found.colour.fx, found.depth.cx) == (10.0, 20.0, LENS.cx)
    assert found.rotation == [0, -1, 0, 1, 0, 0, 0, 0, 1]
    assert found.translation == [-0.1, 0.0, 0.0]
    world.knows = {"rs_profile": profile}
    world.depth[:] = 10000
    assert (opened(depth_scale="auto").read_latest_depth() == 1000).all()


def test_it_is_said_in_a_line_of_options():
    @dataclass
    class Robot:
        cameras: dict[str, CameraConfig]

    lens = "{width: 640, height: 480, fx: 380, fy: 380, cx: 320, cy: 240}"
    text = (
        "{front: {type: multismolvla_guarded, inner: {type: tests_scripted}, width: 640, height: 480, "
        f"fps: 30, depth_scale: 0.001, align: true, calibration: {{depth: {lens}, colour: {lens}, "
        "translation: [0.015, 0, 0]}}}"
    )
    parsed = draccus.parse(Robot, args=[f"--cameras={text}"]).cameras["front"]
    assert parsed.calibration.translation == [0.015, 0.0, 0.0]
    assert parsed.calibration.depth == Pinhole(640, 480, 380.0, 380.0, 320.0, 240.0)
    assert parsed.depth_scale == 0.001
    text = text.replace("0.001", "auto")
    assert draccus.parse(Robot, args=[f"--cameras={text}"]).cameras["front"].depth_scale == "auto"

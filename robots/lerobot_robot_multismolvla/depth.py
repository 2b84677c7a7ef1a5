"""Depth as LeRobot expects it: millimetres, and seen from where the colour picture is taken.

LeRobot 0.6.1 records and hands on a depth camera's numbers as they come: right only where one unit is one
millimetre and the sensor has been aligned to colour. What a camera knows of itself is asked of it here: of
LeRobot's RealSense driver through ``librealsense``, of any other camera by the attributes ``depth_scale``
(metres per unit), ``intrinsics`` or ``depth_intrinsics`` and ``colour_intrinsics``, and ``depth_to_colour``
((4, 4), in metres).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lerobot.cameras.camera import Camera
from numpy.typing import NDArray

from lerobot_robot_multismolvla.calibration import Calibration, Pinhole

MILLIMETRE = 0.001
#: Largest depth that fits, in millimetres.
FARTHEST = np.iinfo(np.uint16).max


def scale_of(camera: Camera) -> float | None:
    """Metres per unit of depth, as a connected camera says it; ``None`` if it does not."""
    profile = getattr(camera, "rs_profile", None)
    if profile is not None:
        return float(profile.get_device().first_depth_sensor().get_depth_scale())
    scale = getattr(camera, "depth_scale", None)
    return None if scale is None else float(scale)


def calibration_of(camera: Camera) -> Calibration | None:
    """Where a connected camera's depth and colour are measured, as it says it; ``None`` if it does not."""
    profile = getattr(camera, "rs_profile", None)
    if profile is not None:
        return _of_realsense(profile)
    both = getattr(camera, "intrinsics", None)
    depth, colour = (getattr(camera, f"{s}_intrinsics", both) for s in ("depth", "colour"))
    transform = getattr(camera, "depth_to_colour", None)
    if depth is None or colour is None or transform is None:
        return None
    transform = np.asarray(transform, np.float64)
    turn, shift = transform[:3, :3].ravel().tolist(), transform[:3, 3].tolist()
    return Calibration(_pinhole(depth, "cx", "cy"), _pinhole(colour, "cx", "cy"), turn, shift)


def _of_realsense(profile: Any) -> Calibration:
    """Librealsense's calibration; it writes rotations column by column."""
    import pyrealsense2 as rs

    depth, colour = (
        profile.get_stream(kind).as_video_stream_profile() for kind in (rs.stream.depth, rs.stream.color)
    )
    between = depth.get_extrinsics_to(colour)
    turn = np.reshape(between.rotation, (3, 3)).T.ravel().tolist()
    return Calibration(
        _pinhole(depth.get_intrinsics(), "ppx", "ppy"),
        _pinhole(colour.get_intrinsics(), "ppx", "ppy"),
        turn,
        list(between.translation),
    )


def _pinhole(lens: Any, cx: str, cy: str) -> Pinhole:
    return Pinhole(lens.width, lens.height, lens.fx, lens.fy, getattr(lens, cx), getattr(lens, cy))


class DepthConverter:
    """Depth in a camera's units -> millimetres, seen from the colour camera.

    Args:
        factor: millimetres per unit.
        align: shows it from there; ``None`` = it is already.
    """

    def __init__(self, factor: float, align: Aligner | None = None) -> None:
        self._factor, self._align = np.float32(factor), align

    def __call__(self, depth: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """uint16 (H, W, 1) -> uint16 (H, W, 1), 0 = invalid; nothing is farther than `FARTHEST`."""
        if self._factor != 1:
            depth = np.minimum(np.rint(depth * self._factor), FARTHEST).astype(np.uint16)
        return depth if self._align is None else self._align(depth)


class Aligner:
    """Shows a depth picture from where the colour picture is taken.

    A pixel of depth is carried over as a square, so that no gaps open where the colour picture is the finer
    one; of two surfaces the nearer one stays. What the depth sensor does not see is invalid (0). Distortion
    is not looked at.

    Args:
        calibration: where both are measured.
    """

    def __init__(self, calibration: Calibration) -> None:
        self._colour, lens = calibration.colour, calibration.depth
        turn = np.reshape(calibration.rotation, (3, 3)).astype(np.float32)
        self._shift = np.asarray(calibration.translation, np.float32)[:, None, None]
        v, u = np.mgrid[: lens.height, : lens.width].astype(np.float32)
        # directions (3, H, W) of the pixels' upper left and lower right corners, in the colour sensor's frame
        self._corners = [
            np.einsum("ij,jhw->ihw", turn, np.stack([(u + d - lens.cx) / lens.fx, (v + d - lens.cy) / lens.fy,
                                                     np.ones_like(u)]))
            for d in (-0.5, 0.5)
        ]  # fmt: skip

    def __call__(self, depth: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """Depth (H, W, 1) in millimetres -> the same (H', W', 1) in the colour camera's picture."""
        lens, metres = self._colour, depth[..., 0].astype(np.float32) * np.float32(MILLIMETRE)
        (x0, y0, z0), (x1, y1, z1) = (corner * metres + self._shift for corner in self._corners)
        seen = (metres > 0) & (z0 > 0) & (z1 > 0)
        z0, z1 = np.where(seen, z0, 1), np.where(seen, z1, 1)
        columns = _covered(x0 / z0 * lens.fx + lens.cx, x1 / z1 * lens.fx + lens.cx, lens.width)
        rows = _covered(y0 / z0 * lens.fy + lens.cy, y1 / z1 * lens.fy + lens.cy, lens.height)
        value = np.clip(np.rint((z0 + z1) / (2 * MILLIMETRE)), 1, FARTHEST).astype(np.uint16).ravel()
        nowhere = lens.height * lens.width
        out = np.full(nowhere + 1, FARTHEST, np.uint16)
        for dy in range((rows[1] - rows[0]).max(initial=-1, where=seen) + 1):
            for dx in range((columns[1] - columns[0]).max(initial=-1, where=seen) + 1):
                y, x = rows[0] + dy, columns[0] + dx
                place = np.where(seen & (y <= rows[1]) & (x <= columns[1]), y * lens.width + x, nowhere)
                np.minimum.at(out, place.ravel(), value)
        out[out == FARTHEST] = 0
        return out[:nowhere].reshape(lens.height, lens.width, 1)


def _covered(one: NDArray[Any], other: NDArray[Any], number: int) -> NDArray[np.intp]:
    """First and last (2, ...) of ``number`` pixels whose centres lie between two places, or last < first."""
    rounding = 1e-3  # so that none falls between two neighbours
    low, high = np.minimum(one, other), np.maximum(one, other)
    first = np.ceil(np.clip(low, -1, number) - rounding)
    last = np.floor(np.clip(high, -1, number) + rounding)
    return np.stack([np.maximum(first, 0), np.minimum(last, number - 1)]).astype(np.intp)

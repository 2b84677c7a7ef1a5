"""A camera of the simulated arm, or of a moving test picture, to which faults happen."""

from __future__ import annotations

import time
from collections import deque
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from lerobot.cameras.camera import Camera
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError
from numpy.typing import NDArray

from lerobot_robot_multismolvla.calibration import Pinhole
from lerobot_robot_multismolvla.simulated.arm import running_arm
from lerobot_robot_multismolvla.simulated.config_camera import SimCameraConfig
from lerobot_robot_multismolvla.simulated.faults import DELAY, Kind, parse_faults
from lerobot_robot_multismolvla.simulated.simulator import Frame

FIELD_OF_VIEW = 60.0  # degrees, of the test picture
#: Hundredths of a kelvin: of the arm's thermal pictures the lowest grey level (20 degrees Celsius) and one
#: level more, and how much a drifting camera adds with each step.
COLDEST_CK, LEVEL_CK, DRIFT_CK = 29315, 10, 10
NOISE_LEVELS, DARK_LEVELS = 2.0, 8  # standard deviation of a sensor's noise; how far it reaches in the dark
NEAR_M, FAR_M = 0.5, 1.5  # the test picture's square, and what is behind it


class SimCamera(Camera):
    """See :class:`SimCameraConfig`.

    Args:
        config: what it shows, and what happens to it.

    Attributes:
        use_rgb: whether :meth:`read_latest` gives colour. A ``y16`` camera gives uint16 (H, W, 1), in
            hundredths of a kelvin.
        use_depth: whether :meth:`read_latest_depth` gives depth, uint16 (H, W, 1) in units of
            ``depth_scale``, 0 = invalid.
    """

    clock = staticmethod(time.monotonic)

    def __init__(self, config: SimCameraConfig) -> None:
        super().__init__(config)
        self.config = config
        self.use_rgb = True
        self.use_depth = config.output == "rgbd"
        self._faults = parse_faults(config.faults)
        self._connected = False
        self._opened: float | None = None
        self.latest_timestamp: float | None = None  # of the clock of LeRobot's cameras
        self._before: dict[str, deque[tuple[int, NDArray[Any]]]] = {}  # stream -> (step, picture), no faults
        self._frozen: dict[str, NDArray[Any]] = {}

    def __str__(self) -> str:
        return f"SimCamera({self.config.picture or 'test picture'})"

    @property
    def is_connected(self) -> bool:
        """Whether it is open."""
        return self._connected

    @cached_property
    def intrinsics(self) -> Pinhole:
        """Of colour and depth alike."""
        width, height = self.config.width or 0, self.config.height or 0  # both are known, see the config
        focal = height / 2 / np.tan(np.radians(FIELD_OF_VIEW / 2))
        return Pinhole(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)

    @property
    def depth_scale(self) -> float:
        """Metres per unit."""
        return self.config.depth_scale

    @property
    def depth_to_colour(self) -> NDArray[np.float64]:
        """Transform (4, 4) of points in the depth sensor's frame [m] to the colour sensor's."""
        transform = np.eye(4)
        transform[0, 3] = self.config.depth_shift_m
        return transform

    @staticmethod
    def find_cameras() -> list[Any]:
        """Nothing: simulated cameras are declared."""
        return []

    def connect(self, warmup: bool = True) -> None:
        """Open it.

        Raises:
            DeviceAlreadyConnectedError: it is open.
            ConnectionError: a fault has it lost.
            ValueError: the simulated arm has no such picture, or one of another size.
        """
        if self._connected:
            raise DeviceAlreadyConnectedError(f"{self} is already connected.")
        if self._opened is None:
            self._opened = self.clock()
        if self.config.picture is not None:
            self._check_picture(self.config.picture)
        if Kind.LOST in self._active(self.step):
            raise ConnectionError(f"{self} is lost.")
        self._connected = True

    def disconnect(self) -> None:
        """Close it."""
        if not self._connected:
            raise DeviceNotConnectedError(f"{self} is not connected.")
        self._connected = False

    def read_latest(self, max_age_ms: int = 500) -> NDArray[Any]:
        """Colour now, uint8 (H, W, 3), or thermal, uint16 (H, W, 1).

        Raises:
            DeviceNotConnectedError: it is not open.
            ConnectionError: a fault has it lost.
            TimeoutError: a fault lets no new pictures come.
        """
        return self._read("y16" if self.config.output == "y16" else "rgb")

    def read_latest_depth(self, max_age_ms: int = 500) -> NDArray[Any]:
        """Depth now, uint16 (H, W, 1); raises as :meth:`read_latest`."""
        return self._read("depth")

    def async_read(self, timeout_ms: float = 200) -> NDArray[Any]:
        """The next picture, for which it waits as a camera does; raises as :meth:`read_latest`."""
        time.sleep(1 / (self.config.fps or 1))
        return self.read_latest()

    def read(self) -> NDArray[Any]:
        """As :meth:`async_read`."""
        return self.async_read()

    # -- what is seen ---------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Of the arm's episode, or pictures since it was opened first."""
        if self.config.picture is not None:
            return _frame().step
        return 0 if self._opened is None else int((self.clock() - self._opened) * (self.config.fps or 0))

    def _active(self, step: int) -> dict[Kind, int]:
        """Faults that are there, and for how many steps each has been."""
        return {fault.kind: step - fault.first for fault in self._faults if fault.active(step)}

    def _read(self, stream: str) -> NDArray[Any]:
        if not self._connected:
            raise DeviceNotConnectedError(f"{self} is not connected.")
        step = self.step
        active = self._active(step)
        if Kind.LOST in active:
            raise ConnectionError(f"{self} is lost.")
        if Kind.STALE in active:
            raise TimeoutError(f"{self} latest frame is too old.")
        picture = self._picture(stream, step)
        before = self._before.setdefault(stream, deque(maxlen=DELAY + 1))
        if not before or before[-1][0] != step:
            before.append((step, picture))
        if Kind.DELAYED in active:
            picture = before[0][1]
        if Kind.FROZEN in active:
            picture = self._frozen.setdefault(stream, picture)
        else:
            self._frozen.pop(stream, None)
        for kind, steps in active.items():
            picture = _altered(picture, kind, stream, steps, self.config.depth_scale)
        self.latest_timestamp = time.perf_counter()
        return picture.copy()

    def _picture(self, stream: str, step: int) -> NDArray[Any]:
        name, scale = self.config.picture, self.config.depth_scale
        if name is None:
            return self._test_picture(stream, step)
        pictures = _frame().pictures
        if stream == "rgb":
            return pictures[name]
        if stream == "depth":
            return np.rint(pictures[f"{name}_depth"] / scale).clip(0, 65535).astype(np.uint16)
        return COLDEST_CK + LEVEL_CK * pictures[f"{name}_thermal"][..., :1].astype(np.uint16)

    def _test_picture(self, stream: str, step: int) -> NDArray[Any]:
        """A bright square that moves over a ramp; it is nearer, and warmer, than what is behind it."""
        width, height = self.intrinsics.width, self.intrinsics.height
        side = max(2, height // 4)
        left = 3 * step % max(1, width - side)
        if stream == "depth":  # what is near is seen farther to the left from a sensor on the right
            left -= round(self.intrinsics.fx * self.config.depth_shift_m / NEAR_M)
        rows, columns = np.ogrid[:height, :width]
        square = (abs(2 * (rows - height // 3) + 1 - side) < side) & (
            abs(2 * (columns - left) + 1 - side) < side
        )
        ramp = np.broadcast_to(np.linspace(0.2, 0.6, width), (height, width))
        if stream == "rgb":
            behind = 255 * ramp[..., None] * np.array([1.0, 0.7, 0.4])
            return np.where(square[..., None], [230, 60, 40], behind).astype(np.uint8)
        near, behind = (
            (NEAR_M / self.config.depth_scale, FAR_M / self.config.depth_scale)
            if stream == "depth"
            else (COLDEST_CK + 1700, COLDEST_CK + 500 * ramp)
        )
        return np.where(square, near, behind)[..., None].clip(0, 65535).astype(np.uint16)

    def _check_picture(self, name: str) -> None:
        needed = {"rgb": [name], "rgbd": [name, f"{name}_depth"], "y16": [f"{name}_thermal"]}
        pictures = _frame().pictures
        for stream in needed[self.config.output]:
            if stream not in pictures:
                raise ValueError(
                    f"multismolvla_sim_camera: picture={name} needs {stream}, which the simulated arm does "
                    f"not deliver; it has {', '.join(pictures)}."
                )
            height, width = pictures[stream].shape[:2]
            if (width, height) != (self.config.width, self.config.height):
                raise ValueError(
                    f"multismolvla_sim_camera: picture={name} is {width}x{height}, not "
                    f"{self.config.width}x{self.config.height}."
                )


def _frame() -> Frame:
    return running_arm().frame


def _altered(picture: NDArray[Any], kind: Kind, stream: str, steps: int, scale: float) -> NDArray[Any]:
    """What a fault that has been there for so many steps makes of a picture; ``scale``: metres per unit."""
    match kind, stream:
        case Kind.BLACK, _:
            return np.zeros_like(picture)
        case Kind.WHITE, _:
            return np.full_like(picture, np.iinfo(picture.dtype).max)
        case Kind.SIZE, _:
            return picture[: len(picture) // 2]
        case Kind.ROTATED, _:
            return picture[::-1, ::-1]
        case Kind.DEPTH_INVALID, "depth":
            return np.zeros_like(picture)
        case Kind.DEPTH_X10, "depth":
            return (picture.astype(np.uint32) * 10).clip(0, 65535).astype(np.uint16)
        case Kind.DEPTH_NAN, "depth":
            metres = (picture * scale).astype(np.float32)
            metres[::4] = np.nan
            return metres
        case Kind.NOISE, "rgb":
            noise = np.random.default_rng(steps).normal(0, NOISE_LEVELS, picture.shape)
            return (picture + noise).round().clip(0, 255).astype(np.uint8)
        case Kind.COVERED, "rgb":
            dark = np.random.default_rng(steps).integers(0, DARK_LEVELS, picture.shape, np.uint8)
            _, encoded = cv2.imencode(".jpg", dark)
            return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
        case Kind.DRIFT, "y16":
            return (picture.astype(np.uint32) + DRIFT_CK * steps).clip(0, 65535).astype(np.uint16)
    return picture

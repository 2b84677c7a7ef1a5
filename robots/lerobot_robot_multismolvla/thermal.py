"""A thermal camera whose grey levels mean temperatures.

Thermal cameras made for people stretch each frame to what is in it, and a policy that was trained on one
stretching is blind to the same scene under another. So here the range is fixed and said, what the source
delivers must be temperatures, and anything else is an error before the robot moves.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Protocol

import cv2
import numpy as np
from lerobot.cameras.camera import Camera
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError
from numpy.typing import NDArray

from lerobot_robot_multismolvla.config_thermal import COLDEST_C, HOTTEST_C, LAYOUTS, ThermalCameraConfig
from lerobot_robot_multismolvla.inner import camera_errors, camera_name, close_camera, make_camera
from multismolvla.thermal import ranges

logger = logging.getLogger(__name__)

ZERO_C = 273.15  # kelvin
_FOURCC = "Y16 "
_FIRST_S = 5.0  # how long the first picture is waited for, and the last one


class Source(Protocol):
    """Where raw frames come from. Only the thread that reads from it closes it."""

    def read(self) -> NDArray[Any]:
        """The next raw frame; waits for it.

        Raises:
            OSError: there is none any more.
        """

    def close(self) -> None:
        """Let go of it."""


def counts(frame: NDArray[Any], config: ThermalCameraConfig) -> NDArray[np.uint16]:
    """A raw frame as uint16 (rows, width).

    OpenCV gives it as that, or as a flat array of bytes, depending on its version.

    Raises:
        ValueError: it is none: a colour picture, 8 bits a pixel, or another size.
    """
    rows, width = config.rows, config.width or 0
    if frame.dtype == np.uint16 and frame.size == rows * width:
        return frame.reshape(rows, width)
    if frame.dtype == np.uint8 and frame.size == 2 * rows * width and frame.shape[-1] != 3:
        return np.ascontiguousarray(frame).reshape(-1).view("<u2").reshape(rows, width)
    what = f"{frame.dtype} {frame.shape}"
    if frame.dtype == np.uint8 and frame.size == 3 * rows * width:
        reason = "a colour picture, which has no temperatures"
    elif frame.dtype == np.uint8 and frame.size == rows * width:
        reason = "8 bits a pixel, stretched to what is in the picture (automatic gain)"
    else:
        reason = "another size or type"
    raise ValueError(
        f"multismolvla_thermal: the source delivers {what}: {reason}. Expected uint16 ({rows}, {width}), "
        f"which is {LAYOUTS[config.layout]}. Switch the device to its radiometric 16-bit format, or correct "
        "layout, width and height."
    )


def celsius(raw: NDArray[np.uint16], layout: str, height: int) -> NDArray[np.float32]:
    """Temperatures (H, W) in degrees Celsius of a raw frame (rows, W)."""
    picture, kelvin = (raw[-height:], 1 / 64) if layout == "infiray_p2" else (raw[:height], 1 / 100)
    return picture.astype(np.float32) * np.float32(kelvin) - np.float32(ZERO_C)


def grey(temperature: NDArray[np.float32], range_c: tuple[float, float]) -> NDArray[np.uint8]:
    """Temperatures (H, W) -> grey uint8 (H, W, 3), from black at the range's lowest to white."""
    low, high = range_c
    level = np.rint(np.clip((temperature - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return np.repeat(level[..., None], 3, 2)


class ThermalCamera(Camera):
    """See :class:`ThermalCameraConfig`. Guard it: it raises when no picture comes, as all of LeRobot's do.

    Args:
        config: what it reads and shows.

    Raises:
        ValueError: size or rate are not given.

    Example:
        >>> camera = ThermalCamera(ThermalCameraConfig(range_c=(10, 60), index_or_path=2, layout="lepton",
        ...                                            width=160, height=120, fps=9))
    """

    clock = staticmethod(time.perf_counter)  # that of LeRobot's cameras

    def __init__(self, config: ThermalCameraConfig) -> None:
        super().__init__(config)
        missing = [name for name in ("width", "height", "fps") if not getattr(config, name)]
        if missing:
            raise ValueError(
                f"multismolvla_thermal: {', '.join(missing)} not given. Set them as the thermal picture has "
                "them, without rows of telemetry."
            )
        self.config = config
        self._connected = False
        self._new = threading.Condition()
        self._picture: NDArray[np.uint8] | None = None
        self._failure: Exception | None = None
        self.stop_event = threading.Event()  # named as in LeRobot's cameras, see `close_camera`
        self.thread: threading.Thread | None = None
        self.latest_timestamp: float | None = None

    def __str__(self) -> str:
        config = self.config
        return f"ThermalCamera({camera_name(config.inner) if config.inner else config.index_or_path})"

    @property
    def is_connected(self) -> bool:
        """Whether it is open."""
        return self._connected

    @staticmethod
    def find_cameras() -> list[Any]:
        """Nothing: what a video device delivers is known when it is opened."""
        return []

    def connect(self, warmup: bool = True) -> None:
        """Open the source and read from it from then on.

        Raises:
            DeviceAlreadyConnectedError: it is connected.
            ConnectionError: the source cannot be opened, or no picture comes.
            ValueError: it delivers no temperatures.
        """
        if self._connected:
            raise DeviceAlreadyConnectedError(f"{self} is already connected.")
        source = self._open()
        self._picture, self._failure, self.stop_event = None, None, threading.Event()
        self.thread = threading.Thread(
            target=self._read_on, args=(source, self.stop_event), daemon=True, name=str(self)
        )
        self.thread.start()
        with self._new:
            self._new.wait_for(lambda: self._picture is not None or self._failure is not None, _FIRST_S)
            failure = self._failure
            if self._picture is None and failure is None:
                failure = TimeoutError(f"none within {_FIRST_S:.0f} s")
        if failure is not None:
            self._end()
            if isinstance(failure, ValueError):
                raise failure
            raise ConnectionError(f"{self}: no picture comes: {failure}.") from failure
        self._connected = True
        ranges.open_ranges[id(self)] = ranges.OpenRange(str(self), self.config.range_c)

    def disconnect(self) -> None:
        """Close the source.

        Raises:
            DeviceNotConnectedError: it is not connected.
        """
        if not self._connected:
            raise DeviceNotConnectedError(f"{self} is not connected.")
        self._connected = False
        ranges.open_ranges.pop(id(self), None)
        self._end()

    def read_latest(self, max_age_ms: int = 500) -> NDArray[Any]:
        """The latest picture, uint8 (H, W, 3); never waits.

        Raises:
            DeviceNotConnectedError: it is not connected.
            TimeoutError: the picture is older than ``max_age_ms``.
            RuntimeError: the source has failed.
        """
        with self._new:
            return self._shown(max_age_ms)

    def async_read(self, timeout_ms: float = 200) -> NDArray[Any]:
        """The next picture; raises as :meth:`read_latest`."""
        with self._new:
            before = self.latest_timestamp
            came = self._new.wait_for(
                lambda: self.latest_timestamp != before or self._failure is not None, timeout_ms / 1000
            )
            if not came:
                raise TimeoutError(f"{self}: no picture within {timeout_ms} ms.")
            return self._shown(None)

    def read(self) -> NDArray[Any]:
        """As :meth:`async_read`."""
        return self.async_read()

    def _shown(self, max_age_ms: float | None) -> NDArray[Any]:
        if not self._connected or self._picture is None or self.latest_timestamp is None:
            raise DeviceNotConnectedError(f"{self} is not connected.")
        if self._failure is not None:
            raise RuntimeError(f"{self} has failed: {self._failure}") from self._failure
        age = 1000 * (self.clock() - self.latest_timestamp)
        if max_age_ms is not None and age > max_age_ms:
            raise TimeoutError(f"{self}: the latest picture is {age:.0f} ms old, more than {max_age_ms}.")
        return self._picture

    def _end(self) -> None:
        """Have the reading thread end and close its source, if need be when its last read returns."""
        self.stop_event.set()
        assert self.thread is not None  # of the connection that ends
        self.thread.join(timeout=_FIRST_S)
        if self.thread.is_alive():
            logger.warning("%s stays open until it delivers a frame, or says that there is none.", self)

    def _read_on(self, source: Source, stop: threading.Event) -> None:
        """Keep the latest picture, until the source fails."""
        try:
            while not stop.is_set():
                temperature = self._temperatures(source.read())
                if stop.is_set():
                    break  # a late frame is not one of the next connection
                if self._picture is None:
                    self._check_first(temperature)
                self._keep(temperature)
        except camera_errors() as error:
            with self._new:
                if not stop.is_set():
                    self._failure = error
                self._new.notify_all()
        finally:
            source.close()

    def _check_first(self, temperature: NDArray[np.float32]) -> None:
        middle = float(np.median(temperature))
        if not COLDEST_C < middle < HOTTEST_C:
            raise ValueError(
                f"{self}: the middle temperature of the picture is {middle:.0f} degrees Celsius. That is "
                "none: switch automatic gain off (Lepton: TLinear on), or correct layout."
            )

    def _keep(self, temperature: NDArray[np.float32]) -> None:
        shown = grey(temperature, self.config.range_c)
        with self._new:
            self._picture, self.latest_timestamp = shown, self.clock()
            self._new.notify_all()

    def _temperatures(self, frame: NDArray[Any]) -> NDArray[np.float32]:
        return celsius(counts(frame, self.config), self.config.layout, self.config.height or 0)

    def _open(self) -> Source:
        where = str(self.config.index_or_path)
        if self.config.inner is not None:
            return _InnerSource(make_camera(self.config.inner))
        if where.endswith(".npy"):
            return _FileSource(where, self.config.fps or 1)
        return _VideoSource(int(where) if where.isdigit() else where, self.config)


class _VideoSource:
    """A video device through OpenCV, asked for raw 16-bit frames."""

    def __init__(self, where: int | str, config: ThermalCameraConfig) -> None:
        self._capture = cv2.VideoCapture(where, cv2.CAP_V4L2)
        wanted = cv2.VideoWriter.fourcc(*_FOURCC)
        for option, value in (
            (cv2.CAP_PROP_FOURCC, wanted),
            (cv2.CAP_PROP_CONVERT_RGB, 0),  # else the low byte is thrown away
            (cv2.CAP_PROP_FRAME_WIDTH, config.width),
            (cv2.CAP_PROP_FRAME_HEIGHT, config.rows),
        ):
            self._capture.set(option, value)
        if not self._capture.isOpened():
            raise ConnectionError(f"ThermalCamera({where}) cannot be opened as a video device.")
        found = int(self._capture.get(cv2.CAP_PROP_FOURCC))
        if found != wanted:
            self._capture.release()
            name = found.to_bytes(4, "little", signed=True).decode("latin1")
            raise ValueError(
                f"multismolvla_thermal: the device {where} delivers {name!r}, expected {_FOURCC!r}: colour "
                "and 8-bit pictures have no temperatures. Switch it to its radiometric 16-bit format."
            )

    def read(self) -> NDArray[Any]:
        """See `Source`."""
        there, frame = self._capture.read()
        if not there:
            raise OSError("the device delivers no frame")
        return np.asarray(frame)

    def close(self) -> None:
        """See `Source`."""
        self._capture.release()


class _FileSource:
    """Recorded frames (N, rows, width), over and over."""

    def __init__(self, file: str, fps: float) -> None:
        try:
            self._frames = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ConnectionError(f"ThermalCamera({file}) cannot be read: {error}.") from error
        if self._frames.ndim != 3 or not len(self._frames):
            raise ValueError(
                f"multismolvla_thermal: {file} has shape {self._frames.shape}, expected frames (N, rows, "
                "width)."
            )
        self._period, self._next = 1 / fps, 0

    def read(self) -> NDArray[Any]:
        """See `Source`."""
        if self._next:
            time.sleep(self._period)
        frame = self._frames[self._next % len(self._frames)]
        self._next += 1
        return np.array(frame)

    def close(self) -> None:
        """See `Source`."""


class _InnerSource:
    """Another camera of LeRobot's that delivers raw frames."""

    def __init__(self, camera: Camera) -> None:
        self._camera = camera
        camera.connect(warmup=False)  # the first frame is waited for here, and see `close_camera`

    def read(self) -> NDArray[Any]:
        """See `Source`."""
        return self._camera.async_read(1000 * _FIRST_S)

    def close(self) -> None:
        """See `Source`; waits for the camera's own reading thread."""
        while not close_camera(self._camera):
            logger.debug("%s: its driver still waits for a frame.", self._camera)

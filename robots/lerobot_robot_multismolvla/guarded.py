"""A camera around another camera that goes on when that one does not.

LeRobot's cameras raise when their picture is too old, and robots let that through: the roll-out ends and the
arm drops. This one gives an all-zero picture instead, which the policy's health step takes for absent, opens
the camera again in the background, and shows it again once it is steady.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from enum import StrEnum
from typing import Any

import numpy as np
from lerobot.cameras.camera import Camera
from lerobot.cameras.configs import CameraConfig
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError
from numpy.typing import NDArray

from lerobot_robot_multismolvla.config_guarded import AUTO, GuardedCameraConfig
from lerobot_robot_multismolvla.depth import MILLIMETRE, Aligner, DepthConverter, calibration_of, scale_of
from lerobot_robot_multismolvla.inner import camera_errors, camera_name, close_camera, make_camera

logger = logging.getLogger(__name__)

FIRST_MS = 2000  # how long the first picture is waited for
#: Seconds: a lost camera that was steady for so long is shown again, and for longer after each flap.
STEADY_S, LONGEST_STEADY_S = 0.5, 8.0
#: Seconds without a flap after which the patience is the first one again.
FORGIVEN_S = 60.0
#: Seconds after which a lost camera is opened again, doubled each time until a picture comes.
REOPEN_S, LONGEST_REOPEN_S = 1.0, 16.0
COLOUR, DEPTH = "rgb", "depth"


class Loss(StrEnum):
    """Why a picture is not shown."""

    ABSENT = "absent"  # could not be opened at the start
    OLD = "old"  # no new picture in time
    ERROR = "error"  # the camera raised
    SHAPE = "shape"  # of another size or type than agreed
    NOT_FINITE = "not finite"
    UNSTEADY = "unsteady"  # pictures come again, but have not done so for long enough


class _Stream:
    """Colour or depth of the guarded camera: what is known of it, and what is shown."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        self.name, self.shape = name, shape
        self.zeros: NDArray[Any] = np.zeros(shape, dtype)
        self.convert: DepthConverter | None = None  # what is shown of a good picture, if not that itself
        self.loss: Loss | None = None
        self.lost_since = 0.0
        self._good_since: float | None = None
        self._patience = 0.0  # seconds; it has not been lost yet

    def see(self, found: NDArray[Any] | Loss, now: float) -> tuple[NDArray[Any], bool]:
        """The picture to show for one that was found, or is lost, and whether that has just changed."""
        loss = found if isinstance(found, Loss) else self._wrong(found)
        if loss is not None:
            changed = self.loss is None
            if changed:
                calm = self._good_since is None or now - self._good_since > FORGIVEN_S
                longer = 0.0 if calm else min(2 * self._patience, LONGEST_STEADY_S)
                self._patience = max(STEADY_S, longer)
                self.lost_since = now
            self._good_since, self.loss = None, loss
            return self.zeros.copy(), changed
        assert not isinstance(found, Loss)
        if self._good_since is None:
            self._good_since = now
        if self.loss is not None and now - self._good_since < self._patience:
            self.loss = Loss.UNSTEADY
            return self.zeros.copy(), False
        back, self.loss = self.loss is not None, None
        if found.dtype != self.zeros.dtype:  # depth as floats
            self.zeros = np.zeros(self.shape, found.dtype)
        return found if self.convert is None else self.convert(found), back

    def _wrong(self, found: NDArray[Any]) -> Loss | None:
        typed = self.name == COLOUR or self.convert is not None
        if found.shape != self.shape or (typed and found.dtype != self.zeros.dtype):
            return Loss.SHAPE
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            return Loss.NOT_FINITE
        return None


class GuardedCamera(Camera):
    """Raises none of `camera_errors` once it is connected; see :class:`GuardedCameraConfig`.

    Colour and depth are lost and come back each by itself. A picture that comes back is shown once it has
    been steady for half a second, for longer after each further loss within a minute.

    Args:
        config: what is guarded, and how.

    Attributes:
        use_rgb: whether the inner camera has a colour picture.
        use_depth: whether it has a depth picture, uint16 (H, W, 1) in millimetres.
        losses: stream -> why it is not shown now; ``None`` = it is.

    Example:
        >>> camera = GuardedCamera(GuardedCameraConfig(inner=OpenCVCameraConfig(0, 30, 640, 480)))
    """

    clock = staticmethod(time.monotonic)

    def __init__(self, config: GuardedCameraConfig) -> None:
        super().__init__(config)
        self.config = config
        self._inner: Camera | None = None
        self._old: Camera | None = None  # not in use, and not closed yet
        try:
            says: Camera | CameraConfig = make_camera(config.inner)
        except (OSError, RuntimeError):
            says = config.inner  # it is not there; whether it must be is asked when it is connected
        nameless = isinstance(says, CameraConfig) or type(says).__str__ is object.__str__
        self._name = camera_name(config.inner) if nameless else str(says)  # the same, whatever comes
        self.use_rgb = bool(getattr(says, "use_rgb", True))
        self.use_depth = bool(getattr(says, "use_depth", False))
        shape = (config.height or 0, config.width or 0)  # both are known, see the configuration
        kinds: dict[str, tuple[int, Any]] = {}
        if self.use_rgb:
            kinds[COLOUR] = (3, np.uint8)
        if self.use_depth:
            kinds[DEPTH] = (1, np.uint16)
        self._streams = {
            name: _Stream(name, (*shape, channels), dtype) for name, (channels, dtype) in kinds.items()
        }
        self._connected = False
        self._lock = threading.Lock()  # of what is known of the streams
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __str__(self) -> str:
        return f"GuardedCamera({self._name})"

    @property
    def is_connected(self) -> bool:
        """Whether it was connected and not disconnected since; a lost camera is still connected."""
        return self._connected

    @property
    def losses(self) -> dict[str, Loss | None]:
        """Stream -> why it is not shown."""
        return {name: stream.loss for name, stream in self._streams.items()}

    @staticmethod
    def find_cameras() -> list[Any]:
        """Nothing: guarded cameras are found by their inner types."""
        return []

    def connect(self, warmup: bool = True) -> None:
        """Open the inner camera and watch it from then on.

        Raises:
            DeviceAlreadyConnectedError: it is connected.
            ConnectionError: the inner camera cannot be opened, and it is ``required``.
            ValueError: an option of it is wrong, its pictures have another size than the configuration says,
                or its depth another unit, or it has none to convert, or no calibration is known; or the log
                cannot be written.
        """
        if self._connected:
            raise DeviceAlreadyConnectedError(f"{self} is already connected.")
        self._check_log()
        try:
            inner = self._open(warmup)
            if self.use_rgb:
                self._check_size(inner.async_read(FIRST_MS))
        except ValueError:  # wrong options are an error also of a camera that may be absent
            self._close()
            raise
        except camera_errors() as error:
            self._close()
            if self.config.required:
                raise ConnectionError(
                    f"{self} cannot be opened: {error}. To start without it: required=false."
                ) from error
            logger.warning("%s cannot be opened and counts as absent: %s", self, error)
            for name in self._streams:
                self._show(name, Loss.ABSENT, str(error))
        self._connected = True
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, daemon=True, name=f"{self} watch")
        self._thread.start()

    def disconnect(self) -> None:
        """Close the inner camera.

        Raises:
            DeviceNotConnectedError: it is not connected.
        """
        if not self._connected:
            raise DeviceNotConnectedError(f"{self} is not connected.")
        self._connected = False
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10.0)  # opening a camera cannot be interrupted
        if not self._close():
            logger.warning("%s is left open: its driver still waits for a picture.", self)

    def read_latest(self, max_age_ms: int = 0) -> NDArray[Any]:
        """The colour picture now, uint8 (H, W, 3), or zeros; never waits.

        Args:
            max_age_ms: not used: the configuration's counts, because LeRobot's robots do not say theirs.
        """
        return self._read(COLOUR)

    def read_latest_depth(self, max_age_ms: int = 0) -> NDArray[Any]:
        """The depth picture now, uint16 (H, W, 1), or zeros; never waits."""
        return self._read(DEPTH)

    def async_read(self, timeout_ms: float = 200) -> NDArray[Any]:
        """The next colour picture; while the camera is lost zeros, at once."""
        inner = self._inner
        if inner is None or self._streams[COLOUR].loss is not None:
            return self.read_latest()
        return self._try(inner, COLOUR, "async_read", timeout_ms)

    def read(self) -> NDArray[Any]:
        """As :meth:`async_read`."""
        return self.async_read()

    # -- what is shown --------------------------------------------------------------------------------------

    def _read(self, name: str) -> NDArray[Any]:
        inner = self._inner
        if inner is None:
            return self._show(name, Loss.ABSENT, "it is being opened")
        method = "read_latest" if name == COLOUR else "read_latest_depth"
        return self._try(inner, name, method, self.config.max_age_ms)

    def _try(self, inner: Camera, name: str, method: str, limit_ms: float | None) -> NDArray[Any]:
        """What is shown of what the inner camera gives, or raises."""
        try:
            found = np.asarray(getattr(inner, method)(limit_ms))
        except camera_errors() as error:
            loss = Loss.OLD if isinstance(error, TimeoutError) else Loss.ERROR
            return self._show(name, loss, str(error))
        return self._show(name, found)

    def _show(self, name: str, found: NDArray[Any] | Loss, why: str = "") -> NDArray[Any]:
        with self._lock:
            stream = self._streams[name]
            shown, changed = stream.see(found, self.clock())
            if changed:
                self._report(stream, why if isinstance(found, Loss) else f"{found.shape}, {found.dtype}")
        return shown

    def _report(self, stream: _Stream, why: str) -> None:
        if stream.loss is None:
            logger.warning(
                "%s: %s is back after %.1f s.", self, stream.name, self.clock() - stream.lost_since
            )
        else:
            logger.warning("%s: %s is lost (%s: %s). The robot goes on.", self, stream.name, stream.loss, why)
        if self.config.log is None:
            return
        now, captured = time.time(), getattr(self._inner, "latest_timestamp", None)
        line = {
            "time": now,
            "camera": str(self),
            "stream": stream.name,
            "state": "back" if stream.loss is None else "lost",
            "cause": stream.loss,
            "why": why if stream.loss else None,
            # LeRobot's cameras say it by time.perf_counter, which begins anywhere
            "captured": now - (time.perf_counter() - captured) if isinstance(captured, float) else None,
        }
        try:
            self.config.log.parent.mkdir(parents=True, exist_ok=True)
            with self.config.log.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:  # a full disk must not stop a robot
            logger.warning("%s cannot write %s: %s", self, self.config.log, error)

    # -- what happens in the background ---------------------------------------------------------------------

    def _watch(self) -> None:
        """Open the camera again whenever it has been lost for a while."""
        wait = REOPEN_S
        while not self._stop.wait(wait):
            for name in self._streams:  # somebody must look, also while the robot does not
                self._read(name)
            dead = all(s.loss not in (None, Loss.UNSTEADY) for s in self._streams.values())
            # while one of its pictures is there, opening it again would lose that, too
            if dead and self.clock() - max(s.lost_since for s in self._streams.values()) >= REOPEN_S:
                self._reopen()
                wait = min(2 * wait, LONGEST_REOPEN_S)  # opening may succeed though no picture comes
            elif not dead:
                wait = REOPEN_S

    def _reopen(self) -> None:
        try:
            self._open(warmup=False)
        except camera_errors() as error:
            self._close()
            level = logging.WARNING if isinstance(error, ValueError) else logging.DEBUG  # a wrong option
            logger.log(level, "%s cannot be opened again yet: %s", self, error)

    def _convert_depth(self, inner: Camera) -> None:
        """Find out how this camera's depth becomes millimetres, seen from the colour camera.

        Raises:
            ValueError: that cannot be known, or is not as configured.
        """
        config = self.config
        if not self.use_depth:
            if config.depth_scale is not None:
                raise ValueError(
                    f"{self}: depth_scale is given, but it has no depth. Set inner.use_depth=true."
                )
            return
        told, given = scale_of(inner), config.depth_scale
        wanted = given if isinstance(given, float) else told if given == AUTO else MILLIMETRE
        if wanted is None:
            raise ValueError(f"{self} does not say its depth scale. Set depth_scale to metres per unit.")
        if told is not None and not math.isclose(told, wanted, rel_tol=0.01):
            set_to = "is not given, which means 0.001" if given is None else f"is {given}"
            raise ValueError(
                f"{self} says that a unit of depth is {told:g} m, but depth_scale {set_to}. Policies and "
                "data sets hold millimetres; set depth_scale: auto to have them."
            )
        align = self._aligner(inner) if config.align else None
        if given is not None:
            self._streams[DEPTH].convert = DepthConverter(wanted / MILLIMETRE, align)

    def _aligner(self, inner: Camera) -> Aligner:
        found = self.config.calibration or calibration_of(inner)
        if found is None:
            raise ValueError(
                f"{self}: align=true, but the camera does not say where depth and colour are measured. Give "
                "calibration: {depth: {...}, colour: {...}, rotation: [...], translation: [...]}."
            )
        size = (self.config.width, self.config.height)
        for name, lens in (("depth", found.depth), ("colour", found.colour)):
            if (lens.width, lens.height) != size:
                raise ValueError(
                    f"{self}: the calibration of {name} is for {lens.width}x{lens.height}, the pictures are "
                    f"{size[0]}x{size[1]}. Calibrate at this size (and without inner.rotation)."
                )
        if getattr(inner, "rotation", None) is not None:
            raise ValueError(
                f"{self}: align=true, but inner.rotation turns the pictures, and the calibration is for "
                "those before. Take inner.rotation out; the policy's half_turns turns all of a view alike."
            )
        return Aligner(found)

    def _check_size(self, first: NDArray[Any]) -> None:
        if first.shape != self._streams[COLOUR].shape:
            raise ValueError(
                f"{self} delivers pictures of {first.shape[1]}x{first.shape[0]}, expected "
                f"{self.config.width}x{self.config.height}. Set width and height to what it delivers."
            )

    def _check_log(self) -> None:
        """Refuse a log that cannot be written.

        Its folder is made with the first line: LeRobot makes that of a data set after it has connected the
        robot, and will not have it there before.
        """
        if self.config.log is None:
            return
        log = self.config.log.absolute()
        place = next(place for place in (log, *log.parents) if place.exists())
        if log.is_dir() or not (place == log or place.is_dir()) or not os.access(place, os.W_OK):
            raise ValueError(f"{self}: log={log} cannot be written. Name a file in a folder that can be.")

    def _open(self, warmup: bool) -> Camera:
        """Open the inner camera anew. Raises what it raises, and leaves it to be closed then."""
        if not self._close():
            raise ConnectionError("its driver still waits for a picture from when it was open last")
        inner = self._old = make_camera(self.config.inner)
        # LeRobot's own warm-up closes a camera without pictures under its reading thread, see `close_camera`.
        # A RealSense keeps it, because it tries again and resets the device.
        realsense = self.config.inner.type == "intelrealsense"
        inner.connect(warmup=warmup and realsense)
        if warmup and not realsense and self.use_rgb:
            seconds = getattr(self.config.inner, "warmup_s", 0)
            inner.async_read(max(FIRST_MS, 1000 * seconds))
            time.sleep(seconds)
        self._convert_depth(inner)
        self._inner, self._old = inner, None
        return inner

    def _close(self) -> bool:
        """Close the inner camera if it is open; ``False`` while its driver waits for a picture."""
        self._old, self._inner = self._inner or self._old, None
        if self._old is not None and not close_camera(self._old):
            return False
        self._old = None
        return True

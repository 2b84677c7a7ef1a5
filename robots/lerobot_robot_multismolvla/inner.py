"""A camera inside another one: how it is made and called, what it may raise, and how it is closed."""

from __future__ import annotations

import logging
import sys
import threading

from lerobot.cameras.camera import Camera
from lerobot.cameras.configs import CameraConfig
from lerobot.cameras.utils import make_cameras_from_configs

logger = logging.getLogger(__name__)

READER_S = 2.0  # how long a camera's reading thread is waited for
#: What drivers raise: lost devices and time-outs (OSError), what reading from half-closed ones gives, and
#: their own slips. Not here: ImportError, since a package that is missing is an error at the start.
BUILTIN_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, LookupError, NameError, OSError,
    ReferenceError, RuntimeError, StopIteration, SystemError, TypeError, ValueError,
)  # fmt: skip
#: Errors of libraries that drivers build on, which derive from none of those.
LIBRARY_ERRORS = (
    "cv2.error", "zmq.ZMQError", "grpc.RpcError", "grpc.FutureTimeoutError", "av.FFmpegError",
    "struct.error", "zlib.error", "queue.Empty", "subprocess.SubprocessError", "http.client.HTTPException",
)  # fmt: skip
#: By what configurations of LeRobot's cameras, and of this package's, tell one camera from another.
_IDENTITY = (
    "index_or_path", "serial_number_or_name", "name", "camera_name", "server_address", "port", "picture",
)  # fmt: skip
#: lerobot 0.6.1 looks the name of a RealSense up in its constructor: a ValueError if it is not plugged in.
_UNPLUGGED = "No RealSense camera found"


def camera_errors() -> tuple[type[Exception], ...]:
    """What a camera may raise because of its device, its driver or its connection.

    ``except camera_errors():`` asks when something has been raised, so what raised it has been imported, and
    nothing is imported here. An error class of a camera's own is not among them.
    """
    names = (name.rpartition(".") for name in LIBRARY_ERRORS)
    loaded = (getattr(sys.modules.get(module), name, None) for module, _, name in names)
    return (*BUILTIN_ERRORS, *(error for error in loaded if error is not None))


def make_camera(config: CameraConfig) -> Camera:
    """LeRobot's camera for a configuration, not connected.

    Raises:
        ConnectionError: its constructor looks for its device, which is not there.
        ValueError: an option is wrong.
    """
    try:
        return make_cameras_from_configs({"inner": config})["inner"]
    except ValueError as error:
        cause = error.__cause__  # of a plugin's camera: LeRobot makes a ValueError of all
        if isinstance(cause, OSError | RuntimeError) or _UNPLUGGED in str(error):
            raise ConnectionError(str(cause or error)) from error
        raise


def camera_name(config: CameraConfig) -> str:
    """How messages call a camera that is not made, or has no name of its own: ``opencv(2)``."""
    values = [getattr(config, name, None) for name in _IDENTITY]
    known = ", ".join(str(value) for value in values if value is not None)
    return f"{config.type}({known})" if known else config.type


def close_camera(camera: Camera) -> bool:
    """Close a camera, unless a thread of its own is still reading from the device.

    LeRobot 0.6.1 waits two seconds for that thread and then closes the device under it; with OpenCV the whole
    process ends when the device delivers again. Its cameras call the thread and what ends it ``thread`` and
    ``stop_event``.

    Returns:
        Whether it is closed. If not, its thread ends when its read returns: try again then.
    """
    try:
        stop, thread = getattr(camera, "stop_event", None), getattr(camera, "thread", None)
        if isinstance(stop, threading.Event):
            stop.set()
        if isinstance(thread, threading.Thread):
            thread.join(READER_S)
            if thread.is_alive():
                return False
        camera.disconnect()
    except camera_errors() as error:
        logger.debug("%s did not close: %s", camera, error)
    return True

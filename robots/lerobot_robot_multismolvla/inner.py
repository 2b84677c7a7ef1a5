"""A camera inside another one: what it may raise."""

from __future__ import annotations

import sys

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


def camera_errors() -> tuple[type[Exception], ...]:
    """What a camera may raise because of its device, its driver or its connection.

    ``except camera_errors():`` asks when something has been raised, so what raised it has been imported, and
    nothing is imported here. An error class of a camera's own is not among them.
    """
    names = (name.rpartition(".") for name in LIBRARY_ERRORS)
    loaded = (getattr(sys.modules.get(module), name, None) for module, _, name in names)
    return (*BUILTIN_ERRORS, *(error for error in loaded if error is not None))

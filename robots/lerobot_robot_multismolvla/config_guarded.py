"""The configuration of a guarded camera, apart because LeRobot imports it with every command."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from lerobot.cameras.configs import CameraConfig

LEAST_AGE_MS = 100
LONGEST_TIMEOUT_MS = 1000
FRAMES = 3  # that may be missing before a picture is too old


@CameraConfig.register_subclass("multismolvla_guarded")
@dataclass(kw_only=True)
class GuardedCameraConfig(CameraConfig):
    """``{type: multismolvla_guarded, inner: {type: opencv, ...}, width: 640, height: 480, fps: 30}``.

    Attributes:
        inner: the camera that is guarded. What it leaves out of width, height and fps it gets from here, and
            the other way round.
        max_age_ms: a picture older than this counts as lost; ``None`` = 100 ms, or three pictures.
        required: whether the robot must not start without this camera.
        log: file to which a line of JSON is appended whenever a picture is lost or back.
    """

    inner: CameraConfig
    max_age_ms: int | None = None
    required: bool = True
    log: Path | None = None

    def __post_init__(self) -> None:
        if isinstance(self.inner, GuardedCameraConfig):
            raise ValueError(
                "multismolvla_guarded: inner is a multismolvla_guarded camera, too. Guard a camera once."
            )
        timeout_ms = getattr(self.inner, "timeout_ms", 0)
        if timeout_ms > LONGEST_TIMEOUT_MS:
            raise ValueError(
                f"multismolvla_guarded: inner.timeout_ms={timeout_ms}; expected at most "
                f"{LONGEST_TIMEOUT_MS}. LeRobot 0.6.1 closes a zmq camera under a thread that still waits "
                "for a picture after 2 s, and that ends the whole process."
            )
        for name in ("width", "height", "fps"):
            own, inner = getattr(self, name), getattr(self.inner, name)
            if own is not None and inner is not None and own != inner:
                raise ValueError(
                    f"multismolvla_guarded: {name}={own}, but inner.{name}={inner}. Give one of them."
                )
            found = own if own is not None else inner
            if found is None:
                raise ValueError(
                    f"multismolvla_guarded: {name} is not given, and a picture must have a size and a rate "
                    "before the camera has been opened. Set it as the camera delivers it."
                )
            setattr(self, name, found)
            setattr(self.inner, name, found)
        assert self.fps is not None  # given, see above
        period = 1000 / self.fps
        if self.max_age_ms is None:
            self.max_age_ms = max(LEAST_AGE_MS, math.ceil(FRAMES * period))
        if self.max_age_ms < 2 * period:
            raise ValueError(
                f"multismolvla_guarded: max_age_ms={self.max_age_ms} is less than two pictures at "
                f"{self.fps} per second, so a healthy camera would count as lost. Give at least "
                f"{math.ceil(2 * period)}."
            )

"""The configuration of a guarded camera, apart because LeRobot imports it with every command."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from lerobot.cameras.configs import CameraConfig

from lerobot_robot_multismolvla.calibration import Calibration

LEAST_AGE_MS = 100
AUTO = "auto"  # of depth_scale: as the camera says
FRAMES = 3  # that may be missing before a picture is too old


@CameraConfig.register_subclass("multismolvla_guarded")
@dataclass(kw_only=True)
class GuardedCameraConfig(CameraConfig):
    """``{type: multismolvla_guarded, inner: {type: opencv, ...}, width: 640, height: 480, fps: 30}``.

    Attributes:
        inner: the camera that is guarded. What it leaves out of width, height and fps it gets from here, and
            the other way round.
        max_age_ms: a picture older than this counts as lost; ``None`` = 100 ms, or three pictures.
        depth_scale: metres per unit of the inner camera's depth, or ``auto`` = as it says; then depth comes
            out in millimetres, as LeRobot and the policy take it. ``None`` = it is in millimetres already.
        align: show depth from where the colour picture is taken.
        calibration: where both are measured; ``None`` = as the inner camera says.
        required: whether the robot must not start without this camera.
        log: file to which a line of JSON is appended whenever a picture is lost or back.
    """

    inner: CameraConfig
    max_age_ms: int | None = None
    depth_scale: float | str | None = None
    align: bool = False
    calibration: Calibration | None = None
    required: bool = True
    log: Path | None = None

    def __post_init__(self) -> None:
        self._check_depth()
        if isinstance(self.inner, GuardedCameraConfig):
            raise ValueError(
                "multismolvla_guarded: inner is a multismolvla_guarded camera, too. Guard a camera once."
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

    def _check_depth(self) -> None:
        if isinstance(self.depth_scale, str) and self.depth_scale != AUTO:
            self.depth_scale = _number(self.depth_scale)
        known = self.depth_scale is None or self.depth_scale == AUTO
        if not known and not (isinstance(self.depth_scale, float) and 0 < self.depth_scale < 1):
            raise ValueError(
                f"multismolvla_guarded: depth_scale={self.depth_scale}; expected auto, or metres per unit "
                "between 0 and 1, such as 0.001."
            )
        if self.align and self.depth_scale is None:
            raise ValueError(
                "multismolvla_guarded: align=true, but depth_scale is not given, and what is near lies "
                "elsewhere than what is far. Set depth_scale: auto, or metres per unit."
            )
        if self.calibration is not None and not self.align:
            raise ValueError("multismolvla_guarded: a calibration is given, but align=false uses none.")


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text

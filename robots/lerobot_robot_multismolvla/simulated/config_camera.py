"""The configuration of a simulated camera, apart because LeRobot imports it with every command."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.cameras.configs import CameraConfig

from lerobot_robot_multismolvla.simulated.faults import parse_faults

OUTPUTS = ("rgb", "rgbd", "y16")


@CameraConfig.register_subclass("multismolvla_sim_camera")
@dataclass(kw_only=True)
class SimCameraConfig(CameraConfig):
    """``{type: multismolvla_sim_camera, picture: image, width: 64, height: 64, fps: 20}``.

    Attributes:
        picture: which of the simulated arm's pictures; ``None`` = a moving test picture, for any arm.
        output: ``rgb``; ``rgbd``: depth beside it, as a RealSense delivers it; ``y16``: a radiometric thermal
            camera's hundredths of a kelvin instead.
        depth_scale: metres per unit of depth.
        depth_shift_m: of the test picture: the depth sensor sits so far to the right of the colour sensor, so
            that depth is not aligned with it.
        faults: what happens to it when, e.g. ``[lost@40-60, black@80-]``. Steps are those of the simulated
            arm's episode, or without it pictures since the camera was opened first.
    """

    picture: str | None = None
    output: str = "rgb"
    depth_scale: float = 0.001
    depth_shift_m: float = 0.0
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise ValueError(
                f"multismolvla_sim_camera: output={self.output!r}; expected one of {', '.join(OUTPUTS)}."
            )
        for name in ("width", "height", "fps"):
            if not getattr(self, name):
                raise ValueError(f"multismolvla_sim_camera: {name} is not given.")
        if not self.depth_scale > 0:
            raise ValueError(
                f"multismolvla_sim_camera: depth_scale={self.depth_scale}; expected metres per unit, e.g. "
                "0.001, or 0.0001 as a RealSense D405 has it."
            )
        if self.depth_shift_m and self.picture is not None:
            raise ValueError(
                "multismolvla_sim_camera: the simulated arm's depth is seen from where its colour is. Leave "
                "out depth_shift_m, or picture."
            )
        parse_faults(self.faults)

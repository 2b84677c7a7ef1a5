"""The configuration of a thermal camera, apart because LeRobot imports it with every command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lerobot.cameras.configs import CameraConfig

#: Layout -> what it delivers.
LAYOUTS = {
    "y16": "a picture of uint16, hundredths of a kelvin",
    "lepton": "the same with rows of telemetry below (FLIR Lepton with TLinear)",
    "infiray_p2": "two pictures, the lower one in 64ths of a kelvin (InfiRay P2)",
}
COLDEST_C, HOTTEST_C = -100.0, 1000.0


@CameraConfig.register_subclass("multismolvla_thermal")
@dataclass(kw_only=True)
class ThermalCameraConfig(CameraConfig):
    """``{type: multismolvla_thermal, index_or_path: 2, layout: lepton, range_c: [10, 60], width: 160, ...}``.

    Attributes:
        range_c: degrees Celsius that are shown black and white, always; as ``policy.thermal_range_c``.
        layout: of what the source delivers, see `LAYOUTS`.
        index_or_path: number or path of a video device, or a ``.npy`` file of recorded frames, uint16
            (N, rows, width), which are shown at ``fps`` over and over.
        inner: another camera that delivers such frames, in place of ``index_or_path``.
    """

    range_c: tuple[float, float]
    layout: str = "y16"
    index_or_path: int | Path | None = None
    inner: CameraConfig | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(
                f"multismolvla_thermal: layout={self.layout!r} is unknown. Expected one of {LAYOUTS}."
            )
        low, high = self.range_c
        if not COLDEST_C <= low < high <= HOTTEST_C:
            raise ValueError(
                f"multismolvla_thermal: range_c={list(self.range_c)}; expected [lowest, highest] in degrees "
                "Celsius. It must be that of the training: policy.thermal_range_c."
            )
        if (self.index_or_path is None) == (self.inner is None):
            raise ValueError("multismolvla_thermal: give index_or_path or inner, one of them.")

    @property
    def rows(self) -> int:
        """Rows of what the source delivers."""
        height = self.height or 0  # given, see the camera
        if self.layout == "lepton":
            return height + (3 if height == 60 else 2)  # of the 80x60 and the 160x120 sensor
        return 2 * height if self.layout == "infiray_p2" else height

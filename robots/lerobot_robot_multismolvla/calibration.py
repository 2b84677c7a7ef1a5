"""Where a camera measures depth and colour."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Pinhole:
    """Focal lengths and centre of a camera without distortion, in pixels, and the size that they are for."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float


@dataclass(frozen=True)
class Calibration:
    """Where depth and colour are measured.

    Attributes:
        depth: of the depth sensor.
        colour: of the colour sensor.
        rotation: (3, 3), row by row, of points in the depth sensor's frame into the colour sensor's (x to the
            right, y down, z ahead).
        translation: (3,), metres.
    """

    depth: Pinhole
    colour: Pinhole
    rotation: list[float] = field(default_factory=lambda: [1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0])
    translation: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def __post_init__(self) -> None:
        numbers = {"rotation": (self.rotation, 9), "translation": (self.translation, 3)}
        for name, (found, wanted) in numbers.items():
            if len(found) != wanted or not np.isfinite(found).all():
                raise ValueError(f"calibration.{name}={found}; expected {wanted} finite numbers.")
        turn = np.reshape(self.rotation, (3, 3))
        if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-3) or np.linalg.det(turn) < 0:
            raise ValueError(f"calibration.rotation={self.rotation} is no rotation (row by row).")

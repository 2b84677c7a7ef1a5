"""Cross-modal faults: each picture is intact, but it no longer agrees with the others. Never announced.

=============  ==============================================================================================
``shift``      Depth, segmentation or thermal is displaced sideways against RGB, in pixels of a picture 224
               wide, by at least one of its own. Left or right: a coin per episode.
``rotated``    The picture is turned by 180 degrees.
``swapped``    Each camera delivers the picture of the next one (with two: they change places). Needs both
               pictures, so the environment's fault wrapper does it.
``scale``      Depth is multiplied by a factor: a wrong unit or focal length.
``moved``      The camera sits so many centimetres from where it was calibrated, in a direction drawn once per
               episode and camera; all modalities of a camera that move together move the same way. The
               environment renders from there.
``turned``     The same, turned by so many degrees about an axis of any direction.
=============  ==============================================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

TYPES: dict[str, tuple[str, ...]] = {
    "rgb": ("rotated", "swapped", "moved", "turned"),
    "depth": ("shift", "rotated", "swapped", "scale", "moved", "turned"),
    "seg": ("shift", "rotated", "swapped", "moved", "turned"),
    "thermal": ("shift", "rotated", "swapped", "moved", "turned"),
}
#: Types of a camera that is not where it was calibrated -> unit of the number, and the largest.
DISPLACED: dict[str, tuple[str, float]] = {"moved": ("centimetres", 100), "turned": ("degrees", 180)}
#: Types that need more than the picture.
BEYOND_ONE_PICTURE = ("swapped", *DISPLACED)
#: The protocol's values of the types that have a number: pixels at ``REFERENCE_WIDTH``, factor, centimetres,
#: degrees.
PARAMETERS: dict[str, tuple[float, ...]] = {
    "shift": (2, 4, 8, 16),
    "scale": (0.8, 1.2),
    "moved": (1, 2, 5),
    "turned": (2, 5, 10),
}
REFERENCE_WIDTH = 224


def check_parameter(type: str, parameter: float | None) -> str | None:
    """What is wrong with a parameter, in words; ``None`` if nothing."""
    if type == "shift":
        if parameter is not None and 0 < parameter < REFERENCE_WIDTH:
            return None
        return f"needs pixels at a width of {REFERENCE_WIDTH}, between 0 and it, e.g. shift@8"
    if type == "scale":
        if parameter is not None and parameter > 0 and parameter != 1 and math.isfinite(parameter):
            return None
        return "needs a positive factor other than 1, e.g. scale@0.8"
    if type in DISPLACED:
        unit, largest = DISPLACED[type]
        if parameter is not None and 0 < parameter <= largest:
            return None
        return f"needs {unit}, more than 0 and at most {largest:g}, e.g. {type}@{PARAMETERS[type][1]:g}"
    return None if parameter is None else f"has no number: write {type}"


@dataclass(frozen=True)
class Displacement:
    """Where a camera is, in its own frame: x right, y up, z against the line of sight.

    Attributes:
        offset: in metres.
        turn: axis times angle in radians.
    """

    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)


def draw_displacement(type: str, parameter: float, generator: Generator) -> Displacement:
    """A displacement of ``moved`` or ``turned`` in a random direction."""
    import torch

    direction = torch.randn(3, generator=generator, dtype=torch.float64)
    unit = direction / direction.norm()
    size = parameter / 100 if type == "moved" else math.radians(parameter)
    x, y, z = (unit * size).tolist()
    return Displacement(offset=(x, y, z)) if type == "moved" else Displacement(turn=(x, y, z))


def apply_cross(
    image: Tensor,
    valid: Tensor | None,
    modality: str,
    type: str,
    parameter: float | None,
    generator: Generator,
) -> tuple[Tensor, Tensor | None]:
    """Displace, turn or scale one picture.

    Args:
        image: (C, H, W), dtype and unit as in :func:`multismolvla.corruption.soft.apply_soft`.
        valid: bool (1, H, W) or ``None``.
        modality: one of ``MODALITIES``.
        type: ``shift``, ``rotated`` or ``scale``.
        parameter: pixels or factor, ``None`` for ``rotated``.
        generator: CPU generator, the same in all frames of an episode.

    Returns:
        New tensors. Where a shifted picture shows nothing, depth is 0 and invalid, the class is 0
        (background), and thermal repeats its border.

    Raises:
        ValueError: the modality cannot have this fault, or it needs more than its picture.
    """
    if type not in TYPES[modality] or type in BEYOND_ONE_PICTURE:
        raise ValueError(f"Cannot apply {type!r} to one {modality} picture. Known: {list(TYPES[modality])}.")
    if type == "rotated":
        return image.flip(-1, -2), None if valid is None else valid.flip(-1, -2)
    if type == "scale":
        return image * float(parameter or 1.0), valid
    import torch

    width = image.shape[-1]
    pixels = min(width - 1, max(1, round(float(parameter or 0.0) * width / REFERENCE_WIDTH)))
    right = bool(torch.rand((), generator=generator) < 0.5)
    border = "edge" if modality == "thermal" else "zero"
    return (
        _shifted(image, pixels, right, border),
        None if valid is None else _shifted(valid, pixels, right, "zero"),
    )


def _shifted(picture: Tensor, pixels: int, right: bool, border: str) -> Tensor:
    """(C, H, W) moved sideways; the uncovered columns are zero or repeat the border column."""
    moved = picture.roll(pixels if right else -pixels, -1)
    uncovered = slice(0, pixels) if right else slice(picture.shape[-1] - pixels, None)
    column = picture[..., :1] if right else picture[..., -1:]
    moved[..., uncovered] = column if border == "edge" else 0
    return moved

"""Geometry of a view: the same square, rotation and size for every stream, so that their cells coincide.

Interpolation differs by modality (class ids are picked, never mixed; depth is averaged over valid pixels
only), the sampling grid does not: all of them use half-pixel centres (``align_corners=False``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

SQUARE_MODES = ("crop", "stretch", "pad")


def to_square(image: Tensor, mode: str = "crop") -> Tensor:
    """Make a picture square without changing its pixels' values.

    Args:
        image: (..., H, W), any dtype.
        mode: ``"crop"`` takes the centre square (4M-21's own convention, apple/ml-4m); ``"pad"`` adds zeros
            on the left and on top, as SmolVLA does (lerobot 0.6.1, ``resize_with_pad``), so that cells show
            what they show SigLIP; ``"stretch"`` leaves the picture as it is, so that the following resize
            changes its aspect ratio.

    Returns:
        (..., S, S) for ``"crop"`` with S = min(H, W) and for ``"pad"`` with S = max(H, W), else the input.

    Raises:
        ValueError: for an unknown mode.
    """
    if mode not in SQUARE_MODES:
        raise ValueError(f"Unknown square mode {mode!r}. Expected one of {SQUARE_MODES}.")
    height, width = image.shape[-2:]
    if mode == "stretch" or height == width:
        return image
    if mode == "pad":
        side = max(height, width)
        return F.pad(image, (side - width, 0, side - height, 0))
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[..., top : top + side, left : left + side]


def padding_free(image: Tensor, mode: str) -> Tensor | None:
    """Where a picture made square shows the camera's picture, bool (B, 1, S, S); ``None`` = everywhere.

    Args:
        image: (B, C, H, W), before :func:`to_square`.
        mode: of :func:`to_square`.
    """
    if mode != "pad" or image.shape[-2] == image.shape[-1]:
        return None
    whole = torch.ones(len(image), 1, *image.shape[-2:], dtype=torch.uint8, device=image.device)
    return to_square(whole, mode).bool()


def cells_seen(mask: Tensor, grid: Sequence[int], least: float = 0.5) -> Tensor:
    """Cells of which at least a share lies in a mask (B, 1, S, S): bool (B, h, w)."""
    rows, columns = grid
    return F.adaptive_avg_pool2d(mask.float(), (rows, columns))[:, 0] >= least


def rotate_half_turns(image: Tensor, half_turns: int) -> Tensor:
    """Rotate (..., H, W) by ``half_turns`` x 180 degrees (a camera mounted upside down)."""
    return image.flip(-1, -2) if half_turns % 2 else image


def resize_continuous(image: Tensor, size: int) -> Tensor:
    """Resize float (B, C, H, W) to (B, C, size, size), bilinear with antialiasing."""
    if image.shape[-2:] == (size, size):
        return image
    return F.interpolate(image, (size, size), mode="bilinear", align_corners=False, antialias=True)


def resize_ids(ids: Tensor, size: int) -> Tensor:
    """Resize integer ids (B, 1, H, W) to (B, 1, size, size) by picking the nearest pixel; makes no new id."""
    if ids.shape[-2:] == (size, size):
        return ids
    return F.interpolate(ids.to(torch.float64), (size, size), mode="nearest-exact").to(ids.dtype)


def resize_depth(depth: Tensor, valid: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Resize metric depth, averaging valid pixels only.

    Args:
        depth: float (B, 1, H, W), metres; values where ``valid`` is False are ignored.
        valid: bool (B, 1, H, W).
        size: side of the result in pixels.

    Returns:
        Depth (B, 1, size, size) with 0 where nothing valid was near, and its validity: at least half of the
        interpolation weight lay on valid pixels, so a hole neither spreads nor vanishes.
    """
    if depth.shape[-2:] == (size, size):
        return torch.where(valid, depth, 0.0), valid
    weight = valid.to(depth.dtype)
    mass = resize_continuous(weight, size)
    mean = resize_continuous(torch.where(valid, depth, 0.0), size) / mass.clamp_min(1e-6)
    new_valid = mass >= 0.5
    return torch.where(new_valid, mean, 0.0), new_valid

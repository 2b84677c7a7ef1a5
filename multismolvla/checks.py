"""Checks of pictures that the tokenizers and networks share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def shape_and_dtype(values: Tensor) -> str:
    """E.g. ``float32 (2, 3, 224, 224)``, for messages."""
    return f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}"


def check_picture(name: str, image: Tensor, channels: int, *, floating: bool = True) -> None:
    """Refuse anything but floating (or integer) pictures (B, channels, H, W) with at least one pixel.

    Args:
        name: what takes the picture; the message begins with it.
        image: the picture.
        channels: their number.
        floating: whether it must be floating; integer, but not bool, otherwise.
    """
    kind_fits = image.is_floating_point() == floating and image.dtype != torch.bool
    if image.ndim != 4 or image.shape[1] != channels or not kind_fits or 0 in image.shape[2:]:
        raise ValueError(
            f"{name}: got {shape_and_dtype(image)}; expected {'floating' if floating else 'integer'} "
            f"(B, {channels}, H, W). Run the units step first."
        )


def checked_validity(name: str, image: Tensor, valid: Tensor | None) -> Tensor:
    """``valid``, checked to be bool of the picture's shape (B, 1, H, W); all True for ``None``."""
    if valid is None:
        return torch.ones_like(image, dtype=torch.bool)
    if valid.dtype != torch.bool or valid.shape != image.shape:
        raise ValueError(
            f"{name}: valid is {shape_and_dtype(valid)}; expected bool {tuple(image.shape)}, True = usable."
        )
    return valid


def check_range(name: str, seen: Tensor, low: float, high: float, expected: str) -> None:
    """Refuse valid pixels (any shape, possibly none) that are NaN, infinite or outside [low, high]."""
    if seen.numel() == 0:
        return
    minimum, maximum = (v.item() for v in seen.aminmax())  # passes NaN on: one look finds all faults
    if not (math.isfinite(minimum) and math.isfinite(maximum)):
        raise ValueError(
            f"{name}: {int((~seen.isfinite()).sum())} valid pixels are NaN or infinite. Mark them as invalid "
            "or repair the source."
        )
    if minimum < low or maximum > high:
        raise ValueError(
            f"{name}: values from {minimum:g} to {maximum:g}; expected {expected}. Check the declared unit "
            "of this stream."
        )

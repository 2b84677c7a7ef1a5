"""The one entry to soft corruption: checks the picture, brings it to its canonical form and back."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from multismolvla.corruption import depth as depth_faults
from multismolvla.corruption import rgb, segmentation, thermal
from multismolvla.corruption.names import SEVERITIES, SOFT_TYPES
from multismolvla.modalities import MODALITIES, PICTURE_CHANNELS


def apply_soft(
    image: Tensor,
    valid: Tensor | None,
    modality: str,
    type: str,
    severity: int,
    generator: Generator,
    labels: int | None = None,
    depth: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Corrupt one unbatched picture.

    Args:
        image: (C, H, W). rgb: (3, H, W), float32 in [0, 1] or uint8; depth: (1, H, W) float32 metres; seg:
            (1..3, H, W) integer, channel 0 class ids and channel 1 (if there) instance ids; thermal: (1 or 3,
            H, W), float32 in [0, 1] or uint8.
        valid: depth only: bool (1, H, W), True = a usable measurement; ``None`` = where it is above 0.
        modality: one of ``MODALITIES``.
        type: one of ``SOFT_TYPES[modality]``.
        severity: 1 (weak) to 5 (strong).
        generator: CPU generator, see :func:`multismolvla.corruption.frame_generator`.
        labels: size of the segmentation pictures' label set; ``label_swap`` needs it.
        depth: metric depth (1, h, w) of the same view, 0 = unknown, for ``smoke``; without it the distance
            grows evenly from the lower edge to the upper one.

    Returns:
        New picture of the same shape and dtype, and validity: for depth always a mask, otherwise ``valid``.

    Raises:
        ValueError: unknown modality, type or severity, another kind of picture, or no label set to swap in.
    """
    if modality not in MODALITIES:
        raise ValueError(f"Unknown modality {modality!r}. Known: {list(MODALITIES)}.")
    if type not in SOFT_TYPES[modality]:
        raise ValueError(f"Unknown corruption {type!r} for {modality}. Known: {list(SOFT_TYPES[modality])}.")
    if severity not in SEVERITIES:
        raise ValueError(f"Severity {severity!r} of {modality} {type!r} must be one of {list(SEVERITIES)}.")
    _check(image, modality)
    if modality == "depth":
        mask = image > 0 if valid is None else valid
        return depth_faults.corrupt(image, mask, type, severity, generator)
    if modality == "seg":
        ids = segmentation.corrupt(image.to(torch.int64), type, severity, generator, labels)
        return ids.to(image.dtype), valid
    whole = image.dtype == torch.uint8
    scaled = image.to(torch.float32) / 255 if whole else image
    if modality == "rgb":
        result = rgb.corrupt(scaled, type, severity, generator, depth)
    else:
        result = thermal.corrupt(scaled, type, severity, generator)
    return (result * 255).round().clamp(0, 255).to(torch.uint8) if whole else result, valid


def _check(image: Tensor, modality: str) -> None:
    channels = (1, 2, 3) if modality == "seg" else PICTURE_CHANNELS[modality]
    if image.ndim != 3 or image.shape[0] not in channels:
        raise ValueError(
            f"A {modality} picture must have shape (C, H, W) with C in {list(channels)}, got "
            f"{tuple(image.shape)}. Corruption works on single frames, channels first."
        )
    if modality == "seg":
        fits, expected = not image.is_floating_point() and image.dtype != torch.bool, "integer ids"
    elif modality == "depth":
        fits, expected = image.dtype == torch.float32, "float32 metres"
    else:
        fits, expected = image.dtype in (torch.uint8, torch.float32), "uint8 or float32 in [0, 1]"
    if not fits:
        raise ValueError(
            f"A {modality} picture of dtype {image.dtype} cannot be corrupted. Expected {expected}."
        )
    if image.is_floating_point() and not torch.isfinite(image).all():
        raise ValueError(
            f"The {modality} picture contains NaN or infinite values. Mark them as invalid first."
        )

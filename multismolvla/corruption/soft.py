"""The one entry to soft corruption: checks the picture, brings it to its canonical form and back."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from multismolvla.corruption import depth, rgb, segmentation, thermal
from multismolvla.corruption.names import SEVERITIES, SOFT_TYPES
from multismolvla.modalities import MODALITIES


def apply_soft(
    image: Tensor,
    valid: Tensor | None,
    modality: str,
    type: str,
    severity: int,
    generator: Generator,
    labels: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Corrupt one unbatched picture.

    Args:
        image: (C, H, W). rgb: (3, H, W), float32 in [0, 1] or uint8; depth: (1, H, W) float32 metres; seg: (1..3, H, W)
            integer, channel 0 class ids and channel 1 (if there) instance ids; thermal: (1 or 3, H, W), float32 in
            [0, 1] or uint8.
        valid: depth only: bool (1, H, W), True = a usable measurement. ``None`` means "where the depth is above 0".
        modality: one of ``MODALITIES``.
        type: one of ``SOFT_TYPES[modality]``.
        severity: 1 (weak) to 5 (strong).
        generator: CPU generator (:func:`multismolvla.corruption.frame_generator`); no other random state is used.
        labels: size of the segmentation pictures' label set; ``label_swap`` needs it.

    Returns:
        Picture of the same shape and dtype, and the validity: for depth always a mask, otherwise ``valid`` unchanged.
        The arguments are not modified.

    Raises:
        ValueError: unknown modality, type or severity, a picture that is not as described, or no label set to swap within.
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
        return depth.corrupt(image, mask, type, severity, generator)
    if modality == "seg":
        ids = segmentation.corrupt(image.to(torch.int64), type, severity, generator, labels)
        return ids.to(image.dtype), valid
    module = rgb if modality == "rgb" else thermal
    if image.dtype == torch.uint8:
        result = module.corrupt(image.to(torch.float32) / 255, type, severity, generator)
        return (result * 255).round().clamp(0, 255).to(torch.uint8), valid
    return module.corrupt(image, type, severity, generator), valid


def _check(image: Tensor, modality: str) -> None:
    channels = {"rgb": (3,), "depth": (1,), "seg": (1, 2, 3), "thermal": (1, 3)}[modality]
    if image.ndim != 3 or image.shape[0] not in channels:
        raise ValueError(
            f"A {modality} picture must have shape (C, H, W) with C in {list(channels)}, got {tuple(image.shape)}. "
            "Corruption works on single frames: index the batch and put channels first."
        )
    if modality == "seg":
        expected = not image.is_floating_point() and image.dtype != torch.bool
    elif modality == "depth":
        expected = image.dtype == torch.float32
    else:
        expected = image.dtype in (torch.uint8, torch.float32)
    if not expected:
        raise ValueError(
            f"A {modality} picture of dtype {image.dtype} cannot be corrupted. Expected "
            f"{ {'seg': 'integer ids', 'depth': 'float32 metres'}.get(modality, 'uint8 or float32 in [0, 1]') }."
        )
    if image.is_floating_point() and not torch.isfinite(image).all():
        raise ValueError(
            f"The {modality} picture contains NaN or infinite values. Mark them as invalid first."
        )

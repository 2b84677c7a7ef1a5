"""Hard faults: the content of a sensor that is gone."""

from __future__ import annotations

import torch
from torch import Tensor

from multismolvla.corruption.names import FREEZES, NOT_FOR_IDS

#: What "mid-grey" means for metric depth: a wall in the middle of a table-top camera's working range.
GREY_DEPTH_M = 1.0
#: Standard deviation of the noise of ``noisy_freeze``: share of the range, for depth of the distance.
SENSOR_NOISE = 0.01


def apply_hard(
    image: Tensor,
    valid: Tensor | None,
    modality: str,
    type: str,
    frozen: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Replace a picture by what a dead sensor delivers.

    Args:
        image: (C, H, W), dtype and unit as in :func:`multismolvla.corruption.soft.apply_soft`.
        valid: bool (1, H, W) or ``None``.
        modality: one of ``MODALITIES``.
        type: ``drop`` and ``zero``: all zeros (for depth: nothing valid); ``grey``: constant middle of the
            range; ``freeze``: the picture ``frozen``; ``noisy_freeze``: that with new sensor noise in every
            frame, so that no two frames are equal.
        frozen: the last good picture, for both kinds of freeze, same shape and dtype as ``image``.
        generator: of the noise.

    Returns:
        New tensors; the arguments are not changed.

    Raises:
        ValueError: the type is unknown or not for class ids, or there is no picture to show.
    """
    if type in ("drop", "zero"):
        return torch.zeros_like(image), None if valid is None else torch.zeros_like(valid)
    if modality == "seg" and type in NOT_FOR_IDS:
        raise ValueError(f"{NOT_FOR_IDS[type]} Use 'zero' or 'freeze' for seg.")
    if type == "grey":
        if modality == "depth":
            level: float = GREY_DEPTH_M
        else:
            level = 0.5 if image.is_floating_point() else 128
        return torch.full_like(image, level), None if valid is None else torch.ones_like(valid)
    if type in FREEZES:
        if frozen is None or frozen.shape != image.shape:
            raise ValueError(
                f"{type!r} needs the last good picture of shape {tuple(image.shape)}, got "
                f"{None if frozen is None else tuple(frozen.shape)}."
            )
        shown = frozen.clone() if type == "freeze" else _noisy(frozen, modality, generator)
        if modality == "depth" and valid is not None:
            return shown, frozen > 0
        return shown, valid
    raise ValueError(
        f"Unknown hard fault {type!r}. Known: ['drop', 'zero', 'grey', 'freeze', 'noisy_freeze']."
    )


def _noisy(picture: Tensor, modality: str, generator: torch.Generator | None) -> Tensor:
    """A picture with the noise of a sensor, in its own dtype and unit."""
    noise = SENSOR_NOISE * torch.randn(picture.shape, generator=generator)
    if modality == "depth":
        return picture * (1 + noise)
    if picture.is_floating_point():
        return (picture + noise).clamp(0, 1)
    return (picture + 255 * noise).round().clamp(0, 255).to(picture.dtype)

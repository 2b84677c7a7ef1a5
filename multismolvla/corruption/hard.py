"""Hard faults: the content of a sensor that is gone."""

from __future__ import annotations

import torch
from torch import Tensor

#: What "mid-grey" means for metric depth: a wall in the middle of a table-top camera's working range.
GREY_DEPTH_M = 1.0


def apply_hard(
    image: Tensor, valid: Tensor | None, modality: str, type: str, frozen: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Replace a picture by what a dead sensor delivers.

    Args:
        image: (C, H, W), dtype and unit as in :func:`multismolvla.corruption.soft.apply_soft`.
        valid: bool (1, H, W) or ``None``.
        modality: one of ``MODALITIES``.
        type: ``drop`` and ``zero``: all zeros (for depth: nothing valid); ``grey``: constant middle of the
            range; ``freeze``: the picture ``frozen``.
        frozen: the last good picture, for ``freeze``, same shape and dtype as ``image``.

    Returns:
        New tensors; the arguments are not changed.

    Raises:
        ValueError: the type is unknown, or ``freeze`` has no picture to show.
    """
    if type in ("drop", "zero"):
        return torch.zeros_like(image), None if valid is None else torch.zeros_like(valid)
    if type == "grey":
        if modality == "seg":
            raise ValueError("Class ids have no mid-grey. Use 'zero' or 'freeze' for seg.")
        if modality == "depth":
            level: float = GREY_DEPTH_M
        else:
            level = 0.5 if image.is_floating_point() else 128
        return torch.full_like(image, level), None if valid is None else torch.ones_like(valid)
    if type == "freeze":
        if frozen is None or frozen.shape != image.shape:
            raise ValueError(
                f"'freeze' needs the last good picture of shape {tuple(image.shape)}, got "
                f"{None if frozen is None else tuple(frozen.shape)}."
            )
        if modality == "depth" and valid is not None:
            return frozen.clone(), frozen > 0
        return frozen.clone(), valid
    raise ValueError(f"Unknown hard fault {type!r}. Known: ['drop', 'zero', 'grey', 'freeze'].")

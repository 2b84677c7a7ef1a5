"""The soft faults that training uses, for many pictures at once, on their device.

The definitions are those of :mod:`multismolvla.corruption.rgb`, the draws are not: a batch draws from one
generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from multismolvla.corruption.generic import FADE_ALPHA, OCCLUSION_AREA
from multismolvla.corruption.names import TRAINING_TYPES
from multismolvla.corruption.rgb import BLUR_SIGMA, BRIGHTNESS_SHIFT, NOISE_SIGMA


def corrupt_rgb(images: Tensor, kind: Tensor, severity: Tensor, generator: Generator) -> Tensor:
    """Disturb pictures, each by one of ``TRAINING_TYPES["rgb"]``.

    Args:
        images: float (N, 3, H, W) in [0, 1].
        kind: float (N,) in [0, 1), which type, evenly.
        severity: int64 (N,), 1 to 5.
        generator: on the pictures' device.

    Returns:
        New pictures.
    """
    types = TRAINING_TYPES["rgb"]
    number = (kind * len(types)).long().to(images.device)
    level = (severity - 1).to(images.device)
    out = images.clone()
    with torch.autocast(images.device.type, enabled=False):  # pictures, and no activations
        for i, type_ in enumerate(types):
            rows = (number == i).nonzero()[:, 0]
            if len(rows):
                out[rows] = _BY_TYPE[type_](images[rows], level[rows], generator)
    return out


def occlusion_masks(size: Sequence[int], severity: Tensor, draws: Tensor) -> Tensor:
    """One block per row, as :func:`multismolvla.corruption.generic.occlusion_mask`: bool (N, H, W).

    Args:
        size: (H, W) of the pictures.
        severity: int64 (N,), 1 to 5; 0 = no block.
        draws: float (N, 3) in [0, 1): place and shape. Equal draws cover the same part of any grid.
    """
    height, width = size
    y, x, stretch = draws.unbind(1)
    area = torch.tensor((0.0, *OCCLUSION_AREA), device=draws.device)[severity] * height * width
    h = ((area * height / width).sqrt() * (2 / 3 + stretch * 5 / 6).sqrt()).round().clamp(1, height)
    w = (area / h).round().clamp(1, width)
    top, left = (y * (height - h)).round()[:, None, None], (x * (width - w)).round()[:, None, None]
    rows = torch.arange(height, device=draws.device)[:, None]
    columns = torch.arange(width, device=draws.device)[None]
    inside = (rows >= top) & (rows < top + h[:, None, None]) & (columns >= left)
    return inside & (columns < left + w[:, None, None]) & (severity > 0)[:, None, None]


def _of(values: tuple[float, ...], level: Tensor) -> Tensor:
    """Each row's value, (N, 1, 1, 1)."""
    return torch.tensor(values, device=level.device)[level][:, None, None, None]


def _noise(images: Tensor, level: Tensor, generator: Generator) -> Tensor:
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return (images + _of(NOISE_SIGMA, level) * noise).clamp(0, 1)


def _blur(images: Tensor, level: Tensor, _: Generator) -> Tensor:
    """Every picture with its own width, as groups of one convolution."""
    number, channels, height, width = images.shape
    sigma = _of(BLUR_SIGMA, level).flatten()
    radius = min(round(3 * max(BLUR_SIGMA)), height - 1, width - 1)
    grid = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    # beyond three deviations there is nothing, as in the picture-by-picture definition
    near = grid.abs()[None] <= (3 * sigma).round().clamp_min(1)[:, None]
    kernel = torch.exp(-0.5 * (grid[None] / sigma[:, None]) ** 2) * near
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]  # (N * C, 1, K)
    x = F.pad(images, (radius, radius, radius, radius), mode="reflect").flatten(0, 1)[None]
    x = F.conv2d(x, kernel[..., None], groups=number * channels)
    x = F.conv2d(x, kernel[:, :, None], groups=number * channels)
    return x.reshape(images.shape).clamp(0, 1)


def _brightness(images: Tensor, level: Tensor, _: Generator) -> Tensor:
    return (images + _of(BRIGHTNESS_SHIFT, level)).clamp(0, 1)


def _occlusion(images: Tensor, level: Tensor, generator: Generator) -> Tensor:
    draws = torch.rand(len(images), 3, generator=generator, device=images.device)
    return images * ~occlusion_masks(images.shape[-2:], level + 1, draws)[:, None]


def _fade(images: Tensor, level: Tensor, _: Generator) -> Tensor:
    return images * _of(FADE_ALPHA, level)


_BY_TYPE = {
    "builtin_noise": _noise,
    "builtin_blur": _blur,
    "builtin_brightness": _brightness,
    "builtin_occlusion": _occlusion,
    "builtin_fade": _fade,
}

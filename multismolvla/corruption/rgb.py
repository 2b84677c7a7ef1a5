"""Soft faults of colour pictures.

Three families with different names, so that numbers cannot be confused:

* ImageNet-C's definitions (:mod:`multismolvla.corruption.imagenet_c`), for evaluation;
* what rooms do: a hand on the lens, the sun, smoke. For evaluation; no figure of them is published, and
  severities were chosen by looking at pictures (``docs/corruptions_rgb_more.png``);
* ``builtin_*``: a few in plain torch, for training and for pictures too small for ImageNet-C's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from multismolvla.corruption import imagenet_c
from multismolvla.corruption.generic import (
    FADE_ALPHA,
    dead_mask,
    gaussian_blur,
    occlusion_mask,
    smooth_field,
)
from multismolvla.corruption.names import IMAGENET_C_TYPES, ROOM_TYPES

NOISE_SIGMA = (0.06, 0.10, 0.15, 0.22, 0.32)
BLUR_SIGMA = (0.6, 1.0, 1.6, 2.4, 3.5)
BRIGHTNESS_SHIFT = (0.1, 0.2, 0.3, 0.4, 0.5)
#: Share of the light that still comes through a covered lens, and the noise of a sensor that amplifies it.
COVERED_LIGHT = (0.20, 0.12, 0.07, 0.04, 0.02)
COVERED_NOISE = (0.02, 0.03, 0.04, 0.05, 0.06)
#: Share of the picture that a half-covered lens loses.
HALF_COVERED = (0.2, 0.3, 0.4, 0.5, 0.6)
#: Radius of the over-exposed spot, as a share of the picture's smaller side.
GLARE_RADIUS = (0.10, 0.15, 0.20, 0.28, 0.38)
#: Optical depth of the smoke at the picture's mean distance.
SMOKE_DENSITY = (0.3, 0.6, 1.0, 1.6, 2.4)
_SMOKE_GREY = 0.75


def corrupt(
    image: Tensor, type: str, severity: int, generator: Generator, depth: Tensor | None = None
) -> Tensor:
    """See `.soft.apply_soft`; float32 (3, H, W) in [0, 1]."""
    if type in ROOM_TYPES:
        return _in_a_room(image, type, severity - 1, generator, depth)
    if type in IMAGENET_C_TYPES:
        return imagenet_c.corrupt(image, type, severity, generator)
    height, width = image.shape[-2:]
    if type == "builtin_noise":
        noise = torch.randn(image.shape, generator=generator)
        return (image + NOISE_SIGMA[severity - 1] * noise).clamp(0, 1)
    if type == "builtin_blur":
        return gaussian_blur(image, BLUR_SIGMA[severity - 1]).clamp(0, 1)
    if type == "builtin_brightness":
        return (image + BRIGHTNESS_SHIFT[severity - 1]).clamp(0, 1)
    if type == "builtin_occlusion":
        return torch.where(occlusion_mask(height, width, severity, generator), torch.zeros(()), image)
    if type == "builtin_fade":
        return image * FADE_ALPHA[severity - 1]
    mask = dead_mask(height, width, severity, generator)
    stuck = (torch.rand(1, height, width, generator=generator) < 0.5).to(image.dtype)
    return torch.where(mask, stuck, image)


def _in_a_room(image: Tensor, type: str, level: int, generator: Generator, depth: Tensor | None) -> Tensor:
    if type == "covered_lens":
        return _covered(image, level, generator)
    if type == "half_covered":
        return _half_covered(image, level, generator)
    return _glare(image, level, generator) if type == "glare" else _smoke(image, level, generator, depth)


def _covered(image: Tensor, level: int, generator: Generator) -> Tensor:
    """Dark, without sharp edges, and noisy: not constant."""
    dim = COVERED_LIGHT[level] * gaussian_blur(image, max(image.shape[-2:]) / 12)
    return (dim + COVERED_NOISE[level] * torch.randn(image.shape, generator=generator)).clamp(0, 1)


def _half_covered(image: Tensor, level: int, generator: Generator) -> Tensor:
    """From one side something out of focus reaches into the picture; the same side all the episode."""
    height, width = image.shape[-2:]
    side, darkness = torch.rand(2, generator=generator).tolist()
    length = width if side < 0.5 else height
    edge = torch.sigmoid((torch.linspace(0, 1, length) - HALF_COVERED[level]) * 30)  # 0 = covered
    edge = edge.flip(0) if side % 0.5 < 0.25 else edge
    mask = edge[None, None, :] if side < 0.5 else edge[None, :, None]
    return image * mask + 0.15 * darkness * (1 - mask)


def _glare(image: Tensor, level: int, generator: Generator) -> Tensor:
    """An over-exposed spot with a halo, elsewhere in every frame: it moves with whatever reflects the sun."""
    height, width = image.shape[-2:]
    y, x = (0.1 + 0.8 * torch.rand(2, generator=generator)).tolist()
    rows = torch.arange(height)[:, None] / min(height, width) - y * height / min(height, width)
    columns = torch.arange(width)[None] / min(height, width) - x * width / min(height, width)
    distance = (rows**2 + columns**2).sqrt() / GLARE_RADIUS[level]
    light = 1.5 * torch.exp(-(distance**2)) + 0.25 * torch.exp(-distance / 2)
    return (image + light).clamp(0, 1)


def _smoke(image: Tensor, level: int, generator: Generator, depth: Tensor | None) -> Tensor:
    """Contrast falls with distance, as in fog (Koschmieder's law), unevenly."""
    height, width = image.shape[-2:]
    if depth is None:
        relative = torch.linspace(1.5, 0.5, height)[None, :, None].expand(1, height, width)
    else:
        metres = F.interpolate(depth[None].float(), (height, width), mode="nearest")[0]
        mean = metres[metres > 0].mean() if (metres > 0).any() else torch.tensor(1.0)
        relative = torch.where(metres > 0, metres, mean) / mean
    drift = (1 + 0.3 * smooth_field(height, width, 4, generator)).clamp_min(0.2)
    left = torch.exp(-SMOKE_DENSITY[level] * relative * drift)
    return image * left + _SMOKE_GREY * (1 - left)

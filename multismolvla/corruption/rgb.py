"""Soft faults of colour pictures.

Three families with different names, so that numbers cannot be confused:

* ImageNet-C's definitions (:mod:`multismolvla.corruption.imagenet_c`), for evaluation;
* what rooms do (:mod:`multismolvla.corruption.room`), for evaluation;
* ``builtin_*``: a few in plain torch, for training and for pictures too small for ImageNet-C's.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from multismolvla.corruption import imagenet_c, room
from multismolvla.corruption.generic import FADE_ALPHA, dead_mask, gaussian_blur, occlusion_mask
from multismolvla.corruption.names import IMAGENET_C_TYPES, ROOM_TYPES

NOISE_SIGMA = (0.06, 0.10, 0.15, 0.22, 0.32)
BLUR_SIGMA = (0.6, 1.0, 1.6, 2.4, 3.5)
BRIGHTNESS_SHIFT = (0.1, 0.2, 0.3, 0.4, 0.5)


def corrupt(
    image: Tensor, type: str, severity: int, generator: Generator, depth: Tensor | None = None
) -> Tensor:
    """See `.soft.apply_soft`; float32 (3, H, W) in [0, 1]."""
    if type in ROOM_TYPES:
        return room.corrupt(image, type, severity, generator, depth)
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

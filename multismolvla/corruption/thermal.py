"""Soft faults of relative temperature pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from multismolvla.corruption.generic import FADE_ALPHA, dead_mask, occlusion_mask

PATTERN_SIGMA = (0.02, 0.04, 0.08, 0.12, 0.18)
GAIN = (0.8, 0.65, 0.5, 0.35, 0.2)
FACTOR = (2, 3, 4, 6, 8)


def corrupt(image: Tensor, type: str, severity: int, generator: Generator) -> Tensor:
    """See `.soft.apply_soft`; float32 (C, H, W) in [0, 1], all channels alike and with the same fault."""
    _, height, width = image.shape
    level = severity - 1
    if type == "fixed_pattern":
        # Uncooled bolometers read out by column: stripes, and a fixed offset per pixel of half that size.
        stripes = torch.randn(1, 1, width, generator=generator)
        offsets = torch.randn(1, height, width, generator=generator)
        image = image + PATTERN_SIGMA[level] * (stripes + 0.5 * offsets)
    elif type == "low_contrast":
        # The automatic gain has locked on a wide range; where it sits in the range drifts.
        middle = 0.3 + 0.4 * torch.rand((), generator=generator)
        image = middle + GAIN[level] * (image - middle)
    elif type == "low_resolution":
        size = (max(1, height // FACTOR[level]), max(1, width // FACTOR[level]))
        small = F.interpolate(image[None], size=size, mode="area")
        image = F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)[0]
    elif type == "occlusion":
        image = torch.where(occlusion_mask(height, width, severity, generator), torch.tensor(0.5), image)
    elif type == "fade":
        image = image * FADE_ALPHA[level]
    else:
        mask = dead_mask(height, width, severity, generator)
        stuck = (torch.rand(1, height, width, generator=generator) < 0.5).to(image.dtype)
        image = torch.where(mask, stuck, image)
    return image.clamp(0, 1)

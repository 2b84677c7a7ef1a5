"""Faults that any kind of picture can have: where they are, not what they do to the values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

OCCLUSION_AREA = (0.05, 0.10, 0.20, 0.35, 0.50)
DEAD_FRACTION = (0.01, 0.02, 0.05, 0.10, 0.20)
FADE_ALPHA = (0.8, 0.6, 0.4, 0.2, 0.1)


def occlusion_mask(height: int, width: int, severity: int, generator: Generator) -> Tensor:
    """One block at a random place that covers ``OCCLUSION_AREA`` of the picture: bool (1, H, W)."""
    y, x, stretch = torch.rand(3, generator=generator).tolist()
    area = OCCLUSION_AREA[severity - 1] * height * width
    # Between 2:3 and 3:2, and never taller or wider than the picture (the area is kept by the other side).
    h = min(height, max(1, round((area * height / width) ** 0.5 * (2 / 3 + stretch * 5 / 6) ** 0.5)))
    w = min(width, max(1, round(area / h)))
    top, left = round(y * (height - h)), round(x * (width - w))
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, top : top + h, left : left + w] = True
    return mask


def dead_mask(height: int, width: int, severity: int, generator: Generator) -> Tensor:
    """Dead rows and columns plus single stuck pixels, together about ``DEAD_FRACTION`` of the picture.

    A third of the fraction each goes to rows, columns and single pixels; bool (1, H, W). The draw is compared
    with a threshold, so a higher severity kills a superset.
    """
    share = DEAD_FRACTION[severity - 1] / 3
    rows = torch.rand(height, 1, generator=generator)
    columns = torch.rand(1, width, generator=generator)
    pixels = torch.rand(height, width, generator=generator)
    # At least the weakest row and column die: a thirtieth of a 64-pixel picture's rows is often none.
    row_dead = rows <= torch.maximum(rows.min(), torch.tensor(share))
    column_dead = columns <= torch.maximum(columns.min(), torch.tensor(share))
    return (row_dead | column_dead | (pixels < share))[None]


def smooth_field(height: int, width: int, cells: int, generator: Generator) -> Tensor:
    """Smooth random field, float32 (1, H, W): ``cells`` x ``cells`` normal draws, resized bicubically."""
    coarse = torch.randn(1, 1, cells, cells, generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)[0]


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blur float (C, H, W) by ``sigma`` pixels, with reflected borders."""
    radius = min(max(1, round(3 * sigma)), min(image.shape[-2:]) - 1)
    grid = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (grid / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(image.shape[0], 1, -1)
    x = F.pad(image[None], (radius, radius, radius, radius), mode="reflect")
    x = F.conv2d(x, kernel[:, :, None, :], groups=image.shape[0])
    return F.conv2d(x, kernel[:, :, :, None], groups=image.shape[0])[0]

"""Soft faults of metric depth. Invalid pixels stay invalid: 0 m with their mask False, never a distance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from multismolvla.corruption.generic import dead_mask, occlusion_mask, smooth_field

NOISE_PER_M2 = (0.002, 0.005, 0.01, 0.02, 0.04)
HOLE_AREA = (0.05, 0.10, 0.20, 0.35, 0.50)
BITS = (8, 6, 5, 4, 3)
BAND_PX = (1, 2, 3, 4, 6)
DRIFT = (0.02, 0.05, 0.1, 0.2, 0.3)
#: Working range of a table-top depth camera: farther is a hole, and the quantiser's levels span it.
RANGE_M = 4.0
#: A depth edge is a jump of more than this share of the distance within a 3x3 neighbourhood.
EDGE_SHARE = 0.05
MINIMUM_M = 1e-3


def corrupt(
    image: Tensor, valid: Tensor, type: str, severity: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """See `.soft.apply_soft`; float32 (1, H, W) in metres with its validity, 0 wherever it is invalid."""
    _, height, width = image.shape
    level = severity - 1
    if type == "noise":
        # Stereo and structured light lose precision with the square of the distance.
        noise = torch.randn(image.shape, generator=generator)
        image = (image + NOISE_PER_M2[level] * image**2 * noise).clamp_min(MINIMUM_M)
    elif type == "holes":
        field = smooth_field(height, width, 8, generator)
        valid = valid & (field > torch.quantile(field, HOLE_AREA[level])) & (image <= RANGE_M)
    elif type == "quantisation":
        step = RANGE_M / 2 ** BITS[level]
        image = ((image / step).round() * step).clamp_min(step / 2)
    elif type == "flying_pixels":
        image = _flying_pixels(image, valid, BAND_PX[level], generator)
    elif type == "scale_drift":
        sign = 1.0 if torch.rand((), generator=generator) < 0.5 else -1.0
        image = image * (1 + sign * DRIFT[level])
    elif type == "occlusion":
        valid = valid & ~occlusion_mask(height, width, severity, generator)
    else:
        valid = valid & ~dead_mask(height, width, severity, generator)
    return torch.where(valid, image, torch.zeros(())), valid


def _flying_pixels(image: Tensor, valid: Tensor, band: int, generator: Generator) -> Tensor:
    """Mix near and far around depth edges, as a pixel does whose cone sees both sides."""
    far = torch.where(valid, image, torch.tensor(-torch.inf))
    near = torch.where(valid, -image, torch.tensor(-torch.inf))
    highest, lowest = _highest(far, 1), -_highest(near, 1)
    edge = (highest - lowest > EDGE_SHARE * lowest) & valid
    band_mask = _highest(edge.float(), band) > 0
    highest, lowest = _highest(far, band), -_highest(near, band)
    weight = torch.rand(image.shape, generator=generator)
    # Only half of the band flies: the other half still shows one of the two surfaces.
    flies = band_mask & valid & (torch.rand(image.shape, generator=generator) < 0.5)
    return torch.where(flies, lowest + weight * (highest - lowest), image)


def _highest(image: Tensor, reach: int) -> Tensor:
    """Largest value within ``reach`` pixels both ways, (1, H, W); first by rows, which is cheaper."""
    size = 2 * reach + 1
    rows = F.max_pool2d(image[None], (size, 1), 1, (reach, 0))
    return F.max_pool2d(rows, (1, size), 1, (0, reach))[0]

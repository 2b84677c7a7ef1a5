"""Soft faults of colour pictures.

Two families with different names, so that numbers cannot be confused:

* ImageNet-C's own definitions through the package ``imagecorruptions`` (optional), for evaluation;
* ``builtin_*``: a few in plain torch, for training and for machines without the package.

Of ImageNet-C, ``fog``, ``glass_blur`` and ``gaussian_blur`` are not offered because imagecorruptions 1.1.2 fails on
current numpy and scikit-image, and ``impulse_noise`` because scikit-image draws it from a fresh, unseedable generator:
the same episode would not be the same twice.
"""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
import torch
from torch import Generator, Tensor

from multismolvla.corruption.generic import FADE_ALPHA, dead_mask, gaussian_blur, occlusion_mask

IMAGENET_C_TYPES: tuple[str, ...] = (
    "gaussian_noise",
    "shot_noise",
    "speckle_noise",
    "defocus_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "brightness",
    "contrast",
    "saturate",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
BUILTIN_TYPES: tuple[str, ...] = (
    "builtin_noise",
    "builtin_blur",
    "builtin_brightness",
    "builtin_occlusion",
    "builtin_fade",
    "builtin_dead_pixels",
)
#: One realisation per episode: weather sits on the lens, a block stays where it is.
STATIC: tuple[str, ...] = ("frost", "builtin_occlusion", "builtin_dead_pixels")

NOISE_SIGMA = (0.06, 0.10, 0.15, 0.22, 0.32)
BLUR_SIGMA = (0.6, 1.0, 1.6, 2.4, 3.5)
BRIGHTNESS_SHIFT = (0.1, 0.2, 0.3, 0.4, 0.5)


def imagenet_c_available() -> bool:
    """Whether the optional package with ImageNet-C's definitions is installed (it is not imported)."""
    return importlib.util.find_spec("imagecorruptions") is not None


def corrupt(image: Tensor, type: str, severity: int, generator: Generator) -> Tensor:
    """Corrupt a colour picture.

    Args:
        image: float32 (3, H, W) in [0, 1].
        type: one of ``IMAGENET_C_TYPES`` or ``BUILTIN_TYPES``.
        severity: 1..5.
        generator: CPU generator.

    Returns:
        float32 (3, H, W) in [0, 1].
    """
    if type in IMAGENET_C_TYPES:
        return _imagenet_c(image, type, severity, generator)
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


def _imagenet_c(image: Tensor, type: str, severity: int, generator: Generator) -> Tensor:
    if not imagenet_c_available():
        raise ModuleNotFoundError(
            f"The corruption {type!r} uses ImageNet-C's definition from the package imagecorruptions, which is not "
            f"installed. Run `pip install imagecorruptions`, or use one of {list(BUILTIN_TYPES)}."
        )
    if min(image.shape[-2:]) < 32:
        raise ValueError(
            f"ImageNet-C corruptions need pictures of at least 32 pixels a side, got {tuple(image.shape[-2:])}."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated imports inside the package
        from imagecorruptions import corrupt as imagenet_c

    picture = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    seed = int(torch.randint(2**31, (), generator=generator))
    # The package draws from numpy's global generator, which belongs to the simulator and the policy: put it back.
    state = np.random.get_state()
    try:
        np.random.seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = imagenet_c(picture, corruption_name=type, severity=severity)
    finally:
        np.random.set_state(state)
    return torch.from_numpy(np.array(result)).permute(2, 0, 1).to(torch.float32) / 255

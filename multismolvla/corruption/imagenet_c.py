"""ImageNet-C's corruptions of colour pictures (Hendrycks and Dietterich, ICLR 2019; Apache-2.0).

Fifteen of the nineteen come from the package ``imagecorruptions``. It cannot give the other four, so those
are written here after the same published definitions, in numpy and scipy:

* ``gaussian_blur`` and ``glass_blur``: version 1.1.2 passes ``multichannel`` to scikit-image's Gaussian
  filter, an argument that scikit-image has replaced by ``channel_axis`` and no longer takes;
* ``fog``: version 1.1.2 uses ``np.float_``, which numpy 2 has removed;
* ``impulse_noise``: version 1.1.2 lets scikit-image draw from a fresh generator that cannot be seeded, so the
  same episode would not be the same twice.

A test holds them equal to the package's own code with those names put back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

Array = NDArray[Any]

IMPULSE_AMOUNT = (0.03, 0.06, 0.09, 0.17, 0.27)
BLUR_SIGMA = (1.0, 2.0, 3.0, 4.0, 6.0)
#: Standard deviation of the blur, reach of a displacement in pixels, rounds.
GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
#: Strength of the fog, and by how much its grain weakens from one scale to the next.
FOG = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))
#: The definitions are not made for less (frost and the blurs need the room).
SMALLEST_SIDE = 32


def corrupt(image: Tensor, type: str, severity: int, generator: Generator) -> Tensor:
    """See `.soft.apply_soft`; float32 (3, H, W) in [0, 1], in 8 bits as published: multiples of 1/255.

    Raises:
        ValueError: the picture is too small.
    """
    if min(image.shape[-2:]) < SMALLEST_SIDE:
        raise ValueError(
            f"ImageNet-C needs at least {SMALLEST_SIDE} pixels a side, got {tuple(image.shape[-2:])}."
        )
    picture = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    seed = int(torch.randint(2**31, (), generator=generator))
    if type in OWN:
        result = OWN[type](picture / 255.0, severity - 1, seed)
        # The package cuts off decimals and does not round; so do its published pictures.
        result = (np.clip(result, 0, 1) * 255).astype(np.uint8)
    else:
        result = _from_package(picture, type, severity, seed)
    return torch.from_numpy(result).permute(2, 0, 1).to(torch.float32) / 255


def _from_package(picture: Array, type: str, severity: int, seed: int) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated imports inside the package
        from imagecorruptions import corrupt as imagenet_c

    # The package draws from numpy's global generator, which belongs to simulator and policy: put it back.
    state = np.random.get_state()
    try:
        np.random.seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.array(imagenet_c(picture, corruption_name=type, severity=severity))
    finally:
        np.random.set_state(state)


def _impulse_noise(x: Array, level: int, seed: int) -> Array:
    """Salt and pepper, in each colour channel by itself."""
    random = np.random.default_rng(seed)
    hit = random.random(x.shape) <= IMPULSE_AMOUNT[level]
    salt = random.random(x.shape) <= 0.5
    return np.where(hit, salt.astype(x.dtype), x)


def _blurred(x: Array, sigma: float) -> Array:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=4.0)


def _gaussian_blur(x: Array, level: int, seed: int) -> Array:
    return _blurred(x, BLUR_SIGMA[level])


def _glass_blur(x: Array, level: int, seed: int) -> Array:
    """Blur, take each pixel from a random place nearby, blur.

    The published code means to swap the two pixels, but copies one over the other, since it swaps views of
    one array; later pixels see the copies. The published pictures were made so, hence it is the definition.
    """
    sigma, reach, rounds = GLASS[level]
    random = np.random.RandomState(seed)
    height, width = x.shape[:2]
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    here = (rows[:, None] * width + columns[None, :]).ravel()
    source = list(range(height * width))
    for _ in range(rounds):
        dx, dy = random.randint(-reach, reach, size=(len(here), 2)).T
        for place, other in zip(here.tolist(), (here + dy * width + dx).tolist(), strict=True):
            source[place] = source[other]
    soft = (_blurred(x, sigma) * 255).astype(np.uint8)
    return _blurred(soft.reshape(-1, 3)[source].reshape(x.shape) / 255.0, sigma)


def _fog(x: Array, level: int, seed: int) -> Array:
    strength, decay = FOG[level]
    height, width = x.shape[:2]
    size = 1 << (max(height, width) - 1).bit_length()
    haze = _plasma(size, decay, np.random.RandomState(seed))[:height, :width, None]
    return (x + strength * haze) * x.max() / (x.max() + strength)


def _plasma(size: int, decay: float, random: np.random.RandomState) -> Array:
    """Fractal heights in [0, 1], float64 (size, size), by the diamond-square algorithm on a torus.

    Args:
        size: side, a power of two.
        decay: by how much the random part shrinks with each halving.
        random: generator.
    """
    heights = np.zeros((size, size))
    step, rough = size, 100.0

    def between(first: Array, axis_first: int, second: Array, axis_second: int) -> Array:
        """Mean of two neighbours each, plus noise. Its amplitude is the square of ``rough``, as published."""
        four = (first + np.roll(first, 1, axis_first)) + (second + np.roll(second, -1, axis_second))
        return four / 4 + rough * random.uniform(-rough, rough, four.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        rows = corners + np.roll(corners, -1, 0)
        four = rows + np.roll(rows, -1, 1)
        heights[half::step, half::step] = four / 4 + rough * random.uniform(-rough, rough, four.shape)
        centres = heights[half::step, half::step]
        heights[::step, half::step] = between(centres, 0, corners, 1)
        heights[half::step, ::step] = between(centres, 1, corners, 0)
        step, rough = half, rough / decay
    heights -= heights.min()
    return heights / heights.max()


#: Definitions for a picture in [0, 1], a severity's index and a seed; what they return is clipped to [0, 1].
OWN: dict[str, Callable[[Array, int, int], Array]] = {
    "impulse_noise": _impulse_noise,
    "gaussian_blur": _gaussian_blur,
    "glass_blur": _glass_blur,
    "fog": _fog,
}

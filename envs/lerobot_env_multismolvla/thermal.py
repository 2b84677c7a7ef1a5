"""Simulated thermal camera: a temperature per body, rendered through segmentation, blurred, noisy.

It uses no colour, so it is an independent sensor: it still sees when RGB is gone, and it sees other things
(the red cube is hot, the blue can is cold). Real microbolometers are soft and noisy, hence blur and noise.
"""

from __future__ import annotations

import numpy as np

#: Standard deviation of the temporal noise, and half range of an episode's constant offset (relative
#: temperature).
NOISE_STD = 0.012
OFFSET = 0.02


class ThermalCamera:
    """Noise source of one episode; frames are indexed by step, so looking twice shows the same picture.

    Args:
        seed: episode seed, e.g. ``(reset seed, initial state)``.
    """

    def __init__(self, seed: tuple[int, ...]) -> None:
        self._seed = tuple(int(s) & 0xFFFFFFFF for s in seed)
        self._offset = np.random.default_rng([*self._seed, 0xC01D]).uniform(-OFFSET, OFFSET)

    def picture(self, temperatures: np.ndarray, step: int, camera: int) -> np.ndarray:
        """One frame, uint8 (H, W, 3), grey: 0..255 = relative temperature 0..1.

        Args:
            temperatures: (H, W) float32, true relative temperature per pixel in [0, 1].
            step: control step in the episode.
            camera: number of the camera, so that two cameras have different noise.
        """
        rng = np.random.default_rng([*self._seed, step, camera])
        soft = _blur(temperatures)
        noisy = soft + self._offset + NOISE_STD * rng.standard_normal(soft.shape, dtype=np.float32)
        grey = np.clip(np.rint(noisy * 255.0), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)


def _blur(picture: np.ndarray) -> np.ndarray:
    """Binomial blur (1 2 1)/4 in both directions, repeated with the picture's size (once per 64 pixels)."""
    for _ in range(max(1, round(picture.shape[0] / 64))):
        for axis in (0, 1):
            padded = np.pad(picture, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
            low, middle, high = (np.take(padded, range(i, i + picture.shape[axis]), axis) for i in (0, 1, 2))
            picture = 0.25 * low + 0.5 * middle + 0.25 * high
    return picture.astype(np.float32)

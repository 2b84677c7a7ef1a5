"""Episodes on their way into a data set: one compressed file each, whole or not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from multismolvla.modalities import Modality, modality_of_key
from multismolvla.system.files import whole_file

#: Arrays whose name begins so tell about the simulation; they go beside the data set.
SIMULATION = "simulation."


def store_episode(frames: Sequence[dict[str, np.ndarray]], target: Path) -> None:
    """Write all frames to one ``.npz`` file, without redundant channels, which halves it."""
    arrays = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
    for key in arrays:
        if modality_of_key(key) == Modality.THERMAL:
            arrays[key] = arrays[key][..., :1]
        elif modality_of_key(key) == Modality.SEG:
            arrays[key] = arrays[key][..., :2]
    save_arrays(target, arrays)


def save_arrays(target: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed ``.npz`` file, whole or not at all."""
    with whole_file(target) as partial:
        np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]


def load_episode(source: Path) -> dict[str, np.ndarray]:
    """Read what `store_episode` wrote."""
    with np.load(source, allow_pickle=False) as stored:
        return {key: _restored(key, stored[key]) for key in stored.files}


def _restored(key: str, value: np.ndarray) -> np.ndarray:
    modality = modality_of_key(key)
    if modality == Modality.THERMAL:
        return np.repeat(value, 3, axis=-1)
    return np.pad(value, [(0, 0)] * 3 + [(0, 1)]) if modality == Modality.SEG else value

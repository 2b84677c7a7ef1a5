"""What an estimator is, and the recipe by which its pictures can be made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from multismolvla.tokenizers.vit import full_float32

Setting = str | int | float | None | tuple[float, ...]


@dataclass(frozen=True)
class EstimatorRecipe:
    """What decides an estimator's pictures: stored with a data set, and with a policy that learned from it.

    Attributes:
        model: hub id, or the name of the folder.
        revision: commit on the hub; ``None`` for a folder.
        fingerprint: of the weights.
        dtype: in which the network computes, e.g. ``float32``.
        settings: what else decides its pictures.
        files: SHA-256 of each settings file beside the weights, e.g. ``preprocessor_config.json``; empty in
            recipes of data that were annotated before they were looked at.
    """

    model: str
    revision: str | None
    fingerprint: str
    dtype: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def torch_dtype(self) -> torch.dtype:
        """``dtype`` as PyTorch's.

        Raises:
            ValueError: it is none of the two that estimators compute in.
        """
        known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        if self.dtype not in known:
            raise ValueError(
                f"Estimator {self.model}: dtype {self.dtype!r}, expected one of {sorted(known)}."
            )
        return known[self.dtype]


class Estimator(Protocol):
    """Estimates one modality from RGB. A picture's result depends on that picture alone."""

    recipe: EstimatorRecipe

    def estimate(self, rgb: Tensor) -> Tensor:
        """Estimate.

        Args:
            rgb: float32 (B, 3, H, W) in [0, 1], upright, on any device.

        Returns:
            Canonical picture (B, 1, H, W) on the network's device: depth float32 metres, segmentation int64,
            thermal float32 in [0, 1].

        Raises:
            ValueError: the network gave NaN or infinity.
        """
        ...


def estimate_checked(estimator: Estimator, rgb: Tensor, modality: str) -> Tensor:
    """What an estimator makes of pictures, at its own precision: no autocast and no TF32 around the call.

    Args:
        estimator: of the modality.
        rgb: as `Estimator.estimate` takes it.
        modality: depth, seg or thermal.

    Returns:
        As `Estimator.estimate`.

    Raises:
        ValueError: another shape than one channel of the pictures' size, NaN or infinity.
    """
    with full_float32(rgb.device):
        found = estimator.estimate(rgb.float())
    if found.shape != (len(rgb), 1, *rgb.shape[-2:]):
        raise ValueError(
            f"The estimator of {modality} gave {tuple(found.shape)} for RGB {tuple(rgb.shape)}; expected one "
            "channel of the same size."
        )
    return check_finite(found, estimator.recipe, modality)


def check_finite(estimate: Tensor, recipe: EstimatorRecipe, what: str) -> Tensor:
    """The estimate itself.

    Raises:
        ValueError: it has NaN or infinity, which stored data would show as a picture like any other.
    """
    if not bool(estimate.isfinite().all()):
        raise ValueError(f"{recipe.model} gave NaN or infinite {what}. Let it compute in float32.")
    return estimate

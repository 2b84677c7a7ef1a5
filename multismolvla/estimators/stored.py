"""Estimates as a reader of an annotated data set gets them."""

from __future__ import annotations

import torch
from torch import Tensor

from multismolvla.modalities import Modality

#: Largest depth that uint16 millimetres hold.
LARGEST_MM = 65_535


def as_stored(modality: str, picture: Tensor) -> Tensor:
    """Round an estimate to what data sets store, so that a policy sees at run time what it saw in training.

    Args:
        modality: depth, seg or thermal.
        picture: of `multismolvla.estimators.Estimator.estimate`.

    Returns:
        Depth float32 in whole millimetres, given in metres, 0 = not measured or beyond 65.535 m; segmentation
        as it is; thermal float32 in steps of 1/255.
    """
    if modality == Modality.DEPTH:
        rounded = (picture.double() * 1000.0).round()
        return torch.where((rounded > 0) & (rounded <= LARGEST_MM), rounded, 0.0).float() / 1000.0
    if modality == Modality.THERMAL:
        return (picture * 255.0).round().clamp(0, 255) / 255.0
    return picture

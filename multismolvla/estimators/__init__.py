"""Depth, segmentation and thermal pictures estimated from RGB, in the units of ``multismolvla.modalities``.

What they deliver is *derived*: it holds nothing that the RGB picture does not, and is lost together with it.
Data sets are annotated with them; the recipe that is stored there makes the same pictures again elsewhere.
Tested with tiny networks in the official layouts; the published files were not tried yet.
"""

from multismolvla.estimators.depth import DepthEstimator, depth_from_disparity
from multismolvla.estimators.factory import load_estimator, restore_estimator
from multismolvla.estimators.interface import Estimator, EstimatorRecipe
from multismolvla.estimators.segmentation import SegmentationEstimator
from multismolvla.estimators.thermal import ThermalEstimator, ThermalSettings

__all__ = [
    "DepthEstimator",
    "Estimator",
    "EstimatorRecipe",
    "SegmentationEstimator",
    "ThermalEstimator",
    "ThermalSettings",
    "depth_from_disparity",
    "load_estimator",
    "restore_estimator",
]

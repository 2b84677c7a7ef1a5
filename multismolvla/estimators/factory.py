"""From a modality's name to its estimator, anew or by a stored recipe."""

from __future__ import annotations

from typing import Any

import torch

from multismolvla.estimators.depth import DepthEstimator
from multismolvla.estimators.interface import Estimator, EstimatorRecipe
from multismolvla.estimators.segmentation import SegmentationEstimator
from multismolvla.estimators.thermal import ThermalEstimator
from multismolvla.modalities import Modality
from multismolvla.pretrained import is_hub_id

#: Of the estimators that do not check them themselves.
_SETTINGS: dict[str, tuple[str, ...]] = {Modality.DEPTH: ("output", "range_m"), Modality.SEG: ()}


def load_estimator(
    modality: str,
    source: str,
    *,
    revision: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    **settings: Any,
) -> Estimator:
    """Load the estimator of a modality.

    Args:
        modality: depth, seg or thermal.
        source: hub id or folder in the official layout.
        revision: commit, branch or tag on the hub; ``None`` = the newest. A folder has none.
        device: where the network runs.
        dtype: in which it computes; ``None`` = float32.
        settings: what else decides its pictures, see the estimators' ``from_pretrained``.

    Raises:
        FileNotFoundError: the files are not there; the message says how to get them.
        ValueError: a modality that cannot be estimated, a setting that its estimator does not have, or
            damaged files.
    """
    allowed = _SETTINGS.get(modality, tuple(settings))
    if unknown := sorted(set(settings) - set(allowed)):
        raise ValueError(
            f"The {modality} estimator {source!r} has no setting {unknown[0]!r}; expected some of "
            f"{list(allowed)}. Is the recipe of another version? Annotate the data set anew."
        )
    settings |= {"revision": revision, "device": device, "dtype": dtype}
    if modality == Modality.DEPTH:
        return DepthEstimator.from_pretrained(source, **settings)
    if modality == Modality.SEG:
        return SegmentationEstimator.from_pretrained(source, **settings)
    if modality == Modality.THERMAL:
        return ThermalEstimator.from_pretrained(source, **settings)
    raise ValueError(f"Modality {modality!r} cannot be estimated from RGB; expected depth, seg or thermal.")


def restore_estimator(
    modality: str, recipe: EstimatorRecipe, *, source: str | None = None, device: str = "cpu"
) -> Estimator:
    """Load the estimator that a recipe describes.

    Args:
        modality: depth, seg or thermal.
        recipe: as stored with a data set or policy.
        source: where its files are, a folder or another repository of the hub that mirrors them; ``None`` =
            on the hub, or in its cache, by the recipe's name and revision.
        device: where the network runs.

    Raises:
        FileNotFoundError: the files are not there.
        ValueError: they are others than the recipe's; the message names the difference.
    """
    narrow = None if recipe.torch_dtype == torch.float32 else recipe.torch_dtype
    place = source or recipe.model
    mirror = is_hub_id(place) and place != recipe.model  # the same files, but commits of its own
    revision = None if mirror else recipe.revision
    made = load_estimator(modality, place, revision=revision, device=device, dtype=narrow, **recipe.settings)
    if made.recipe.revision and revision and made.recipe.revision != revision:
        raise ValueError(
            f"The {modality} estimator at {place!r} is revision {made.recipe.revision} of "
            f"{made.recipe.model!r}, the recipe's is {recipe.revision} of {recipe.model!r}. Give that "
            "revision's files: a network with other settings makes other pictures, too."
        )
    if made.recipe.fingerprint != recipe.fingerprint:
        raise ValueError(
            f"The {modality} estimator at {place!r} has the fingerprint {made.recipe.fingerprint[:12]}…, the "
            f"recipe's, {recipe.model!r}, has {recipe.fingerprint[:12]}…. Give the original files: other "
            "weights make other pictures."
        )
    other = [f for f in sorted({*made.recipe.files, *recipe.files}) if _differ(f, made.recipe, recipe)]
    if other:
        raise ValueError(
            f"The {modality} estimator at {place!r} has another {other[0]} than the recipe's, "
            f"{recipe.model!r}, and the same weights. Give the original file: other settings make other "
            "pictures."
        )
    return made


def _differ(file: str, made: EstimatorRecipe, wanted: EstimatorRecipe) -> bool:
    """Whether a settings file is another one; what a recipe does not know cannot be compared."""
    return bool(made.files and wanted.files) and made.files.get(file) != wanted.files.get(file)

"""Streams that the policy computes of its RGB: the training data had them so, and no sensor delivers them.

A policy that learned from annotated data and acts on RGB alone is in a state that it has hardly seen in
training. It has the recipes of the estimators from the data set, and makes the same pictures where it looks:
when it plans, not at the steps between.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lerobot_policy_multismolvla.options import MultiSmolVLAOptions
from lerobot_policy_multismolvla.training_data import Features
from multismolvla.estimators import Estimator, EstimatorRecipe, restore_estimator
from multismolvla.estimators.stored import as_stored
from multismolvla.modalities import MODALITIES, Modality, token_key, valid_key
from multismolvla.sensors import SensorReader

logger = logging.getLogger(__name__)

#: As JSON has them: modality -> fields of an `EstimatorRecipe`.
Recipes = dict[str, dict[str, Any]]


def adopt_recipes(cfg: MultiSmolVLAOptions, features: Features) -> Recipes:
    """The recipes of the derived streams: the policy's, completed by what the dataset says of its own.

    Raises:
        ValueError: the dataset's pictures of a modality were made in another way than the policy's.
    """
    recipes: Recipes = dict(cfg.estimators)
    for key, (view, modality) in cfg.stream_keys().items():
        feature = features.get(key) or features.get(token_key(view, modality))
        found = (feature.get("info") or {}).get("estimator") if feature else None
        if not found:
            continue
        found = json.loads(json.dumps(found))
        known = recipes.setdefault(modality, found)
        different = sorted(name for name in {*known, *found} if known.get(name) != found.get(name))
        if different:
            name = different[0]
            raise ValueError(
                f"{key}: the dataset's {modality} was estimated with {name}={found.get(name)!r}, the "
                f"policy's with {known.get(name)!r}. Annotate the dataset as the policy's was "
                "(multismolvla-annotate), or let the policy learn the new pictures: --policy.estimators='{}'."
            )
    provenance = cfg.provenance_map
    orphans = [
        f"{view}.{m}"
        for key, (view, m) in cfg.stream_keys().items()
        if provenance.is_derived(view, m) and m not in recipes and {key, token_key(view, m)} & set(features)
    ]
    if orphans:
        logger.warning(
            "The dataset does not say what estimated %s. Where no sensor delivers them the policy will act "
            "without them; annotate the dataset anew to let it estimate them.",
            ", ".join(orphans),
        )
    return recipes


class DerivedStreams:
    """The estimators of one policy, read at their first use."""

    def __init__(self) -> None:
        self._failing: set[str] = set()  # modalities of which nothing could be estimated last time
        self._loaded: dict[str, Estimator | None] = {}

    @torch.no_grad()
    def complete(
        self, cfg: MultiSmolVLAOptions, batch: dict[str, Tensor], there: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Add what can be derived.

        Args:
            cfg: of the policy.
            batch: canonical. A stream whose picture or ids it has is somebody's: taken from there, or absent,
                as the batch says.
            there: bool (B, V, M), what may be looked at; a stream is derived where its view's RGB is.

        Returns:
            The batch with the pictures that were made, and what is there now.

        Raises:
            FileNotFoundError: an estimator's files are not there (``policy.missing_estimator=error``).
            ValueError: they are others than those of the training data.
        """
        if not cfg.estimators:
            return batch, there
        made, now = dict(batch), there.clone()
        views = list(cfg.views.items())
        for v, m in cfg.provenance_map.derived():
            (view, streams), modality = views[v], MODALITIES[m]
            key, rgb = streams[modality], batch.get(streams.get(Modality.RGB, ""))
            wanted = modality in cfg.estimators and modality in cfg.domains
            delivered = key in batch or token_key(view, modality) in batch
            if rgb is None or delivered or not wanted:
                continue
            rows = there[:, v, MODALITIES.index(Modality.RGB)]
            pictures = self._pictures(cfg, modality, key, rgb[rows]) if rows.any() else {}
            for name, picture in pictures.items():
                made[name] = picture.new_zeros(len(rows), *picture.shape[1:])
                made[name][rows] = picture
            if pictures:
                now[:, v, m] = rows
        return made, now

    def _pictures(self, cfg: MultiSmolVLAOptions, modality: str, key: str, rgb: Tensor) -> dict[str, Tensor]:
        """Canonical picture under ``key``, with its validity; empty when it cannot be made."""
        estimator = self._estimator(cfg, modality, rgb.device)
        if estimator is None:
            return {}
        try:
            found = estimator.estimate(rgb.float())
            if not found.isfinite().all():
                raise ValueError(f"{estimator.recipe.model} gave NaN or infinity.")
        except (ValueError, RuntimeError) as error:  # a robot goes on with what it has
            if modality not in self._failing:
                logger.warning("No %s can be estimated: %s It counts as absent.", modality, error)
            self._failing.add(modality)
            return {}
        self._failing.discard(modality)
        reader = SensorReader({"": {modality: key}}, "m", cfg.depth_range_m, cfg.num_labels)
        canonical = reader.read({key: as_stored(modality, found)})
        return {name: canonical[name] for name in (key, valid_key(key)) if name in canonical}

    def _estimator(self, cfg: MultiSmolVLAOptions, modality: str, device: torch.device) -> Estimator | None:
        if modality not in self._loaded:
            recipe = recipe_from(cfg.estimators[modality])
            source = cfg.estimator_sources.get(modality)
            logger.info("Reading the %s estimator: %s.", modality, source or recipe.model)
            try:
                made = restore_estimator(modality, recipe, source=source, device=str(device))
            except FileNotFoundError as error:
                if cfg.missing_estimator == "error":
                    raise FileNotFoundError(
                        f"The policy learned from {modality} that {recipe.model} estimates of RGB, and no "
                        f"sensor delivers it. {error} Files elsewhere: --policy.estimator_sources="
                        f"'{{\"{modality}\": FOLDER}}'; to go on without: --policy.missing_estimator=absent."
                    ) from error
                logger.warning("%s is not estimated and counts as absent: %s", modality, error)
                self._loaded[modality] = None
                return None
            self._loaded[modality] = made
        return self._loaded[modality]


def recipe_from(stored: Mapping[str, Any]) -> EstimatorRecipe:
    """A recipe as a configuration or data set stores it.

    Raises:
        ValueError: fields are missing or unknown.
    """
    try:
        return EstimatorRecipe(**stored)
    except TypeError as error:
        raise ValueError(
            f"--policy.estimators: {dict(stored)} is no recipe of an estimator: {error}."
        ) from error

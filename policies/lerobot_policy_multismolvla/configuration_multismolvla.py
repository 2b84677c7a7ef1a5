"""Configuration of the MultiSmolVLA policy (``--policy.type=multismolvla``): what LeRobot asks of it.

Everything needed to rebuild the policy is in the options and therefore in ``config.json``; the frozen encoder
is named by repository (or folder), revision and hash.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_policy_multismolvla.derived import adopt_recipes, derived_streams, first_ages, remembers
from lerobot_policy_multismolvla.options import MultiSmolVLAOptions
from lerobot_policy_multismolvla.training_data import (
    Features,
    adopt_classes,
    check_action_kind,
    check_cameras,
    check_same_robot,
    warn_of_other_cameras,
    warn_of_undeclared_cameras,
)
from multismolvla.health import MEMORY_KEY, memory_size
from multismolvla.modalities import (
    CAPTURED_SUFFIX,
    MODALITIES,
    PADDING_MASK_SUFFIX,
    PICTURE_CHANNELS,
    SMALLEST_SIDE,
    TOKEN_PREFIX,
    Modality,
)
from multismolvla.tokenizers.recipe import NETWORK, local_fingerprints, recipe_difference, token_recipe

logger = logging.getLogger(__name__)


@PreTrainedConfig.register_subclass("multismolvla")
@dataclass
class MultiSmolVLAConfig(MultiSmolVLAOptions):
    """See :class:`MultiSmolVLAOptions` for the options."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # (view, modality) of which the training data hold ids.
        self._cached_streams: frozenset[tuple[str, str]] = frozenset()

    @property
    def observation_delta_indices(self) -> None:
        """No observation history.

        Upstream's ``[0]`` means the same, but makes LeRobot 0.6.1 decode every picture of the frame once more
        per observation key: ten times the work for eight streams.
        """
        return

    # -- features -------------------------------------------------------------------------------------------

    def validate_features(self) -> None:
        """Check the dataset's (or environment's) features against the view map.

        Declared streams that are missing are absent sensors; features that are neither declared nor wanted
        are dropped, so that a stray depth camera cannot reach SigLIP (lerobot 0.6.1 would feed it). What
        remains is put into the order of the view map.

        Raises:
            ValueError: no declared stream is there at all, or one has the wrong number of channels or is too
                small to show anything.
        """
        super().validate_features()
        features = dict(self.input_features or {})
        declared = self.stream_keys()
        if features and not any(key in features for key in declared):
            visual = sorted(k for k, f in features.items() if f.type is FeatureType.VISUAL)
            raise ValueError(
                f"None of the view map's keys {sorted(declared)} is a feature of the data; its pictures are "
                f"{visual}. Correct --policy.views (keys as the dataset spells them) or use --rename_map; "
                "a finished policy gets other views with multismolvla-export --views."
            )
        # in the order of the view map, because upstream goes by the features' order
        pictures = {key: features[key] for key in declared if key in features}
        for key, feature in pictures.items():
            view, modality = declared[key]
            channels = feature.shape[0] if len(feature.shape) == 3 else 1
            allowed = PICTURE_CHANNELS[modality]
            if channels not in allowed:
                raise ValueError(
                    f"{key} is declared as {modality} of view {view!r} and must have "
                    f"{' or '.join(map(str, allowed))} channels, but the data give shape {feature.shape} "
                    "(channels first). Correct --policy.views."
                )
            if min(feature.shape[-2:]) < SMALLEST_SIDE:
                height, width = feature.shape[-2:]
                raise ValueError(
                    f"{key} is {width}x{height} pixels, less than a patch of an encoder; expected at "
                    f"least {SMALLEST_SIDE}x{SMALLEST_SIDE}. Record larger pictures."
                )
        self._check_geometry(pictures)
        pictures |= self._pictures_known_by_their_tokens(features)
        # LeRobot 0.6.1 types recorded presence flags, capture times and cached ids as STATE, also those of
        # undeclared streams: they would be normalised into nonsense and be asked of a robot.
        others = {
            k: f
            for k, f in features.items()
            if f.type is not FeatureType.VISUAL
            and not k.startswith(TOKEN_PREFIX)
            and not k.endswith((PADDING_MASK_SUFFIX, CAPTURED_SUFFIX))
        }
        self.input_features = {**pictures, **{k: f for k, f in others.items() if k not in pictures}}

    def _check_geometry(self, pictures: dict[str, PolicyFeature]) -> None:
        """Where cells of both towers meet they must show the same: SmolVLA pads what is not square.

        Student and teacher meet in stage 1, and the two towers of ``siglip+fourm`` always.
        """
        distils = self.vision_tower == "fourm" and self.stage == "connector" and self.align_weight > 0
        if not distils and self.vision_tower != "siglip+fourm":
            return
        for key, feature in pictures.items():
            height, width = feature.shape[-2:]
            if key in self.rgb_keys and height != width and self.square != "pad":
                otherwise = ", or --policy.align_weight=0" if distils else ""
                raise ValueError(
                    f"{key} is {width}x{height} pixels. SigLIP sees it padded to a square, 4M would see it "
                    f"with --policy.square={self.square}: cells that belong together would show different "
                    f"things. Set --policy.square=pad{otherwise}."
                )

    def _pictures_known_by_their_tokens(self, features: dict[str, PolicyFeature]) -> dict[str, PolicyFeature]:
        """Streams of which the data hold cached ids only; at run time their pictures are expected.

        None where the data also have pictures that nobody declared: LeRobot 0.6.1 wants the data's pictures
        to be a subset of the policy's or the other way round, and neither would be. What the policy reads
        depends on the views alone.
        """
        declared = self.stream_keys()
        if any(f.type is FeatureType.VISUAL and k not in declared for k, f in features.items()):
            return {}
        found = {}
        for token, (view, modality) in self.token_keys().items():
            key = self.views[view][modality]
            if token in features and key not in features:
                shape = (PICTURE_CHANNELS[modality][0], self.image_size, self.image_size)
                found[key] = PolicyFeature(FeatureType.VISUAL, shape)
        return found

    # -- run time -------------------------------------------------------------------------------------------

    def first_memory(self) -> dict[str, Tensor]:
        """What a caller that remembers in the policy's stead gives it with an episode's first look.

        Returns:
            Key -> (1, ...); ``last_look()`` has what to give with the next.
        """
        state = math.prod((self.input_features or {})[OBS_STATE].shape)
        memory = {MEMORY_KEY: torch.zeros(1, memory_size(len(self.views) * len(MODALITIES), state))}
        return memory | (first_ages(1, len(derived_streams(self))) if remembers(self) else {})

    # -- training data --------------------------------------------------------------------------------------

    def set_dataset_feature_metadata(self, features: Features) -> None:
        """Check the training data against this configuration and adopt the streams' provenance.

        Called by LeRobot's policy factory before the features are typed, for training only. The tokenizers
        themselves are not needed: weights that this machine does not have are known by the fingerprint that
        came with the ids, and checked against it when a picture must be tokenized for the first time.

        Raises:
            ValueError: a declared RGB camera is missing, state or action are not the checkpoint's, actions
                are of another kind, the ids were made with other tokenizers, weights, sizes or labels than
                this policy uses at run time, corruption is to disturb pictures that the data do not hold, or
                the provenance contradicts the dataset's.
        """
        check_action_kind(self.action_kind, features)
        if self.pretrained_path is None:  # else --rename_map may rename; the first batch will show it
            check_cameras(self.views, self.absent_streams, features)
        else:
            check_same_robot({**(self.input_features or {}), **(self.output_features or {})}, features)
            warn_of_other_cameras(self.views, self.absent_streams, features)
        warn_of_undeclared_cameras(self.views, features)
        if Modality.SEG in self.tower_modalities and self.uses_fourm:
            keys = {key for key, (_, m) in self.stream_keys().items() if m == Modality.SEG}
            labels = self.num_labels if self.tokenizers == "patch" else None
            self.seg_classes = adopt_classes(self.seg_classes, keys, features, labels)
        cached = {
            k: f for k, f in features.items() if k in self.token_keys() and self._reads_ids(k, features)
        }
        for key, feature in cached.items():
            self._check_recipe(key, feature.get("info") or {})
        self._cached_streams = frozenset(self.token_keys()[key] for key in cached)
        self._check_corruption_source(features)
        self.provenance = self.provenance_map.adopt(features).option()
        self.estimators = adopt_recipes(self, features)
        if cached:
            logger.info(
                "Training reads cached ids of %s; no tokenizer is loaded for them.", ", ".join(sorted(cached))
            )

    def _reads_ids(self, key: str, features: Features) -> bool:
        """Whether the ids under ``key`` are read: not of an unread modality, nor where rows stand for it."""
        view, modality = self.token_keys()[key]
        if not self.is_soft(modality):
            return modality in self.domains
        picture = self.views[view][modality]
        if picture not in features:
            raise ValueError(
                f"{key}: thermal_route=soft feeds rows of numbers to the encoder and cannot use ids, but the "
                f"dataset has no pictures {picture!r}. Keep the pictures beside the ids "
                "(--keep_pictures=true), or choose another route."
            )
        return False

    def _check_recipe(self, key: str, info: Mapping[str, Any]) -> None:
        view, modality = self.token_keys()[key]
        stored: dict[str, str] = info.get("weights") or {}
        known: dict[str, str] = {}
        if self.tokenizers == "official":
            parts = {*stored, NETWORK if modality == Modality.THERMAL else modality}
            here = local_fingerprints(parts, self.official_options())
            known = here | {part: v for part, v in self.tokenizer_hashes.items() if part in parts}
        wanted = token_recipe(self, view, modality, num_labels=self.num_labels, fingerprints=known)
        difference = recipe_difference(info, wanted)
        if difference is not None:
            name, found, own = difference
            raise ValueError(
                f"{key}: the dataset's ids were made with {name}={found!r}, this policy uses {own!r}. Set "
                "the policy's option accordingly, or make them anew: `multismolvla-annotate` from a dataset "
                "with RGB, `multismolvla-tokens` from one that holds the pictures."
            )
        self.tokenizer_hashes = {**stored, **self.tokenizer_hashes}

    def _check_corruption_source(self, features: Features) -> None:
        if not self.corrupts or self.corruption_source != "live":
            return
        read = (self.views[view][m] for view, m in self._cached_streams if m in self.tower_modalities)
        lacking = sorted(key for key in read if key not in features)
        if lacking:
            raise ValueError(
                "--policy.corruption_source=live disturbs pictures, but the dataset holds only ids of "
                f"{lacking}. Keep the pictures beside the ids (--keep_pictures=true of `multismolvla-tokens` "
                "and `multismolvla-annotate`), or set --policy.corruption_source=ids."
            )

    @property
    def cached_modalities(self) -> frozenset[str]:
        """Modalities that training reads as ids in every view that has them: they need no tokenizer."""
        if self.corrupts and self.corruption_source == "live":
            return frozenset()
        pictures = {place for key, place in self.stream_keys().items() if key in (self.input_features or {})}
        live = {m for _, m in pictures - self._cached_streams}
        return frozenset({m for _, m in self._cached_streams} - live)

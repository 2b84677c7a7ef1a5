"""Configuration of the MultiSmolVLA policy (``--policy.type=multismolvla``).

A SmolVLA configuration plus: the view map, the tower, the stage and the dropout curriculum. Everything needed to rebuild the
policy is in here and therefore in ``config.json``; the frozen encoder is named by repository (or folder), revision and hash.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

from multismolvla import dropout
from multismolvla.corruption import SEVERITIES
from multismolvla.fourm.soft import SOFT_PREFIX
from multismolvla.geometry import SQUARE_MODES
from multismolvla.modalities import (
    MODALITIES,
    Modality,
    Provenance,
    ViewMap,
    default_view_map,
    padding_mask_key,
    token_key,
    validate_view_map,
)
from multismolvla.pretrained import IMAGEBIND
from multismolvla.provenance import ProvenanceMap, adopt_provenance, check_provenance, given_provenance
from multismolvla.tokenizers import TOKENIZER_FAMILIES, OfficialOptions
from multismolvla.tokenizers.recipe import (
    NETWORK,
    OFFICIAL_LABELS,
    local_fingerprints,
    recipe_difference,
    token_recipe,
)

logger = logging.getLogger(__name__)

TOWERS = ("fourm", "siglip", "siglip+fourm")
STAGES = ("connector", "robust")
CORRUPTION_SOURCES = ("live", "ids")
DEPTH_UNITS = ("m", "mm")

#: How the keys of cached ids begin, and how those of presence flags end.
TOKENS, FLAG = token_key("", "").rstrip(".") + ".", padding_mask_key("")
_VISUAL_CHANNELS = {Modality.RGB: (3,), Modality.DEPTH: (1,), Modality.SEG: (1, 3), Modality.THERMAL: (1, 3)}


@PreTrainedConfig.register_subclass("multismolvla")
@dataclass
class MultiSmolVLAConfig(SmolVLAConfig):
    """SmolVLA whose vision tower is the 4M-21 multimodal encoder.

    Args (those that SmolVLA does not have; sizes are those of 4M-21 unless a preset says otherwise):
        views: ``{view: {modality: key}}``; declares *possible* sensors, a missing one is legal and masked.
        provenance: ``{modality: sensor | derived}``, or ``{view: {modality: ...}}``, which goes before it; a derived stream dies with
            its view's RGB. Empty = as the dataset says, where it says nothing a sensor. See `.provenance`.
        vision_tower: ``fourm`` (the product), ``siglip`` (vanilla SmolVLA), ``siglip+fourm`` (zero-initialised gate).
        base_checkpoint: SmolVLA checkpoint (folder or hub id) whose language model and expert are taken. Not to be
            confused with ``pretrained_path``, which LeRobot reserves for checkpoints of this very policy.
        encoder, encoder_revision, encoder_hash: the frozen 4M encoder and what its tensors hash to.
        tokenizers: ``patch`` or ``official``; the options after it say which official networks make the ids.
    """

    # -- input ------------------------------------------------------------------------------------------------
    views: ViewMap = field(default_factory=default_view_map)
    provenance: ProvenanceMap = field(default_factory=dict)
    depth_unit: str = "m"  # unit of *float* depth (integers are millimetres, LeRobot's rule); train with
    # --dataset.depth_output_unit=m, because LeRobot 0.6.1 delivers millimetres by default and simulators give metres
    depth_range_m: tuple[float, float] = (
        0.011,
        10.0,
    )  # outside = invalid; LeRobot returns invalid pixels as 10 mm
    num_labels: int = 8  # size of the segmentation pictures' label set, id 0 = background (official: 134)
    half_turns: dict[str, int] = field(
        default_factory=dict
    )  # view -> 180-degree turns of a camera mounted upside down
    square: str = "crop"  # how a non-square view becomes square, for all its streams alike

    # -- tower ------------------------------------------------------------------------------------------------
    vision_tower: str = "fourm"
    encoder: str = "EPFL-VILAB/4M-21_B"  # hub repository or folder in the official layout
    encoder_revision: str | None = None
    encoder_hash: str | None = None  # filled when first built, checked at every reload
    domains: dict[str, str] = field(
        default_factory=lambda: {"rgb": "rgb@224", "depth": "tok_depth@224", "seg": "tok_semseg@224"}
    )  # modality -> encoder domain; several joined by "+": thermal: tok_imagebind@224+tok_imagebind_global
    tokenizers: str = "patch"  # "patch": weight-free ones of the mini preset; "official": 4M's own
    tokenizer_sources: dict[str, str] = field(
        default_factory=dict
    )  # of depth, seg, imagebind, imagebind_global -> hub id or folder; left out = the official one
    tokenizer_hashes: dict[str, str] = field(
        default_factory=dict
    )  # filled when first seen, checked ever after: what makes ids must not change
    seg_labels: str = OFFICIAL_LABELS  # official: label table of the segmentation pictures, a name or a file
    seg_unknown: str = (
        "error"  # official: ids that this table lacks: error or void (= nothing; num_labels may be larger)
    )
    thermal_route: str = "vision"  # official: vision, bridge or soft (domain soft_thermal@224, a trained map)
    imagebind: str = IMAGEBIND  # official, thermal: hub id, folder or .pth file of ImageBind-Huge
    imagebind_rows: str = "trunk"  # rows that the ImageBind tokenizers know: trunk or norm
    bridge_map: str | None = None  # route bridge: file of the learned map; without it rows must be norm
    soft_width: int | None = None  # route soft: width of the rows, filled when first built
    image_size: int = 224  # side at which pictures enter the encoder, pixels
    fusion_grid: int = 14  # side of the common grid on which modalities are fused
    connector_grid: int = 16  # side after 2-D resampling
    connector_unshuffle: int = 2  # block folded into channels; (16 / 2)^2 = 64 tokens per view
    connector_hidden: int = 2048  # hidden width of the connector's MLP

    # -- stages -----------------------------------------------------------------------------------------------
    stage: str = "connector"
    base_checkpoint: str | None = None
    flow_weight: float = 1.0  # weight of the action loss in stage 1
    align_weight: float = 1.0  # weight of the distillation in stage 1
    consistency_weight: float = 0.0  # stage 2: distance to the complete sample's velocity; a second forward
    flow_samples: int = (
        1  # draws of noise and time per observation; 1 is upstream's, more cost only the expert
    )
    bridge_lr_scale: float = 1.0  # learning rate of the connector relative to the rest

    # -- dropout curriculum (stage 2) ---------------------------------------------------------------------------
    dropout_mode: str = "linear"
    dropout_p_max: float = 0.5
    dropout_ramp: float = 0.6  # share of the stage over which "linear" rises
    dropout_clean: float = 0.1  # last share of the stage without dropout
    dropout_complete: float = 0.1  # share of each batch that stays complete
    curriculum_steps: int = 0  # length of the stage; set it to --steps
    curriculum_step: int = (
        0  # progress; lives in the config because PEFT checkpoints save no buffers (lerobot 0.6.1)
    )
    curriculum_stage: str = ""  # the stage that progress belongs to; another one resets it
    curriculum_seed: int = 0

    # -- corruption curriculum (stage 2), per sample, view and modality ------------------------------------------------
    corruption_probability: float = 0.0  # greatest probability that a picture is disturbed; 0 = never
    corruption_max_severity: int = 3  # 1 (weak) to 5; drawn evenly up to this
    corruption_ramp: float = 0.6  # share of the stage over which the probability rises from 0
    corruption_clean: float = 0.1  # last share of the stage without corruption
    corruption_source: str = (
        "live"  # depth, seg, thermal: "live" disturbs pictures and tokenizes them anew; "ids" the ids
    )

    # -- defaults that differ from SmolVLA's -----------------------------------------------------------------------
    n_action_steps: int = 10  # far better than 50 on LIBERO (lerobot issue 4614)
    push_to_hub: bool = False  # LeRobot's default would demand a repo_id for every local run
    dtype: str = "bfloat16"  # mixed precision of the trainer; read by lerobot-train 0.6.1
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self)
        self._cached_streams: frozenset[tuple[str, str]] = (
            frozenset()
        )  # (view, modality) of which the data hold ids

    @property
    def rgb_keys(self) -> list[str]:
        """RGB keys in view order."""
        return [streams["rgb"] for streams in self.views.values() if "rgb" in streams]

    def is_derived(self, view: str, modality: str) -> bool:
        """Whether a stream is computed from its view's RGB."""
        return given_provenance(self.provenance, view, modality) == Provenance.DERIVED

    @property
    def tower_modalities(self) -> tuple[str, ...]:
        """Modalities the 4M tower reads: declared in some view and mapped to a domain."""
        declared = {m for streams in self.views.values() for m in streams}
        return tuple(m for m in MODALITIES if m in declared and m in self.domains)

    @property
    def uses_fourm(self) -> bool:
        """Whether the 4M tower is part of the policy."""
        return "fourm" in self.vision_tower

    def stream_keys(self) -> dict[str, tuple[str, str]]:
        """Key -> (view, modality) of every declared stream."""
        return {key: (view, m) for view, streams in self.views.items() for m, key in streams.items()}

    def validate_features(self) -> None:
        """Check the dataset's (or environment's) features against the view map.

        Declared streams that the data lack are legal (an absent sensor); features that are neither declared nor
        wanted are dropped, so that a stray depth camera cannot reach SigLIP (lerobot 0.6.1 would feed it). What remains
        is put into the order of the view map.

        Raises:
            ValueError: no declared stream is there at all, or one has the wrong number of channels.
        """
        super().validate_features()
        features = dict(self.input_features or {})
        declared = self.stream_keys()
        if features and not any(key in features for key in declared):
            visual = sorted(k for k, f in features.items() if f.type is FeatureType.VISUAL)
            raise ValueError(
                f"None of the view map's keys {sorted(declared)} is a feature of the data; its pictures are {visual}. "
                "Correct --policy.views (keys as the dataset spells them) or use --rename_map."
            )
        for key, (view, modality) in declared.items():
            if key in features:
                self._check_channels(key, view, modality, features[key])
        # in the order of the view map: upstream walks the features, we walk the views, and the two are compared
        pictures = {key: features[key] for key in declared if key in features}
        pictures |= self._pictures_known_by_their_tokens(features)
        # Recorded presence flags and cached ids, also of streams that nobody declared, are typed STATE (lerobot 0.6.1): they
        # would be normalised into nonsense and be asked of a robot.
        others = {
            k: f
            for k, f in features.items()
            if f.type is not FeatureType.VISUAL and not k.startswith(TOKENS) and not k.endswith(FLAG)
        }
        self.input_features = {**pictures, **{k: f for k, f in others.items() if k not in pictures}}

    def _pictures_known_by_their_tokens(self, features: dict[str, PolicyFeature]) -> dict[str, PolicyFeature]:
        """Streams of which the data hold cached ids only; at run time their pictures are expected.

        None where the data also have pictures that nobody declared: LeRobot 0.6.1 wants the data's pictures to be a subset
        of the policy's or the other way round, and neither would be. What the policy reads depends on the views alone.
        """
        declared = self.stream_keys()
        if any(f.type is FeatureType.VISUAL and k not in declared for k, f in features.items()):
            return {}
        found = {}
        for token, (view, modality) in self.token_keys().items():
            key = self.views[view][modality]
            if token in features and key not in features:
                side = self.image_size
                shape = (_VISUAL_CHANNELS[Modality(modality)][0], side, side)
                found[key] = PolicyFeature(FeatureType.VISUAL, shape)
        return found

    def set_dataset_feature_metadata(self, features: dict[str, dict[str, Any]]) -> None:
        """Check cached ids against this configuration and adopt the streams' provenance.

        Called by LeRobot's policy factory before the features are typed.

        The tokenizers themselves are not needed: weights that this machine does not have are known by the fingerprint that
        came with the ids, and checked against it when a picture must be tokenized for the first time.

        Raises:
            ValueError: the ids were made with other tokenizers, weights, sizes or labels than this policy uses at run
                time, corruption is to disturb pictures that the data do not hold, or provenance contradict the dataset's.
        """
        cached = {
            k: f for k, f in features.items() if k in self.token_keys() and self._reads_ids(k, features)
        }
        for key, feature in cached.items():
            self._check_recipe(key, feature.get("info") or {})
        self._cached_streams = frozenset(self.token_keys()[key] for key in cached)
        self._check_corruption_source(features)
        self.provenance = adopt_provenance(self.provenance, self.views, features)
        if cached:
            logger.info(
                "Training reads cached token ids of %s; no tokenizer is loaded for them.",
                ", ".join(sorted(cached)),
            )

    def _reads_ids(self, key: str, features: dict[str, dict[str, Any]]) -> bool:
        """Whether the ids under ``key`` are read at all: not those of an unread modality, nor beside soft rows' pictures."""
        view, modality = self.token_keys()[key]
        if not self.is_soft(modality):
            return modality in self.domains
        picture = self.views[view][modality]
        if picture not in features:
            raise ValueError(
                f"{key}: thermal_route=soft feeds rows of numbers to the encoder and cannot use ids, but the dataset has no pictures "
                f"{picture!r}. Keep the pictures beside the ids (--keep_pictures=true), or choose another route."
            )
        return False

    def is_soft(self, modality: str) -> bool:
        """Whether rows of numbers stand for a modality, so that there are no ids of it."""
        return any(d.startswith(SOFT_PREFIX) for d in self.domains.get(modality, "").split("+"))

    def _check_recipe(self, key: str, info: dict[str, Any]) -> None:
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
                f"{key}: the dataset's ids were made with {name}={found!r}, this policy uses {own!r}. Set the policy's "
                "option accordingly, or make them anew: `multismolvla-annotate` from a dataset with RGB, `multismolvla-tokens` from "
                "one that holds the pictures."
            )
        self.tokenizer_hashes |= {part: stored[part] for part in stored if part not in self.tokenizer_hashes}

    def _check_corruption_source(self, features: dict[str, dict[str, Any]]) -> None:
        if not self.corrupts or self.corruption_source != "live":
            return
        lacking = sorted(
            self.views[view][m]
            for view, m in self._cached_streams
            if m in self.tower_modalities and self.views[view][m] not in features
        )
        if lacking:
            raise ValueError(
                f"--policy.corruption_source=live disturbs pictures, but the dataset holds only ids of {lacking}. Keep the pictures "
                "beside the ids (--keep_pictures=true of `multismolvla-tokens` and `multismolvla-annotate`), or set "
                "--policy.corruption_source=ids."
            )

    @property
    def corrupts(self) -> bool:
        """Whether training disturbs pictures."""
        return self.uses_fourm and self.stage == "robust" and self.corruption_probability > 0

    @property
    def cached_modalities(self) -> frozenset[str]:
        """Modalities that training reads as ids in every view that has them, so that no tokenizer is needed."""
        if self.corrupts and self.corruption_source == "live":
            return frozenset()
        read = {m for _, m in self._cached_streams}
        live = {
            m
            for view, streams in self.views.items()
            for m, key in streams.items()
            if (view, m) not in self._cached_streams and key in (self.input_features or {})
        }
        return frozenset(read - live)

    def official_options(self) -> OfficialOptions:
        """Which official networks make ids."""
        return OfficialOptions.of(self)

    def token_keys(self) -> dict[str, tuple[str, str]]:
        """Key of cached ids -> (view, modality), for every declared stream that is tokenized."""
        return {
            token_key(view, m): (view, m)
            for view, streams in self.views.items()
            for m in streams
            if m != Modality.RGB
        }

    @property
    def observation_delta_indices(self) -> None:
        """No observation history.

        Upstream's ``[0]`` means the same, but makes LeRobot 0.6.1 decode every picture of the frame once more per
        observation key: ten times the work for eight streams.
        """
        return

    @staticmethod
    def _check_channels(key: str, view: str, modality: str, feature: PolicyFeature) -> None:
        channels = feature.shape[0] if len(feature.shape) == 3 else 1
        allowed = _VISUAL_CHANNELS[Modality(modality)]
        if channels not in allowed:
            raise ValueError(
                f"{key} is declared as {modality} of view {view!r} and must have {' or '.join(map(str, allowed))} channels, "
                f"but the data give shape {feature.shape} (channels first). Correct --policy.views."
            )


def check_options(cfg: MultiSmolVLAConfig) -> None:
    """Check a configuration by itself; what the data must fulfil is asked when they are known.

    Raises:
        ValueError: an unknown name, a number outside its range, or options that exclude each other.
    """
    _check_names(cfg)
    _check_combinations(cfg)
    _check_curricula(cfg)


def _check_names(cfg: MultiSmolVLAConfig) -> None:
    validate_view_map(cfg.views)
    _check_choice("vision_tower", cfg.vision_tower, TOWERS)
    _check_choice("stage", cfg.stage, STAGES)
    _check_choice("tokenizers", cfg.tokenizers, TOKENIZER_FAMILIES)
    _check_choice("square", cfg.square, SQUARE_MODES)
    _check_choice("depth_unit", cfg.depth_unit, DEPTH_UNITS)
    _check_choice("corruption_source", cfg.corruption_source, CORRUPTION_SOURCES)
    cfg.official_options()  # its own checks
    check_provenance(cfg.provenance, cfg.views)
    for view in cfg.half_turns:
        _check_choice("half_turns keys", view, tuple(cfg.views))
    for modality in cfg.domains:
        _check_choice("domains keys", modality, MODALITIES)


def _check_combinations(cfg: MultiSmolVLAConfig) -> None:
    if cfg.adapt_to_pi_aloha and cfg.uses_fourm:
        raise ValueError(
            "--policy.adapt_to_pi_aloha=true changes the batch in place (lerobot 0.6.1) and is only supported with "
            "--policy.vision_tower=siglip."
        )
    if cfg.empty_cameras and cfg.uses_fourm:
        raise ValueError(
            f"--policy.empty_cameras={cfg.empty_cameras} is SmolVLA's way of declaring absent cameras; with the 4M tower declare "
            "them in --policy.views instead: a declared stream that the data lack is masked."
        )
    if cfg.flow_samples > 1 and cfg.consistency_weight > 0:
        raise ValueError(
            f"--policy.flow_samples={cfg.flow_samples} and consistency_weight={cfg.consistency_weight} exclude each other: "
            "consistency compares two velocities at one draw of noise and time. Set one of them to its default."
        )
    if cfg.flow_samples < 1:
        raise ValueError(f"--policy.flow_samples={cfg.flow_samples} must be at least 1.")
    low, high = cfg.depth_range_m
    if not 0 <= low < high:
        raise ValueError(f"--policy.depth_range_m={cfg.depth_range_m} must be 0 <= near < far, in metres.")
    if cfg.add_image_special_tokens and cfg.vision_tower != "siglip":
        raise ValueError(
            "--policy.add_image_special_tokens=true is only supported with --policy.vision_tower=siglip."
        )


def _check_curricula(cfg: MultiSmolVLAConfig) -> None:
    if not 0 <= cfg.corruption_probability <= 1 or cfg.corruption_max_severity not in SEVERITIES:
        raise ValueError(
            f"--policy.corruption_probability={cfg.corruption_probability} must lie in [0, 1] and corruption_max_severity="
            f"{cfg.corruption_max_severity} be one of {list(SEVERITIES)}."
        )
    if cfg.corruption_probability and not cfg.uses_fourm:
        raise ValueError(
            f"--policy.corruption_probability={cfg.corruption_probability} is not supported with --policy.vision_tower=siglip: "
            "its pictures go to upstream's SmolVLA as they are."
        )
    # the curricula's own checks, so that a wrong value fails before the first step and not at the last tenth
    dropout.curriculum_share(0, 1, ramp=cfg.corruption_ramp, clean=cfg.corruption_clean, name="corruption")
    dropout.dropout_probability(
        0,
        1,
        mode=cfg.dropout_mode,
        p_max=cfg.dropout_p_max,
        ramp=cfg.dropout_ramp,
        clean=cfg.dropout_clean,
    )


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"--policy.{name}={value!r} is unknown. Expected one of {list(allowed)}.")

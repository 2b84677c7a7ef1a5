"""The options of the MultiSmolVLA policy and what follows from them alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from lerobot.configs.types import NormalizationMode
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

from multismolvla import dropout
from multismolvla.corruption import SEVERITIES
from multismolvla.fourm.soft import SOFT_PREFIX
from multismolvla.geometry import SQUARE_MODES
from multismolvla.modalities import (
    MODALITIES,
    Modality,
    ViewMap,
    default_view_map,
    token_key,
    validate_view_map,
)
from multismolvla.objectives.options import ObjectivesOptions, check_objectives
from multismolvla.objectives.registry import OBJECTIVES
from multismolvla.pretrained import IMAGEBIND
from multismolvla.provenance import ProvenanceMap, ProvenanceOption
from multismolvla.tokenizers import TOKENIZER_FAMILIES, OfficialOptions
from multismolvla.tokenizers.recipe import OFFICIAL_LABELS

#: Option -> the values that it may have.
_CHOICES: dict[str, tuple[str, ...]] = {
    "vision_tower": ("fourm", "siglip", "siglip+fourm"),
    "stage": ("connector", "robust"),
    "tokenizers": TOKENIZER_FAMILIES,
    "square": SQUARE_MODES,
    "depth_unit": ("m", "mm"),
    "corruption_source": ("live", "ids"),
    "missing_estimator": ("error", "absent"),
    "refresh_between": ("absent", "reuse"),
    "action_kind": ("absolute", "delta"),
    "on_blind": ("hold", "stop", "act"),
    "acting_dtype": ("float32", "bfloat16"),
}


@dataclass
class MultiSmolVLAOptions(SmolVLAConfig):
    """SmolVLA whose vision tower is the 4M-21 multimodal encoder.

    Args (those that SmolVLA does not have; sizes are those of 4M-21 unless a preset says otherwise):
        views: ``{view: {modality: key}}``; declares *possible* sensors, a missing one is masked.
        absent_streams: declared streams (``view.modality`` or key) that the training data lack on purpose.
            Any other declared RGB must be in them, because a misspelt camera would be lost without a word.
        provenance: ``{modality: sensor | derived}``, or ``{view: {modality: ...}}``, which takes precedence.
            A derived stream is absent when its view's RGB is. Empty = as the dataset says, else a sensor.
        vision_tower: ``fourm`` (the product), ``siglip`` (vanilla SmolVLA), ``siglip+fourm`` (both).
        base_checkpoint: SmolVLA checkpoint (folder or hub id) whose language model and expert are taken;
            ``pretrained_path`` is LeRobot's name for checkpoints of this very policy.
        encoder, encoder_revision, encoder_hash: the frozen 4M encoder and what its tensors hash to.
        tokenizers: ``patch`` or ``official``; the options after it say which official networks make the ids.
    """

    # -- input ----------------------------------------------------------------------------------------------
    views: ViewMap = field(default_factory=default_view_map)
    absent_streams: list[str] = field(default_factory=list)
    provenance: ProvenanceOption = field(default_factory=dict)
    # Unit of *float* depth; integers are millimetres, LeRobot's rule. LeRobot 0.6.1 delivers millimetres by
    # default, simulators give metres: train with --dataset.depth_output_unit=m.
    depth_unit: str = "m"
    depth_range_m: tuple[float, float] = (0.011, 10.0)  # else invalid; LeRobot's invalid pixels are 10 mm
    # Degrees Celsius that a thermal sensor's pictures show black and white; compared with the robot's camera.
    thermal_range_c: list[float] | None = None
    num_labels: int = 8  # size of the segmentation pictures' label set, id 0 = background (official: 134)
    # What these ids mean, adopted from the training data; other data must say the same, if they say it.
    seg_classes: list[str] = field(default_factory=list)
    # View -> 180-degree turns of a camera mounted upside down.
    half_turns: dict[str, int] = field(default_factory=dict)
    # What becomes of pictures that are not fit to be used: act = absent, off = nothing, strict = an error.
    # None = strict in training, where they are faults of the dataset, and act everywhere else. Vanilla
    # SmolVLA (vision_tower=siglip) takes every picture for what it is when it acts.
    health: str | None = None
    # Depth, seg and thermal that were taken so many milliseconds before or after their view's RGB are not fit
    # to be used, either. Needs capture times (<key>_captured); None = they are not looked at.
    max_skew_ms: float | None = None
    # What makes the derived streams: modality -> recipe, adopted from the training data. A stream that no
    # sensor delivers is computed by it wherever the policy plans. {"thermal": null} forgets a checkpoint's,
    # and a data set's is adopted; {} changes nothing, LeRobot 0.6.1 merges it into what the checkpoint says.
    estimators: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    estimator_sources: dict[str, str] = field(default_factory=dict)  # modality -> folder with its files
    missing_estimator: str = "error"  # when an estimator's files are not there: error, or absent
    # Derived modality -> estimated at every k-th look only, {"thermal": 4}; left out, or 1 = at every look.
    refresh: dict[str, int] = field(default_factory=dict)
    # What a derived stream is between: absent, which stage 2 trains, or the last estimate (reuse), which it
    # cannot: that is of a frame n_action_steps or more earlier, and a training sample holds one. LeRobot
    # 0.6.1 would load earlier frames of every observation key or of none, all pictures included.
    refresh_between: str = "absent"
    square: str = "crop"  # how a non-square view becomes square, for all its streams alike

    # -- tower ----------------------------------------------------------------------------------------------
    vision_tower: str = "fourm"
    encoder: str = "EPFL-VILAB/4M-21_B"  # hub repository or folder in the official layout
    encoder_revision: str | None = None
    encoder_hash: str | None = None  # filled when first built, checked at every reload
    # Modality -> encoder domain; several joined by "+": thermal: tok_imagebind@224+tok_imagebind_global.
    domains: dict[str, str] = field(
        default_factory=lambda: {"rgb": "rgb@224", "depth": "tok_depth@224", "seg": "tok_semseg@224"}
    )
    tokenizers: str = "patch"  # "patch": weight-free ones of the mini preset; "official": 4M's own
    # Of depth, seg, imagebind, imagebind_global -> hub id or folder; left out = the official one.
    tokenizer_sources: dict[str, str] = field(default_factory=dict)
    # Filled when first seen, checked ever after: what makes ids must not change.
    tokenizer_hashes: dict[str, str] = field(default_factory=dict)
    seg_labels: str = OFFICIAL_LABELS  # official: label table of the segmentation pictures, a name or a file
    seg_unknown: str = "error"  # official: ids outside that table: error or void (= nothing)
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
    view_embedding: bool = True  # a learned vector per view: tells the views apart when one alone is left
    encoder_lora_blocks: int = 0  # so many of the encoder's last blocks stage 2's LoRA reaches; 0 = frozen

    # -- stages ---------------------------------------------------------------------------------------------
    stage: str = "connector"
    base_checkpoint: str | None = None
    flow_weight: float = 1.0  # weight of the action loss in stage 1
    align_weight: float = 1.0  # weight of the distillation in stage 1
    # Stage 1: probability of losing a modality. What is left is distilled to the tokens of the whole view, so
    # that stage 2 need not learn from the action loss what depth alone shows.
    connector_dropout: float = 0.0
    consistency_weight: float = 0.0  # stage 2: distance to the complete sample's velocity; a second forward
    flow_samples: int = 1  # draws of noise and time per observation; more than upstream's 1 cost the expert
    bridge_lr_scale: float = 1.0  # learning rate of the connector relative to the rest
    # What else is added to a stage's loss, and which episodes count as labelled.
    objectives: ObjectivesOptions = field(default_factory=ObjectivesOptions)

    # -- dropout curriculum (stage 2) -----------------------------------------------------------------------
    dropout_mode: str = "linear"
    dropout_p_max: float = 0.5
    dropout_ramp: float = 0.6  # share of the stage over which "linear" rises
    dropout_clean: float = 0.1  # last share of the stage without dropout
    dropout_complete: float = 0.1  # share of each batch that stays complete
    # What dropout strikes, as shares of the samples, see multismolvla.dropout.sample_presence.
    dropout_independent: float = 1 / 3  # each modality of each view by itself
    dropout_cameras: float = 1 / 3  # whole cameras
    dropout_modalities: float = 1 / 3  # whole modalities, in all views at once
    dropout_deployment: float = 0.0  # everything but `deployment`
    # Streams (view.modality) that the robot will have, where it has fewer than the data; the clean last share
    # shows nothing else but what the policy estimates of their RGB. Empty = all that are declared.
    deployment: list[str] = field(default_factory=list)
    curriculum_steps: int = 0  # length of the stage; set it to --steps
    curriculum_step: int = 0  # progress; here because PEFT checkpoints save no buffers (lerobot 0.6.1)
    curriculum_stage: str = ""  # the stage that progress belongs to; another one resets it
    curriculum_length: int = 0  # `curriculum_steps` of that stage; another number resets it, too
    curriculum_seed: int | None = None  # of what training draws; None = the run's --seed

    # -- corruption curriculum (stage 2), per sample, view and modality -------------------------------------
    corruption_probability: float = 0.0  # greatest probability that a picture is disturbed; 0 = never
    corruption_max_severity: int = 3  # 1 (weak) to 5; drawn evenly up to this
    corruption_ramp: float = 0.6  # share of the stage over which the probability rises from 0
    corruption_clean: float = 0.1  # last share of the stage without corruption
    # Of depth, seg and thermal, "live" disturbs pictures and tokenizes them anew; "ids" disturbs the ids.
    corruption_source: str = "live"

    # -- acting ---------------------------------------------------------------------------------------------
    # What an action says: absolute = where to be (LeRobot's robots), delta = how to move (LIBERO).
    action_kind: str = "absolute"
    # Of each number of an action the normalised value that stands still, None = the last one again; filled
    # from the training data, empty = none was seen.
    standstill: list[float | None] = field(default_factory=list)
    # When nothing is left to see: hold = stay where the last command leads, and keep the grip; stop = end the
    # roll-out; act = as if nothing had happened. For 4M towers.
    on_blind: str = "hold"
    # Whether a plan is carried out to its end when a sensor is lost or back meanwhile; else it is dropped and
    # made anew. Under RTC the engine has the plan: the next one sees it.
    finish_chunk: bool = False
    # Number format in which the policy acts: float32, or bfloat16 (autocast), in which GPUs are faster. What
    # makes token ids is always float32.
    acting_dtype: str = "float32"
    health_log: str | None = None  # file to which a line of JSON is added when a sensor is lost or back

    # -- defaults that differ from SmolVLA's ----------------------------------------------------------------
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
        self.estimators = {m: recipe for m, recipe in self.estimators.items() if recipe is not None}
        check_options(self)

    # -- what follows from the options ----------------------------------------------------------------------

    @property
    def uses_fourm(self) -> bool:
        """Whether the 4M tower is part of the policy."""
        return "fourm" in self.vision_tower

    @property
    def drops(self) -> bool:
        """Whether training takes sensors away in this stage."""
        if self.stage == "connector":
            return self.connector_dropout > 0
        return self.dropout_mode != "none" or bool(self.refresh)

    @property
    def corrupts(self) -> bool:
        """Whether training disturbs pictures."""
        return self.uses_fourm and self.stage == "robust" and self.corruption_probability > 0

    @property
    def objective_weights(self) -> dict[str, float]:
        """Objective -> its weight, 0 = off."""
        return {name: attrgetter(entry.option)(self) for name, entry in OBJECTIVES.items()}

    @property
    def active_objectives(self) -> dict[str, float]:
        """The objectives that are on -> their weight."""
        return {name: weight for name, weight in self.objective_weights.items() if weight > 0}

    @property
    def dropout_shares(self) -> dict[str, float]:
        """What dropout strikes -> share of the samples."""
        return {
            "independent": self.dropout_independent,
            "cameras": self.dropout_cameras,
            "modalities": self.dropout_modalities,
            "deployment": self.dropout_deployment,
        }

    @property
    def stopped(self) -> list[int]:
        """Numbers of an action that are 0 where the robot stands still."""
        return [n for n, value in enumerate(self.standstill) if value is not None]

    @property
    def rgb_keys(self) -> list[str]:
        """RGB keys in view order."""
        return [streams["rgb"] for streams in self.views.values() if "rgb" in streams]

    @property
    def tower_modalities(self) -> tuple[str, ...]:
        """Modalities the 4M tower reads: declared in some view and mapped to a domain."""
        declared = {m for streams in self.views.values() for m in streams}
        return tuple(m for m in MODALITIES if m in declared and m in self.domains)

    @property
    def provenance_map(self) -> ProvenanceMap:
        """Where every declared stream comes from."""
        return ProvenanceMap.parse(self.provenance, self.views)

    def is_derived(self, view: str, modality: str) -> bool:
        """Whether a stream is computed from its view's RGB."""
        return self.provenance_map.is_derived(view, modality)

    def measures(self, modality: str) -> bool:
        """Whether a sensor delivers a modality in some view."""
        return any(
            modality in streams and not self.is_derived(view, modality)
            for view, streams in self.views.items()
        )

    def is_soft(self, modality: str) -> bool:
        """Whether rows of numbers stand for a modality, so that there are no ids of it."""
        return any(d.startswith(SOFT_PREFIX) for d in self.domains.get(modality, "").split("+"))

    def stream_keys(self) -> dict[str, tuple[str, str]]:
        """Key -> (view, modality) of every declared stream."""
        return {key: (view, m) for view, streams in self.views.items() for m, key in streams.items()}

    def token_keys(self) -> dict[str, tuple[str, str]]:
        """Key of cached ids -> (view, modality), for every declared stream that is tokenized."""
        return {token_key(v, m): (v, m) for v, m in self.stream_keys().values() if m != Modality.RGB}

    def official_options(self) -> OfficialOptions:
        """Which official networks make ids."""
        return OfficialOptions.of(self)


def check_options(cfg: MultiSmolVLAOptions) -> None:
    """Check a configuration by itself; what the data must fulfil is asked when they are known.

    Raises:
        ValueError: an unknown name, a number outside its range, or options that exclude each other.
    """
    validate_view_map(cfg.views)
    for option, allowed in _CHOICES.items():
        _check_choice(option, getattr(cfg, option), allowed)
    if cfg.health is not None:
        _check_choice("health", cfg.health, ("act", "off", "strict"))
        if cfg.health == "strict" and cfg.vision_tower == "siglip":
            raise ValueError(
                "--policy.health=strict needs a 4M tower: vanilla SmolVLA (--policy.vision_tower=siglip) "
                "takes every picture for what it is when it acts. In training it is strict by itself."
            )
    if cfg.max_skew_ms is not None and not cfg.max_skew_ms > 0:
        raise ValueError(
            f"--policy.max_skew_ms={cfg.max_skew_ms}: expected milliseconds above 0. Leave it out, and no "
            "capture time is looked at."
        )
    for view in cfg.half_turns:
        _check_choice("half_turns keys", view, tuple(cfg.views))
    for modality in cfg.domains:
        _check_choice("domains keys", modality, MODALITIES)
    for option in ("estimators", "estimator_sources", "refresh"):
        for modality in getattr(cfg, option):
            _check_choice(f"{option} keys", modality, MODALITIES[1:])
    for modality, every in cfg.refresh.items():
        if every < 1:
            raise ValueError(
                f"--policy.refresh={cfg.refresh}: {modality} every {every} looks; expected at least 1."
            )
    streams = cfg.stream_keys()
    for stream in cfg.absent_streams:
        _check_choice("absent_streams", stream, (*(f"{v}.{m}" for v, m in streams.values()), *streams))
    for stream in cfg.deployment:
        _check_choice("deployment", stream, tuple(f"{v}.{m}" for v, m in streams.values()))
    cfg.official_options()  # its own checks
    _ = cfg.provenance_map  # its own checks
    _check_combinations(cfg)
    _check_curricula(cfg)
    _check_objectives(cfg)


def _check_choice(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"--policy.{option}={value!r} is unknown. Expected one of {list(allowed)}.")


def _check_combinations(cfg: MultiSmolVLAOptions) -> None:
    # adapt_to_pi_aloha changes the batch in place (lerobot 0.6.1)
    for option in ("adapt_to_pi_aloha", "add_image_special_tokens"):
        if getattr(cfg, option) and cfg.uses_fourm:
            raise ValueError(f"--policy.{option}=true is only supported with --policy.vision_tower=siglip.")
    if cfg.empty_cameras and cfg.uses_fourm:
        raise ValueError(
            f"--policy.empty_cameras={cfg.empty_cameras} is SmolVLA's way of declaring absent cameras; with "
            "the 4M tower declare them in --policy.views and --policy.absent_streams."
        )
    if cfg.flow_samples < 1:
        raise ValueError(f"--policy.flow_samples={cfg.flow_samples} must be at least 1.")
    blocks = cfg.encoder_lora_blocks
    if blocks < 0 or (blocks and not cfg.uses_fourm):
        raise ValueError(
            f"--policy.encoder_lora_blocks={blocks}: expected 0 or more of the 4M encoder's blocks, and 0 "
            "with --policy.vision_tower=siglip."
        )
    degrees = cfg.thermal_range_c
    if degrees is not None and (len(degrees) != 2 or not degrees[0] < degrees[1]):
        raise ValueError(f"--policy.thermal_range_c={degrees} must be [lowest, highest], in degrees Celsius.")
    low, high = cfg.depth_range_m
    if not 0 <= low < high:
        raise ValueError(f"--policy.depth_range_m={cfg.depth_range_m} must be 0 <= near < far, in metres.")


def _check_curricula(cfg: MultiSmolVLAOptions) -> None:
    if not 0 <= cfg.connector_dropout < 1:
        raise ValueError(f"--policy.connector_dropout={cfg.connector_dropout} must lie in [0, 1).")
    if not 0 <= cfg.corruption_probability <= 1:
        raise ValueError(f"--policy.corruption_probability={cfg.corruption_probability} must lie in [0, 1].")
    if cfg.corruption_max_severity not in SEVERITIES:
        raise ValueError(
            f"--policy.corruption_max_severity={cfg.corruption_max_severity} must be one of "
            f"{list(SEVERITIES)}."
        )
    if cfg.corruption_probability and not cfg.uses_fourm:
        raise ValueError(
            f"--policy.corruption_probability={cfg.corruption_probability} is not supported with "
            "--policy.vision_tower=siglip: its pictures go to upstream's SmolVLA as they are."
        )
    dropout.check_shares(cfg.dropout_shares, bool(cfg.deployment))
    # the curricula's own checks, so that a wrong value fails before the first step and not at the last tenth
    dropout.curriculum_share(0, 1, ramp=cfg.corruption_ramp, clean=cfg.corruption_clean, name="corruption")
    dropout.dropout_probability(
        0, 1, mode=cfg.dropout_mode, p_max=cfg.dropout_p_max, ramp=cfg.dropout_ramp, clean=cfg.dropout_clean
    )


def _check_objectives(cfg: MultiSmolVLAOptions) -> None:
    check_objectives(cfg.objectives)
    for name, weight in cfg.objective_weights.items():
        entry = OBJECTIVES[name]
        said = f"--policy.{entry.option}={weight}"
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"{said} must be a number of at least 0.")
        if weight == 0:
            continue
        for option, value, allowed in (
            ("stage", cfg.stage, entry.stages),
            ("vision_tower", cfg.vision_tower, entry.towers),
        ):
            if value not in allowed:
                raise ValueError(f"{said} is not supported with --policy.{option}={value}: {list(allowed)}.")
    if cfg.objectives.rlbind.weight > 0 and Modality.RGB not in cfg.tower_modalities:
        raise ValueError(
            f"--policy.objectives.rlbind.weight={cfg.objectives.rlbind.weight} attacks RGB, which the tower "
            f"does not read (only {list(cfg.tower_modalities)}). Declare rgb in --policy.views and domains."
        )
    soft = [m for m in cfg.tower_modalities if cfg.is_soft(m)]
    if cfg.objectives.rlbind.weight > 0 and soft:
        raise ValueError(
            f"--policy.objectives.rlbind.weight={cfg.objectives.rlbind.weight} keeps the connector's tokens "
            f"where they were, but the map of {soft[0]}'s rows (thermal_route=soft) learns, and they move "
            "with it. Choose another --policy.thermal_route."
        )

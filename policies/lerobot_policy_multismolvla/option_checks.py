"""Are the policy's options values that exist, and do they go together? Asked before the first step, without data or weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multismolvla import dropout
from multismolvla.corruption import SEVERITIES
from multismolvla.geometry import SQUARE_MODES
from multismolvla.modalities import MODALITIES, validate_view_map
from multismolvla.tokenizers import TOKENIZER_FAMILIES

from .origins import check_origins

if TYPE_CHECKING:
    from .configuration_multismolvla import MultiSmolVLAConfig

TOWERS = ("fourm", "siglip", "siglip+fourm")
STAGES = ("connector", "robust")
CORRUPTION_SOURCES = ("live", "ids")
DEPTH_UNITS = ("m", "mm")


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
    check_origins(cfg.origins, cfg.views)
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

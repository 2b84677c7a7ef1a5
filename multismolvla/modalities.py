"""The one registry of modalities, views, units and provenance.

Every other room of the house (dataset tools, environment, processors, tower, evaluation) takes names, order and
units from here, because each silent failure of multimodal robot policies known to us was a disagreement about one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Modality(StrEnum):
    """A kind of picture that a view can have. The declaration order is the project-wide axis order M."""

    RGB = "rgb"
    DEPTH = "depth"
    SEG = "seg"
    THERMAL = "thermal"


class Provenance(StrEnum):
    """Where the values of a modality come from.

    ``sensor``: an own measurement (a camera, or the simulator's independent rendering). ``derived``: computed from
    another modality at run time; it dies with its source and is never called sensor redundancy.
    """

    SENSOR = "sensor"
    DERIVED = "derived"


MODALITIES: tuple[str, ...] = tuple(m.value for m in Modality)

#: ``{view: {modality: key}}``, e.g. ``{"image": {"rgb": "observation.images.image", ...}, ...}``. The order of the
#: views is the order of the policy's prefix tokens and of the presence mask's V axis.
ViewMap = dict[str, dict[str, str]]


@dataclass(frozen=True)
class ModalitySpec:
    """What a *canonical* picture of a modality is, i.e. after the units step and before the tokenizer.

    Attributes:
        channels: number of channels C of the canonical tensor (B, C, H, W).
        dtype: ``"float32"`` or ``"int64"``.
        unit: the unit in words, used in error messages.
        minimum: smallest legal value.
        maximum: largest legal value (inclusive), ``None`` when open.
        interpolate: whether values may be mixed by resizing; class ids may not.
    """

    channels: int
    dtype: str
    unit: str
    minimum: float
    maximum: float | None
    interpolate: bool


SPECS: dict[str, ModalitySpec] = {
    Modality.RGB: ModalitySpec(3, "float32", "intensity in [0, 1]", 0.0, 1.0, True),
    Modality.DEPTH: ModalitySpec(1, "float32", "metres, with a separate validity mask", 0.0, None, True),
    Modality.SEG: ModalitySpec(1, "int64", "class id of the declared label set", 0, None, False),
    Modality.THERMAL: ModalitySpec(1, "float32", "relative temperature in [0, 1]", 0.0, 1.0, True),
}

#: Label set of the mini suite. At most eight classes: the weight-free tokenizer codes 2x2 quadrants in base 8.
MINI_LABELS: tuple[str, ...] = ("background", "robot", "gripper", "cube", "can", "basket", "plate", "other")


def padding_mask_key(key: str) -> str:
    """Key of the presence flag of picture ``key``: bool (B,), True = the sensor is there (LeRobot's own convention)."""
    return f"{key}_padding_mask"


def valid_key(key: str) -> str:
    """Key of the per-pixel validity of depth picture ``key``: bool (B, 1, H, W), True = a usable measurement."""
    return f"{key}_valid"


def token_key(view: str, modality: str) -> str:
    """Key of the cached token ids of a stream: int16 (N,) per frame, row-major, -1 = this token is absent.

    Under ``observation.``, because LeRobot 0.6.1 drops all other keys on their way to the policy.
    """
    return f"observation.tokens.{view}.{modality}"


def default_view_map(
    cameras: tuple[str, ...] = ("image", "image2"), modalities: tuple[str, ...] = MODALITIES
) -> ViewMap:
    """The view map of the datasets and environments that this package writes.

    Args:
        cameras: camera names, third-person first.
        modalities: the modalities each camera has.

    Returns:
        ``{camera: {modality: "observation.images.<camera>[_<modality>]"}}``.
    """
    suffix = {m: "" if m == Modality.RGB else f"_{m}" for m in MODALITIES}
    return {cam: {m: f"observation.images.{cam}{suffix[m]}" for m in modalities} for cam in cameras}


def validate_view_map(views: Mapping[str, Mapping[str, str]]) -> None:
    """Check a view map for what can be known without data.

    Raises:
        ValueError: the map is empty, names an unknown modality, gives one key to two streams, or a key is not an
            ``observation.`` key (LeRobot 0.6.1 drops all others when a batch becomes a transition).
    """
    if not views:
        raise ValueError(
            "The view map is empty. Expected {view: {modality: key}}, e.g. "
            """--policy.views='{"image": {"rgb": "observation.images.image"}}'."""
        )
    seen: dict[str, str] = {}
    for view, streams in views.items():
        if not streams:
            raise ValueError(
                f"View {view!r} has no streams. Remove it or give it at least one of {list(MODALITIES)}."
            )
        for modality, key in streams.items():
            if modality not in MODALITIES:
                raise ValueError(
                    f"View {view!r} names the unknown modality {modality!r}. Known modalities: {list(MODALITIES)}."
                )
            if not key.startswith("observation."):
                raise ValueError(
                    f"View {view!r}, modality {modality!r}: key {key!r} must start with 'observation.', because "
                    "LeRobot drops other keys before they reach the policy. Rename the feature."
                )
            if key in seen:
                raise ValueError(
                    f"Key {key!r} is used twice in the view map: by {seen[key]} and {view}.{modality}. "
                    "Each stream needs a key of its own."
                )
            seen[key] = f"{view}.{modality}"

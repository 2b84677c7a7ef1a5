"""The one registry of modalities and of the keys under which batches and datasets hold them.

Canonical pictures, i.e. after units and orientation and before the tokenizer, are batch first and channels
first:

========  =======  ============  =================================================================
rgb       float32  (B, 3, H, W)  intensity in [0, 1]
depth     float32  (B, 1, H, W)  metres, 0 where invalid, with a validity mask under `valid_key`
seg       int64    (B, 1, H, W)  ids of the declared label set; resizing picks, never mixes them
thermal   float32  (B, 1, H, W)  relative temperature in [0, 1]
========  =======  ============  =================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NotRequired, TypedDict


class Modality(StrEnum):
    """A kind of picture that a view can have. The declaration order is the project-wide axis order M."""

    RGB = "rgb"
    DEPTH = "depth"
    SEG = "seg"
    THERMAL = "thermal"


class Provenance(StrEnum):
    """Where the values of a stream come from; see `multismolvla.provenance`."""

    SENSOR = "sensor"
    DERIVED = "derived"


class Feature(TypedDict):
    """A feature of a LeRobotDataset, as its ``info.json`` describes it."""

    dtype: str
    shape: Sequence[int]
    names: Sequence[str] | None
    info: NotRequired[dict[str, object]]  # what else is known of it; each kind of feature has its own entries


MODALITIES: tuple[str, ...] = tuple(m.value for m in Modality)

#: ``{view: {modality: key}}``, e.g. ``{"image": {"rgb": "observation.images.image", ...}, ...}``. The order
#: of the views is the order of the policy's prefix tokens and of the presence mask's V axis.
ViewMap = dict[str, dict[str, str]]

#: Channels that a picture may have as it is stored; canonical pictures have the first number of them.
PICTURE_CHANNELS: dict[str, tuple[int, ...]] = {
    Modality.RGB: (3,),
    Modality.DEPTH: (1,),
    Modality.SEG: (1, 3),  # as PNG: red = class id, green = instance id
    Modality.THERMAL: (1, 3),
}
#: Pixels of a picture's side; fewer are less than a patch of the smallest encoder.
SMALLEST_SIDE = 8

#: Label set of the mini suite. At most eight classes: the weight-free tokenizer codes 2x2 quadrants in base
#: 8.
MINI_LABELS: tuple[str, ...] = ("background", "robot", "gripper", "cube", "can", "basket", "plate", "other")

#: How the keys of cached ids begin, and how those of presence flags (LeRobot's own convention) and of capture
#: times end.
TOKEN_PREFIX = "observation.tokens."
PADDING_MASK_SUFFIX = "_padding_mask"
CAPTURED_SUFFIX = "_captured"
#: Name of the validity mask among the pictures of one view, see `multismolvla.tower`.
DEPTH_VALID = "depth_valid"


def stream_name(camera: str, modality: str) -> str:
    """Name of a stream in this package's datasets and environments, e.g. ``image`` or ``image_depth``."""
    return camera if modality == Modality.RGB else f"{camera}_{modality}"


def picture_key(camera: str, modality: str) -> str:
    """Key of the same stream, e.g. ``observation.images.image_depth``."""
    return f"observation.images.{stream_name(camera, modality)}"


def modality_of_key(key: str) -> str:
    """The modality that the ending of a key names by the same convention; RGB without such an ending."""
    others = (m for m in MODALITIES if m != Modality.RGB)
    return next((m for m in others if key.endswith(f"_{m}")), Modality.RGB.value)


def padding_mask_key(key: str) -> str:
    """Key of the presence flag of picture ``key``: bool (B,), True = the sensor is there."""
    return f"{key}{PADDING_MASK_SUFFIX}"


def captured_key(key: str) -> str:
    """Key of when picture ``key`` was taken: float64 (B,), seconds of a clock that a view's streams share.

    NaN = not known. Seconds since 1970 do not fit into float32, which would round them to 128 s.
    """
    return f"{key}{CAPTURED_SUFFIX}"


def valid_key(key: str) -> str:
    """Key of the validity of depth picture ``key``: bool (B, 1, H, W), True = a usable measurement."""
    return f"{key}_valid"


def token_key(view: str, modality: str) -> str:
    """Key of the cached token ids of a stream: int16 (N,) per frame, row-major, -1 = this token is absent.

    Under ``observation.``, because LeRobot 0.6.1 drops all other keys on their way to the policy.
    """
    return f"{TOKEN_PREFIX}{view}.{modality}"


def ids_name(modality: str) -> str:
    """Name of the cached token ids of a modality among the pictures of one view, see `multismolvla.tower`."""
    return f"{modality}_ids"


def default_view_map(
    cameras: tuple[str, ...] = ("image", "image2"), modalities: tuple[str, ...] = MODALITIES
) -> ViewMap:
    """The view map of the datasets and environments that this package writes.

    Args:
        cameras: camera names, third-person first.
        modalities: the modalities each camera has.
    """
    return {camera: {m: picture_key(camera, m) for m in modalities} for camera in cameras}


def view_map_difference(found: ViewMap, expected: ViewMap) -> str:
    """Which streams of two view maps are not alike, in words; empty if all are."""
    return ", ".join(
        f"{view}.{m} is {one or 'not there'} instead of {other or 'not there'}"
        for view in {**expected, **found}
        for m in MODALITIES
        if (one := found.get(view, {}).get(m)) != (other := expected.get(view, {}).get(m))
    )


def validate_view_map(views: Mapping[str, Mapping[str, str]]) -> None:
    """Check a view map for what can be known without data.

    Raises:
        ValueError: the map is empty, names an unknown modality, gives one key to two streams, or a key is not
            an ``observation.`` key (LeRobot 0.6.1 drops all others when a batch becomes a transition).
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
                    f"View {view!r} names the unknown modality {modality!r}. Expected some of "
                    f"{list(MODALITIES)}."
                )
            if not key.startswith("observation."):
                raise ValueError(
                    f"View {view!r}, modality {modality!r}: key {key!r} must start with 'observation.', "
                    "because LeRobot drops other keys before they reach the policy. Rename the feature."
                )
            if key in seen:
                raise ValueError(
                    f"Key {key!r} is used twice in the view map: by {seen[key]} and {view}.{modality}. "
                    "Each stream needs a key of its own."
                )
            seen[key] = f"{view}.{modality}"

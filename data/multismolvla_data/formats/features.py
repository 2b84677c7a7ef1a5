"""Picture features of a LeRobotDataset: how ours are declared, and what any info.json says about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from multismolvla.modalities import Feature, Modality, Provenance, modality_of_key

#: By key, as LeRobot's info.json has them.
Features = dict[str, Feature]


@dataclass(frozen=True)
class PictureFeature:
    """What a data set says about one of its picture features."""

    height: int
    width: int
    channels: int  # as stored
    is_video: bool
    modality: str  # as the feature's info says, else as its name says
    provenance: str  # sensor where the info says nothing

    @classmethod
    def read(cls, key: str, feature: Feature) -> Self:
        """Read an entry of info.json; its shape may begin or end with the channels."""
        first, second, third = (int(size) for size in feature["shape"])
        names = feature.get("names") or []
        channels_first = str(names[0]).startswith("channel") if len(names) == 3 else third not in (1, 3)
        height, width, channels = (second, third, first) if channels_first else (first, second, third)
        info = feature.get("info") or {}
        modality = modality_of_key(key)
        if modality == Modality.RGB and info.get("is_depth_map"):
            modality = Modality.DEPTH.value
        return cls(
            height=height,
            width=width,
            channels=channels,
            is_video=feature["dtype"] == "video",
            modality=str(info.get("modality") or modality),
            provenance=str(info.get("provenance", Provenance.SENSOR)),
        )


def picture_features(features: Features) -> dict[str, PictureFeature]:
    """The picture features among those of a data set, in its order."""
    pictures = {key: f for key, f in features.items() if f["dtype"] in ("image", "video")}
    return {key: PictureFeature.read(key, feature) for key, feature in pictures.items()}


def declare_pictures(
    modality: str, height: int, width: int, provenance: str, labels: Sequence[str], **info: object
) -> Feature:
    """A picture feature of a new data set; ``labels`` name the segmentation classes by their ids.

    Depth is stored as TIFF without loss. Segmentation is an RGB PNG with the class in red and the instance in
    green, because LeRobot cannot store one-channel uint8 and a lossy video would invent classes.
    """
    meaning: dict[str, dict[str, object]] = {
        Modality.DEPTH: {"is_depth_map": True},
        Modality.SEG: {"labels": list(labels), "channels": ["class", "instance", "zero"]},
        Modality.THERMAL: {"unit": "relative temperature, 0..255 = 0..1"},
    }
    return {
        "dtype": "image",
        "shape": (height, width, 1 if modality == Modality.DEPTH else 3),
        "names": ["height", "width", "channels"],
        "info": {"modality": modality, "provenance": provenance} | meaning.get(modality, {}) | info,
    }

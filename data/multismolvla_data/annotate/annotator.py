"""What a batch of frames becomes: derived pictures in stored form, and token ids. And back, for checking.

Ids are computed from pictures *as a reader of the new data set gets them*: recorded streams after decoding
(their videos are copied, never encoded again), derived ones after rounding to what is stored, and they are
stored losslessly. So ids and pictures of the new data set agree exactly, whatever the source's compression.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multismolvla.estimators import Estimator
from multismolvla.estimators.interface import estimate_checked
from multismolvla.estimators.stored import as_stored
from multismolvla.geometry import rotate_half_turns
from multismolvla.modalities import Modality
from multismolvla_data.annotate.plan import AnnotationPlan, Stream
from multismolvla_data.annotate.tokenizing import FramePlace, IdMaker


@dataclass(frozen=True, eq=False)
class AnnotatedBatch:
    """Results for some frames.

    Attributes:
        stored: picture feature -> what is derived or rescaled, as it is written: depth uint16 (B, H, W, 1)
            millimetres; segmentation uint8 (B, H, W, 3), class id in red; thermal uint8 (B, H, W, 3), grey.
        ids: token feature -> int16 (B, N).
        valid: picture feature of depth -> share of usable pixels.
    """

    stored: dict[str, np.ndarray]
    ids: dict[str, np.ndarray]
    valid: dict[str, float]


@dataclass(frozen=True, eq=False)
class Annotator:
    """Makes pictures and ids of one batch of frames."""

    plan: AnnotationPlan
    estimators: Mapping[str, Estimator]  # of the derived modalities
    id_maker: IdMaker
    half_turns: Mapping[str, int]  # view -> 180-degree turns that bring its pictures upright

    def annotate(self, pictures: Mapping[str, Tensor], place: FramePlace) -> AnnotatedBatch:
        """Make what the plan asks for of the source's pictures, as `.source.SourceDataset.pictures`.

        Raises:
            ValueError: a recorded picture shows nothing.
        """
        stored = self._make(self.plan.streams, pictures)
        read_again = {key: as_read(made) for key, made in stored.items()}
        ids, valid = self.id_maker.ids({**pictures, **read_again}, place)
        return AnnotatedBatch(stored, ids, valid)

    def unstored(self, streams: Sequence[Stream], pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Streams kept as ids only: picture feature -> what a reader would get, had it been stored.

        ``pictures`` are the source's: RGB, and the recorded ones among ``streams``.
        """
        made = self._make(streams, pictures)
        return {s.key: as_read(made[s.key]) if s.key in made else pictures[s.key] for s in streams}

    def _make(self, streams: Sequence[Stream], pictures: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Estimate or rescale those streams that are not taken as they were recorded."""
        made: dict[str, np.ndarray] = {}
        for stream in streams:
            if stream.derive:
                made[stream.key] = self._derive(stream, pictures)
            elif stream.scale != 1.0:
                made[stream.key] = _millimetres(pictures[stream.key] * stream.scale)
        return made

    def _derive(self, stream: Stream, pictures: Mapping[str, Tensor]) -> np.ndarray:
        """Estimate a stream from its view's RGB, in stored form and the camera's own orientation."""
        turns = self.half_turns.get(stream.view, 0)
        rgb = pictures[self.plan.rgb_key(stream.view)]
        upright = rotate_half_turns(rgb.float() / 255.0 if rgb.dtype == torch.uint8 else rgb, turns)
        made = estimate_checked(self.estimators[stream.modality], upright, stream.modality)
        found = rotate_half_turns(made.cpu(), turns)
        if stream.modality == Modality.DEPTH:
            return _millimetres(found)
        if stream.modality == Modality.THERMAL:
            grey = (as_stored(stream.modality, found) * 255.0).round().to(torch.uint8)
            return grey.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous().numpy()
        return torch.nn.functional.pad(found.to(torch.uint8).permute(0, 2, 3, 1), (0, 2)).numpy()


def as_read(stored: np.ndarray) -> Tensor:
    """Stored pictures (B, H, W, C) as LeRobotDataset delivers them with metres: (B, C, H, W)."""
    if stored.dtype == "uint16":
        # through int32: torch has hardly any operators for uint16
        return torch.from_numpy(stored.astype("int32")).permute(0, 3, 1, 2).float() / 1000.0
    return torch.from_numpy(stored).permute(0, 3, 1, 2)


def encode(picture: np.ndarray) -> bytes:
    """One stored picture (H, W, C) as the bytes of a lossless file: TIFF for uint16, PNG for uint8."""
    buffer = io.BytesIO()
    if picture.dtype == "uint16":
        Image.fromarray(picture[..., 0]).save(buffer, format="TIFF", compression="tiff_adobe_deflate")
    else:
        Image.fromarray(picture).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def _millimetres(metres: Tensor) -> np.ndarray:
    """Depth (B, 1, H, W) in metres as uint16 (B, H, W, 1) millimetres; 0 = not measured, or too far."""
    rounded = (as_stored(Modality.DEPTH, metres).double() * 1000.0).round()
    return rounded.permute(0, 2, 3, 1).numpy().astype("uint16")

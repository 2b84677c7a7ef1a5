"""What a batch of frames becomes: derived pictures in stored form, canonical pictures, token ids. And back, for checking.

Ids are computed from pictures *as a reader of the new dataset gets them*: recorded streams after decoding (their videos are
copied, never encoded again), derived ones after rounding to what is stored, and they are stored losslessly. So ids and
pictures of the new dataset agree exactly, whatever the source's compression.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from multismolvla.geometry import rotate_half_turns
from multismolvla.modalities import Modality, valid_key
from multismolvla.sensors import SensorReader
from multismolvla.tower import tokenize_view
from multismolvla_data.annotate.config import AnnotateConfig
from multismolvla_data.annotate.streams import Plan, Stream

if TYPE_CHECKING:
    import numpy as np

    from multismolvla_data.annotate.estimators import Estimator, FrameId

#: Largest depth that uint16 millimetres hold.
_LARGEST_MM = 65_535


@dataclass
class Batch:
    """Results for some frames.

    Attributes:
        stored: picture feature -> what is written: depth uint16 (B, H, W, 1) millimetres; segmentation uint8 (B, H, W, 3),
            class id in red; thermal uint8 (B, H, W, 3), grey. Only streams that are not read as they are.
        ids: token feature -> int16 (B, N).
        valid: picture feature of depth -> share of usable pixels.
    """

    stored: dict[str, np.ndarray]
    ids: dict[str, np.ndarray]
    valid: dict[str, float]


class Annotator:
    """Makes pictures and ids of one batch of frames.

    Args:
        cfg: the options.
        plan: what to make.
        estimators: modality -> estimator, for each of ``plan.derived()``.
        tokenizers: modality -> tokenizer, for each tokenized modality.
        device: of the tokenizers.
    """

    def __init__(
        self,
        cfg: AnnotateConfig,
        plan: Plan,
        estimators: Mapping[str, Estimator],
        tokenizers: Mapping[str, Any],
        device: str,
    ) -> None:
        self.cfg, self.plan, self.device = cfg, plan, device
        self.estimators, self.tokenizers = estimators, tokenizers
        self._reader = SensorReader(
            plan.views,
            depth_range_m=cfg.depth_range_m,
            num_labels=cfg.label_count,
            half_turns=dict(cfg.half_turns),
        )

    def annotate(self, pictures: Mapping[str, Tensor], frames: Sequence[FrameId]) -> Batch:
        """Make what the plan asks for.

        Args:
            pictures: of the source, ``plan.source_keys()``, as `multismolvla_data.annotate.source.Source.pictures`.
            frames: which frames these are.
        """
        stored: dict[str, np.ndarray] = {}
        for stream in self.plan.streams:
            if stream.derive:
                stored[stream.key] = self._derive(stream, pictures, frames)
            elif stream.store:
                stored[stream.key] = _millimetres(pictures[stream.key] * stream.scale)
        ids, valid = self.ids({**pictures, **{key: as_read(made) for key, made in stored.items()}})
        return Batch(stored, ids, valid)

    def derive(
        self, streams: Sequence[Stream], pictures: Mapping[str, Tensor], frames: Sequence[FrameId]
    ) -> dict[str, Tensor]:
        """Estimate streams again: picture feature -> what a reader would get, had it been stored."""
        return {s.key: as_read(self._derive(s, pictures, frames)) for s in streams}

    def ids(self, pictures: Mapping[str, Tensor]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Token ids of pictures as a reader of the dataset gets them.

        Returns:
            token feature -> int16 (B, N); depth feature -> share of usable pixels.
        """
        keys = {s.key for s in self.plan.streams}
        canonical = self._reader.read({k: v for k, v in pictures.items() if k in keys})
        ids, valid = {}, {}
        for stream in self.plan.streams:
            if stream.modality == Modality.DEPTH:
                valid[stream.key] = canonical[valid_key(stream.key)].float().mean().item()
            if not stream.tokenize:
                continue
            view = {stream.modality: canonical[stream.key].to(self.device)}
            if stream.modality == Modality.DEPTH:
                view["depth_valid"] = canonical[valid_key(stream.key)].to(self.device)
            tokenizer = self.tokenizers[stream.modality]
            with torch.no_grad():
                made = tokenize_view(stream.modality, view, tokenizer, self.cfg.image_size, self.cfg.square)
            ids[stream.token_key] = made.to(torch.int16).cpu().numpy()
        return ids, valid

    def _derive(
        self, stream: Stream, pictures: Mapping[str, Tensor], frames: Sequence[FrameId]
    ) -> np.ndarray:
        """Estimate a stream from its view's RGB, in stored form and the camera's own orientation."""
        turns = self.cfg.half_turns.get(stream.view, 0)
        rgb = pictures[self.plan.rgb_key(stream.view)]
        upright = rotate_half_turns(rgb.float() / 255.0 if rgb.dtype == torch.uint8 else rgb, turns)
        found = rotate_half_turns(self.estimators[stream.modality].estimate(upright, frames), turns)
        if found.shape != (len(rgb), 1, *rgb.shape[-2:]):
            raise ValueError(
                f"The estimator of {stream.modality} gave {tuple(found.shape)} for RGB {tuple(rgb.shape)}; expected one channel "
                "of the same size."
            )
        if stream.modality == Modality.DEPTH:
            return _millimetres(found)
        level = found if stream.modality == Modality.SEG else (found * 255.0).round().clamp(0, 255)
        first = level.to(torch.uint8).permute(0, 2, 3, 1)
        if stream.modality == Modality.THERMAL:
            return first.expand(-1, -1, -1, 3).contiguous().numpy()
        return torch.nn.functional.pad(first, (0, 2)).numpy()


def as_read(stored: np.ndarray) -> Tensor:
    """Stored pictures (B, H, W, C) as LeRobotDataset delivers them with metres: (B, C, H, W)."""
    if stored.dtype == "uint16":
        # through int32: torch has hardly any operators for uint16
        return torch.from_numpy(stored.astype("int32")).permute(0, 3, 1, 2).float() / 1000.0
    return torch.from_numpy(stored).permute(0, 3, 1, 2)


def encode(picture: np.ndarray) -> bytes:
    """One stored picture (H, W, C) as the bytes of a lossless file: TIFF for uint16, PNG for uint8."""
    from PIL import Image

    buffer = io.BytesIO()
    if picture.dtype == "uint16":
        Image.fromarray(picture[..., 0]).save(buffer, format="TIFF", compression="tiff_adobe_deflate")
    else:
        Image.fromarray(picture).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def _millimetres(metres: Tensor) -> np.ndarray:
    """Depth (B, 1, H, W) in metres as uint16 (B, H, W, 1) millimetres; 0 = no measurement, also beyond what fits."""
    rounded = (metres.double() * 1000.0).round()
    kept = torch.where((rounded > 0) & (rounded <= _LARGEST_MM), rounded, 0.0)
    return kept.permute(0, 2, 3, 1).numpy().astype("uint16")

"""From what datasets, simulators and robots deliver to canonical pictures (`multismolvla.modalities`).

One piece of code for training, evaluation, deployment and the dataset tools. Every disagreement about units
is an error that names the key, the value and the remedy; nothing is guessed and nothing falls back silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from multismolvla.geometry import rotate_half_turns
from multismolvla.health import Cause
from multismolvla.modalities import (
    PICTURE_CHANNELS,
    Modality,
    ViewMap,
    padding_mask_key,
    valid_key,
    validate_view_map,
)

# A float depth picture whose median is beyond this many metres came in millimetres: robot arms do not look
# further.
_IMPLAUSIBLE_METRES = 100.0
# ... and one in millimetres whose largest value is below this came in metres.
_IMPLAUSIBLE_MILLIMETRES = 20.0
# LeRobot 0.6.1 gives invalid pixels back as 10 mm after video; they say nothing about the unit.
_INVALID_MILLIMETRES = 10.0


@dataclass
class SensorReader:
    """Brings every declared stream to its canonical form, under the same key.

    A declared key that is missing stays missing (an absent sensor); undeclared keys pass untouched.

    Attributes:
        views: the view map.
        depth_unit: ``m`` or ``mm``, the unit of float depth. Integer depth is millimetres, as everywhere in
            LeRobot.
        depth_range_m: (near, far); depth at or below near, or beyond far, is invalid.
        num_labels: ids must be below this.
        half_turns: view -> number of 180-degree turns.

    Raises:
        ValueError: NaN pictures, a wrong dtype, shape, unit or range.
    """

    views: ViewMap = field(default_factory=dict)
    depth_unit: str = "m"
    depth_range_m: tuple[float, float] = (0.011, 10.0)
    num_labels: int = 8
    half_turns: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        validate_view_map(self.views)
        self.depth_range_m = (float(self.depth_range_m[0]), float(self.depth_range_m[1]))

    def read(self, observation: Mapping[str, Any], faults: dict[str, Tensor] | None = None) -> dict[str, Any]:
        """Make the declared streams of one observation canonical.

        Args:
            observation: as a dataset, a simulator or a robot delivers it.
            faults: gets, by key, the `Cause` of each row, int64 (B,), of a picture whose *content* is wrong;
                the row becomes black. ``None`` = wrong content is an error.
        """
        out = dict(observation)
        for view, streams in self.views.items():
            for modality, key in streams.items():
                flag = out.get(padding_mask_key(key))
                if flag is not None:  # also beside cached ids without a picture; datasets store it as (B, 1)
                    out[padding_mask_key(key)] = torch.as_tensor(flag).reshape(-1) > 0.5
                if key not in out:
                    continue
                image = rotate_half_turns(_last_frame(key, out[key]), self.half_turns.get(view, 0))
                if faults is not None:
                    image = self._without_faults(key, modality, image, faults)
                if image.shape[1] not in PICTURE_CHANNELS[modality]:
                    raise ValueError(
                        f"{key} has {image.shape[1]} channels (shape {tuple(image.shape)}). A {modality} "
                        f"picture must have {' or '.join(map(str, PICTURE_CHANNELS[modality]))}, channels "
                        "first. Check the view map (--policy.views)."
                    )
                if modality == Modality.DEPTH:
                    out[key], out[valid_key(key)] = self._depth(key, image)
                elif modality == Modality.SEG:
                    out[key] = self._ids(key, image[:, :1])
                elif modality == Modality.THERMAL:
                    out[key] = _unit_interval(key, image)[:, :1]
                else:
                    out[key] = _unit_interval(key, image)
        return out

    def _without_faults(self, key: str, modality: str, image: Tensor, faults: dict[str, Tensor]) -> Tensor:
        """Black rows where the content is wrong; why is noted in ``faults``."""
        rows = image.flatten(1)
        cause = torch.zeros(len(image), dtype=torch.int64, device=image.device)
        if image.is_floating_point():
            if modality == Modality.DEPTH:  # drivers write NaN or infinity where nothing was measured
                image = torch.where(image.isfinite(), image, 0.0)
                largest = torch.where(image > 0, image, 0.0).flatten(1).amax(1)
                median = _median_of_positive(image.flatten(1))
                other_unit = median > _IMPLAUSIBLE_METRES
                if self.depth_unit == "mm":
                    other_unit = (largest > 0) & (largest < _IMPLAUSIBLE_MILLIMETRES)
                cause[other_unit] = Cause.DEPTH_SCALE
            else:
                low, high = rows.amin(1), rows.amax(1)  # NaN where one is in the row
                cause[(low < -1e-4) | (high > 1 + 1e-4)] = Cause.OUT_OF_RANGE
                cause[~rows.isfinite().all(1)] = Cause.NOT_FINITE
        if modality == Modality.SEG:
            ids = image * 255.0 if image.is_floating_point() else image
            beyond = (ids.flatten(1) > self.num_labels - 0.5).any(1) & (cause == Cause.FIT)
            cause[beyond] = Cause.OUT_OF_RANGE
        bad = cause != Cause.FIT
        if not bad.any():
            return image
        faults[key] = cause
        return torch.where(bad[:, None, None, None], torch.zeros_like(image), image)

    def _depth(self, key: str, image: Tensor) -> tuple[Tensor, Tensor]:
        if not image.is_floating_point():
            metres = image.to(torch.float32) / 1000.0
        else:
            if torch.isnan(image).any():
                raise ValueError(
                    f"{key} contains NaN. Expected metric depth with invalid pixels as 0. Replace NaN by 0 "
                    "where the frames are made."
                )
            metres = image.float() if self.depth_unit == "m" else image.float() / 1000.0
            self._check_unit(key, image)
        near, far = self.depth_range_m
        valid = (metres > near) & (metres <= far)
        return torch.where(valid, metres, 0.0), valid

    def _check_unit(self, key: str, image: Tensor) -> None:
        seen = image[image.isfinite() & (image > 0) & ((image - _INVALID_MILLIMETRES).abs() > 0.5)]
        if seen.numel() == 0:
            return
        if self.depth_unit == "m" and seen.median() > _IMPLAUSIBLE_METRES:
            raise ValueError(
                f"{key}: median depth is {seen.median().item():.0f}, which cannot be metres; it looks like "
                "millimetres. Train with --dataset.depth_output_unit=m, or declare --policy.depth_unit=mm."
            )
        if self.depth_unit == "mm" and seen.max() < _IMPLAUSIBLE_MILLIMETRES:
            raise ValueError(
                f"{key}: largest depth is {seen.max().item():.3f}, which cannot be millimetres; it looks "
                "like metres. Declare --policy.depth_unit=m, or deliver millimetres."
            )

    def _ids(self, key: str, image: Tensor) -> Tensor:
        if image.is_floating_point():
            if torch.isnan(image).any():
                raise ValueError(f"{key} contains NaN. Expected segmentation ids.")
            if image.max() > 1.0 or image.min() < 0.0:
                raise ValueError(
                    f"{key}: float values up to {image.max().item():.4g}. Float segmentation must be uint8 "
                    "ids divided by 255, as LeRobot delivers them; deliver raw ids as integers."
                )
            scaled = image * 255.0  # exact: uint8 / 255 comes back
            ids = scaled.round().to(torch.int64)
            error = (scaled - ids).abs()
            if error.max() > 0.02:
                raise ValueError(
                    f"{key}: values such as {image.flatten()[error.argmax()].item():.4f} are not ids. "
                    "Segmentation must be stored losslessly (PNG or integers), never as lossy video, and "
                    "never be interpolated."
                )
        else:
            ids = image.to(torch.int64)
        if ids.numel() and (ids.max() >= self.num_labels or ids.min() < 0):
            raise ValueError(
                f"{key}: class id {int(ids.max())} (smallest {int(ids.min())}) is outside the label set of "
                f"{self.num_labels} classes. Map the ids to the declared label set, or set "
                "--policy.num_labels."
            )
        return ids


def _median_of_positive(rows: Tensor) -> Tensor:
    """Median of the positive numbers of each row (B, N) -> (B,); 0 where there are none."""
    seen = (rows > 0) & ((rows - _INVALID_MILLIMETRES).abs() > 0.5)
    return torch.where(seen, rows, torch.nan).nanmedian(1).values.nan_to_num(0.0)


def _last_frame(key: str, image: Any) -> Tensor:
    """(B, T, C, H, W) -> the last frame; (B, C, H, W) as it is. Datasets of single images add a time axis."""
    if not isinstance(image, Tensor):
        raise ValueError(f"{key} is a {type(image).__name__}. Expected a tensor (B, C, H, W).")
    if image.ndim == 5:
        image = image[:, -1]
    if image.ndim != 4:
        raise ValueError(f"{key} has shape {tuple(image.shape)}. Expected (B, C, H, W), channels first.")
    # a depth camera's uint16 has hardly any operators in torch, not even a flip
    return image.to(torch.int32) if image.dtype == torch.uint16 else image


def _unit_interval(key: str, image: Tensor) -> Tensor:
    """Picture in [0, 1] as float32; uint8 is divided by 255."""
    if image.dtype == torch.uint8:
        return image.float() / 255.0
    if not image.is_floating_point():
        raise ValueError(f"{key} has dtype {image.dtype}. Expected uint8, or float in [0, 1].")
    low, high = image.min().item(), image.max().item()
    if not (low >= -1e-4 and high <= 1 + 1e-4):  # also false for NaN
        raise ValueError(
            f"{key} ranges from {low:.4g} to {high:.4g}. Expected uint8, or float in [0, 1] without NaN. "
            "Scale the frames before they reach the policy."
        )
    return image.float()

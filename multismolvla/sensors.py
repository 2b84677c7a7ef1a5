"""From what datasets, simulators and robots deliver to canonical pictures (`multismolvla.modalities`).

One piece of code for training, evaluation, deployment and the dataset tools. Every disagreement about units
is an error that names the key, the value and the remedy; nothing is guessed and nothing falls back silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    captured_key,
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


@dataclass(frozen=True)
class _Fault:
    """Wrong content: in which rows, bool (B,), and what an error says of it."""

    rows: Tensor
    cause: Cause
    message: Callable[[], str]


@dataclass(frozen=True)
class _Canonical:
    """A picture in its canonical form, validity of depth, and what is wrong with the content."""

    image: Tensor
    valid: Tensor | None = None
    faults: tuple[_Fault, ...] = ()


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
                taken = captured_key(key)
                if taken in out:
                    out[taken] = _seconds(taken, out[taken])
                if key not in out:
                    continue
                image = rotate_half_turns(_last_frame(key, out[key]), self.half_turns.get(view, 0))
                if image.shape[1] not in PICTURE_CHANNELS[modality]:
                    raise ValueError(
                        f"{key} has {image.shape[1]} channels (shape {tuple(image.shape)}). A {modality} "
                        f"picture must have {' or '.join(map(str, PICTURE_CHANNELS[modality]))}, channels "
                        "first. Check the view map (--policy.views)."
                    )
                made = self._canonical(key, modality, image, strict=faults is None)
                cause = _noted(made.faults, strict=faults is None)
                if faults is not None and cause is not None:
                    faults[key], black = cause, (cause != Cause.FIT)[:, None, None, None]
                    made = _Canonical(
                        torch.where(black, torch.zeros_like(made.image), made.image),
                        None if made.valid is None else made.valid & ~black,
                    )
                out[key] = made.image
                if made.valid is not None:
                    out[valid_key(key)] = made.valid
        return out

    def _canonical(self, key: str, modality: str, image: Tensor, strict: bool) -> _Canonical:
        if modality == Modality.DEPTH:
            return self._depth(key, image, strict)
        if modality == Modality.SEG:
            return self._ids(key, image[:, :1])
        made = _unit_interval(key, image)
        return _Canonical(made.image[:, :1], faults=made.faults) if modality == Modality.THERMAL else made

    def _depth(self, key: str, image: Tensor, strict: bool) -> _Canonical:
        faults: tuple[_Fault, ...] = ()
        if not image.is_floating_point():
            metres = image.to(torch.float32) / 1000.0
        else:
            if strict and torch.isnan(image).any():
                raise ValueError(
                    f"{key} contains NaN. Expected metric depth with invalid pixels as 0. Replace NaN by 0 "
                    "where the frames are made."
                )
            image = torch.where(image.isfinite(), image, 0.0)  # drivers write NaN where nothing was measured
            metres = image.float() if self.depth_unit == "m" else image.float() / 1000.0
            faults = (self._other_unit(key, image),)
        near, far = self.depth_range_m
        valid = (metres > near) & (metres <= far)
        return _Canonical(torch.where(valid, metres, 0.0), valid, faults)

    def _other_unit(self, key: str, image: Tensor) -> _Fault:
        rows = image.flatten(1)
        seen = (rows > 0) & ((rows - _INVALID_MILLIMETRES).abs() > 0.5)
        if self.depth_unit == "m":
            # the median by counting: sorting a camera's pixels takes longer than all else here
            far = (seen & (rows > _IMPLAUSIBLE_METRES)).sum(1)

            def message() -> str:
                median = rows[far.argmax()][seen[far.argmax()]].median().item()
                return (
                    f"{key}: median depth is {median:.0f}, which cannot be metres; it looks like "
                    "millimetres. Train with --dataset.depth_output_unit=m, or declare "
                    "--policy.depth_unit=mm."
                )

            return _Fault(2 * far > seen.sum(1), Cause.DEPTH_SCALE, message)
        largest = torch.where(seen, rows, 0.0).amax(1)
        few = (largest > 0) & (largest < _IMPLAUSIBLE_MILLIMETRES)
        return _Fault(
            few,
            Cause.DEPTH_SCALE,
            lambda: (
                f"{key}: largest depth is {largest[few].max().item():.3f}, which cannot be millimetres; it "
                "looks like metres. Declare --policy.depth_unit=m, or deliver millimetres."
            ),
        )

    def _ids(self, key: str, image: Tensor) -> _Canonical:
        faults: list[_Fault] = []
        if image.is_floating_point():
            rows = image.flatten(1)
            outside = (rows > 1.0).any(1) | (rows < 0.0).any(1)
            scaled = image * 255.0  # exact: uint8 / 255 comes back
            ids = scaled.nan_to_num(0.0).round().to(torch.int64)
            error = (scaled - ids).abs()
            faults += [
                _Fault(
                    rows.isnan().any(1),
                    Cause.NOT_FINITE,
                    lambda: f"{key} contains NaN. Expected segmentation ids.",
                ),
                _Fault(
                    outside,
                    Cause.OUT_OF_RANGE,
                    lambda: (
                        f"{key}: float values up to {image.max().item():.4g}. Float segmentation must be "
                        "uint8 ids divided by 255, as LeRobot delivers them; deliver raw ids as integers."
                    ),
                ),
                _Fault(
                    (error > 0.02).flatten(1).any(1),
                    Cause.OUT_OF_RANGE,
                    lambda: (
                        f"{key}: values such as {image.flatten()[error.argmax()].item():.4f} are not ids. "
                        "Segmentation must be stored losslessly (PNG or integers), never as lossy video, and "
                        "never be interpolated."
                    ),
                ),
            ]
        else:
            ids = image.to(torch.int64)
        unknown = ((ids >= self.num_labels) | (ids < 0)).flatten(1).any(1)
        faults.append(
            _Fault(
                unknown,
                Cause.OUT_OF_RANGE,
                lambda: (
                    f"{key}: class id {int(ids.max())} (smallest {int(ids.min())}) is outside the label "
                    f"set of {self.num_labels} classes. Map the ids to the declared label set, or set "
                    "--policy.num_labels."
                ),
            )
        )
        return _Canonical(ids, faults=tuple(faults))


def _noted(faults: Sequence[_Fault], strict: bool) -> Tensor | None:
    """The greatest cause of each row, int64 (B,); ``None`` where nothing is wrong.

    Raises:
        ValueError: something is, and ``strict``.
    """
    found = [fault for fault in faults if fault.rows.any()]
    if found and strict:
        raise ValueError(found[0].message())
    causes = [fault.rows * int(fault.cause) for fault in found]
    return torch.stack(causes).amax(0) if causes else None


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


def _seconds(key: str, taken: Any) -> Tensor:
    """Capture times (B,), in the number format in which they come; datasets store them as (B, 1)."""
    times = torch.as_tensor(taken).reshape(-1)
    if not times.is_floating_point():
        raise ValueError(
            f"{key} has dtype {times.dtype}. Expected seconds as float64, NaN where the time is not known."
        )
    return times


def _unit_interval(key: str, image: Tensor) -> _Canonical:
    """Picture in [0, 1] as float32; uint8 is divided by 255."""
    if image.dtype == torch.uint8:
        return _Canonical(image.float() / 255.0)
    if not image.is_floating_point():
        raise ValueError(f"{key} has dtype {image.dtype}. Expected uint8, or float in [0, 1].")
    low, high = image.flatten(1).amin(1), image.flatten(1).amax(1)  # NaN where one is in the row
    within, finite = (low >= -1e-4) & (high <= 1 + 1e-4), low.isfinite() & high.isfinite()

    def message() -> str:
        return (
            f"{key} ranges from {low.min().item():.4g} to {high.max().item():.4g}. Expected uint8, or float "
            "in [0, 1] without NaN. Scale the frames before they reach the policy."
        )

    faults = (_Fault(~finite, Cause.NOT_FINITE, message), _Fault(~within, Cause.OUT_OF_RANGE, message))
    return _Canonical(image.float(), faults=faults)

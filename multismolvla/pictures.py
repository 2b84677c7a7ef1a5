"""Pictures for people: what each sensor of each camera shows, in colours that colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from multismolvla.modalities import MODALITIES, default_view_map, padding_mask_key, valid_key
from multismolvla.system.files import whole_file

#: Depth range of the colour scale in moving pictures [m]; a still picture uses its own range.
DEPTH_SPAN_M = (0.2, 1.6)
#: Okabe and Ito's palette, then a fixed sequence for larger label sets. Class 0 is the background.
_PALETTE = (
    (40, 40, 44),
    (150, 150, 155),
    (240, 228, 66),
    (213, 94, 0),
    (86, 180, 233),
    (0, 158, 115),
    (204, 121, 167),
    (0, 114, 178),
)
ABSENT_GREY = 205


@cache
def _colour_map(name: str) -> NDArray[Any]:
    import matplotlib

    return (matplotlib.colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)


@cache
def _class_colours() -> NDArray[Any]:
    colours = np.random.default_rng(4).integers(60, 240, (256, 3)).astype(np.uint8)
    colours[: len(_PALETTE)] = _PALETTE
    return colours


def colourise(
    modality: str,
    values: NDArray[Any],
    valid: NDArray[Any] | None = None,
    depth_span: tuple[float, float] | None = DEPTH_SPAN_M,
) -> NDArray[Any]:
    """Turn one picture into RGB.

    Args:
        modality: one of ``MODALITIES``.
        values: (C, H, W). rgb and thermal: float in [0, 1]; depth: float metres, 0 = invalid; seg: class ids in channel
            0, as integers or as the float share of 255 that LeRobot makes of 8-bit pictures.
        valid: bool (1, H, W) for depth; where it is False the picture is black.
        depth_span: nearest and farthest distance of the colour scale [m]; ``None`` for the picture's own.

    Returns:
        uint8 (H, W, 3).
    """
    if modality == "rgb":
        return (np.clip(values, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    plane = values[0]
    if modality == "seg":
        ids = np.rint(plane * 255) if np.issubdtype(plane.dtype, np.floating) else plane
        return _class_colours()[ids.astype(np.int64) % 256]
    if modality == "depth":
        mask = plane > 0 if valid is None else valid[0] & (plane > 0)
        near, far = depth_span or own_depth_span(plane, mask)
        share = np.clip((plane - near) / max(far - near, 1e-6), 0, 1)
        picture = _colour_map("viridis")[255 - (share * 255).astype(np.uint8)]
        return np.where(mask[..., None], picture, np.uint8(0))
    return _colour_map("inferno")[(np.clip(plane, 0, 1) * 255).astype(np.uint8)]


def own_depth_span(plane: NDArray[Any], mask: NDArray[Any]) -> tuple[float, float]:
    """Second and ninety-eighth percentile of the valid distances [m]."""
    if not mask.any():
        return DEPTH_SPAN_M
    near, far = np.percentile(plane[mask], [2, 98])
    return float(near), float(far)


def streams(
    batch: Mapping[str, Any],
    cameras: Sequence[str],
    depth_span: tuple[float, float] | None = DEPTH_SPAN_M,
) -> dict[tuple[str, str], NDArray[Any] | None]:
    """The pictures of a batch's first sample.

    Args:
        batch: observation tensors by LeRobot's keys.
        cameras: camera names.
        depth_span: as in :func:`colourise`.

    Returns:
        RGB per (camera, modality), in the order of cameras and modalities; ``None`` for a stream that the batch
        declares absent, no entry for one that it does not have at all.
    """
    found: dict[tuple[str, str], NDArray[Any] | None] = {}
    for camera, keys in default_view_map(tuple(cameras)).items():
        for modality in MODALITIES:
            key = keys[modality]
            value = batch.get(key)
            if not isinstance(value, Tensor) or value.ndim != 4:
                continue
            presence = batch.get(padding_mask_key(key))
            if isinstance(presence, Tensor) and not bool(presence.reshape(-1)[0]):
                found[camera, modality] = None
                continue
            valid = batch.get(valid_key(key))
            found[camera, modality] = colourise(
                modality,
                value[0].detach().to("cpu").numpy(),
                valid[0].detach().to("cpu").numpy() if isinstance(valid, Tensor) else None,
                depth_span,
            )
    return found


def resize(picture: NDArray[Any], size: int) -> NDArray[Any]:
    """Square thumbnail without smoothing, so that a reader sees the pixels that the policy sees."""
    from PIL import Image

    height, width = picture.shape[:2]
    scale = size / max(height, width)
    image = Image.fromarray(picture).resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.NEAREST
    )
    return np.asarray(image)


def draw_encoder_inputs(
    path: Path,
    batch: Mapping[str, Any],
    cameras: Sequence[str],
    tokens: Mapping[tuple[str, str], NDArray[Any]] | None = None,
    title: str = "What the encoder is given",
) -> None:
    """Draw every stream as it enters the tower: one row per camera, and one more for the token ids if given.

    Args:
        path: PNG to write.
        batch: after the policy's pre-processor.
        cameras: camera names.
        tokens: token ids (h, w) per (camera, modality), from the tower's tokenizers.
        title: heading.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pictures = streams(batch, cameras, depth_span=None)
    columns = [m for m in MODALITIES if any(k[1] == m for k in pictures)]
    rows = [(c, kind) for c in cameras for kind in (("picture", "tokens") if tokens else ("picture",))]
    figure = Figure(
        figsize=(2.3 * max(1, len(columns)), 2.35 * len(rows) + 0.5), dpi=110, layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(len(rows), max(1, len(columns)), squeeze=False)
    for row, (camera, kind) in zip(axes, rows, strict=True):
        for axis, modality in zip(row, columns, strict=False):
            axis.set_xticks([])
            axis.set_yticks([])
            picture = pictures.get((camera, modality))
            if kind == "tokens":
                ids = (tokens or {}).get((camera, modality))
                if ids is None:
                    axis.set_axis_off()
                    continue
                axis.imshow(ids, cmap="nipy_spectral", interpolation="nearest")
                axis.set_title(f"{modality} tokens, {len(np.unique(ids))} of {ids.size} differ", fontsize=7)
            elif picture is None:
                axis.set_facecolor("#cdcdcd")
                axis.text(0.5, 0.5, "absent", ha="center", va="center", transform=axis.transAxes)
            else:
                axis.imshow(picture, interpolation="nearest")
                size = "x".join(map(str, picture.shape[:2]))
                axis.set_title(f"{camera}: {modality} ({size})", fontsize=8)
    with whole_file(path) as partial:
        figure.savefig(partial)

"""Pictures for people: colours of every modality, also for colour-blind readers, and one contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from multismolvla.modalities import MODALITIES, Modality, default_view_map, padding_mask_key, valid_key
from multismolvla.system.files import whole_file

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

Picture = NDArray[np.uint8]
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
#: Pixels between the pictures of a contact sheet.
GAP = 4


@cache
def _colour_map(name: str) -> Picture:
    import matplotlib

    return (matplotlib.colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)


@cache
def _class_colours() -> Picture:
    colours = np.random.default_rng(4).integers(60, 240, (256, 3)).astype(np.uint8)
    colours[: len(_PALETTE)] = _PALETTE
    return colours


def colourise(
    modality: str,
    values: NDArray[Any],
    valid: NDArray[np.bool_] | None = None,
    depth_span: tuple[float, float] | None = DEPTH_SPAN_M,
) -> Picture:
    """Turn one picture into RGB.

    Args:
        modality: one of ``MODALITIES``.
        values: (C, H, W). rgb and thermal: uint8, or float in [0, 1]; depth: float metres, 0 = invalid; seg:
            ids in channel 0, as integers or as the float share of 255 that LeRobot makes of 8-bit pictures.
        valid: bool (1, H, W) for depth; where it is False the picture is black.
        depth_span: nearest and farthest distance of the colour scale [m]; ``None`` for the picture's own.

    Returns:
        uint8 (H, W, 3).
    """
    plane = values[0]
    if modality == Modality.SEG:
        ids = np.rint(plane * 255) if np.issubdtype(plane.dtype, np.floating) else plane
        return _class_colours()[ids.astype(np.int64) % 256]
    if modality == Modality.DEPTH:
        mask = plane > 0 if valid is None else valid[0] & (plane > 0)
        near, far = depth_span or own_depth_span(plane, mask)
        share = np.clip((plane - near) / max(far - near, 1e-6), 0, 1)
        picture = _colour_map("viridis")[255 - (share * 255).astype(np.uint8)]
        return np.where(mask[..., None], picture, np.uint8(0))
    levels = values if values.dtype == np.uint8 else np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return _colour_map("inferno")[levels[0]] if modality == Modality.THERMAL else levels.transpose(1, 2, 0)


def own_depth_span(plane: NDArray[Any], mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Second and ninety-eighth percentile of the valid distances [m]."""
    if not mask.any():
        return DEPTH_SPAN_M
    near, far = np.percentile(plane[mask], [2, 98])
    return float(near), float(far)


def streams(
    batch: Mapping[str, Any],
    cameras: Sequence[str],
    depth_span: tuple[float, float] | None = DEPTH_SPAN_M,
) -> dict[tuple[str, str], Picture | None]:
    """The pictures of a batch's first sample.

    Args:
        batch: observation tensors by LeRobot's keys.
        cameras: camera names.
        depth_span: as in :func:`colourise`.

    Returns:
        RGB per (camera, modality), in the order of cameras and modalities; ``None`` for a stream that the
        batch declares absent, no entry for one that it does not have at all.
    """
    found: dict[tuple[str, str], Picture | None] = {}
    for camera, keys in default_view_map(tuple(cameras)).items():
        for modality, key in keys.items():
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
                value[0].detach().cpu().numpy(),
                valid[0].detach().cpu().numpy() if isinstance(valid, Tensor) else None,
                depth_span,
            )
    return found


def resize(picture: Picture, side: int) -> Picture:
    """Scale the longer side to ``side`` pixels without smoothing: readers see the policy's own pixels."""
    from PIL import Image

    height, width = picture.shape[:2]
    scale = side / max(height, width)
    image = Image.fromarray(picture).resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.NEAREST
    )
    return np.asarray(image)


@dataclass(frozen=True, eq=False)
class Tile:
    """A picture of a contact sheet.

    Attributes:
        picture: uint8 RGB (H, W, 3) of any size; ``None`` is drawn as a grey square with the word "absent".
        label: written above it, in as many lines as it has; what is wider than the picture is cut off.
    """

    picture: Picture | None
    label: str = ""


@dataclass(frozen=True, eq=False)
class SheetRow:
    """A row of a contact sheet: a label and pictures; ``None`` leaves a place empty."""

    label: str
    tiles: Sequence[Tile | None]


def contact_sheet(
    rows: Sequence[SheetRow], side: int, *, label_width: int = 0, font_size: int = 11
) -> Image.Image:
    """Lay out labelled pictures in rows and columns.

    Args:
        rows: from top to bottom.
        side: the longer side of every picture on the sheet in pixels.
        label_width: pixels left of the pictures for the rows' labels; 0 writes them above the rows.
        font_size: in pixels.

    Returns:
        An RGB image; save it inside :func:`multismolvla.system.files.whole_file`.
    """
    from PIL import Image, ImageFont

    font = ImageFont.load_default(font_size)
    strips = [_draw_row(row, side, label_width, font, line=round(1.3 * font_size)) for row in rows]
    size = (max(strip.width for strip in strips), sum(strip.height for strip in strips))
    sheet, top = Image.new("RGB", size, "white"), 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _draw_row(row: SheetRow, side: int, label_width: int, font: Font, line: int) -> Image.Image:
    from PIL import Image, ImageDraw

    head = line * max((tile.label.count("\n") + 1 for tile in row.tiles if tile and tile.label), default=0)
    tiles = [tile and _draw_tile(tile, side, head, font) for tile in row.tiles]
    height = max((tile.height for tile in tiles if tile), default=0)
    above = line if row.label and not label_width else 0
    width = label_width + len(tiles) * (side + GAP)
    if above:  # a row of few pictures is as wide as what stands above it
        width = max(width, 2 * GAP + max(round(font.getlength(text)) for text in row.label.split("\n")))
    strip = Image.new("RGB", (width, above + height + GAP), "white")
    ImageDraw.Draw(strip).multiline_text((GAP, 0 if above else head), row.label, "black", font)
    for column, tile in enumerate(tiles):
        if tile:
            strip.paste(tile, (label_width + column * (side + GAP), above))
    return strip


def _draw_tile(tile: Tile, side: int, head: int, font: Font) -> Image.Image:
    from PIL import Image, ImageDraw

    absent = np.full((side, side, 3), ABSENT_GREY, np.uint8)
    body = absent if tile.picture is None else resize(tile.picture, side)
    image = Image.new("RGB", (side, head + len(body)), "white")
    image.paste(Image.fromarray(body), (0, head))
    pen = ImageDraw.Draw(image)
    pen.multiline_text((1, 0), tile.label, (30, 30, 30), font)
    if tile.picture is None:
        pen.text((side / 2, head + side / 2), "absent", (60, 60, 60), font, anchor="mm")
    return image


def draw_encoder_inputs(
    path: Path,
    batch: Mapping[str, Any],
    cameras: Sequence[str],
    tokens: Mapping[tuple[str, str], NDArray[np.integer[Any]]] | None = None,
) -> None:
    """Draw every stream as it enters the tower: one row per camera, and one more for the token ids if given.

    Args:
        path: PNG to write.
        batch: after the policy's pre-processor.
        cameras: camera names.
        tokens: token ids (h, w) per (camera, modality), from the tower's tokenizers.
    """
    pictures = streams(batch, cameras, depth_span=None)
    columns = [m for m in MODALITIES if any(modality == m for _, modality in pictures)]
    rows = []
    for camera in cameras:
        tiles = []
        for m in columns:
            picture = pictures.get((camera, m))
            size = "" if picture is None else " ({}x{})".format(*picture.shape[:2])
            tiles.append(Tile(picture, f"{camera}: {m}{size}"))
        rows.append(SheetRow("", tiles))
        if tokens:
            rows.append(SheetRow("", [_token_tile(m, tokens.get((camera, m))) for m in columns]))
    with whole_file(path) as partial:
        contact_sheet(rows, side=256).save(partial)


def _token_tile(modality: str, ids: NDArray[np.integer[Any]] | None) -> Tile | None:
    if ids is None:
        return None
    different, rank = np.unique(ids, return_inverse=True)
    levels = rank.reshape(ids.shape) * 255 // max(1, len(different) - 1)
    label = f"{modality} tokens, {len(different)} of {ids.size} differ"
    return Tile(_colour_map("nipy_spectral")[levels], label)

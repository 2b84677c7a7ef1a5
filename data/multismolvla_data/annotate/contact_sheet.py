"""Contact sheet of an annotated dataset: a few frames, every view and modality, with what each stream is and where from."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from multismolvla.modalities import MODALITIES, Modality
from multismolvla.system.files import whole_file
from multismolvla.tokenizers.label_sets import COCO_PANOPTIC
from multismolvla_data.record.contact_sheet import colorize

if TYPE_CHECKING:
    from PIL import Image

_INK, _PALE, _PAPER = (25, 25, 28), (120, 120, 128), (250, 250, 250)
_GAP, _LINE, _NAMED_CLASSES = 8, 14, 3


@dataclass(frozen=True)
class SheetFrame:
    """One frame on the sheet.

    Attributes:
        title: what is written above it.
        pictures: (view, modality) -> picture (C, H, W) as LeRobotDataset gives it, depth in metres.
    """

    title: str
    pictures: Mapping[tuple[str, str], Tensor]


def write_contact_sheet(
    frames: Sequence[SheetFrame],
    labels: Mapping[tuple[str, str], str],
    target: Path,
    *,
    coco: bool = True,
    depth_range_m: tuple[float, float] = (0.0, 10.0),
    pixels: int = 200,
) -> None:
    """Write a PNG: one block per frame, one row per view, one column per modality.

    Args:
        frames: what to show.
        labels: (view, modality) -> provenance, written below each picture.
        target: file to write.
        coco: segmentation ids are COCO panoptic + 1; the commonest classes are then named.
        depth_range_m: (near, far); depth at or below near, or beyond far, is drawn as not measured.
        pixels: width of a picture on the sheet.
    """
    from PIL import Image, ImageDraw

    views = list(dict.fromkeys(view for view, _ in labels))
    shown = [m for m in MODALITIES if any(m == modality for _, modality in labels)]
    heights = {v: _height(frames, v, pixels) for v in views}
    block = _LINE + 6 + sum(h + 2 * _LINE + _GAP for h in heights.values())
    size = (len(shown) * (pixels + _GAP) + _GAP, len(frames) * block + _GAP)
    sheet = Image.new("RGB", size, color=_PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, frame in enumerate(frames):
        top = number * block + 4
        draw.text((_GAP, top), frame.title, fill=_INK)
        top += _LINE + 4
        for view in views:
            for column, modality in enumerate(shown):
                left = _GAP + column * (pixels + _GAP)
                place = (view, modality)
                if place not in labels:
                    continue
                below = labels[place]
                if place in frame.pictures:
                    picture = _measured(frame.pictures[place], modality, depth_range_m)
                    sheet.paste(_drawn(picture, modality, (pixels, heights[view])), (left, top))
                    below += _detail(picture, modality, coco)
                else:
                    draw.rectangle((left, top, left + pixels, top + heights[view]), outline=_PALE)
                draw.text((left, top + heights[view] + 1), f"{view}.{modality}", fill=_INK)
                draw.text((left, top + heights[view] + _LINE), below[: pixels // 6 + 1], fill=_PALE)
            top += heights[view] + 2 * _LINE + _GAP
    with whole_file(target) as partial:
        sheet.save(partial, format="PNG")


def _height(frames: Sequence[SheetFrame], view: str, pixels: int) -> int:
    shapes = [p.shape for f in frames for (v, _), p in f.pictures.items() if v == view]
    return round(pixels * shapes[0][1] / shapes[0][2]) if shapes else pixels


def _drawn(picture: Tensor, modality: str, size: tuple[int, int]) -> Image.Image:
    from PIL import Image

    array = _dataset_units(picture, modality)
    coloured = _class_colours()[array[..., 0]] if modality == Modality.SEG else colorize(array, modality)
    return Image.fromarray(coloured).resize(size, Image.Resampling.NEAREST)


def _measured(picture: Tensor, modality: str, range_m: tuple[float, float]) -> Tensor:
    """Depth with 0 where nothing was measured (LeRobot's video gives 10 mm there); any other picture as it is."""
    if modality != Modality.DEPTH:
        return picture
    return picture * ((picture > range_m[0]) & (picture <= range_m[1]))


def _dataset_units(picture: Tensor, modality: str) -> np.ndarray:
    """(C, H, W) -> (H, W, C): depth float metres, everything else uint8."""
    array = picture.permute(1, 2, 0).numpy()
    if modality == Modality.DEPTH or array.dtype == np.uint8:
        return array
    return np.rint(array * 255.0).astype(np.uint8)


def _detail(picture: Tensor, modality: str, coco: bool) -> str:
    """A few numbers or names that show at a glance whether units and labels are right."""
    array = _dataset_units(picture, modality)[..., 0]
    if modality == Modality.DEPTH:
        seen = array[array > 0]
        return f", {seen.min():.2f}-{seen.max():.2f} m" if seen.size else ", nothing measured"
    if modality == Modality.SEG:
        ids, counts = np.unique(array, return_counts=True)
        common = ids[np.argsort(-counts)][:_NAMED_CLASSES]
        names = [COCO_PANOPTIC[i - 1] if coco and 0 < i <= len(COCO_PANOPTIC) else str(i) for i in common]
        return ", " + " ".join(names)
    return f", {array.min()}-{array.max()}" if modality == Modality.THERMAL else ""


def _class_colours() -> np.ndarray:
    """uint8 (256, 3): neighbouring ids get hues a golden angle apart; 0 is dark grey."""
    colours = [colorsys.hsv_to_rgb((i * 0.618034) % 1.0, 0.55 + 0.4 * (i % 2), 0.95) for i in range(256)]
    table = np.rint(np.array(colours) * 255).astype(np.uint8)
    table[0] = (58, 58, 62)
    return table

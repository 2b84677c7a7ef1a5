"""Contact sheet of a recording: what each modality shows, one row per view, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from multismolvla.modalities import MODALITIES, Modality, default_view_map

#: Colours of segmentation classes, by id; ids beyond the table repeat it without the first, the background's.
PALETTE = np.array(
    [
        (58, 58, 62),
        (205, 205, 210),
        (120, 120, 128),
        (224, 38, 32),
        (32, 84, 240),
        (246, 208, 24),
        (232, 72, 210),
        (40, 190, 90),
    ],
    np.uint8,
)


def colorize(picture: np.ndarray, modality: str) -> np.ndarray:
    """A picture of any modality as RGB for the eye.

    Args:
        picture: (H, W, C) in dataset units (see :func:`multismolvla_data.record.episode.dataset_frame`).
        modality: one of ``MODALITIES``.

    Returns:
        uint8 (H, W, 3).
    """
    if modality == Modality.RGB:
        return picture
    if modality == Modality.SEG:
        ids = picture[..., 0].astype(np.int64)
        return PALETTE[np.where(ids > 0, 1 + (ids - 1) % (len(PALETTE) - 1), 0)]
    if modality == Modality.DEPTH:
        metres, valid = picture[..., 0], picture[..., 0] > 0
        if not valid.any():
            return np.zeros((*metres.shape, 3), np.uint8)
        near, far = metres[valid].min(), metres[valid].max()
        level = 1.0 - np.clip((metres - near) / max(far - near, 1e-6), 0.0, 1.0)  # near = bright
        return _ramp(np.where(valid, level, 0.0), ((20, 16, 70), (34, 130, 150), (250, 240, 150)))
    return _ramp(picture[..., 0] / 255.0, ((10, 4, 40), (150, 30, 110), (245, 125, 25), (255, 250, 200)))


def contact_sheet(
    rows: Sequence[tuple[str, dict[str, np.ndarray]]], target: Path, pixels: int = 160, gap: int = 6
) -> None:
    """Write a PNG with one block per row entry: views below each other, modalities side by side.

    Args:
        rows: ``(title, frame)``; a frame maps dataset keys to (H, W, C) arrays.
        target: PNG file to write.
        pixels: side of a picture on the sheet.
        gap: pixels between pictures.
    """
    from PIL import Image, ImageDraw

    views = default_view_map()
    title_height = 18
    block_height = title_height + len(views) * (pixels + gap)
    sheet = Image.new(
        "RGB", (len(MODALITIES) * (pixels + gap) + gap, len(rows) * block_height + gap), color=(250, 250, 250)
    )
    draw = ImageDraw.Draw(sheet)
    for number, (title, frame) in enumerate(rows):
        top = number * block_height
        draw.text(
            (gap, top + 3),
            f"{title}   |   {'   '.join(MODALITIES)}   |   {', '.join(views)}",
            fill=(20, 20, 20),
        )
        for v, streams in enumerate(views.values()):
            for m, modality in enumerate(MODALITIES):
                if streams[modality] not in frame:
                    continue
                picture = Image.fromarray(colorize(frame[streams[modality]], modality))
                picture = picture.resize((pixels, pixels), Image.Resampling.NEAREST)
                sheet.paste(picture, (gap + m * (pixels + gap), top + title_height + v * (pixels + gap)))
    sheet.save(target)


def _ramp(level: np.ndarray, stops: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Piecewise linear colour map; ``level`` (H, W) in [0, 1] -> uint8 (H, W, 3)."""
    places = np.linspace(0.0, 1.0, len(stops))
    table = np.array(stops, np.float64)
    channels = [np.interp(level, places, table[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)

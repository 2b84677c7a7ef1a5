"""Draw every corruption at every severity: ``python docs/corruption_sheet.py --output docs``.

The pictures come from a real frame of the simulator, at the size at which LIBERO's cameras work and corruptions are
defined (256 pixels), and go through the same functions as an evaluation. They are shown at half size by leaving out
every second pixel, because averaging would hide noise.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla.system.command import AGAIN, entry_point, parse_options, show_progress
from multismolvla.system.files import whole_file

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

LABEL_WIDTH, GAP, HEAD, FONT_SIZE = 150, 4, 22, 13
#: Seed of all draws (with this one, instances of the mini suite's first task are swapped and removed: most episodes keep
#: theirs at low severity), step limit of the episode in the picture of faults in time, and the step of the other sheets.
SEED, STEPS, STEP = 206, 24, 3
#: Steps that the picture of faults in time shows.
SHOWN = tuple(range(0, STEPS, 2))


@dataclass
class SheetConfig:
    """Where the frame comes from and where the pictures go."""

    # Folder for corruptions_rgb.png, _rgb_more, _depth, _seg, _thermal and _time.
    output: Path = Path("docs")
    # Suite of the frame.
    task: str = "multismolvla_mini"
    # Task of the suite.
    task_id: int = 0
    # Side of the rendered pictures in pixels.
    size: int = 256
    # Side of the thumbnails in pixels.
    thumbnail: int = 128


@dataclass(frozen=True, eq=False)
class Row:
    """One line of a sheet: thumbnails (uint8 RGB) and a word for each."""

    label: str
    pictures: Sequence[np.ndarray]
    words: Sequence[str]


@entry_point("error", interrupted=AGAIN)
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    show_progress("multismolvla_eval")
    config = parse_options(SheetConfig, arguments)
    if config.size < 32 or not 8 <= config.thumbnail <= config.size:
        raise ValueError(
            f"--size={config.size} must be at least 32 and --thumbnail={config.thumbnail} lie between 8 and it."
        )
    for path in draw(config):
        logger.info("%s (%.2f MB)", path, path.stat().st_size / 1e6)
    return 0


def draw(config: SheetConfig) -> list[Path]:
    """Render an episode and write all sheets.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: a LIBERO suite without LIBERO's assets.
    """
    from lerobot_env_multismolvla.labels import label_set
    from multismolvla.corruption.names import COMMON_TYPES
    from multismolvla.modalities import MODALITIES

    frames = _episode(config)
    config.output.mkdir(parents=True, exist_ok=True)
    labels = len(label_set(config.task))
    sheets = {m: modality_rows(frames[STEP], m, config.thumbnail, labels) for m in MODALITIES}
    common = len(COMMON_TYPES)  # one picture of all RGB types would be too long, and too large for a README
    sheets["rgb"], sheets["rgb_more"] = sheets["rgb"][:common], sheets["rgb"][common:]
    sheets["time"] = time_rows([f["image", "rgb"] for f in frames], config.thumbnail * 3 // 4)
    paths = []
    for name, rows in sheets.items():
        path = config.output / f"corruptions_{name}.png"
        _write(path, rows)
        paths.append(path)
    return paths


Frame = Mapping[tuple[str, str], "np.ndarray"]
#: Distances at the ends of the colour scale, metres; ``None`` for those of the picture.
Span = tuple[float, float] | None


def _episode(config: SheetConfig) -> list[Frame]:
    """Frames of one episode as the policy sees them: (H, W, C) per (camera, modality), raw dtypes and units."""
    import numpy as np

    from lerobot_env_multismolvla import MultiSmolVLALiberoConfig
    from multismolvla.modalities import MODALITIES

    environment = MultiSmolVLALiberoConfig(
        task=config.task, observation_height=config.size, observation_width=config.size
    )
    env = environment.env_maker(config.task, config.task_id)()
    inner: Any = env.unwrapped
    frames: list[Frame] = []

    def keep(raw: Mapping[str, Any]) -> None:
        pictures = {}
        for camera in inner.cameras:
            for m in MODALITIES:
                key = camera + ("" if m == "rgb" else f"_{m}")
                picture = raw[key] if m == "depth" else raw["pixels"][key]
                pictures[camera, m] = np.ascontiguousarray(
                    picture[::-1, ::-1]
                )  # upright, as after the processors
        frames.append(pictures)

    try:
        keep(env.reset(seed=SEED)[0])
        for _ in range(STEPS - 1):
            keep(env.step(np.array([0.6, 0.4, -0.6, 0, 0, 0, -1], np.float32))[0])
    finally:
        env.close()
    return frames


def modality_rows(frame: Frame, modality: str, thumbnail: int, labels: int) -> list[Row]:
    """All corruptions of one modality: soft types by severity, then hard and cross-modal ones.

    Args:
        frame: pictures of one step.
        modality: which of them.
        thumbnail: size of the small pictures in pixels.
        labels: size of the segmentation pictures' label set.
    """
    import torch

    from multismolvla.corruption import (
        CROSS_MODAL_TYPES,
        SEVERITIES,
        SOFT_TYPES,
        UNANNOUNCED_TYPES,
        apply_cross,
        apply_hard,
        apply_soft,
        cross_modal,
        frame_generator,
        seen_in_training,
    )

    image = torch.from_numpy(frame["image", modality].transpose(2, 0, 1).copy())
    valid = image > 0 if modality == "depth" else None
    span = _span(frame["image", modality]) if modality == "depth" else None

    def small(picture: torch.Tensor, mask: torch.Tensor | None, span: Span = span) -> np.ndarray:
        return _thumbnail(picture, mask, modality, thumbnail, span)

    clean = small(image, valid)
    rows = []
    for type_ in SOFT_TYPES[modality]:
        pictures = [clean]
        for severity in SEVERITIES:
            generator = frame_generator(SEED, 0, type_)
            broken = apply_soft(image, valid, modality, type_, severity, generator, labels)
            pictures.append(small(*broken))
        seen = "\n(seen in training)" if seen_in_training(modality, type_) else ""
        rows.append(
            Row(type_.replace("_", " ") + seen, pictures, ["clean", *(f"severity {s}" for s in SEVERITIES)])
        )
    hard = [t for t in UNANNOUNCED_TYPES if t != "freeze" and (modality, t) != ("seg", "grey")]
    rows.append(Row(
        "unannounced (C2)", [clean, *(small(*apply_hard(image, valid, modality, t)) for t in hard)], ["clean", *hard],
    ))  # fmt: skip
    other = frame["image2", modality]
    pictures, words = [clean], ["clean"]
    for type_ in CROSS_MODAL_TYPES[modality]:
        for number in cross_modal.PARAMETERS.get(type_, (None,)):
            if type_ == "swapped":
                swapped = torch.from_numpy(other.transpose(2, 0, 1).copy())
                pictures.append(small(swapped, valid if valid is None else swapped > 0, None))
            else:
                generator = torch.Generator().manual_seed(SEED)
                pictures.append(small(*apply_cross(image, valid, modality, type_, number, generator)))
            words.append(type_ if number is None else f"{type_} {number:g}")
    for start in range(1, len(pictures), 5):
        label = "cross-modal (C5)" if start == 1 else ""
        rows.append(Row(label, [clean, *pictures[start : start + 5]], ["clean", *words[start : start + 5]]))
    return rows


def time_rows(frames: Sequence[np.ndarray], thumbnail: int) -> list[Row]:
    """Which picture each fault in time shows at which step of an episode of ``len(frames)`` steps."""
    import torch

    from multismolvla.corruption import TEMPORAL_TYPES, shown_step, temporal

    images = [torch.from_numpy(f.transpose(2, 0, 1).copy()) for f in frames]
    rows = [
        Row(
            "clean",
            [_thumbnail(images[s], None, "rgb", thumbnail) for s in SHOWN],
            [f"step {s}" for s in SHOWN],
        )
    ]
    for type_ in TEMPORAL_TYPES:
        for number in temporal.PARAMETERS.get(type_, (None,)):
            pictures, words = [], []
            for step in SHOWN:
                shown = shown_step(type_, number, SEED, step, len(frames))
                picture = torch.zeros_like(images[0]) if shown is None else images[shown]
                pictures.append(_thumbnail(picture, None, "rgb", thumbnail))
                words.append(
                    "absent"
                    if type_ == "burst" and shown is None
                    else "black"
                    if shown is None
                    else f"of {shown}"
                )
            label = type_.replace("_", " ") + ("" if number is None else f" {number:g}")
            rows.append(Row(label, pictures, words))
    return rows


def _span(depth: np.ndarray) -> Span:
    from multismolvla.pictures import own_depth_span

    return own_depth_span(depth[..., 0], depth[..., 0] > 0)


def _thumbnail(picture: Any, valid: Any, modality: str, size: int, span: Span = None) -> np.ndarray:
    """(C, H, W) tensor -> uint8 RGB with the longer side ``size``, pixels left out and not averaged."""
    from multismolvla.pictures import colourise, resize

    values = picture.numpy()
    if modality in ("rgb", "thermal"):
        values = values / 255.0
    mask = None if valid is None else valid.numpy()
    return resize(colourise(modality, values, mask, span), size)


def _write(path: Path, rows: Sequence[Row]) -> None:
    """Draw a sheet with labels; written whole or not at all."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    height, width = rows[0].pictures[0].shape[:2]
    columns = max(len(r.pictures) for r in rows)
    line = height + HEAD
    sheet = Image.new("RGB", (LABEL_WIDTH + columns * (width + GAP), len(rows) * line + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=FONT_SIZE)
    for number, row in enumerate(rows):
        top = number * line + HEAD
        pen.multiline_text((GAP, top + height // 2 - FONT_SIZE), row.label, "black", font)
        # 256 colours for each row: noise in full colour would make files of several megabytes.
        strip = Image.fromarray(np.concatenate(row.pictures, axis=1)).quantize(256, dither=Image.Dither.NONE)
        for column, word in enumerate(row.words):
            left = LABEL_WIDTH + column * (width + GAP)
            sheet.paste(
                strip.crop((column * width, 0, (column + 1) * width, height)).convert("RGB"), (left, top)
            )
            pen.text((left, top - HEAD + 4), word, "black", font)
    with whole_file(path) as partial:
        # 256 colours are a third of the size; what a severity does stays visible.
        sheet.quantize(256, method=Image.Quantize.MEDIANCUT).save(partial, optimize=True)


if __name__ == "__main__":
    raise SystemExit(main())

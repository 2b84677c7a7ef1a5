"""Draw every corruption at every severity: ``python docs/corruption_sheet.py --output docs``.

The pictures come from a real frame of the simulator, at the size at which LIBERO's cameras work and
corruptions are defined (256 pixels), and go through the same functions as an evaluation. They are shown at
half size by leaving out every second pixel, because averaging would hide noise.
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
    import gymnasium as gym
    import numpy as np
    from torch import Tensor

    from multismolvla.pictures import SheetRow, Tile

logger = logging.getLogger(__name__)

LABEL_WIDTH = 150
#: Seed of all draws (with this one, instances of the mini suite's first task are swapped and removed: most
#: episodes keep theirs at low severity), step limit of the episode in the picture of faults in time, and the
#: step of the other sheets.
SEED, STEPS, STEP = 206, 24, 3
#: Steps that the picture of faults in time shows.
SHOWN = tuple(range(0, STEPS, 2))


@dataclass
class SheetConfig:
    """Where the frame comes from and where the pictures go."""

    # Folder for corruptions_rgb.png, _rgb_more, _depth, _seg, _thermal, _time and _camera.
    output: Path = Path("docs")
    # Suite of the frame.
    task: str = "multismolvla_mini"
    # Task of the suite.
    task_id: int = 0
    # Side of the rendered pictures in pixels.
    size: int = 256
    # Side of the thumbnails in pixels.
    thumbnail: int = 128


@entry_point("error", interrupted=AGAIN)
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    show_progress("multismolvla_eval")
    config = parse_options(SheetConfig, arguments)
    if config.size < 32 or not 8 <= config.thumbnail <= config.size:
        raise ValueError(
            f"--size={config.size} must be at least 32 and --thumbnail={config.thumbnail} lie between 8 and "
            "it."
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
    from PIL import Image

    from lerobot_env_multismolvla.labels import label_set
    from multismolvla.corruption.names import COMMON_TYPES
    from multismolvla.modalities import MODALITIES
    from multismolvla.pictures import contact_sheet

    env = _environment(config)
    try:
        frames = _episode(env)
        camera = camera_rows(env, frames[STEP])
    finally:
        env.close()
    config.output.mkdir(parents=True, exist_ok=True)
    labels = len(label_set(config.task))
    sheets = {m: modality_rows(frames[STEP], m, labels) for m in MODALITIES}
    common = len(COMMON_TYPES)  # one picture of all RGB types would be too long, and too large for a README
    sheets["rgb"], sheets["rgb_more"] = sheets["rgb"][:common], sheets["rgb"][common:]
    sheets["time"] = time_rows([f["image", "rgb"] for f in frames])
    sheets["camera"] = camera
    paths = []
    for name, rows in sheets.items():
        side = config.thumbnail * 3 // 4 if name == "time" else config.thumbnail
        sheet = contact_sheet(rows, side, label_width=LABEL_WIDTH, font_size=13)
        paths.append(config.output / f"corruptions_{name}.png")
        with whole_file(paths[-1]) as partial:
            # 256 colours are a third of the size; what a severity does stays visible.
            sheet.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
                partial, optimize=True
            )
    return paths


Frame = Mapping[tuple[str, str], "np.ndarray"]


def _environment(config: SheetConfig) -> gym.Env:
    from lerobot_env_multismolvla import MultiSmolVLALiberoConfig

    environment = MultiSmolVLALiberoConfig(
        task=config.task, observation_height=config.size, observation_width=config.size
    )
    return environment.env_maker(config.task, config.task_id)()


def _episode(env: gym.Env, steps: int = STEPS) -> list[Frame]:
    """Frames of one episode as the policy sees them: (H, W, C) per (camera, modality), raw units."""
    import numpy as np

    from multismolvla.modalities import MODALITIES

    frames: list[Frame] = []

    def keep(raw: Mapping[str, Any]) -> None:
        pictures = {}
        for camera in ("image", "image2"):
            for m in MODALITIES:
                key = camera + ("" if m == "rgb" else f"_{m}")
                picture = raw[key] if m == "depth" else raw["pixels"][key]
                # upright, as after the processors
                pictures[camera, m] = np.ascontiguousarray(picture[::-1, ::-1])
        frames.append(pictures)

    keep(env.reset(seed=SEED, options={"init_state_id": 0})[0])
    for _ in range(steps - 1):
        keep(env.step(np.array([0.6, 0.4, -0.6, 0, 0, 0, -1], np.float32))[0])
    return frames


def modality_rows(frame: Frame, modality: str, labels: int) -> list[SheetRow]:
    """All corruptions of one modality: soft types by severity, then hard and cross-modal ones.

    Args:
        frame: pictures of one step.
        modality: which of them.
        labels: size of the segmentation pictures' label set.
    """
    import torch

    from multismolvla.corruption import (
        CROSS_MODAL_TYPES,
        SEVERITIES,
        SOFT_TYPES,
        apply_cross,
        cross_modal,
        frame_generator,
        seen_in_training,
    )
    from multismolvla.corruption.hard import apply_hard
    from multismolvla.corruption.names import NOT_FOR_IDS
    from multismolvla.corruption.soft import apply_soft
    from multismolvla.pictures import SheetRow, Tile, colourise, own_depth_span

    image = _tensor(frame["image", modality])
    valid = image > 0 if modality == "depth" else None
    depth = _tensor(frame["image", "depth"])  # smoke grows with it
    span = None if valid is None else own_depth_span(image[0].numpy(), valid[0].numpy())

    def tile(
        word: str, picture: Tensor, mask: Tensor | None, span: tuple[float, float] | None = span
    ) -> Tile:
        values, seen = picture.numpy(), None if mask is None else mask.numpy()
        return Tile(colourise(modality, values, seen, span), word)

    clean = tile("clean", image, valid)
    rows = []
    for type_ in SOFT_TYPES[modality]:
        tiles = [clean]
        for severity in SEVERITIES:
            generator = frame_generator(SEED, 0, type_)
            broken = apply_soft(image, valid, modality, type_, severity, generator, labels, depth)
            tiles.append(tile(f"severity {severity}", *broken))
        seen = "\n(seen in training)" if seen_in_training(modality, type_) else ""
        rows.append(SheetRow(type_.replace("_", " ") + seen, tiles))
    noise = torch.Generator().manual_seed(SEED)
    hard = [t for t in ("zero", "grey", "noisy_freeze") if modality != "seg" or t not in NOT_FOR_IDS]
    dead = [tile(t.replace("_", " "), *apply_hard(image, valid, modality, t, image, noise)) for t in hard]
    rows.append(SheetRow("unannounced (C2)", [clean, *dead]))
    tiles = []
    for type_ in CROSS_MODAL_TYPES[modality]:
        for number in cross_modal.PARAMETERS.get(type_, (None,)):
            if type_ in cross_modal.DISPLACED:
                continue  # on a sheet of their own
            if type_ == "swapped":
                other = _tensor(frame["image2", modality])
                tiles.append(tile(type_, other, valid if valid is None else other > 0, None))
                continue
            generator = torch.Generator().manual_seed(SEED)
            moved = apply_cross(image, valid, modality, type_, number, generator)
            tiles.append(tile(type_ if number is None else f"{type_} {number:g}", *moved))
    for start in range(0, len(tiles), 5):
        rows.append(SheetRow("" if start else "cross-modal (C5)", [clean, *tiles[start : start + 5]]))
    return rows


def camera_rows(env: gym.Env, clean: Frame) -> list[SheetRow]:
    """The third-person camera displaced, in RGB and depth; ``clean`` is the same step from its own place."""
    from lerobot_env_multismolvla.faults import FaultWrapper
    from multismolvla.corruption import cross_modal, parse_condition
    from multismolvla.pictures import SheetRow, Tile, colourise, own_depth_span

    def displaced(condition: str) -> Frame:
        return _episode(FaultWrapper(env, parse_condition(condition), SEED), STEP + 1)[STEP]

    depth = clean["image", "depth"][..., 0]
    span = own_depth_span(depth, depth > 0)

    def tile(frame: Frame, modality: str, word: str) -> Tile:
        values = frame["image", modality].transpose(2, 0, 1)
        seen = values > 0 if modality == "depth" else None
        return Tile(colourise(modality, values, seen, span if modality == "depth" else None), word)

    rows = []
    for type_, unit in zip(cross_modal.DISPLACED, ("cm", "degrees"), strict=True):
        numbers = cross_modal.PARAMETERS[type_]
        found = [displaced(f"C5:all.image={type_}@{n:g}") for n in numbers]
        for modality in ("rgb", "depth"):
            broken = [tile(f, modality, f"{n:g} {unit}") for f, n in zip(found, numbers, strict=True)]
            rows.append(SheetRow(f"{type_}, {modality}", [tile(clean, modality, "clean"), *broken]))
    return rows


def time_rows(frames: Sequence[np.ndarray]) -> list[SheetRow]:
    """Which picture each fault in time shows at which step of an episode of ``len(frames)`` steps."""
    import numpy as np

    from multismolvla.corruption import TEMPORAL_TYPES, shown_step, temporal
    from multismolvla.pictures import SheetRow, Tile

    rows = [SheetRow("clean", [Tile(frames[s], f"step {s}") for s in SHOWN])]
    for type_ in TEMPORAL_TYPES:
        for number in temporal.PARAMETERS.get(type_, (None,)):
            tiles = []
            for step in SHOWN:
                shown = shown_step(type_, number, SEED, step, len(frames))
                if shown is not None:
                    tiles.append(Tile(frames[shown], f"of {shown}"))
                elif type_ in temporal.ANNOUNCED:
                    tiles.append(Tile(None))
                else:
                    tiles.append(Tile(np.zeros_like(frames[0]), "black"))
            label = type_.replace("_", " ") + ("" if number is None else f" {number:g}")
            rows.append(SheetRow(label, tiles))
    return rows


def _tensor(picture: np.ndarray) -> Tensor:
    """(H, W, C) -> (C, H, W)."""
    import torch

    return torch.from_numpy(picture.transpose(2, 0, 1).copy())


if __name__ == "__main__":
    raise SystemExit(main())

"""Small animated clips of roll-outs: the world on the left, what the policy is shown on the right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from multismolvla.corruption import CLEAN
from multismolvla.modalities import MODALITIES
from multismolvla.pictures import ABSENT_GREY, resize, streams
from multismolvla.system.files import whole_file
from multismolvla_eval.environments import Batch
from multismolvla_eval.protocol.schedule import EpisodeSpec

WORLD_PX = 224
TILE_PX = 100
LABEL_PX = 12
BANNER_PX = 24
STRIDE = 3
MAX_FRAMES = 60
FRAME_MS = 80
LAST_FRAME_MS = 1500


def clip_name(episode: EpisodeSpec) -> str:
    """File name of an episode's clip, the same in every run."""
    condition = re.sub(r"[^A-Za-z0-9_.@=+-]", "-", episode.condition)
    return f"{episode.policy}__{condition}__{episode.suite}-{episode.task_id}__{episode.episode}.webp"


def keeps_clip(episode: EpisodeSpec, success: bool, failures: set[EpisodeSpec]) -> bool:
    """Whether a clip is kept: the first of its kind, every clean one, and the first failure under a fault.

    Args:
        episode: that was filmed.
        success: how it ended.
        failures: the kinds (policy, task, condition) of which this process has kept a failure; extended here.
    """
    kind = replace(episode, episode=0)
    kept = episode.episode == 0 or episode.condition == CLEAN.id or not (success or kind in failures)
    if kept and not success:
        failures.add(kind)
    return kept


@dataclass(frozen=True)
class _Frame:
    """The world, uint8 (H, W, 3), and each (camera, modality) as the policy gets it; ``None`` = absent."""

    step: int
    world: np.ndarray
    shown: dict[tuple[str, str], np.ndarray | None]


class ClipRecorder:
    """Collects frames of one episode and writes them as one animated WebP; a `Recorder`.

    Args:
        cameras: camera names.
        banner: text over the pictures.
    """

    def __init__(self, cameras: Sequence[str], banner: str) -> None:
        self._cameras = tuple(cameras)
        self._banner = banner
        self._frames: list[_Frame] = []

    def wants(self, step: int) -> bool:
        """Whether the frame before this step is kept."""
        return step % STRIDE == 0

    def frame(self, env: gym.Env, batch: Batch | None, step: int) -> None:
        """Keep a frame; the last one shows the world alone anew."""
        world = env.render()
        if not isinstance(world, np.ndarray):
            return
        shown = streams(batch, self._cameras) if batch is not None else self._frames[-1].shown
        self._frames.append(_Frame(step, resize(np.ascontiguousarray(world), WORLD_PX), shown))

    def acted(self, action: np.ndarray, step: int) -> None:
        """Clips show pictures only."""

    def write(self, path: Path, success: bool, cause: str | None) -> bool:
        """Write the clip; the last frame shows the outcome.

        Returns:
            Whether there was anything to write.
        """
        if not self._frames:
            return False
        kept = self._frames
        if len(kept) > MAX_FRAMES:
            kept = [kept[i] for i in np.linspace(0, len(kept) - 1, MAX_FRAMES).round().astype(int)]
        images = [self._draw(frame, f"step {frame.step}", (45, 45, 50)) for frame in kept[:-1]]
        if success:
            images.append(self._draw(kept[-1], "SUCCESS", (0, 90, 60)))
        else:
            outcome = f"FAILED ({(cause or 'failed').replace('_', ' ')})"
            images.append(self._draw(kept[-1], outcome, (150, 30, 0)))
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            images[0].save(
                partial,
                save_all=True,
                append_images=images[1:],
                duration=[FRAME_MS] * (len(images) - 1) + [LAST_FRAME_MS],
                loop=1,  # moving pictures that never stop keep some readers from reading
                quality=55,
                method=2,
            )
        return True

    def _draw(self, frame: _Frame, text: str, colour: tuple[int, int, int]) -> Image.Image:
        columns = [m for m in MODALITIES if any(modality == m for _, modality in frame.shown)]
        tile = TILE_PX + LABEL_PX
        width = WORLD_PX + len(columns) * (TILE_PX + 2) + 4
        height = BANNER_PX + max(WORLD_PX, tile * len(self._cameras))
        canvas = Image.new("RGB", (width, height), (250, 250, 250))
        draw = ImageDraw.Draw(canvas)
        font, small = ImageFont.load_default(13), ImageFont.load_default(10)
        draw.rectangle((0, 0, width, BANNER_PX - 1), fill=colour)
        draw.text((5, 4), self._banner, fill="white", font=font)
        draw.text((width - 5 - draw.textlength(text, font=font), 4), text, fill="white", font=font)
        canvas.paste(Image.fromarray(frame.world), (0, BANNER_PX))
        for row, camera in enumerate(self._cameras):
            for column, modality in enumerate(columns):
                x, y = WORLD_PX + 4 + column * (TILE_PX + 2), BANNER_PX + row * tile
                draw.text((x + 1, y), f"{camera} {modality}", fill=(30, 30, 30), font=small)
                picture = frame.shown.get((camera, modality))
                if picture is None:
                    box = (x, y + LABEL_PX, x + TILE_PX - 1, y + LABEL_PX + TILE_PX - 1)
                    draw.rectangle(box, fill=(ABSENT_GREY,) * 3)
                    draw.text((x + 30, y + LABEL_PX + 42), "absent", fill=(60, 60, 60), font=font)
                else:
                    canvas.paste(Image.fromarray(resize(picture, TILE_PX)), (x, y + LABEL_PX))
        return canvas

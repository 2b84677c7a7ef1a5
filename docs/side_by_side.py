"""Draws the README's moving picture: two clips of one start side by side, as a GIF.

Example:
    $ python docs/side_by_side.py LEFT.webp RIGHT.webp docs/side_by_side.gif  # of outputs/demo/eval/clips
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageSequence

FRAME_MS = 120
LAST_FRAME_MS = 2000
GAP_PX = 8
WIDTH_PX = 720


def main(left: Path, right: Path, output: Path, colours: int = 64) -> None:
    """Write the GIF; the clip that ends first waits at its last frame."""
    clips = [[f.convert("RGB") for f in ImageSequence.Iterator(Image.open(p))] for p in (left, right)]
    number = max(map(len, clips))
    frames = []
    for i in range(number):
        pair = [clip[min(i, len(clip) - 1)] for clip in clips]
        width = sum(p.width for p in pair) + GAP_PX
        sheet = Image.new("RGB", (width, max(p.height for p in pair)), "white")
        sheet.paste(pair[0], (0, 0))
        sheet.paste(pair[1], (pair[0].width + GAP_PX, 0))
        sheet.thumbnail((WIDTH_PX, sheet.height), Image.Resampling.LANCZOS)
        frames.append(sheet.quantize(colours, dither=Image.Dither.NONE))
    durations = [FRAME_MS] * (number - 1) + [LAST_FRAME_MS]
    frames[0].save(output, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))

"""Draw what a roll-out's recording and diary tell: `python docs/deploy_pictures.py --dataset=FOLDER`.

Above the robot's pictures at the beginning, in the middle and at the end; below, for each stream of the
policy, when it was used and why not.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from multismolvla.system.command import AGAIN, CommandError, entry_point, parse_options, show_progress
from multismolvla.system.files import whole_file

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from torch import Tensor

logger = logging.getLogger(__name__)

FARTHEST_M = 2.0
USED, LOST, NO_SENSOR = "#4caf50", "#d32f2f", "#9e9e9e"


@dataclass
class PictureOptions:
    """Options of docs/deploy_pictures.py."""

    dataset: Path = Path("outputs/so101/rolled_out")  # recorded by lerobot-rollout
    diary: Path | None = None  # of --policy.health_log; default: health.jsonl in that folder
    output: Path = Path("outputs/so101/rolled_out.png")


class Stretch(NamedTuple):
    """A time [s since the roll-out began] for which a stream was used (``why`` empty) or not."""

    begin: float
    end: float
    why: str


class Event(NamedTuple):
    """A line of the diary."""

    second: float  # since the first one
    event: str
    stream: str
    cause: str
    streams: Mapping[str, str]


def read_diary(file: Path) -> list[Event]:
    """The diary's lines.

    Raises:
        CommandError: there are none.
    """
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    if not lines:
        raise CommandError(f"{file} tells nothing. Roll out with --policy.health_log={file}.")
    began = lines[0]["time"]
    return [
        Event(
            line["time"] - began,
            line["event"],
            line.get("stream") or "",
            line.get("cause") or "",
            line.get("streams") or {},
        )
        for line in lines
    ]


def stretches(diary: Sequence[Event], end: float) -> dict[str, list[Stretch]]:
    """When each stream was used, until the roll-out's end [s]."""
    found: dict[str, list[Stretch]] = {}
    now: dict[str, tuple[float, str]] = {}  # stream -> since when, and why not

    def change(stream: str, second: float, why: str) -> None:
        since, before = now.get(stream, (second, why))
        if before != why:
            found.setdefault(stream, []).append(Stretch(since, second, before))
            since = second
        now[stream] = (since, why)

    for event in diary:
        for stream, state in event.streams.items():
            change(stream, event.second, "" if state == "there" else state)
        if event.event in ("lost", "back"):
            change(event.stream, event.second, event.cause)
    for stream, (since, why) in now.items():
        found.setdefault(stream, []).append(Stretch(since, end, why))
    return found


def draw(options: PictureOptions) -> Path:
    """Draw the picture and return its file.

    Raises:
        CommandError: there is no diary.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    diary = read_diary(options.diary or options.dataset / "health.jsonl")
    data = LeRobotDataset(f"local/{options.dataset.name}", root=options.dataset, depth_output_unit="m")
    keys, last = list(data.meta.camera_keys), len(data) - 1
    starts = [event.second for event in diary if event.event == "start"]
    shown = [(data[row], _second(data[row], starts)) for row in (0, last // 2, last)]
    bars = stretches(diary, max(diary[-1].second, shown[-1][1]))
    figure: Figure = plt.figure(
        figsize=(2.1 * len(keys) + 1, 1.7 * len(shown) + 0.24 * len(bars) + 1), dpi=80
    )
    rows = figure.add_gridspec(2, 1, height_ratios=[1.7 * len(shown), 0.24 * len(bars) + 0.5])
    grid = rows[0].subgridspec(len(shown), len(keys))
    for row, (frame, second) in enumerate(shown):
        for column, key in enumerate(keys):
            axes = figure.add_subplot(grid[row, column])
            _show(axes, frame[key].numpy(), key in data.meta.depth_keys)
            if row == 0:
                axes.set_title(key.removeprefix("observation.images."), fontsize=9)
            if column == 0:
                axes.set_ylabel(f"{second:.0f} s", fontsize=8)
    _bars(figure.add_subplot(rows[1]), bars)
    figure.tight_layout()
    with whole_file(options.output) as partial:
        figure.savefig(partial, format="png")
    plt.close(figure)
    return options.output


def _second(frame: Mapping[str, Tensor], starts: Sequence[float]) -> float:
    """When a frame was recorded [s]; each ``start`` of the diary begins an episode."""
    return starts[min(int(frame["episode_index"]), len(starts) - 1)] + float(frame["timestamp"])


def _show(axes: Axes, picture: NDArray[np.float32], depth: bool) -> None:
    """A picture (C, H, W); red round one that is all zero, as a guarded camera shows what is lost."""
    if depth:
        axes.imshow(picture[0], cmap="viridis", vmin=0, vmax=FARTHEST_M)
        lost = picture.max() <= 0.011  # as LeRobot's depth video returns 0
    else:
        axes.imshow(picture.transpose(1, 2, 0))
        lost = picture.max() < 0.03  # video is lossy
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=LOST if lost else "grey", linewidth=3 if lost else 0.5)


def _bars(axes: Axes, bars: Mapping[str, Sequence[Stretch]]) -> None:
    """When each stream was used."""
    for row, own in enumerate(bars.values()):
        for begin, end, why in own:
            colour = NO_SENSOR if why == "not delivered" else LOST if why else USED
            axes.barh(row, end - begin, left=begin, color=colour, height=0.8)
            if why:
                axes.text(begin, row, f" {why}", va="center", fontsize=7, color="white", clip_on=True)
    axes.set_yticks(range(len(bars)), list(bars), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("seconds; green: used, red: not used, and why, grey: no sensor delivers it", fontsize=8)


@entry_point("error", interrupted=AGAIN)
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    show_progress()
    path = draw(parse_options(PictureOptions, arguments))
    logger.info("%s (%.2f MB)", path, path.stat().st_size / 1e6)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Watch roll-outs in rerun, LeRobot's viewer: what the policy is shown, the clean picture, what it does.

``--view`` opens the viewer, ``--view=FILE.rrd`` writes a recording for later (``rerun FILE.rrd``), and
``--view=rerun+http://HOST:9876/proxy`` streams to a viewer elsewhere. Entities are named as in LeRobot's own
streams: ``observation.images.<camera>[_<modality>]``, ``observation.state``, ``action``.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import rerun as rr
import rerun.blueprint as rrb
from torch import Tensor

from multismolvla.modalities import Modality, default_view_map, padding_mask_key
from multismolvla_eval.config import VIEWER
from multismolvla_eval.environments import Batch, EnvironmentSource, KeepsCleanPictures
from multismolvla_eval.protocol.schedule import EpisodeSpec
from multismolvla_eval.records.schema import EpisodeRow

CLEAN = "clean"
_MILLIMETRES = 1000
_JPEG = 95
_ACTIONS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
_STATES = ("x", "y", "z", "axis-angle x", "axis-angle y", "axis-angle z", "finger 1", "finger 2")


class LiveView:
    """Streams the episodes of one worker to one recording, one after the other; a `Recorder`.

    Timelines: ``frame`` counts on through all episodes, ``step`` begins anew in each.

    Args:
        target: as ``--view`` says, see `check_view`. A file that exists is kept: the name gets a number.
        title: name of the recording.
    """

    def __init__(self, target: str, title: str) -> None:
        self._stream = rr.RecordingStream("multismolvla-eval")
        self._stream.send_recording_name(title)
        self.path: Path | None = None
        if target == VIEWER:
            self._stream.spawn(memory_limit="25%")
        elif target.endswith(".rrd"):
            self.path = _free_name(Path(target))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream.save(self.path)
        else:
            self._stream.connect_grpc(target)
        self._frame = 0
        self._laid_out = False
        self._named: set[str] = set()

    def close_when_terminated(self) -> None:
        """Let SIGTERM, which ends workers, complete the file: without its end some tools refuse it."""

        def end(number: int, frame: Any) -> None:
            self._stream.disconnect()
            sys.exit(0)

        signal.signal(signal.SIGTERM, end)

    def begin(self, episode: EpisodeSpec, source: EnvironmentSource) -> None:
        """Say what is shown next."""
        self._episode, facts = episode, source.facts()
        self._task, labels = facts.tasks[episode.task_id], facts.labels
        self._streams = [
            (m, k) for keys in default_view_map(source.cameras).values() for m, k in keys.items()
        ]
        self._absent: set[str] = set()
        self._title = (
            f"{episode.policy}, {episode.condition}, {episode.suite} task {episode.task_id}, initial state "
            f"{episode.episode}"
        )
        self._set_time(0)
        self._say(f"{self._title}: begins ({self._task})")
        self._describe("running")
        classes = [rr.AnnotationInfo(id=i, label=name) for i, name in enumerate(labels)]
        for modality, key in self._streams:
            self._stream.log(key, rr.Clear(recursive=False))  # the last episode's may be absent in this one
            if modality == Modality.SEG and classes:
                self._stream.log(key, rr.AnnotationContext(classes))

    def wants(self, step: int) -> bool:
        """Every step is shown."""
        return True

    def frame(self, env: gym.Env, batch: Batch | None, step: int) -> None:
        """Show what the policy is shown, and beside it what is there."""
        if batch is None:
            return
        self._set_time(step)
        self._frame += 1
        shown = [(m, k) for m, k in self._streams if self._is_present(batch, k)]
        for modality, key in shown:
            self._stream.log(key, _picture(modality, batch[key][0].detach().to("cpu").float().numpy()))
        clean = self._clean_pictures(env)
        for name, picture in clean.items():
            self._stream.log(name, _compressed(picture))
        state = batch.get("observation.state")
        if isinstance(state, Tensor):
            self._curve("observation.state", state[0].detach().to("cpu").float().numpy(), _STATES)
        self._lay_out([*(key for _, key in shown), *clean])

    def acted(self, action: np.ndarray, step: int) -> None:
        """Draw the action of a step."""
        self._curve("action", np.asarray(action), _ACTIONS)

    def finish(self, row: EpisodeRow) -> None:
        """Say how it ended, and write out what was logged."""
        outcome = f"success after {row.steps} steps" if row.success else f"failed: {row.cause}"
        self._say(f"{self._title}: {outcome}")
        self._describe(outcome)
        self._stream.flush()

    def _set_time(self, step: int) -> None:
        self._stream.set_time("frame", sequence=self._frame)
        self._stream.set_time("step", sequence=step)

    def _lay_out(self, pictures: Sequence[str]) -> None:
        """Arrange the views, once: pictures in a grid, below them action, state and what is said."""
        if self._laid_out:
            return
        self._laid_out = True
        grid = rrb.Grid(
            *[rrb.Spatial2DView(origin=p, name=p.removeprefix("observation.images.")) for p in pictures]
        )
        curves = [
            rrb.TimeSeriesView(origin=name, name=name.removeprefix("observation."))
            for name in ("action", "observation.state")
        ]
        words = [
            rrb.TextDocumentView(origin="episode", name="episode"),
            rrb.TextLogView(origin="log", name="log"),
        ]
        bottom = rrb.Horizontal(*curves, *words)
        self._stream.send_blueprint(rrb.Blueprint(rrb.Vertical(grid, bottom, row_shares=[3, 1])))

    def _curve(self, path: str, values: np.ndarray, names: Sequence[str]) -> None:
        """Log one value per curve; the curves get names if their number fits."""
        if path not in self._named and len(values) == len(names):
            self._stream.log(path, rr.SeriesLines(names=list(names)), static=True)
        self._named.add(path)
        self._stream.log(path, rr.Scalars(values.astype(float)))

    def _is_present(self, batch: Batch, key: str) -> bool:
        """Whether the policy has the stream; says when that changes."""
        value, mask = batch.get(key), batch.get(padding_mask_key(key))
        announced_absent = isinstance(mask, Tensor) and not bool(mask.reshape(-1)[0])
        present = isinstance(value, Tensor) and value.ndim == 4 and not announced_absent
        if announced_absent and key not in self._absent:
            self._absent.add(key)
            self._say(f"{key} is announced as absent")
            self._stream.log(key, rr.Clear(recursive=False))
        elif present and key in self._absent:
            self._absent.remove(key)
            self._say(f"{key} is back")
        return present

    def _clean_pictures(self, env: gym.Env) -> dict[str, np.ndarray]:
        """RGB without faults, turned as the policy's pictures; nothing for clean episodes."""
        if self._episode.condition == "C0":
            return {}
        bare = env.unwrapped
        if isinstance(bare, KeepsCleanPictures):
            return {f"{CLEAN}/observation.images.{camera}": p for camera, p in bare.clean_rgb().items()}
        world = env.render()
        return {f"{CLEAN}/world": world} if isinstance(world, np.ndarray) else {}

    def _say(self, text: str) -> None:
        self._stream.log("log", rr.TextLog(text))

    def _describe(self, state: str) -> None:
        episode = self._episode
        lines = (
            f"**{self._task}**",
            f"policy: {episode.policy}",
            f"condition: {episode.condition}",
            f"suite: {episode.suite}, task {episode.task_id}",
            f"initial state: {episode.episode}",
            f"repetition: {episode.repeat}",
            f"**{state}**",
        )
        self._stream.log("episode", rr.TextDocument("\n\n".join(lines), media_type=rr.MediaType.MARKDOWN))


def _picture(modality: str, values: np.ndarray) -> Any:
    """An entity of a (C, H, W) picture as policies get it: [0, 1], metres, or ids over 255.

    Depth is kept in whole millimetres and shown in metres; raw floats would make a recording three times as
    large.
    """
    if modality == Modality.DEPTH:
        millimetres = np.clip(np.nan_to_num(values[0]) * _MILLIMETRES, 0, 65535).round().astype(np.uint16)
        colours = rr.components.Colormap.Viridis
        return rr.DepthImage(millimetres, meter=float(_MILLIMETRES), colormap=colours)
    bytes_ = (np.clip(values, 0, 1) * 255).round().astype(np.uint8)
    if modality == Modality.SEG:
        return rr.SegmentationImage(bytes_[0])
    if modality == Modality.RGB:
        return _compressed(bytes_.transpose(1, 2, 0))
    return rr.Image(bytes_[0], color_model="L").compress(jpeg_quality=_JPEG)


def _compressed(picture: np.ndarray) -> Any:
    return rr.Image(np.ascontiguousarray(picture)).compress(jpeg_quality=_JPEG)


def _free_name(path: Path) -> Path:
    """The path, or the first of ``name-2.rrd``, ``name-3.rrd``... that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free

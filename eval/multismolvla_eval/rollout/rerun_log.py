"""Watch roll-outs in rerun, LeRobot's viewer: what the policy is shown, the clean picture beside it, and what it does.

``--view`` opens the viewer, ``--view=FILE.rrd`` writes a recording for later (``rerun FILE.rrd``), and
``--view=rerun+http://HOST:9876/proxy`` streams to a viewer elsewhere. Entities are named as in LeRobot's own streams:
``observation.images.<camera>[_<modality>]``, ``observation.state``, ``action``.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium as gym
import numpy as np
from torch import Tensor

from multismolvla.modalities import Modality, default_view_map, padding_mask_key
from multismolvla_eval.config import VIEWER

if TYPE_CHECKING:
    from multismolvla_eval.protocol.schedule import Episode
    from multismolvla_eval.records.store import Row

CLEAN = "clean"
_MILLIMETRES = 1000
_JPEG = 95
_ACTIONS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
_STATES = ("x", "y", "z", "axis-angle x", "axis-angle y", "axis-angle z", "finger 1", "finger 2")


class Recorder(Protocol):
    """What a roll-out tells of itself while it runs."""

    def wants(self, step: int) -> bool:
        """Whether the observation before this step is to be made and shown."""

    def frame(self, env: gym.Env, batch: dict[str, Any] | None, step: int) -> None:
        """The observation before a step; ``None`` after the last one."""

    def acted(self, action: np.ndarray, step: int) -> None:
        """The action (A,) of a step."""


class Recorders:
    """Several recorders as one."""

    def __init__(self, members: Sequence[Recorder]) -> None:
        self._members = tuple(members)

    def __len__(self) -> int:
        """Number of recorders; without any, nobody looks."""
        return len(self._members)

    def wants(self, step: int) -> bool:
        """Whether any of them wants the observation."""
        return any(m.wants(step) for m in self._members)

    def frame(self, env: gym.Env, batch: dict[str, Any] | None, step: int) -> None:
        """Pass it on to those that want it."""
        for member in self._members:
            if batch is None or member.wants(step):
                member.frame(env, batch, step)

    def acted(self, action: np.ndarray, step: int) -> None:
        """Pass it on."""
        for member in self._members:
            member.acted(action, step)


class LiveView:
    """Streams the episodes of one worker to one recording, one after the other.

    Timelines: ``frame`` counts on through all episodes, ``step`` begins anew in each.

    Args:
        target: as ``--view`` says, see :func:`check_target`. A file that exists is kept: the name gets a number.
        title: name of the recording.
    """

    def __init__(self, target: str, title: str) -> None:
        import rerun as rr

        self._rr: Any = rr
        self._stream: Any = rr.RecordingStream("multismolvla-eval")
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

    def episode(
        self, episode: Episode, task: str, cameras: Sequence[str], labels: Sequence[str]
    ) -> EpisodeView:
        """A recorder of the next episode.

        Args:
            episode: what is run.
            task: its instruction.
            cameras: camera names.
            labels: class names of the segmentation pictures by id; may be empty.
        """
        return EpisodeView(self, episode, task, cameras, labels)

    def log(self, path: str, content: Any, static: bool = False) -> None:
        """Log one entity at the present time."""
        self._stream.log(path, content, static=static)

    def advance(self, step: int) -> None:
        """Go on to the next frame."""
        self._stream.set_time("frame", sequence=self._frame)
        self._stream.set_time("step", sequence=step)
        self._frame += 1

    def lay_out(self, pictures: Sequence[str]) -> None:
        """Arrange the views, once: pictures in a grid, below them action and state, beside them what is said."""
        if self._laid_out:
            return
        self._laid_out = True
        import rerun.blueprint as rrb

        grid = rrb.Grid(
            *[rrb.Spatial2DView(provenance=p, name=p.removeprefix("observation.images.")) for p in pictures]
        )
        curves = [
            rrb.TimeSeriesView(provenance=name, name=name.removeprefix("observation."))
            for name in ("action", "observation.state")
        ]
        words = [
            rrb.TextDocumentView(provenance="episode", name="episode"),
            rrb.TextLogView(provenance="log", name="log"),
        ]
        bottom = rrb.Horizontal(*curves, *words)
        self._stream.send_blueprint(rrb.Blueprint(rrb.Vertical(grid, bottom, row_shares=[3, 1])))

    def curve(self, path: str, values: np.ndarray, names: Sequence[str]) -> None:
        """Log one value per curve; the curves get names if their number fits."""
        if path not in self._named and len(values) == len(names):
            self.log(path, self._rr.SeriesLines(names=list(names)), static=True)
        self._named.add(path)
        self.log(path, self._rr.Scalars(values.astype(float)))

    def close_when_terminated(self) -> None:
        """Let SIGTERM, by which workers are ended, complete the file: without its table of contents some tools refuse it."""

        def end(number: int, frame: Any) -> None:
            self._stream.disconnect()
            sys.exit(0)

        signal.signal(signal.SIGTERM, end)

    def flush(self) -> None:
        """Write out what was logged, for those who watch, and in case of a crash."""
        self._stream.flush()


class EpisodeView:
    """Shows one episode; a :class:`Recorder`. Made by :meth:`LiveView.episode`."""

    def __init__(
        self, view: LiveView, episode: Episode, task: str, cameras: Sequence[str], labels: Sequence[str]
    ) -> None:
        self._view, self._rr, self._episode = view, view._rr, episode
        self._streams = [
            (m, key) for keys in default_view_map(tuple(cameras)).values() for m, key in keys.items()
        ]
        self._absent: set[str] = set()
        self._begun = False
        self._title = f"{episode.policy}, {episode.condition}, {episode.suite} task {episode.task_id}, initial state {episode.episode}"
        self._task = task
        self._labels = list(enumerate(labels))

    def wants(self, step: int) -> bool:
        """Every step is shown."""
        return True

    def frame(self, env: gym.Env, batch: dict[str, Any] | None, step: int) -> None:
        """Show what the policy is shown, and beside it what is there."""
        if batch is None:
            return
        self._view.advance(step)
        if not self._begun:
            self._begin()
        shown = []
        for modality, key in self._streams:
            value = batch.get(key)
            if not self._is_present(batch, key, value):
                continue
            assert isinstance(value, Tensor)
            self._view.log(key, self._picture(modality, value[0].detach().to("cpu").float().numpy()))
            shown.append(key)
        clean = self._clean_pictures(env)
        for name, picture in clean.items():
            self._view.log(name, self._colours(picture))
        state = batch.get("observation.state")
        if isinstance(state, Tensor):
            self._view.curve("observation.state", state[0].detach().to("cpu").float().numpy(), _STATES)
        self._view.lay_out([*shown, *clean])

    def acted(self, action: np.ndarray, step: int) -> None:
        """Draw the action of a step."""
        self._view.curve("action", np.asarray(action), _ACTIONS)

    def finish(self, row: Row) -> None:
        """Say how it ended."""
        outcome = f"success after {row['steps']} steps" if row["success"] else f"failed: {row['cause']}"
        self._say(f"{self._title}: {outcome}")
        self._view.log("episode", self._document(outcome))
        self._view.flush()

    def _begin(self) -> None:
        self._begun = True
        self._say(f"{self._title}: begins ({self._task})")
        self._view.log("episode", self._document("running"))
        classes = [self._rr.AnnotationInfo(id=i, label=name) for i, name in self._labels]
        for modality, key in self._streams:
            self._view.log(
                key, self._rr.Clear(recursive=False)
            )  # the last episode's may be absent in this one
            if modality == Modality.SEG and classes:
                self._view.log(key, self._rr.AnnotationContext(classes))

    def _is_present(self, batch: Mapping[str, Any], key: str, value: Any) -> bool:
        """Whether the policy has the stream; says when that changes."""
        mask = batch.get(padding_mask_key(key))
        present = isinstance(value, Tensor) and value.ndim == 4
        announced_absent = isinstance(mask, Tensor) and not bool(mask.reshape(-1)[0])
        if announced_absent and key not in self._absent:
            self._absent.add(key)
            self._say(f"{key} is announced as absent")
            self._view.log(key, self._rr.Clear(recursive=False))
        elif present and not announced_absent and key in self._absent:
            self._absent.remove(key)
            self._say(f"{key} is back")
        return present and not announced_absent

    def _picture(self, modality: str, values: np.ndarray) -> Any:
        """An entity of a (C, H, W) picture as policies get it: [0, 1], metres, or ids over 255.

        Depth is kept in whole millimetres and shown in metres; raw floats would make a recording three times as large.
        """
        if modality == Modality.DEPTH:
            millimetres = np.clip(np.nan_to_num(values[0]) * _MILLIMETRES, 0, 65535).round().astype(np.uint16)
            colours = self._rr.components.Colormap.Viridis
            return self._rr.DepthImage(millimetres, meter=float(_MILLIMETRES), colormap=colours)
        bytes_ = (np.clip(values, 0, 1) * 255).round().astype(np.uint8)
        if modality == Modality.SEG:
            return self._rr.SegmentationImage(bytes_[0])
        if modality == Modality.RGB:
            return self._colours(bytes_.transpose(1, 2, 0))
        return self._rr.Image(bytes_[0], color_model="L").compress(jpeg_quality=_JPEG)

    def _colours(self, picture: np.ndarray) -> Any:
        return self._rr.Image(np.ascontiguousarray(picture)).compress(jpeg_quality=_JPEG)

    def _clean_pictures(self, env: gym.Env) -> dict[str, np.ndarray]:
        """RGB without faults, in the orientation of the policy's pictures; nothing for clean episodes, where it is the same."""
        if self._episode.condition == "C0":
            return {}
        clean = getattr(env.unwrapped, "clean_rgb", None)
        if clean is not None:
            return {f"{CLEAN}/observation.images.{camera}": p for camera, p in clean().items()}
        world = env.render()
        return {f"{CLEAN}/world": world} if isinstance(world, np.ndarray) else {}

    def _say(self, text: str) -> None:
        self._view.log("log", self._rr.TextLog(text))

    def _document(self, state: str) -> Any:
        e = self._episode
        lines = (
            f"**{self._task}**", f"policy: {e.policy}", f"condition: {e.condition}", f"suite: {e.suite}, task {e.task_id}",
            f"initial state: {e.episode}", f"seed: {e.seed}", f"**{state}**",
        )  # fmt: skip
        return self._rr.TextDocument("\n\n".join(lines), media_type=self._rr.MediaType.MARKDOWN)


def _free_name(path: Path) -> Path:
    """The path, or the first of ``name-2.rrd``, ``name-3.rrd``... that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free

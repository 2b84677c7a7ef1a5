"""Which sensors a policy may look at, what changed, and a diary of it."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path

import torch
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from lerobot_policy_multismolvla.safety.display import show_state
from lerobot_policy_multismolvla.visual import first_unfit, health_marks, with_skew
from multismolvla.health import CERTAIN, MEMORY_KEY, Cause, Verdict, judge, memory_size, patience
from multismolvla.modalities import MODALITIES

logger = logging.getLogger(__name__)

#: Values of a line of the diary.
Entry = str | int | float | Mapping[str, str] | None
#: What only several looks can say; it stays until the next one.
_LASTING = (Cause.UNUSUAL, Cause.FROZEN)
#: Of a declared stream that is not in the observation, or that a mask says is not there.
NOT_THERE = "not delivered"
#: Of one that is there, and of one that the policy itself makes of RGB.
THERE, ESTIMATED = "there", "estimated"


class HealthLog:
    """Writes down what becomes of the sensors: in the log, and a line of JSON each in a file.

    Each line has ``time`` (seconds since 1970) and ``event``: ``start`` with the state of all ``streams``;
    ``lost`` and ``back`` with ``stream``, ``cause``, its losses until then (``count``) and how many these are
    ``per_hour``, the first hour counting as a whole one; ``blind`` and ``sees`` with what the policy does.
    """

    clock = staticmethod(time.time)

    def __init__(self) -> None:
        self._lost: Counter[str] = Counter()
        self._began: float | None = None
        self._failed = False

    def begin(self, file: str | None, states: Mapping[str, str]) -> None:
        """An episode begins with these streams: name -> ``there``, ``estimated``, or why not."""
        if self._began is None:
            self._began = self.clock()
        shown = ", ".join(f"{name} ({state})" for name, state in states.items())
        logger.info("Sensors at the start: %s.", shown)
        self._write(file, {"event": "start", "streams": dict(states)})

    def change(self, file: str | None, stream: str, cause: str | None) -> None:
        """A stream is lost, for a cause, or back."""
        if cause is not None:
            self._lost[stream] += 1
        count = self._lost[stream]
        hours = 0.0 if self._began is None else (self.clock() - self._began) / 3600
        rate = round(count / max(hours, 1.0), 2)
        if cause is None:
            logger.warning("Sensor back: %s.", stream)
        else:
            reason = "" if cause == NOT_THERE else f" ({cause})"
            often = f" It was lost {count} times, {rate:g} an hour." if count > 1 else ""
            logger.warning("Sensor lost: %s%s. The policy goes on without it.%s", stream, reason, often)
        event = "back" if cause is None else "lost"
        self._write(
            file, {"event": event, "stream": stream, "cause": cause, "count": count, "per_hour": rate}
        )

    def blind(self, file: str | None, then: str | None) -> None:
        """Nothing is left to see, and what is done then; ``None`` = something is there again."""
        if then is None:
            logger.warning("The policy sees again, and acts.")
        else:
            logger.warning("No sensor is left (on_blind=%s).", then)
        self._write(file, {"event": "sees" if then is None else "blind", "then": then})

    def _write(
        self, file: str | None, line: Mapping[str, str | int | float | None | Mapping[str, str]]
    ) -> None:
        if file is None or self._failed:
            return
        try:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            with Path(file).open("a") as lines:
                lines.write(json.dumps({"time": round(self.clock(), 3), **line}) + "\n")
        except OSError as error:  # a full disk must not stop a robot
            self._failed = True
            logger.warning("--policy.health_log=%s cannot be written: %s", file, error)


class SensorWatch:
    """Says which streams are fit to be used, and tells the diary when one is lost or back.

    What it remembers of an episode is dropped by :meth:`forget`.

    Args:
        diary: is told; ``None`` = nobody is.

    Attributes:
        verdict: of the last look; ``None`` while nothing is judged.
    """

    def __init__(self, diary: HealthLog | None) -> None:
        self._diary = diary
        self._seen: set[str] | None = None  # what the last observation had
        self._fit: Tensor | None = None  # the last look's result
        self._cause: Tensor | None = None  # ... and why
        self._first = True  # whether it was the episode's first
        self.verdict: Verdict | None = None

    def forget(self) -> None:
        """A new episode begins."""
        self.verdict = self._fit = None

    def silent_copy(self) -> SensorWatch:
        """One that remembers the same and tells nobody."""
        other = copy(self)
        other._diary = None
        return other

    def changed(self, cfg: MultiSmolVLAConfig, batch: dict[str, Tensor], there: Tensor) -> bool:
        """Whether an observation between two looks has other streams than the last look had.

        What only looks a plan apart can say, frozen and unusual pictures, is as it was.
        """
        fit, _ = self._glance(cfg, batch, there)
        return self._fit is None or fit.shape != self._fit.shape or bool((fit != self._fit).any())

    def look(
        self,
        cfg: MultiSmolVLAConfig,
        batch: dict[str, Tensor],
        there: Tensor,
        *,
        steps: int,
        early: bool = False,
    ) -> Tensor:
        """Presence (B, V, M) without the streams that are not fit; ``there`` as the batch says it.

        What the policy derives comes after that, and then :meth:`tell`.

        Args:
            cfg: the policy's.
            batch: with the pre-processor's marks.
            there: bool (B, V, M).
            steps: of the control loop since the look before, at least.
            early: before the last plan's end. Such a look is not compared with the one before, since less
                time has passed than between those of the training data.

        Raises:
            ValueError: a stream is not fit, and ``policy.health`` is ``strict``.
        """
        if early and self.verdict is not None:
            fit, cause = self._glance(cfg, batch, there)
            if cause is not None:
                self.verdict = replace(self.verdict, cause=cause.flatten(1))
        else:
            fit, cause = self._judge(cfg, batch, there, steps)
        if cfg.health == "strict" and cause is not None and (there & (cause != Cause.FIT)).any():
            what, _ = first_unfit(cfg, torch.where(there, cause, 0))
            raise ValueError(f"{what}, an error with --policy.health=strict.")
        self._first, self._fit, self._cause = self._fit is None, fit, cause
        return fit

    def _judge(
        self, cfg: MultiSmolVLAConfig, batch: dict[str, Tensor], there: Tensor, steps: int
    ) -> tuple[Tensor, Tensor | None]:
        """Presence and causes (B, V, M), from this look and what is remembered of those before."""
        marks = None if cfg.health == "off" else health_marks(cfg, batch)
        if marks is None:
            self.verdict = None
            return there, None
        state = batch[OBS_STATE].flatten(1)
        memory = batch.get(MEMORY_KEY, None if self.verdict is None else self.verdict.memory)
        shape = (len(state), memory_size(marks.shape[1] * marks.shape[2], state.shape[1]))
        if memory is not None and memory.shape != shape:  # other rows than at the last look
            memory = None
        longest = patience(MODALITIES).repeat(marks.shape[1])
        verdict = judge(marks.flatten(1, 2), state, memory, longest, steps)
        cause = with_skew(cfg, batch, there, verdict.cause.unflatten(1, marks.shape[1:3]))
        now = cause.flatten(1)
        self.verdict = replace(
            verdict, cause=now, score=torch.where(now > verdict.cause, CERTAIN, verdict.score)
        )
        return cfg.provenance_map.drop_with_rgb(there & (cause == Cause.FIT)), cause

    def _glance(
        self, cfg: MultiSmolVLAConfig, batch: dict[str, Tensor], there: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The same from what each picture says by itself, and what the last look found that lasts."""
        marks = None if cfg.health == "off" else health_marks(cfg, batch)
        if marks is None:
            return there, None
        cause = with_skew(cfg, batch, there, marks[..., 0].clamp_min(0).long())
        if self.verdict is not None and len(self.verdict.cause) == len(cause):
            before = self.verdict.cause.unflatten(1, cause.shape[1:])
            lasting = torch.stack([before == c for c in _LASTING]).any(0)
            cause = torch.maximum(cause, torch.where(lasting, before, 0))
        return cfg.provenance_map.drop_with_rgb(there & (cause == Cause.FIT)), cause

    def tell(self, cfg: MultiSmolVLAConfig, there: Tensor, derived: Tensor | None) -> None:
        """Tell the diary what changed since the last look, and the verdict what became of derived streams.

        Args:
            cfg: the policy's.
            there: bool (B, V, M), what the policy looks at.
            derived: int64 (B, V, M), see `lerobot_policy_multismolvla.derived.DerivedStreams`.
        """
        cause = torch.zeros_like(there, dtype=torch.int64) if self._cause is None else self._cause
        made = torch.zeros_like(there) if derived is None else derived == Cause.FIT
        if derived is not None:
            if self.verdict is not None:  # what goes with its RGB is not judged itself
                own = torch.where((derived > 0) & (derived != Cause.NO_RGB), derived, cause)
                self.verdict = replace(self.verdict, cause=own.flatten(1))
            cause = torch.where(derived > 0, derived, cause)
        now, estimated, why = there.any(0).tolist(), made.any(0).tolist(), cause.amax(0).tolist()
        states, names = {}, set()
        for v, (view, streams) in enumerate(cfg.views.items()):
            for modality in streams:
                m, name = MODALITIES.index(modality), f"{view}.{modality}"
                reason = Cause(why[v][m]).label if why[v][m] else NOT_THERE
                states[name] = (ESTIMATED if estimated[v][m] else THERE) if now[v][m] else reason
                if now[v][m] or why[v][m] == Cause.NOT_DUE:  # its turn will come: it is not lost
                    names.add(name)
        before, self._seen = self._seen, names
        if self._diary is None:
            return
        changed = set() if before is None else before ^ names
        for name in (*sorted(changed - names), *sorted(changed & names)):  # what is lost, then what is back
            self._diary.change(cfg.health_log, name, None if name in names else states[name])
        if self._first:
            self._diary.begin(cfg.health_log, states)
        for name in states if self._first else changed:
            view, modality = name.rsplit(".", 1)
            show_state(cfg.views[view][modality], None if name in names else states[name])

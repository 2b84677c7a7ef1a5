"""What happens to a simulated camera, and when: faults scripted by step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

_SCRIPT = re.compile(r"(?P<kind>[a-z0-9_]+)@(?P<first>\d+)(?P<dash>-(?P<last>\d+)?)?")

DELAY = 10


class Kind(StrEnum):
    """A fault of a camera."""

    LOST = "lost"  # the device is gone: it neither delivers nor can be opened
    STALE = "stale"  # no new pictures come: what is read is too old
    FROZEN = "frozen"  # the same picture comes again and again
    DELAYED = "delayed"  # each picture is that of DELAY steps before
    BLACK = "black"  # colour 0; depth invalid everywhere; thermal 0
    WHITE = "white"  # the highest number there is
    SIZE = "size"  # half the height
    ROTATED = "rotated"  # by 180 degrees
    DEPTH_INVALID = "depth_invalid"  # depth alone: 0 everywhere
    DEPTH_X10 = "depth_x10"  # depth alone: ten times as far
    DEPTH_NAN = "depth_nan"  # depth alone: in metres, float32, with holes of NaN
    DRIFT = "drift"  # thermal alone: 0.1 K more with each step
    NOISE = "noise"  # colour alone: a sensor's, as it is also in pictures that stay
    COVERED = "covered"  # colour alone: a lens in the dark, and what lossy video makes of its noise


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: what happens.
        first: step at which it begins.
        last: last step of it; ``None`` = for good.
    """

    kind: Kind
    first: int
    last: int | None

    def active(self, step: int) -> bool:
        """Whether it is there at this step."""
        return step >= self.first and (self.last is None or step <= self.last)


def parse_faults(scripts: Sequence[str]) -> tuple[Fault, ...]:
    """Faults of their texts: ``lost@40`` (one step), ``lost@40-60``, ``lost@40-`` (for good).

    Raises:
        ValueError: a text means nothing.
    """
    found = []
    for script in scripts:
        match = _SCRIPT.fullmatch(script)
        if match is None or match["kind"] not in list(Kind):
            raise ValueError(
                f"multismolvla_sim_camera: faults has {script!r}; expected KIND@FIRST, KIND@FIRST-LAST or "
                f"KIND@FIRST- (steps), with KIND of {', '.join(Kind)}."
            )
        first = int(match["first"])
        if match["dash"] is None:
            last: int | None = first
        else:
            last = int(match["last"]) if match["last"] else None
        if last is not None and last < first:
            raise ValueError(f"multismolvla_sim_camera: faults has {script!r}, which ends before it begins.")
        found.append(Fault(Kind(match["kind"]), first, last))
    return tuple(found)

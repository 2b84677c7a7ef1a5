"""Which temperatures the open thermal cameras of this process show, for a policy to compare with its own.

LeRobot tells a policy nothing of the cameras of its robot, and grey levels do not say what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class OpenRange(NamedTuple):
    """An open camera, and the degrees Celsius that it shows black and white."""

    camera: str
    range_c: tuple[float, float]


#: By the camera's ``id``.
open_ranges: dict[int, OpenRange] = {}


def check_ranges(wanted: Sequence[float] | None) -> None:
    """See that the open cameras show what a policy was trained with; ``None`` = it does not say.

    Raises:
        ValueError: one shows other temperatures, or the policy does not say which it knows.
    """
    for camera, found in open_ranges.values():
        if wanted is None or tuple(wanted) != tuple(found):
            known = "does not say which it was trained with" if wanted is None else f"knows {list(wanted)}"
            raise ValueError(
                f"{camera} shows range_c={list(found)} degrees Celsius; the policy {known} "
                "(--policy.thermal_range_c). Give the camera the range of the training."
            )

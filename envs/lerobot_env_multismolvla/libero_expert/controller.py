"""The hand's proportional controller and its elementary motions.

A motion is a generator of :class:`Command`; its caller steps the simulation between two commands. Skills are
longer motions, put together with ``yield from``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lerobot_env_multismolvla.libero_expert.geometry import turn_between
from lerobot_env_multismolvla.libero_expert.world import World

OPEN, CLOSE = -1.0, 1.0

#: Action per metre and per radian. Action 1 moves 13 mm (0.066 rad) per step; beyond these gains the hand
#: overshoots.
_POSITION_GAIN = 1.6 / 0.05
_ROTATION_GAIN = 1.2 / 0.5
_ROTATION_LIMIT = 0.6

#: The fingers ramp up and need this many steps to hold and to let go.
CLOSE_STEPS, OPEN_STEPS = 10, 9

#: A motion without progress for this many steps is over.
PATIENCE = 10
_METRES_PER_RADIAN = 0.1  # what a remaining turn counts in progress


@dataclass(frozen=True)
class Command:
    """One control step.

    Attributes:
        action: (7,) float32 in [-1, 1]: position and rotation (world axes) deltas, gripper (+1 closes).
        free: the hand is in free transit, where a disturbance does no harm.
    """

    action: np.ndarray
    free: bool = False


Motion = Iterator[Command]


def towards(
    world: World, position: np.ndarray, rotation: np.ndarray | None, grip: float, speed: float = 1.0
) -> np.ndarray:
    """Action (7,) float32 that moves the hand towards a pose; ``rotation=None`` keeps the orientation."""
    move = _POSITION_GAIN * (position - world.grip)
    move *= min(1.0, speed / max(float(np.abs(move).max()), 1e-6))  # all axes alike: a straight line
    turn: np.ndarray = np.zeros(3)
    if rotation is not None:
        turn = _ROTATION_GAIN * turn_between(world.hand, rotation)
        turn *= min(1.0, _ROTATION_LIMIT / max(float(np.abs(turn).max()), 1e-6))
    return np.concatenate([move, turn, [grip]]).astype(np.float32)


def move(
    world: World,
    position: np.ndarray,
    rotation: np.ndarray | None = None,
    *,
    grip: float,
    tolerance: float = 0.015,
    angle_tolerance: float = 0.1,
    speed: float = 1.0,
    limit: int = 80,
    free: bool = True,
) -> Motion:
    """Move in a straight line until the pose is reached, or something is in the way and no progress is made.

    Args:
        world: the simulation.
        position: (3,) goal of the grip site, metres, world.
        rotation: (3, 3) goal of the hand; ``None`` leaves the orientation alone.
        grip: ``OPEN`` or ``CLOSE``.
        tolerance: metres.
        angle_tolerance: radians.
        speed: largest position action in (0, 1].
        limit: steps.
        free: see :class:`Command`.
    """
    best, since = np.inf, 0
    for _ in range(limit):
        distance = float(np.linalg.norm(position - world.grip))
        angle = 0.0 if rotation is None else float(np.linalg.norm(turn_between(world.hand, rotation)))
        if distance < tolerance and angle < angle_tolerance:
            return
        left = distance + _METRES_PER_RADIAN * angle
        best, since = (left, 0) if left < best - 0.001 else (best, since + 1)
        if since > PATIENCE:
            return
        yield Command(towards(world, position, rotation, grip, speed), free)


def hold(
    world: World, position: np.ndarray, rotation: np.ndarray | None = None, *, grip: float, steps: int
) -> Motion:
    """Stay at a pose and let the fingers work. A zero action would let the hand coast on by centimetres."""
    for _ in range(steps):
        yield Command(towards(world, position, rotation, grip, speed=0.5))


def settle(world: World, limit: int = 30) -> Motion:
    """Wait until all objects are at rest; LIBERO's stored states let tall ones drop."""
    for _ in range(limit):
        if world.at_rest():
            return
        yield Command(np.array([0, 0, 0, 0, 0, 0, OPEN], np.float32))

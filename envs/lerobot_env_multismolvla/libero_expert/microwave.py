"""Skills on the microwave: slide a mug in by its handle, swing the door shut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lerobot_env_multismolvla.libero_expert.controller import (
    CLOSE,
    CLOSE_STEPS,
    OPEN,
    OPEN_STEPS,
    Command,
    Motion,
    hold,
    move,
    towards,
)
from lerobot_env_multismolvla.libero_expert.geometry import DOWN, hand_rotation
from lerobot_env_multismolvla.libero_expert.skills import Relocation
from lerobot_env_multismolvla.libero_expert.world import World

#: Grip site inside the handle's outer edge, metres: the tips reach further and stop at the mug's wall.
_HANDLE_INSET = 0.003
#: Grip site below the door's top edge, metres: the fingers push it, the palm stays above it and above the
#: housing.
_DOOR_DEPTH = 0.020
#: How far along the door from its hinge it is pushed, metres: between the hinge and the handle.
_DOOR_LEVER = 0.18


@dataclass(frozen=True)
class SlideIn(Relocation):
    """Take a mug by its handle and slide it in; held by the rim, the palm would hit the housing.

    LIBERO's mug starts with its handle away from the microwave, and the hand comes from there, almost level.
    The places are those of LIBERO's microwave and its white and yellow mug.
    """

    def variants(self, world: World) -> Sequence[float]:
        """Lean of the hand from straight down, radians."""
        return (1.2, 1.0, 1.35)

    def run(self, world: World, variant: float) -> Motion:
        direction = self.handle_direction(world)
        into = np.array([*-direction, 0.0])
        hand = hand_rotation(np.array([-into[1], into[0]]), np.cos(variant) * DOWN + np.sin(variant) * into)
        grip = self.handle(world, direction)
        before = grip - 0.07 * into + np.array([0, 0, 0.01])
        high = np.array([*before[:2], world.top(self.item) + 0.12])
        yield from move(world, high, hand, grip=OPEN, tolerance=0.03)
        yield from move(world, before, hand, grip=OPEN, tolerance=0.01)
        yield from move(world, grip, hand, grip=OPEN, tolerance=0.005, speed=0.5, limit=40, free=False)
        yield from hold(world, grip, hand, grip=CLOSE, steps=CLOSE_STEPS)
        floor, inside = self.inside(world)
        offset = world.grip - world.position(self.item)  # the mug's wall may have stopped the tips early
        ready = np.array([inside[0], world.position(self.item)[1], floor + 0.018]) + offset
        lifted = np.array([*world.grip[:2], ready[2]])
        yield from move(world, lifted, hand, grip=CLOSE, tolerance=0.008, speed=0.6, free=False)
        yield from move(world, ready, hand, grip=CLOSE, tolerance=0.008, speed=0.6)
        if world.bottom(self.item) < floor:
            return
        slid = np.array([*inside, ready[2] - offset[2]]) + offset
        yield from move(world, slid, hand, grip=CLOSE, tolerance=0.006, speed=0.6, limit=90, free=False)
        down = world.grip - np.array([0, 0, max(world.bottom(self.item) - floor - 0.002, 0.0)])
        yield from move(world, down, hand, grip=CLOSE, tolerance=0.004, speed=0.4, limit=20, free=False)
        yield from hold(world, down, hand, grip=OPEN, steps=OPEN_STEPS)
        out = down - 0.16 * into
        yield from move(world, out, hand, grip=OPEN, tolerance=0.02, free=False)
        yield from move(world, out + np.array([0, 0, 0.15]), hand, grip=OPEN, tolerance=0.03)

    def handle_direction(self, world: World) -> np.ndarray:
        """Unit vector (2,) from the middle of the mug's foot to that of the mug with its handle."""
        points = world.corners(self.item)
        foot = points[points[:, 2] < points[:, 2].min() + 0.022, :2]
        shift = (points[:, :2].min(0) + points[:, :2].max(0) - foot.min(0) - foot.max(0)) / 2
        return np.array(shift / np.linalg.norm(shift))

    def handle(self, world: World, direction: np.ndarray) -> np.ndarray:
        """Middle of the handle's outer bar, (3,) metres."""
        points = world.corners(self.item)
        reach = points[:, :2] @ direction
        bar = points[reach > reach.max() - 0.006]
        middle = (bar.min(0) + bar.max(0)) / 2
        middle[:2] += (reach.max() - _HANDLE_INSET - middle[:2] @ direction) * direction
        return np.array(middle)

    def inside(self, world: World) -> tuple[float, np.ndarray]:
        """Height of the housing's floor, and where the mug's origin goes (2,), metres."""
        region = world.position(self.target)
        # The origin lies 19 mm from the mug's axis; 4 cm to the side the hand clears the right panel.
        return float(region[2] - 0.072), region[:2] + np.array([-0.040, -0.020])


@dataclass(frozen=True)
class SwingShut:
    """Push a hinged door shut with closed fingers from outside, following its arc.

    Attributes:
        fixture: what the door belongs to, e.g. ``"microwave_1"``.
        door: body of the door.
    """

    fixture: str
    door: str

    def variants(self, world: World) -> Sequence[float]:
        """Distance of the push from the hinge, metres."""
        return (_DOOR_LEVER, _DOOR_LEVER - 0.03, _DOOR_LEVER - 0.06)

    def run(self, world: World, variant: float) -> Motion:
        hand = hand_rotation(np.array([0.0, 1.0]))
        level = float(world.body_corners(self.door)[:, 2].max()) - _DOOR_DEPTH
        start = self.contact(world, world.joint_position(self.door), variant, 0.10, level)
        above = start + np.array([0, 0, 0.12])
        yield from move(world, np.array([*world.grip[:2], above[2]]), grip=CLOSE, tolerance=0.03)
        yield from move(world, above, hand, grip=CLOSE, tolerance=0.03)
        yield from move(world, start, hand, grip=CLOSE, tolerance=0.012)
        for _ in range(150):  # only the very end counts as closed
            angle = min(world.joint_position(self.door) + 0.25, 0.15)
            place = self.contact(world, angle, variant, 0.035, level)
            yield Command(towards(world, place, hand, CLOSE, speed=0.7))

    def contact(self, world: World, angle: float, lever: float, outside: float, level: float) -> np.ndarray:
        """Place (3,) beside the door at a joint angle (radians; 0 = shut, negative = open), metres."""
        along = np.array([np.cos(angle), np.sin(angle)])
        normal = np.array([along[1], -along[0]])  # outwards
        hinge = world.joint_anchor(self.door)[:2]
        return np.array([*(hinge + lever * along + outside * normal), level])

    def done(self, world: World) -> bool:
        return world.holds(["close", self.fixture])

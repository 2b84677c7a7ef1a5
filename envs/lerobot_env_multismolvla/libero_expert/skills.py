"""Skills of the LIBERO expert: grasp, carry, place. Each is a small object whose ``run`` is a motion.

A skill has variants (which grasp, how deep, which side), which the search tries one after the other from the
same state: one of them must work.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
)
from lerobot_env_multismolvla.libero_expert.geometry import (
    FINGERTIP,
    grasp_height,
    hand_overlap,
    hand_rotation,
    narrowest_strip,
    tilted,
)
from lerobot_env_multismolvla.libero_expert.world import World

#: Free space kept under what is carried, metres.
CLEARANCE = 0.025
#: The finger axis at the start of an episode. Turning away from it costs time, so it wins near ties.
_HOME_AXIS = np.array([0.0, 1.0])


class Skill(Protocol):
    """What the search needs of a skill."""

    def variants(self, world: World) -> Sequence[Any]:
        """Ways to do it, the most promising first."""
        ...

    def run(self, world: World, variant: Any) -> Motion:
        """Do it in one of these ways."""
        ...

    def done(self, world: World) -> bool:
        """Whether it has worked."""
        ...


class Grasp(Protocol):
    """A way to take an object from above."""

    def pose(self, world: World, item: str) -> tuple[np.ndarray, np.ndarray]:
        """Where the grip site goes (3,) and how the hand is turned (3, 3)."""
        ...


@dataclass(frozen=True)
class BoxGrasp:
    """Fingers across the narrow side of a box, can, carton or bottle."""

    depth: float = 0.035  # grip site below the top, metres, as far as the surface allows
    along: float = 0.0  # shift along the long side, metres, to keep the palm off a neighbour
    turned: bool = False  # fingers across the other side

    def pose(self, world: World, item: str) -> tuple[np.ndarray, np.ndarray]:
        points = world.corners(item)
        strip = narrowest_strip(points[:, :2], prefer=_HOME_AXIS, slack=0.004)
        axis = np.array([-strip.axis[1], strip.axis[0]]) if self.turned else strip.axis
        place = strip.center + self.along * np.array([-axis[1], axis[0]])
        height = grasp_height(world.bottom(item), world.top(item), self.depth)
        return np.array([*place, height]), hand_rotation(axis)


@dataclass(frozen=True)
class RimGrasp:
    """One finger inside, one outside the wall of a bowl or mug; the finger axis is radial."""

    angle: float = np.pi / 2  # of the rim point, radians in the world; pi/2 = +y needs no yaw
    depth: float = 0.028  # grip site below the rim, metres
    inset: float = 0.004  # rim point inside the outer radius, metres
    lean: float = 0.0  # hand turned about its finger axis, radians, to keep it off what hangs over one side

    @property
    def outwards(self) -> np.ndarray:
        """Unit vector (2,) from the vessel's axis to the rim point."""
        return np.array([np.cos(self.angle), np.sin(self.angle)])

    def pose(self, world: World, item: str) -> tuple[np.ndarray, np.ndarray]:
        outwards = self.outwards
        center, radius = rim(world, item)
        place = center + (radius - self.inset) * outwards
        height = world.top(item) - self.depth
        rotation = tilted(hand_rotation(outwards), np.array([*outwards, 0.0]), self.lean)
        return np.array([*place, height]), rotation


BOX_GRASPS: tuple[Grasp, ...] = (
    BoxGrasp(),
    BoxGrasp(depth=0.048),
    BoxGrasp(along=0.022),
    BoxGrasp(along=-0.022),
    BoxGrasp(depth=0.055),
    BoxGrasp(depth=0.042, turned=True),
    BoxGrasp(depth=0.025),
)

#: +y and -y need no yaw; +x fits into the open top drawer; then -x, the diagonals, and the leaning ones.
RIM_GRASPS: tuple[Grasp, ...] = (
    *(RimGrasp(angle=float(np.deg2rad(a))) for a in (90, -90, 0, 180, 45, -45, 135, -135)),
    *(RimGrasp(angle=float(np.deg2rad(a)), lean=lean) for lean in (0.3, -0.3) for a in (90, -90, 0, 180)),
)

#: Categories taken by the rim: wider than the hand opens (78 mm).
RIM_CATEGORIES = (
    "akita_black_bowl",
    "porcelain_mug",
    "red_coffee_mug",
    "white_yellow_mug",
    "glazed_rim_porcelain_ramekin",
)


def rim(world: World, item: str) -> tuple[np.ndarray, float]:
    """Centre (2,) and outer radius of a round vessel's rim, metres. A mug's handle does not count."""
    points = world.corners(item)
    strip = narrowest_strip(points[:, :2])
    return world.position(item)[:2], strip.width / 2


def grasps_for(world: World, item: str) -> tuple[Grasp, ...]:
    """Ways to take an object, by its category."""
    return RIM_GRASPS if world.category(item) in RIM_CATEGORIES else BOX_GRASPS


def free_first(world: World, item: str, grasps: Sequence[Grasp]) -> tuple[Grasp, ...]:
    """The same grasps, those with the most room for the hand first; ties keep their order."""
    boxes = world.boxes(ignore=(item,))
    handle = handle_direction(world, item)

    def in_the_way(grasp: Grasp) -> int:
        place, rotation = grasp.pose(world, item)
        at_handle = handle is not None and isinstance(grasp, RimGrasp) and grasp.outwards @ handle > 0.6
        return hand_overlap(place, rotation, boxes) + 1000 * at_handle

    return tuple(sorted(grasps, key=in_the_way))


def handle_direction(world: World, item: str) -> np.ndarray | None:
    """Unit vector (2,) from a mug's axis to its handle; ``None`` for what has no handle."""
    points = world.corners(item)[:, :2]
    shift = (points.min(0) + points.max(0)) / 2 - world.position(item)[:2]
    length = float(np.linalg.norm(shift))
    return shift / length if length > 0.003 else None


def take(world: World, item: str, grasp: Grasp) -> Motion:
    """Go over the object, turn the hand, descend (the last part at half speed), close the fingers."""
    place, rotation = grasp.pose(world, item)
    above = max(world.top(item), place[2]) + FINGERTIP + 0.045
    travel = max(above, world.clearance(world.grip[:2], place[:2], ignore=()) + FINGERTIP + CLEARANCE)
    if world.grip[2] < travel - 0.02:
        yield from move(world, np.array([*world.grip[:2], travel]), grip=OPEN)
    over = np.array([*place[:2], travel])
    yield from move(world, over, rotation, grip=OPEN, tolerance=0.02)
    yield from move(world, np.array([*place[:2], above]), rotation, grip=OPEN, tolerance=0.012)
    near = np.array([*place[:2], min(above, place[2] + 0.03)])
    yield from move(world, near, rotation, grip=OPEN, tolerance=0.010, free=False)
    yield from move(world, place, rotation, grip=OPEN, tolerance=0.006, speed=0.5, limit=30, free=False)
    yield from hold(world, place, rotation, grip=CLOSE, steps=CLOSE_STEPS)


def carry_over(
    world: World, item: str, target: np.ndarray, above: float, rotation: np.ndarray | None = None
) -> Generator[Command, None, bool]:
    """Lift what is held and bring it over ``target`` (2,), ``CLEARANCE`` above ``above`` (metres).

    Returns:
        Whether it came along; a motion with empty fingers is ended early.
    """
    aside = way_out(world, item)
    if aside.any():
        out = world.grip + np.array([*aside, 0.03])
        yield from move(world, world.grip + np.array([0, 0, 0.03]), grip=CLOSE, tolerance=0.01, free=False)
        yield from move(world, out, grip=CLOSE, tolerance=0.01, free=False)
    hanging = world.grip[2] - world.bottom(item)
    floor = max(above, world.clearance(world.grip[:2], target, ignore=(item,))) + CLEARANCE
    lifted = np.array([*world.grip[:2], max(floor + hanging, world.grip[2] + 0.05)])
    yield from move(world, lifted, grip=CLOSE, tolerance=0.02, free=False)
    for tolerance in (0.02, 0.008):  # what counts is where the object hangs: measure again over the target
        offset = world.grip - world.position(item)
        height = max(floor + world.grip[2] - world.bottom(item), lifted[2])
        yield from move(
            world, np.array([*(target + offset[:2]), height]), rotation, grip=CLOSE, tolerance=tolerance
        )
        if world.grip[2] - world.bottom(item) > hanging + 0.05:
            return False
    return True


def way_out(world: World, item: str) -> np.ndarray:
    """Shift (2,), metres, from under what hangs over an object (an open drawer); zero when it can rise."""
    boxes = world.boxes(ignore=(item,))
    points = world.corners(item)
    low, high = points.min(0), points.max(0)
    overhead = boxes[boxes[:, 0, 2] > high[2] - 0.01, :, :2]

    def covered(shift: np.ndarray, margin: float) -> bool:
        apart = (high[:2] + shift + margin < overhead[:, 0]) | (low[:2] + shift - margin > overhead[:, 1])
        return bool((~apart.any(axis=1)).any())

    if not covered(np.zeros(2), -0.005):
        return np.zeros(2)
    directions = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    shifts = [
        step * d for d in directions for step in np.arange(0.02, 0.17, 0.02) if not covered(step * d, 0.02)
    ]

    def cost(shift: np.ndarray) -> tuple[int, float]:
        place = world.grip + np.array([*shift, 0.03])
        return hand_overlap(place, world.hand, boxes), float(np.linalg.norm(shift))

    return min(shifts, key=cost, default=np.zeros(2))


def lower_and_release(
    world: World, item: str, target: np.ndarray, underside: float, rotation: np.ndarray | None = None
) -> Motion:
    """Lower what is held until its underside is at ``underside`` (metres), let go, rise."""
    hanging = world.grip[2] - world.bottom(item)
    offset = world.grip - world.position(item)
    place = np.array([*(target + offset[:2]), underside + hanging])
    yield from move(world, place, rotation, grip=CLOSE, tolerance=0.006, speed=0.6, limit=50, free=False)
    yield from hold(world, place, rotation, grip=CLOSE, steps=3)
    yield from let_go(world, place)


def let_go(world: World, place: np.ndarray) -> Motion:
    """Open the fingers at ``place`` (3,) and rise."""
    yield from hold(world, place, grip=OPEN, steps=OPEN_STEPS)
    above = place + np.array([0, 0, 0.08])
    yield from move(world, above, grip=OPEN, tolerance=0.02, free=False)
    yield from hold(world, above, grip=OPEN, steps=3)


@dataclass(frozen=True)
class Relocation:
    """What skills share that bring an object to a place."""

    predicate: tuple[str, str, str]  # LIBERO's goal, e.g. ("in", "milk_1", "basket_1_contain_region")

    @property
    def item(self) -> str:
        """What is moved."""
        return self.predicate[1]

    @property
    def target(self) -> str:
        """Where to."""
        return self.predicate[2]

    def done(self, world: World) -> bool:
        return world.holds(list(self.predicate))


@dataclass(frozen=True)
class PickAndPlace(Relocation):
    """Take an object and put it onto an object or region, or into a container."""

    shift: tuple[float, float] = (0.0, 0.0)  # of the place from the target's centre, metres

    def variants(self, world: World) -> Sequence[Grasp]:
        return free_first(world, self.item, grasps_for(world, self.item))

    def run(self, world: World, variant: Grasp) -> Motion:
        yield from take(world, self.item, variant)
        place = world.position(self.target)[:2] + np.array(self.shift)
        above, underside = place_heights(world, self.target)
        if not (yield from carry_over(world, self.item, place, above)):
            return
        yield from lower_and_release(world, self.item, place, underside)


def place_heights(world: World, target: str) -> tuple[float, float]:
    """Height to clear on the way to a target, and of the object's underside when it is released; metres."""
    if not world.is_region(target):
        top = world.top(target)
        inside = world.category(target) in RIM_CATEGORIES
        return top, top - 0.025 if inside else top - 0.006
    owner = world.region_owner(target)
    height = float(world.position(target)[2])
    if target in world.drawers:
        return height + 0.035, height - 0.015
    if target.endswith("contain_region"):
        brim = world.top(owner)
        return brim, brim - 0.05
    if target.endswith("cook_region"):
        return height + 0.025, height + 0.028
    return height, height + 0.005


@dataclass(frozen=True)
class MoveAside:
    """Take away an item that keeps the hand from another one, and put it down where nothing is."""

    item: str
    freed: str

    def variants(self, world: World) -> Sequence[Grasp]:
        return free_first(world, self.item, grasps_for(world, self.item))

    def run(self, world: World, variant: Grasp) -> Motion:
        floor = world.bottom(self.item)
        place = self.free_place(world)
        yield from take(world, self.item, variant)
        if not (yield from carry_over(world, self.item, place, floor)):
            return
        yield from lower_and_release(world, self.item, place, floor + 0.004)

    def free_place(self, world: World) -> np.ndarray:
        """Nearest place (2,) with room for the object and for the hand at what is to be freed."""
        here, freed = world.position(self.item)[:2], world.position(self.freed)[:2]
        boxes = world.boxes(ignore=(self.item,))
        angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        for distance in (0.10, 0.13, 0.16, 0.20):
            places = here + distance * around
            nearest = np.maximum(
                np.maximum(boxes[:, 0, :2] - places[:, None], places[:, None] - boxes[:, 1, :2]), 0.0
            )
            room = np.linalg.norm(nearest, axis=-1).min(axis=1)
            room[np.linalg.norm(places - freed, axis=1) < 0.15] = 0.0
            if room.max() > 0.05:
                return np.array(places[room.argmax()])
        return np.array(here + 0.10 * (here - freed) / np.linalg.norm(here - freed))

    def done(self, world: World) -> bool:
        return float(np.linalg.norm(world.position(self.item)[:2] - world.position(self.freed)[:2])) > 0.12

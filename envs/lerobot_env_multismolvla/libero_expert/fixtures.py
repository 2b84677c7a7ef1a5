"""Skills on fixtures: drawers, the stove's knob, a plate to push, the wine rack, the desk caddy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lerobot_env_multismolvla.libero_expert.controller import (
    CLOSE,
    CLOSE_STEPS,
    OPEN,
    OPEN_STEPS,
    PATIENCE,
    Command,
    Motion,
    hold,
    move,
    towards,
)
from lerobot_env_multismolvla.libero_expert.geometry import DOWN, FINGERTIP, hand_rotation, tilted
from lerobot_env_multismolvla.libero_expert.skills import (
    CLEARANCE,
    Grasp,
    PickAndPlace,
    carry_over,
    let_go,
    lower_and_release,
    take,
)
from lerobot_env_multismolvla.libero_expert.world import World


def facing(direction: np.ndarray, lean: float) -> np.ndarray:
    """Hand (3, 3) ``lean`` radians from down towards ``direction`` (3,), one finger above the other."""
    pointing = np.cos(lean) * DOWN + np.sin(lean) * direction
    return hand_rotation(np.cos(lean) * direction - np.sin(lean) * DOWN, pointing)


@dataclass(frozen=True)
class OpenDrawer:
    """Grip a drawer's bar from the front and pull. From above the palm would hit the cabinet."""

    region: str  # e.g. "wooden_cabinet_1_top_region"

    def variants(self, world: World) -> Sequence[float]:
        """Lean of the hand in radians; at pi/2 it lies flat."""
        return (1.2, 1.35, 1.05, 1.5)

    def run(self, world: World, variant: float) -> Motion:
        drawer = world.drawer(self.region)
        hand = facing(-drawer.opening, variant)
        yield from approach_bar(world, drawer.handle, drawer.opening, hand, OPEN)
        yield from move(
            world, drawer.handle, hand, grip=OPEN, tolerance=0.006, speed=0.5, limit=40, free=False
        )
        yield from hold(world, drawer.handle, hand, grip=CLOSE, steps=CLOSE_STEPS)
        pulled = drawer.handle + (0.19 + drawer.position) * drawer.opening  # a little further than the stop
        yield from move(world, pulled, hand, grip=CLOSE, tolerance=0.02, speed=0.7, free=False)
        place = world.grip
        yield from hold(world, place, hand, grip=OPEN, steps=OPEN_STEPS)
        back = place + 0.06 * drawer.opening
        yield from move(world, back, hand, grip=OPEN, tolerance=0.02, free=False)
        yield from move(
            world, back + np.array([0, 0, 0.15]), hand_rotation(drawer.opening), grip=OPEN, tolerance=0.03
        )

    def done(self, world: World) -> bool:
        return world.holds(["open", self.region])


@dataclass(frozen=True)
class CloseDrawer:
    """Push a drawer's bar with closed fingers, leaning so that the palm clears the bars above."""

    region: str

    def variants(self, world: World) -> Sequence[float]:
        """Lean of the hand in radians."""
        return (0.7, 0.9, 0.5, 1.1)

    def run(self, world: World, variant: float) -> Motion:
        drawer = world.drawer(self.region)
        pointing = np.cos(variant) * DOWN - np.sin(variant) * drawer.opening
        # fingers side by side: the palm clears the table
        hand = hand_rotation(np.cross(drawer.opening, DOWN), pointing)
        yield from approach_bar(world, drawer.handle, drawer.opening, hand, CLOSE)
        for _ in range(90):  # only the very end counts as closed
            beyond = world.drawer(self.region).handle - 0.03 * drawer.opening
            yield Command(towards(world, beyond, hand, CLOSE, speed=0.7))

    def done(self, world: World) -> bool:
        return world.holds(["close", self.region])


def approach_bar(world: World, bar: np.ndarray, opening: np.ndarray, hand: np.ndarray, grip: float) -> Motion:
    """From above to a place in front of a drawer's bar."""
    before = bar + 0.09 * opening
    height = max(
        world.clearance(world.grip[:2], before[:2], ignore=()) + CLEARANCE + FINGERTIP, before[2] + 0.05
    )
    if not np.isfinite(height) or height > world.grip[2]:
        height = world.grip[2]
    yield from move(
        world, np.array([*before[:2], height]), hand, grip=grip, tolerance=0.03, angle_tolerance=0.3
    )
    yield from move(world, before, hand, grip=grip, tolerance=0.012, angle_tolerance=0.08)


@dataclass(frozen=True)
class TurnOn:
    """Grip the stove's knob and turn it."""

    stove: str

    def variants(self, world: World) -> Sequence[float]:
        """Depth of the grip site below the knob's top, metres."""
        return (0.012, 0.018, 0.008)

    def run(self, world: World, variant: float) -> Motion:
        knob = f"{self.stove}_button"
        points = world.body_corners(knob)
        center = (points.min(0) + points.max(0))[:2] / 2
        top = points[:, 2].max()
        hand = hand_rotation(np.array([0.0, 1.0]))
        above = np.array([*center, max(top + 0.09, world.clearance(world.grip[:2], center, ()) + CLEARANCE)])
        place = np.array([*center, top - variant])
        yield from move(world, above, hand, grip=OPEN)
        yield from move(world, place + np.array([0, 0, 0.03]), hand, grip=OPEN, tolerance=0.008, free=False)
        yield from move(world, place, hand, grip=OPEN, tolerance=0.005, speed=0.5, limit=30, free=False)
        yield from hold(world, place, hand, grip=CLOSE, steps=CLOSE_STEPS)
        sense = np.sign(world.joint_axis(knob)[2])
        for angle in np.arange(0.08, 1.25, 0.08):
            turned = tilted(hand, np.array([0, 0, sense]), float(angle))
            yield from hold(world, place, turned, grip=CLOSE, steps=2)
        yield from let_go(world, world.grip)

    def done(self, world: World) -> bool:
        return world.holds(["turnon", self.stove])


@dataclass(frozen=True)
class Push:
    """Push a flat object with the open fingers, leaning over it: behind it may stand a cabinet."""

    predicate: tuple[str, str, str]

    def variants(self, world: World) -> Sequence[tuple[float, float]]:
        """(lean of the hand in radians, detour in metres round what lies on the straight way)."""
        return ((0.5, 0.07), (0.5, 0.10), (0.7, 0.05), (0.5, 0.0), (0.35, -0.07), (0.8, 0.12))

    def run(self, world: World, variant: tuple[float, float]) -> Motion:
        _, item, region = self.predicate
        lean, bow = variant
        goal, start = world.position(region)[:2], world.position(item)[:2]
        # The corner of the detour: the goal's y first, then along x.
        corner = np.array([max(start[0], goal[0]) + bow - 0.05, goal[1]])
        if bow:
            yield from self._push_to(world, item, corner, lean)
            lean = 0.0  # away from the cabinet now
        yield from self._push_to(world, item, goal, lean)

    def _push_to(self, world: World, item: str, end: np.ndarray, lean: float) -> Motion:
        center = world.position(item)[:2]
        way = (end - center) / np.linalg.norm(end - center)
        hand = hand_rotation(
            np.array([-way[1], way[0]]), np.cos(lean) * DOWN - np.sin(lean) * np.array([*way, 0.0])
        )
        level = world.bottom(item) + 0.015
        start = np.array([*(center - 0.093 * way), level])
        above = start + np.array([0, 0, 0.08]) + 0.03 * np.array([*way, 0])
        yield from move(world, above, hand, grip=OPEN)
        yield from move(world, start, hand, grip=OPEN, tolerance=0.008, speed=0.7, free=False)
        best, since = np.inf, 0
        while since < PATIENCE:
            center = world.position(item)[:2]
            left = float(np.linalg.norm(end - center))
            if left < 0.012 or (end - center) @ way < 0:
                break
            best, since = (left, 0) if left < best - 0.001 else (best, since + 1)
            # The fingers touch 6 cm behind the centre; a lead of 4 cm overcomes friction. Steering: stay
            # behind it.
            ahead = center + 0.04 * (end - center) / left - 0.06 * way
            yield Command(towards(world, np.array([*ahead, level]), hand, OPEN, speed=0.5))
        back = world.grip - 0.03 * np.array([*way, 0])  # or the fingers lift the rim
        yield from move(world, back, hand, grip=OPEN, tolerance=0.012, free=False)
        yield from move(world, back + np.array([0, 0, 0.08]), hand, grip=OPEN, tolerance=0.02, free=False)

    def done(self, world: World) -> bool:
        return world.holds(list(self.predicate))


@dataclass(frozen=True)
class LayOnSlope(PickAndPlace):
    """Put a bottle onto the rack: tilt it to the rack's slope and let go just above."""

    def run(self, world: World, variant: Grasp) -> Motion:
        yield from take(world, self.item, variant)
        normal = world.rotation(self.target)[:, 2]
        axis = np.cross([0.0, 0.0, 1.0], normal)
        angle = float(np.arcsin(np.linalg.norm(axis)))
        hand = tilted(hand_rotation(world.hand[:2, 1]), axis, angle)
        place = world.position(self.target)
        owner = world.region_owner(self.target)
        if not (yield from carry_over(world, self.item, place[:2], world.top(owner) - 0.05, hand)):
            return
        for tolerance in (0.02, 0.006):
            offset = world.grip - world.position(self.item)
            goal = place + 0.010 * normal + offset
            yield from move(world, goal, hand, grip=CLOSE, tolerance=tolerance, speed=0.6, free=False)
        yield from hold(world, goal, hand, grip=CLOSE, steps=3)
        yield from let_go(world, goal)


@dataclass(frozen=True)
class StandInCompartment(PickAndPlace):
    """Lower a book between two walls: its thin side across the compartment, its middle over the middle."""

    def run(self, world: World, variant: Grasp) -> Motion:
        yield from take(world, self.item, variant)
        region = world.position(self.target)
        hand = hand_rotation(np.array([1.0, 0.0]))
        yield from carry_over(world, self.item, region[:2], world.top(world.region_owner(self.target)), hand)
        for _ in range(2):
            points = world.corners(self.item)
            middle = (points.min(0) + points.max(0))[:2] / 2
            shift = region[:2] - middle
            over = world.grip + np.array([*shift, 0.0])
            yield from move(world, over, hand, grip=CLOSE, tolerance=0.004, angle_tolerance=0.05)
        aim = region[:2] + world.position(self.item)[:2] - middle
        yield from lower_and_release(world, self.item, aim, region[2] - 0.045, hand)


@dataclass(frozen=True)
class SlipUnderBars(PickAndPlace):
    """Put a bowl into a lower drawer: down in front of the bars above, then back behind its front."""

    def run(self, world: World, variant: Grasp) -> Motion:
        yield from take(world, self.item, variant)
        region, opening = world.position(self.target), world.drawer(self.target).opening
        front = region[:2] + 0.034 * opening[:2]
        if not (yield from carry_over(world, self.item, front, region[2] + 0.035)):
            return
        offset = world.grip - world.position(self.item)
        low = np.array([*(front + offset[:2]), region[2] + 0.003 + world.grip[2] - world.bottom(self.item)])
        yield from move(world, low, grip=CLOSE, tolerance=0.006, speed=0.6, limit=60, free=False)
        back = low - 0.022 * opening
        yield from move(world, back, grip=CLOSE, tolerance=0.006, speed=0.5, limit=20, free=False)
        yield from lower_and_release(world, self.item, region[:2] + 0.012 * opening[:2], region[2] - 0.02)

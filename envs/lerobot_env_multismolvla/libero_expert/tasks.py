"""From a task's goal to the skills that reach it, in order."""

from __future__ import annotations

from lerobot_env_multismolvla.libero_expert.fixtures import (
    CloseDrawer,
    LayOnSlope,
    OpenDrawer,
    Push,
    SlipUnderBars,
    StandInCompartment,
    TurnOn,
)
from lerobot_env_multismolvla.libero_expert.microwave import SlideIn, SwingShut
from lerobot_env_multismolvla.libero_expert.skills import MoveAside, PickAndPlace, Skill
from lerobot_env_multismolvla.libero_expert.world import World

#: Two pots side by side on the stove, metres from its middle.
_SIDE_BY_SIDE = ((0.0, -0.055), (0.0, 0.055))

#: Task -> (what stands in the way, of what): the palm does not fit beside it.
_IN_THE_WAY = {
    "LIVING_ROOM_SCENE2_put_both_the_cream_cheese_box_and_the_butter_in_the_basket": (
        "milk_1",
        "cream_cheese_1",
    ),
}


def skills_for(world: World) -> tuple[Skill, ...]:
    """Skills for the task that a world holds, derived from LIBERO's goal predicates.

    Open and switch on first, then move things, close last; a goal that holds already needs no skill. A closed
    drawer that something belongs into is opened although the goal does not say so.
    """
    first: list[Skill] = []
    then: list[Skill] = []
    last: list[Skill] = []
    if world.task in _IN_THE_WAY:
        first.append(MoveAside(*_IN_THE_WAY[world.task]))
    moves = [p for p in world.goal if p[0] in ("in", "on")]
    for predicate in world.goal:
        kind = predicate[0]
        if kind == "open":
            first.append(OpenDrawer(predicate[1]))
        elif kind == "turnon" and not world.holds(predicate):
            first.append(TurnOn(predicate[1]))
        elif kind == "close":
            last.append(_closing(world, predicate[1]))
    for number, (kind, item, target) in enumerate(moves):
        if target in world.drawers and world.drawer(target).position > -0.05:
            first.append(OpenDrawer(target))
        crowded = sum(other[2] == target for other in moves) > 1 and target.endswith("cook_region")
        shift = _SIDE_BY_SIDE[number] if crowded else (0.0, 0.0)
        then.append(_moving(world, (kind, item, target), shift))
    return (*first, *then, *last)


def _closing(world: World, target: str) -> Skill:
    """The skill that closes a drawer's region or a microwave."""
    if target in world.fixtures and world.category(target) == "microwave":
        return SwingShut(target, f"{target}_microdoorroot")
    return CloseDrawer(target)


def _moving(world: World, predicate: tuple[str, str, str], shift: tuple[float, float]) -> Skill:
    """The skill that moves one object to its goal."""
    _, item, target = predicate
    if world.category(item) == "plate":
        return Push(predicate)
    if target in world.drawers and not target.endswith("top_region"):
        return SlipUnderBars(predicate)
    parent = world.region_owner(target) if world.is_region(target) else ""
    owner = world.category(parent) if parent in (*world.objects, *world.fixtures) else ""  # not a table's
    if owner == "microwave":
        return SlideIn(predicate)
    if owner == "wine_rack":
        return LayOnSlope(predicate)
    if owner == "desk_caddy":
        return StandInCompartment(predicate)
    return PickAndPlace(predicate, shift)

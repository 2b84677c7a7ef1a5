"""Scripted expert of the mini suite: one proportional controller and six phases, from privileged state.

It needs no picture and no renderer. The gripper keeps its orientation; the finger axis is world y throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from lerobot_env_multismolvla.mini import TASK_OBJECTS

#: Height of the grip site above the floor when grasping, metres. The palm begins 30 mm above it, the finger
#: tips end 10 mm below, so the can is taken near its top and the cube just above the floor.
GRASP_HEIGHT = {"cube_1": 0.020, "can_1": 0.050}
#: Height of the grip site while carrying: the can's underside clears the basket's rim.
CARRY_HEIGHT = 0.145
#: Height of the carried object's origin above the goal's when the fingers open: above the success region,
#: because the demonstration must show the release, too.
RELEASE_HEIGHT = {"basket_1": 0.068, "plate_1": 0.058}

#: Action per metre; constant action 1 moves 13 mm per step. At 32 per metre the actions depended on
#: millimetres that a 64-pixel picture does not show, and policies learned less.
_GAIN = 20.0
_CLOSE_STEPS = 7  # the fingers ramp up and need this long to hold
_OPEN, _CLOSE = -1.0, 1.0


class Phase(IntEnum):
    """What the expert is doing."""

    APPROACH = 0
    GRASP = 1
    LIFT = 2
    CARRY = 3
    LOWER = 4
    RELEASE = 5


@dataclass(frozen=True)
class MiniSnapshot:
    """Privileged state. All positions (3,) in metres, world."""

    gripper: np.ndarray
    target: np.ndarray
    goal: np.ndarray


def snapshot(domain: Any, task_id: int) -> MiniSnapshot:
    """Read the privileged state from LIBERO's problem object (``MultiModalLiberoEnv.simulation``)."""
    target, goal = TASK_OBJECTS[task_id]
    data = domain.sim.data
    return MiniSnapshot(
        gripper=np.array(data.site_xpos[domain.robots[0].eef_site_id]),
        target=np.array(data.body_xpos[domain.obj_body_id[target]]),
        goal=np.array(data.body_xpos[domain.obj_body_id[goal]]),
    )


class MiniExpert:
    """Expert of one episode of a task of the mini suite.

    Attributes:
        phase: what it is doing; noise is scaled by it.
    """

    def __init__(self, task_id: int) -> None:
        self._target_name, self._goal_name = TASK_OBJECTS[task_id]
        self.phase = Phase.APPROACH
        self._steps_in_phase = 0

    def action(self, state: MiniSnapshot) -> np.ndarray:
        """The clean action for this state, and advance the phase.

        Returns:
            (7,) float32 in [-1, 1]: delta position, delta rotation (always 0), gripper (-1 open, +1 close).
        """
        self._advance(state)
        point = self._waypoint(state)
        error = point - state.gripper
        speed = 0.6 if self.phase == Phase.LOWER else 1.0
        move = _GAIN * error
        move *= min(1.0, speed / max(np.abs(move).max(), 1e-6))  # straight line: all axes slow down together
        grip = _CLOSE if Phase.GRASP <= self.phase <= Phase.LOWER else _OPEN
        self._steps_in_phase += 1
        return np.concatenate([move, np.zeros(3), [grip]]).astype(np.float32)

    def _enter(self, phase: Phase) -> None:
        self.phase, self._steps_in_phase = phase, 0

    def _advance(self, state: MiniSnapshot) -> None:
        grasp_height = GRASP_HEIGHT[self._target_name]
        above = np.linalg.norm(state.target[:2] - state.gripper[:2])
        to_goal = np.linalg.norm(state.goal[:2] - state.target[:2])
        held = np.linalg.norm(state.target - state.gripper) < 0.05
        if self.phase == Phase.APPROACH and above < 0.009 and abs(state.gripper[2] - grasp_height) < 0.008:
            self._enter(Phase.GRASP)
        elif self.phase == Phase.GRASP and self._steps_in_phase >= _CLOSE_STEPS:
            self._enter(Phase.LIFT)
        elif self.phase in (Phase.LIFT, Phase.CARRY, Phase.LOWER) and not held:
            self._enter(Phase.APPROACH)  # it slipped: go back for it
        elif self.phase == Phase.LIFT and state.gripper[2] > grasp_height + 0.06:
            self._enter(Phase.CARRY)
        elif self.phase == Phase.CARRY and to_goal < 0.015:
            self._enter(Phase.LOWER)
        elif (
            self.phase == Phase.LOWER
            and state.target[2] < state.goal[2] + RELEASE_HEIGHT[self._goal_name] + 0.004
        ):
            self._enter(Phase.RELEASE)

    def _waypoint(self, state: MiniSnapshot) -> np.ndarray:
        """Where the grip site should go now."""
        grasp_height = GRASP_HEIGHT[self._target_name]
        if self.phase == Phase.APPROACH:
            distance = np.linalg.norm(state.target[:2] - state.gripper[:2])
            # Descend along a cone: low only close by, or the fingers would sweep the object away.
            height = grasp_height + min(max(1.6 * (distance - 0.012), 0.0), CARRY_HEIGHT)
            return np.array([*state.target[:2], min(height, max(CARRY_HEIGHT, grasp_height))])
        if self.phase == Phase.GRASP:
            return np.array([*state.target[:2], grasp_height])
        if self.phase == Phase.LIFT:
            return np.array([*state.gripper[:2], CARRY_HEIGHT])
        # What matters is where the object is, not where the hand is: aim with the measured offset.
        over = state.goal[:2] + state.gripper[:2] - state.target[:2]
        if self.phase == Phase.CARRY:
            return np.array([*over, CARRY_HEIGHT])
        drop = state.goal[2] + RELEASE_HEIGHT[self._goal_name] + state.gripper[2] - state.target[2]
        return np.array([*over, drop]) if self.phase == Phase.LOWER else state.gripper


class ActionNoise:
    """Disturbs the executed action while the recorded one stays clean, so that data show recovery.

    Args:
        rng: generator of this episode.
        scale: 0 switches it off; 1 is the recorder's default.
    """

    def __init__(self, rng: np.random.Generator, scale: float = 1.0) -> None:
        self._rng, self._scale = rng, scale
        self._push: np.ndarray = np.zeros(3)
        self._push_left = 0

    def disturb(self, action: np.ndarray, phase: Phase) -> np.ndarray:
        """Executed action for a clean one: (7,) float32 in [-1, 1]. Only the position is disturbed."""
        free = phase in (Phase.APPROACH, Phase.CARRY)
        if self._push_left == 0 and free and self._rng.random() < 0.04:
            self._push, self._push_left = self._rng.uniform(-0.9, 0.9, 3), int(self._rng.integers(2, 5))
        noise: np.ndarray = self._rng.normal(0.0, 0.25 if free else 0.08, 3)
        if self._push_left > 0:
            self._push_left -= 1
            noise = noise + (self._push if free else 0.0)
        executed = action.copy()
        executed[:3] += self._scale * noise
        return np.clip(executed, -1.0, 1.0).astype(np.float32)

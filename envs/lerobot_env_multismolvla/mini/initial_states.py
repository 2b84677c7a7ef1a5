"""Initial states of the mini suite: regenerated from their number; training and evaluation disjoint.

State ``i`` is a pure function of (split, task, i); the splits have differently seeded generators. Objects and
goal are drawn anew in every state: a policy that does not look cannot solve the task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lerobot_env_multismolvla.mini import TASK_OBJECTS

SPLITS = ("train", "eval")
_SPLIT_SEEDS = {"train": 20_250_001, "eval": 77_310_042}

#: Number of states per task and split that the environment cycles through.
STATES_PER_SPLIT = 1000

# Regions for the objects' centres on the floor, metres: (x low, x high), (y low, y high).
OBJECT_REGION = ((-0.10, 0.06), (0.01, 0.21))
GOAL_REGION = ((-0.08, 0.04), (-0.24, -0.12))

#: Height of the body origin when the object stands on the floor, metres.
REST_HEIGHT = {"cube_1": 0.0225, "can_1": 0.0375, "basket_1": 0.0, "plate_1": 0.0}

#: Joint angles with the grip site at (-0.02, 0.00, 0.16) m, pointing straight down, finger axis along world
#: y.
HOME_QPOS = np.array([0.0, 0.334798, 0.0, -2.107747, 0.0, 2.442545, np.pi / 4])


@dataclass(frozen=True)
class InitialState:
    """Where things stand before the first action.

    Attributes:
        positions: object instance -> (x, y, z) of its origin, metres, world.
        arm_jitter: (7,) offsets to the home joint angles, radians.
    """

    positions: dict[str, tuple[float, float, float]]
    arm_jitter: tuple[float, ...]


def initial_state(split: str, task_id: int, index: int) -> InitialState:
    """State number ``index`` (any number >= 0) of a task.

    Raises:
        ValueError: unknown split, task or negative index.
    """
    if split not in _SPLIT_SEEDS:
        raise ValueError(f"Unknown split {split!r} of the mini suite; expected one of {SPLITS}.")
    if not 0 <= task_id < len(TASK_OBJECTS):
        raise ValueError(f"The mini suite has tasks 0 to {len(TASK_OBJECTS) - 1}, got task {task_id}.")
    if index < 0:
        raise ValueError(f"State numbers start at 0, got {index}.")
    rng = np.random.default_rng([_SPLIT_SEEDS[split], task_id, index])
    target_name, goal_name = TASK_OBJECTS[task_id]
    places = {target_name: _draw(rng, OBJECT_REGION), goal_name: _draw(rng, GOAL_REGION)}
    return InitialState(
        positions={name: (x, y, REST_HEIGHT[name]) for name, (x, y) in places.items()},
        arm_jitter=tuple(rng.uniform(-0.02, 0.02, 7).tolist()),
    )


class SimulatorStates:
    """A task's states as upstream wants them: indexable, each a flattened simulator state.

    Args:
        simulation: LIBERO's problem object; its present model says where in a state each joint is.
        task_id: 0, 1 or 2.
        split: ``"train"``, ``"eval"``, or ``"all"``: the states for evaluation, then those for training.
    """

    def __init__(self, simulation: Any, task_id: int, split: str) -> None:
        self._simulation, self._task_id, self._split = simulation, task_id, split

    def __len__(self) -> int:
        return STATES_PER_SPLIT * (2 if self._split == "all" else 1)

    def __getitem__(self, index: int) -> np.ndarray:
        split = self._split
        if split == "all":
            split, index = ("train" if index >= STATES_PER_SPLIT else "eval"), index % STATES_PER_SPLIT
        state = initial_state(split, self._task_id, index)
        model = self._simulation.sim.model._model
        qpos = np.zeros(model.nq)
        for joint, angle in enumerate(HOME_QPOS + np.array(state.arm_jitter), start=1):
            qpos[model.joint(f"robot0_joint{joint}").qposadr[0]] = angle
        qpos[model.joint("gripper0_finger_joint1").qposadr[0]] = 0.04
        qpos[model.joint("gripper0_finger_joint2").qposadr[0]] = -0.04
        for name, position in state.positions.items():
            start = model.joint(f"{name}_joint0").qposadr[0]
            qpos[start : start + 7] = (*position, 1.0, 0.0, 0.0, 0.0)
        return np.concatenate([[0.0], qpos, np.zeros(model.nv)])


def _draw(
    rng: np.random.Generator, region: tuple[tuple[float, float], tuple[float, float]]
) -> tuple[float, float]:
    (x_low, x_high), (y_low, y_high) = region
    return float(rng.uniform(x_low, x_high)), float(rng.uniform(y_low, y_high))

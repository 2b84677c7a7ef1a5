"""Scripted demonstrations of the mini suite as a file in LIBERO's official layout.

For tools that read that layout, and for testing the replay without a download. The file has no pictures: whoever
wants some replays it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .libero_hdf5 import CONTROL_HZ, SUFFIX, Demonstration, write_libero_hdf5

#: A demonstration goes on until the goal has held for so long, as in LIBERO's own collection script.
HOLD_STEPS = 10
#: Scale of the tremor in the actions. The expert holds perfectly still while the fingers open; the filter of no-ops
#: would cut that out, and a hand at a joystick is never that still.
TREMOR = 0.3


def write_demo_file(
    folder: Path, task_id: int = 0, init_states: Sequence[int] = (0, 1), init_split: str = "train"
) -> Path:
    """Run the mini suite's expert, its hand a little unsteady, and store what it did.

    Args:
        folder: where to write ``<task>_demo.hdf5``.
        task_id: task of the mini suite.
        init_states: one demonstration per initial state of the split.
        init_split: ``"train"`` or ``"eval"``.

    Returns:
        The file written.

    Raises:
        RuntimeError: the expert failed from one of the states; names it.
    """
    from lerobot_env_multismolvla import MultiSmolVLALiberoConfig
    from lerobot_env_multismolvla.mini import SUITE_NAME, TASKS

    # Two small streams less to render; the expert does not look.
    config = MultiSmolVLALiberoConfig(
        init_split=init_split, streams=["rgb"], observation_height=8, observation_width=8
    )
    env = config.env_maker(SUITE_NAME, task_id)()
    try:
        runs = [_demonstrate(env, task_id, state) for state in init_states]
        target = folder / f"{TASKS[task_id]}{SUFFIX}"
        attributes = _attributes(env, TASKS[task_id])
        write_libero_hdf5(target, [demo for demo, _ in runs], attributes, [extra for _, extra in runs])
    finally:
        env.close()
    return target


def _demonstrate(env: Any, task_id: int, state: int) -> tuple[Demonstration, dict[str, np.ndarray]]:
    """One episode of the expert; what the official files store of it besides pictures."""
    from lerobot_env_multismolvla.mini.expert import ActionNoise, MiniExpert, snapshot

    env.reset(seed=0, options={"init_state_id": state})
    problem = env.simulation
    model_xml = problem.sim.model.get_xml()
    expert, noise = MiniExpert(task_id), ActionNoise(np.random.default_rng([task_id, state]), TREMOR)
    actions, states, robots = [], [], []
    held = 0
    for _ in range(env._max_episode_steps):
        clean = expert.action(snapshot(problem, task_id))
        action = noise.disturb(clean, expert.phase).astype(np.float64)
        states.append(env.state)
        actions.append(action)
        raw, _, success, _ = problem.step(action)
        robots.append(_robot_state(raw))
        held = held + 1 if success else 0
        if held > HOLD_STEPS:
            demo = Demonstration(np.stack(actions), np.stack(states), model_xml)
            return demo, {key: np.stack([r[key] for r in robots]) for key in robots[0]}
    raise RuntimeError(f"The expert does not solve task {task_id} from state {state}; leave that state out.")


def _robot_state(raw: dict[str, Any]) -> dict[str, np.ndarray]:
    """Proprioception after an action, under the official names."""
    from robosuite.utils.transform_utils import quat2axisangle

    position, quaternion = raw["robot0_eef_pos"], raw["robot0_eef_quat"]
    fingers = raw["robot0_gripper_qpos"]
    rotation = quat2axisangle(quaternion.copy())
    return {
        "robot_states": np.concatenate([fingers, position, quaternion]),
        "obs/ee_pos": position,
        "obs/ee_ori": rotation,
        "obs/ee_states": np.concatenate([position, rotation]),
        "obs/gripper_states": fingers,
        "obs/joint_states": raw["robot0_joint_pos"],
    }


def _attributes(env: Any, task: str) -> dict[str, Any]:
    """Attributes of the group ``data``."""
    problem = type(env.simulation).__name__
    bddl = f"{task}.bddl"
    arguments = {
        "robots": ["Panda"],
        "controller_configs": {"type": "OSC_POSE"},
        "control_freq": CONTROL_HZ,
        "bddl_file_name": bddl,
    }
    return {
        "env_name": problem,
        "problem_info": {
            "problem_name": problem.lower(),
            "domain_name": "robosuite",
            "language_instruction": env.task_description,
        },
        "macros_image_convention": "opengl",
        "bddl_file_name": bddl,
        "env_args": {
            "type": 1,
            "env_name": problem,
            "problem_name": problem.lower(),
            "bddl_file": bddl,
            "env_kwargs": arguments,
        },
    }

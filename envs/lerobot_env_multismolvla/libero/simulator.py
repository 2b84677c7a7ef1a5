"""LIBERO's simulator with resets that depend on the seed and the state alone. Importing it imports LIBERO."""

from __future__ import annotations

import numpy as np
from lerobot.lerobot_types import RobotObservation

from lerobot_env_multismolvla.libero.setup import ensure_libero_config

ensure_libero_config()

from libero.libero.envs.env_wrapper import ControlEnv  # noqa: E402


class Simulator(ControlEnv):
    """LIBERO's simulator whose episodes do not depend on the one before.

    Attributes:
        forget: clear what a soft reset keeps. Off for hard resets of LIBERO's suites, which are then
            upstream's.
    """

    forget = False

    def reset(self) -> RobotObservation:
        """As upstream, but every hard reset draws as many random numbers as the first.

        Whenever hf-libero 0.1.4 builds the model, it appends samplers for the doors and knobs of a task to
        this list, and never empties it. They draw before the fixtures' places are drawn, which therefore
        depended on the number of resets before in libero_spatial 4 and libero_10 3, 8 and 9.
        """
        if self.env.hard_reset:  # a soft reset builds no model and needs the samplers there are
            self.env.object_property_initializers.clear()
        return super().reset()

    def set_state(self, mujoco_state: np.ndarray) -> None:
        """As upstream; the solver's warm start and the gripper's command ramp begin anew."""
        super().set_state(mujoco_state)
        if self.forget:
            data = self.env.sim.data._data
            data.qacc_warmstart[:] = 0.0
            data.ctrl[:] = 0.0
            for robot in self.env.robots:
                robot.gripper.current_action = np.array([1.0, -1.0])  # open, as the fingers are

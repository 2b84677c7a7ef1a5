"""LIBERO's simulator with resets that depend on nothing but the seed and the state. Importing it imports LIBERO."""

from __future__ import annotations

from typing import Any

import numpy as np

from lerobot_env_multismolvla.libero.setup import ensure_libero_config

ensure_libero_config()

from libero.libero.envs.env_wrapper import ControlEnv  # noqa: E402


class Simulator(ControlEnv):
    """LIBERO's simulator whose episodes do not depend on the one before.

    Attributes:
        forget: clear what a soft reset keeps. Off for hard resets of LIBERO's suites, which are then upstream's.
    """

    forget = False

    def reset(self) -> dict[str, Any]:
        """As upstream, but every hard reset draws as many random numbers as the first.

        hf-libero 0.1.4 appends the samplers of doors and knobs that a task opens or turns on to this list whenever it
        builds the model, and never empties it. Each draws once per reset before the fixtures' places are drawn, so that
        in libero_spatial 4 and libero_10 3, 8 and 9 the fixtures' places depended on the number of resets before.
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

"""Who is shown a roll-out while it runs: nobody, a clip, a viewer, or both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import gymnasium as gym
import numpy as np

from multismolvla_eval.environments import Batch


class Recorder(Protocol):
    """Something that is shown a roll-out while it runs, e.g. a clip or a viewer."""

    def wants(self, step: int) -> bool:
        """Whether the observation before this step is to be made and shown."""

    def frame(self, env: gym.Env, batch: Batch | None, step: int) -> None:
        """The observation before a step; ``None`` after the last one.

        Args:
            env: the raw environment, without faults; its ``render()`` shows the world.
            batch: what enters the policy's pre-processor.
            step: number of the step.
        """

    def acted(self, action: np.ndarray, step: int) -> None:
        """The action (A,) of a step."""


class Recorders:
    """Any number of recorders as one."""

    def __init__(self, members: Sequence[Recorder]) -> None:
        self._members = tuple(members)

    def wants(self, step: int) -> bool:
        """Whether any of them wants the observation."""
        return any(m.wants(step) for m in self._members)

    def frame(self, env: gym.Env, batch: Batch | None, step: int) -> None:
        """Pass it on to those that want it."""
        for member in self._members:
            if batch is None or member.wants(step):
                member.frame(env, batch, step)

    def acted(self, action: np.ndarray, step: int) -> None:
        """Pass it on."""
        for member in self._members:
            member.acted(action, step)

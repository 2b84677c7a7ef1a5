"""Disturbance of executed actions, reproducible per skill and variant, so that a search can count on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lerobot_env_multismolvla.libero_expert.controller import Command
from lerobot_env_multismolvla.libero_expert.search import Disturbance, DisturbanceMaker, undisturbed
from lerobot_env_multismolvla.mini.expert import ActionNoise, Phase


def noisy(entropy: Sequence[int], scale: float) -> DisturbanceMaker:
    """The mini suite's action noise for the LIBERO expert.

    Args:
        entropy: what names the episode, e.g. ``[seed, task, state]``.
        scale: 0 switches it off.
    """
    if scale == 0:
        return undisturbed

    def maker(stage: int, variant: int) -> Disturbance:
        noise = ActionNoise(np.random.default_rng([*entropy, stage, variant]), scale)

        def disturb(command: Command) -> np.ndarray:
            return noise.disturb(command.action, Phase.CARRY if command.free else Phase.GRASP)

        return disturb

    return maker

"""LIBERO tasks for the expert alone: the multimodal environment without its pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from lerobot_env_multismolvla.configuration_multismolvla_libero import (
    LIBERO_SETTLE_STEPS,
    MultiSmolVLALiberoConfig,
)
from lerobot_env_multismolvla.multimodal_env import MultiModalLiberoEnv, get_suite


class PhysicsOnlyEnv(MultiModalLiberoEnv):
    """The same resets and steps; observations are empty and no renderer is made."""

    def _format_raw_obs(self, raw_obs: dict[str, Any]) -> dict[str, Any]:
        del raw_obs
        return {}


def physics_env(
    suite: str, task_id: int, *, settle_steps: int = LIBERO_SETTLE_STEPS, libero_assets: str | None = None
) -> PhysicsOnlyEnv:
    """Environment of one task with soft resets and all 50 initial states.

    Args:
        suite: one of LIBERO's four suites.
        task_id: number of the task.
        settle_steps: no-op steps after a reset.
        libero_assets: asset folder; default as everywhere (environment variable, then hf-libero's places).
    """
    config = MultiSmolVLALiberoConfig(
        task=suite,
        init_split="all",
        num_steps_wait=settle_steps,
        hard_reset=False,
        libero_assets=libero_assets,
    )
    return PhysicsOnlyEnv(get_suite(suite), task_id, suite, **config.suite_kwargs(suite))


def episode_seed(seed: int, task_id: int, state: int) -> int:
    """Seed of one episode's reset: it decides where LIBERO puts fixtures, which are not in the stored states."""
    return int(np.random.SeedSequence([seed, task_id, state]).generate_state(1)[0])

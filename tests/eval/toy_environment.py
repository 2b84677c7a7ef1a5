"""A gym environment with the interface of the real one and no simulator behind it."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import torch

MAX_STEPS = 6
SIZE = 32


class ToyEnv(gym.Env):
    """Succeeds in the third step of even initial states; pictures depend on initial state and step only."""

    def __init__(self, task_id: int, options: dict) -> None:
        self.task_id, self.options = task_id, options
        self.action_space = gym.spaces.Box(-1, 1, (7,), np.float32)
        self.count = 0
        self.simulation = SimpleNamespace(
            sim=SimpleNamespace(get_state=lambda: np.array([task_id, self.start]))
        )
        self.start = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.start = 0, options["init_state_id"]
        return self._observation(), {"init_state_id": self.start, "is_success": False}

    def step(self, action):
        if self.options.get("crash") == [self.task_id, self.start]:
            os.abort()
        if self.options.get("hang") == [self.task_id, self.start]:
            time.sleep(600)
        time.sleep(self.options.get("sleep", 0))
        self.count += 1
        success = self.start % 2 == 0 and self.count == 3
        return self._observation(), 0.0, success, False, {"is_success": success}

    def render(self):
        return self._observation()["pixels"]["image"]

    def _observation(self):
        rng = np.random.default_rng([self.start, self.count])
        return {
            "pixels": {"image": rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)},
            "image_depth": rng.random((SIZE, SIZE, 1), dtype=np.float32) + 0.5,
        }


class BlackOut(gym.ObservationWrapper):
    """Every condition with a fault of rgb turns the picture black."""

    def observation(self, observation):
        return {**observation, "pixels": {"image": np.zeros_like(observation["pixels"]["image"])}}


class ToySource:
    """See ``EnvironmentSource``."""

    cameras, config, action_dim, max_steps = ("image",), None, 7, MAX_STEPS

    def __init__(self, arguments) -> None:
        self.suite = arguments.task
        ids = [0, 1] if arguments.task_ids is None else arguments.task_ids
        if arguments.options.get("broken"):
            raise ValueError("the toy is broken on purpose")
        self.tasks = {i: f"toy task {i}" for i in ids}
        self._envs = {i: ToyEnv(i, arguments.options) for i in ids}

    def describe(self):
        return {
            "type": "toy",
            "max_steps": MAX_STEPS,
            "assets": "none",
            "labels": [],
            "origins": {"rgb": "sensor"},
        }

    def make(self, task_id):
        return self._envs[task_id]

    def with_faults(self, env, condition, run_seed):
        return BlackOut(env) if any(f.modality == "rgb" for f in condition.faults) else env

    def processors(self, policy_config):
        def observe(raw):
            image = torch.from_numpy(raw["pixels"]["image"]).permute(0, 3, 1, 2).float() / 255
            depth = torch.from_numpy(raw["image_depth"]).permute(0, 3, 1, 2)
            return {
                "observation.images.image": image,
                "observation.images.image_depth": depth,
                "task": raw["task"],
            }

        return observe, lambda action: action

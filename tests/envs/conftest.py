"""One environment per task for the whole run: creating one costs a second, a soft reset 20 ms."""

from collections.abc import Callable, Iterator

import gymnasium as gym
import numpy as np
import pytest


class ToyEnv(gym.Env):
    """Two cameras and no simulator: no two pictures are alike, and thermal is the negative of RGB.

    Args:
        limit: step limit.
        task_id: of the task; it decides the fault's seeds, not the pictures.
    """

    suite, cameras, labels = "toy", ("image", "image2"), ()
    provenance = {"rgb": "sensor", "thermal": "derived"}  # noqa: RUF012
    control_freq = 20
    observation_space = gym.spaces.Dict({"presence": gym.spaces.Box(0, 1, (8,), np.float32)})

    def __init__(self, limit: int, task_id: int = 0) -> None:
        self._max_episode_steps, self.task_id, self.count = limit, task_id, 0

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return self.observation(), {"init_state_id": 3}

    def step(self, action):
        self.count += 1
        return self.observation(), 0.0, False, False, {}

    def observation(self):
        rgb = {c: self.picture(c, self.count) for c in self.cameras}
        thermal = {f"{c}_thermal": 255 - p for c, p in rgb.items()}
        return {"pixels": {**rgb, **thermal}, "presence": np.array([1, 0, 0, 1] * 2, np.float32)}

    @classmethod
    def picture(cls, camera: str, step: int) -> np.ndarray:
        """RGB before any fault."""
        rng = np.random.default_rng([cls.cameras.index(camera), step])
        return np.repeat(rng.integers(1, 255, (16, 16, 1), dtype=np.uint8), 3, axis=2)


@pytest.fixture(scope="session")
def toy_env() -> type[ToyEnv]:
    """``toy_env(limit)`` -> environment without a simulator."""
    return ToyEnv


@pytest.fixture(scope="session")
def mini_env() -> Iterator[Callable]:
    """``mini_env(task_id, **options)`` -> environment of the mini suite, shared by all tests."""
    from lerobot_env_multismolvla import MultiSmolVLALiberoConfig

    made = {}

    def make(task_id: int = 0, **options):
        key = (task_id, tuple(sorted((k, str(v)) for k, v in options.items())))
        if key not in made:
            made[key] = MultiSmolVLALiberoConfig(**options).env_maker("multismolvla_mini", task_id)()
        return made[key]

    yield make
    for env in made.values():
        env.close()


@pytest.fixture(scope="session")
def process() -> Callable:
    """``process(raw)`` -> batch of one as the policy's processors get it."""
    from lerobot.envs.utils import preprocess_observation

    from lerobot_env_multismolvla import MultiSmolVLALiberoConfig
    from lerobot_env_multismolvla.processor_multismolvla_libero import add_batch_axis

    pipeline = MultiSmolVLALiberoConfig().get_env_processors()[0]
    return lambda raw: pipeline.process_observation(preprocess_observation(add_batch_axis(raw)))

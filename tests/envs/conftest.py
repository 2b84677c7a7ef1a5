"""One environment per task for the whole run: creating one costs a second, a soft reset 20 ms."""

from collections.abc import Callable, Iterator

import pytest


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
    from multismolvla_data.episode import batch_of_one

    pipeline = MultiSmolVLALiberoConfig().get_env_processors()[0]
    return lambda raw: pipeline.process_observation(preprocess_observation(batch_of_one(raw)))

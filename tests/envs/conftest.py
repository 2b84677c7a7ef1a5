"""One environment per task for the whole run: creating one costs a second, a soft reset 20 ms."""

from collections.abc import Callable, Iterator
from pathlib import Path

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


@pytest.fixture(scope="session")
def libero_assets() -> Path:
    """Folder with LIBERO's assets; tests that need it skip where there is none, and say how to get them."""
    from multismolvla.libero_assets import find_libero_assets

    beside = Path(__file__).parents[3] / "shared" / "libero" / "assets"  # CI's checkout has them there
    assets = find_libero_assets(str(beside) if beside.is_dir() else None)
    if assets is None:
        pytest.skip(
            "LIBERO's assets are not here (multismolvla-doctor --fetch-assets, or MULTISMOLVLA_LIBERO_ASSETS)"
        )
    return assets

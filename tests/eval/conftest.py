"""The evaluation's tests use a toy environment: no simulator, no LeRobot, seconds."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A tiny SmolVLA and a tiny MultiSmolVLA with random weights, saved with their processors."""
    from tiny_policies import save_ours

    return save_ours(tmp_path_factory.mktemp("policies"))


@pytest.fixture(scope="module")
def source(request):
    """The mini suite's first task, with episodes of as many steps as the test module's ``STEPS``."""
    from multismolvla_eval.config import EnvironmentArguments
    from multismolvla_eval.environments import load_sources

    options = {"episode_length": request.module.STEPS}
    (found,) = load_sources(EnvironmentArguments(task_ids=[0], options=options)).values()
    yield found
    found.make(0).close()


@pytest.fixture
def make_config(tmp_path):
    """Options of a run in the toy environment; keyword arguments override them."""
    from multismolvla_eval.config import EnvironmentArguments, EvalConfig

    def build(**changes):
        options = changes.pop("options", {})
        settings = {
            "policies": ["ours=builtin:random", "vanilla=builtin:zero"],
            "env": EnvironmentArguments("toy_environment:ToySource", "toy", None, options),
            "conditions": ["C1:-rgb", "C2:rgb=zero"],
            "clean_episodes": 2,
            "episodes": 1,
            "output": tmp_path / "run",
            "clips": 0,
        }
        return EvalConfig(**{**settings, **changes})

    return build

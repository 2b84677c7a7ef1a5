"""The evaluation's tests use a toy environment, so that they need neither simulator nor LeRobot and run in seconds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Worker processes inherit the path, so they can import the toy environment too.
sys.path.insert(0, str(Path(__file__).parent))


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

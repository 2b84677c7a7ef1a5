"""What counts as which failure, from positions that a simulator might report."""

from __future__ import annotations

from types import SimpleNamespace

import libero_failures
import numpy as np
import pytest
from libero_failures import OUTCOMES, Track

SOLVED, NOT_LIFTED, NOT_BROUGHT, NOT_LEFT = OUTCOMES


class Simulation:
    """A bowl and the plate where it belongs, and the world that is read from them."""

    def __init__(self) -> None:
        self.bowl = np.array([0.0, 0.3, 0.9])

    def position(self, name: str) -> np.ndarray:
        return {"bowl_1": self.bowl, "plate_1": np.array([0.0, 0.0, 0.9])}[name]


@pytest.mark.parametrize(
    ("path", "success", "outcome"),
    [
        ([(0.0, 0.3, 0.92), (0.0, 0.01, 0.92)], False, NOT_LIFTED),  # pushed there
        ([(0.0, 0.3, 1.0), (0.0, 0.06, 1.0)], False, NOT_BROUGHT),
        ([(0.0, 0.3, 1.0), (0.0, 0.02, 1.0), (0.0, 0.09, 0.9)], False, NOT_LEFT),
        ([(0.0, 0.3, 1.0), (0.0, 0.02, 0.91)], True, SOLVED),
    ],
)
def test_outcomes(path, success, outcome, monkeypatch):
    monkeypatch.setattr(libero_failures, "World", lambda simulation: simulation)
    simulation, track = Simulation(), Track("bowl_1", "plate_1")
    env = SimpleNamespace(unwrapped=SimpleNamespace(simulation=simulation))
    assert track.wants(0)
    track.frame(env, {}, 0)
    for step, position in enumerate(path):
        track.acted(np.zeros(7), step)
        simulation.bowl = np.array(position)
    track.frame(env, None, len(path))
    found, figures = track.outcome(SimpleNamespace(success=success))
    assert found == outcome
    end = 100 * np.hypot(*path[-1][:2])
    assert figures.endswith(f"at the end {end:.0f} cm")

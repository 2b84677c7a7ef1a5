"""How near computed numbers are to the recorded ones."""

from torch import Tensor


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """The golden files' own measure: relative to the largest magnitude, at least one."""
    assert actual.shape == expected.shape
    worst = (actual - expected).abs().max().item()
    assert worst <= tolerance * max(1.0, expected.abs().max().item()), worst

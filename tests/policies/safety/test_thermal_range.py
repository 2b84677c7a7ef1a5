"""A policy begins no episode beside a thermal camera that shows other temperatures than it knows."""

from __future__ import annotations

import pytest

from multismolvla.thermal.ranges import OpenRange, open_ranges


@pytest.fixture
def camera():
    open_ranges[1] = OpenRange("ThermalCamera(2)", (10.0, 60.0))
    yield
    del open_ranges[1]


def test_another_range_than_the_trainings_is_an_error_when_an_episode_begins(make_policy, camera):
    make_policy(thermal_range_c=[10.0, 60.0]).reset()
    make_policy(provenance={"thermal": "derived"}).reset()  # no sensor: nothing to compare
    with pytest.raises(
        ValueError, match=r"ThermalCamera\(2\) shows range_c=\[10\.0, 60\.0\].*\[0\.0, 40\.0\]"
    ):
        make_policy(thermal_range_c=[0.0, 40.0]).reset()
    with pytest.raises(ValueError, match="--policy.thermal_range_c"):
        make_policy().reset()


def test_a_range_the_wrong_way_round_is_named(make_config):
    with pytest.raises(ValueError, match=r"thermal_range_c=\[60\.0, 10\.0\]"):
        make_config(thermal_range_c=[60.0, 10.0])

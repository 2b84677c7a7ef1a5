"""An operator by script."""

from __future__ import annotations

import pytest
from lerobot.teleoperators.utils import make_teleoperator_from_config

from lerobot_robot_multismolvla import ScriptedTeleoperatorConfig


def test_it_repeats_its_actions_each_for_so_many_steps(tmp_path):
    actions = [{"x.vel": 1.0, "gripper.pos": -1.0}, {"x.vel": 0.0, "gripper.pos": 1.0}]
    config = ScriptedTeleoperatorConfig(actions=actions, hold=2, calibration_dir=tmp_path)
    teleoperator = make_teleoperator_from_config(config)
    teleoperator.connect()
    assert list(teleoperator.action_features) == ["x.vel", "gripper.pos"]
    shown = [teleoperator.get_action() for _ in range(6)]
    assert shown == [actions[0]] * 2 + [actions[1]] * 2 + [actions[0]] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actions": []}, "--teleop.actions: expected at least one action"),
        ({"actions": [{"a": 1.0}, {"b": 1.0}]}, "the same names in all of them"),
        ({"actions": [{"a": 1.0}], "hold": 0}, "--teleop.hold=0 must be at least 1"),
    ],
)
def test_bad_scripts_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ScriptedTeleoperatorConfig(**options)

"""The emulated arm's kinematics, motion and fall."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from lerobot_robot_multismolvla.emulated.arm import JOINTS, MIDDLE, MODEL, REST, Arm
from lerobot_robot_multismolvla.emulated.motors import TICKS

ON, OFF = np.ones(6, bool), np.zeros(6, bool)
MIDDLES = np.full(6, MIDDLE)


def wait(arm: Arm, seconds: float, goals: np.ndarray = MIDDLES, powered: np.ndarray = ON) -> None:
    for _ in range(round(seconds / 0.02)):
        arm.advance(0.02, goals, powered)


@pytest.mark.parametrize(
    ("angles", "place"),  # of so101_new_calib.xml, computed with its own file
    [
        ([0, 0, 0, 0, 0, 0], [0.3913, 0.0, 0.2265]),
        ([0.3, -0.5, 0.7, 0.4, 0.2, 0.6], [0.2879, -0.0787, 0.1108]),
        ([-1, 0.8, -0.9, 1, -1.2, 1.5], [0.2279, 0.3079, 0.0672]),
    ],
)
def test_the_hand_is_where_the_published_model_has_it(angles, place):
    model = mujoco.MjModel.from_xml_path(str(MODEL))
    data = mujoco.MjData(model)
    assert [model.joint(i).name for i in range(model.njnt)] == list(JOINTS)
    data.qpos[:] = angles
    mujoco.mj_forward(model, data)
    assert data.site("gripperframe").xpos == pytest.approx(place, abs=3e-4)


def test_it_moves_to_its_goals_not_faster_than_its_motors():
    arm, fastest = Arm(), 0
    for _ in range(100):
        wait(arm, 0.02)
        fastest = max(fastest, np.abs(arm.velocities).max())
    assert fastest * 2 * np.pi / TICKS == pytest.approx(4.7, rel=0.1), "an STS3215's speed"
    assert np.abs(arm.positions - MIDDLE).max() < TICKS / 360  # it sags by less than a degree
    wait(arm, 2.0, np.full(6, 9999))
    upper = np.array([high for _, high in arm.ranges])
    assert np.abs(arm.positions - upper)[[0, 1, 2, 3, 5]].max() < TICKS / 360, "the joints end there"


def test_without_torque_it_falls_onto_the_table_and_rests_where_it_was_folded():
    arm = Arm()
    wait(arm, 3.0, powered=OFF)
    assert arm.joints == pytest.approx(REST, abs=0.05)
    wait(arm, 2.0)
    height = hand_height(arm)
    wait(arm, 0.1, powered=OFF)
    assert hand_height(arm) < height
    wait(arm, 3.0, powered=OFF)
    assert -0.01 < hand_height(arm) < 0.03
    assert height > 0.2


def test_what_happened_while_it_stood_still_is_left_out():
    arm, other = Arm(), Arm()
    arm.advance(3600.0, MIDDLES, ON)
    other.advance(0.1, MIDDLES, ON)
    assert np.array_equal(arm.joints, other.joints)


def hand_height(arm: Arm) -> float:
    model = mujoco.MjModel.from_xml_path(str(MODEL))
    data = mujoco.MjData(model)
    data.qpos[:] = arm.joints
    mujoco.mj_kinematics(model, data)
    return float(data.site("gripperframe").xpos[2])

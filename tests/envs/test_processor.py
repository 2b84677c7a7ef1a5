"""The environment's processor step, without the simulator."""

import pytest
import torch

from lerobot_env_multismolvla.processor_multismolvla_libero import (
    MultiSmolVLALiberoProcessorStep,
    canonical_quaternion,
    quaternion_to_axis_angle,
)


def test_both_signs_of_a_quaternion_are_one_rotation():
    quaternions = torch.nn.functional.normalize(
        torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), dim=1
    )
    canonical = canonical_quaternion(quaternions)
    assert torch.equal(canonical, canonical_quaternion(-quaternions))
    assert (canonical[:, 0] >= 0).all()
    assert torch.equal(canonical.abs(), quaternions.abs())


def test_identity_and_zero_first_component_are_defined():
    for q in ([0.0, 0.0, 0.0, 1.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.6, -0.8]):
        forward, backward = canonical_quaternion(torch.tensor([q, [-x for x in q]]))
        assert torch.equal(forward, backward)


def test_axis_angle_does_not_jump_while_the_gripper_points_down():
    # w passes through zero: the uncorrected axis-angle flips between +pi and -pi about x.
    tilt = torch.linspace(-0.2, 0.2, 41)
    quaternions = torch.stack([torch.cos(tilt), torch.zeros(41), torch.zeros(41), torch.sin(tilt)], dim=1)
    quaternions[::2] *= -1  # the simulator's sign is arbitrary
    vectors = quaternion_to_axis_angle(canonical_quaternion(quaternions))
    assert (vectors[1:] - vectors[:-1]).abs().max() < 0.05


def test_axis_angle_agrees_with_scipy():
    from scipy.spatial.transform import Rotation

    quaternions = torch.nn.functional.normalize(
        torch.randn(50, 4, generator=torch.Generator().manual_seed(1)), dim=1
    )
    vectors = quaternion_to_axis_angle(canonical_quaternion(quaternions))
    relative = Rotation.from_rotvec(vectors.numpy()).inv() * Rotation.from_quat(quaternions.numpy())
    assert relative.magnitude().max() < 1e-3


def test_wrong_presence_vector_is_named():
    step = MultiSmolVLALiberoProcessorStep()
    with pytest.raises(ValueError, match=r"shape \(1, 3\)"):
        step.observation({"observation.presence": torch.ones(1, 3)})


def test_step_can_be_rebuilt_from_its_config():
    from lerobot.processor import ProcessorStepRegistry

    step = MultiSmolVLALiberoProcessorStep(cameras=["front"])
    cls = ProcessorStepRegistry.get("multismolvla_libero_processor")
    assert cls(**step.get_config()) == step

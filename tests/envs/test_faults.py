"""Fault wrapper: the fault and nothing else."""

import numpy as np
import pytest

from lerobot_env_multismolvla.faults import FaultWrapper
from multismolvla.corruption import parse_condition

pytestmark = pytest.mark.sim

STREAMS = {
    "rgb": lambda o, c: o["pixels"][c],
    "depth": lambda o, c: o[f"{c}_depth"],
    "seg": lambda o, c: o["pixels"][f"{c}_seg"],
    "thermal": lambda o, c: o["pixels"][f"{c}_thermal"],
}


def run(env, steps: int = 3):
    observation, _ = env.reset(seed=2, options={"init_state_id": 6})
    observations = [observation]
    for _ in range(steps):
        observations.append(env.step(np.array([0.8, 0.5, -0.5, 0, 0, 0, -1], np.float32))[0])
    return observations


@pytest.mark.parametrize(
    ("condition", "touched", "presence"),
    [
        ("C1:-rgb", {("rgb", "image"), ("rgb", "image2")}, [0, 1, 1, 1, 0, 1, 1, 1]),
        ("C1:camera=image2", {(m, "image2") for m in STREAMS}, [1, 1, 1, 1, 0, 0, 0, 0]),
        ("C2:depth=zero", {("depth", "image"), ("depth", "image2")}, [1] * 8),
        ("C2:rgb.image=grey", {("rgb", "image")}, [1] * 8),
        ("C3:rgb=gaussian_noise@3", {("rgb", "image"), ("rgb", "image2")}, [1] * 8),
        ("C3:depth=holes@4", {("depth", "image"), ("depth", "image2")}, [1] * 8),
    ],
)
def test_fault_touches_its_streams_only(mini_env, condition, touched, presence):
    env = mini_env(0)
    clean = run(env)
    broken = run(FaultWrapper(env, parse_condition(condition), run_seed=0))
    for before, after in zip(clean, broken, strict=True):
        for modality, stream in STREAMS.items():
            for camera in ("image", "image2"):
                one, other = stream(before, camera), stream(after, camera)
                assert one.dtype == other.dtype
                assert one.shape == other.shape
                assert (one == other).all() == ((modality, camera) not in touched), (modality, camera)
        assert after["presence"].tolist() == presence
        assert (before["robot_state"]["joints"]["pos"] == after["robot_state"]["joints"]["pos"]).all()


def test_frozen_camera_shows_the_first_frame(mini_env):
    frames = run(FaultWrapper(mini_env(0), parse_condition("C2:rgb=freeze"), run_seed=0))
    assert all((f["pixels"]["image2"] == frames[0]["pixels"]["image2"]).all() for f in frames)
    assert not (frames[0]["pixels"]["image2_seg"] == frames[-1]["pixels"]["image2_seg"]).all()


def test_soft_faults_repeat_with_the_seed_and_change_with_it(mini_env):
    condition = parse_condition("C3:rgb=gaussian_noise@3")
    first, again, other = (
        run(FaultWrapper(mini_env(0), condition, s), 1)[1]["pixels"]["image"] for s in (0, 0, 1)
    )
    assert (first == again).all()
    assert not (first == other).all()


def test_clean_condition_is_the_identity(mini_env):
    env = mini_env(0)
    clean, wrapped = run(env, 1), run(FaultWrapper(env, None, run_seed=0), 1)
    assert (clean[1]["pixels"]["image"] == wrapped[1]["pixels"]["image"]).all()


def test_unknown_camera_is_named(mini_env):
    with pytest.raises(ValueError, match="wrist"):
        FaultWrapper(mini_env(0), parse_condition("C1:camera=wrist"), run_seed=0)


def test_picture_for_people_shows_the_fault(mini_env):
    env = FaultWrapper(mini_env(0), parse_condition("C2:rgb=zero"), run_seed=0)
    env.reset(seed=0)
    assert env.render().shape == (256, 256, 3)
    assert env.render().max() == 0


def test_condition_can_be_an_option_of_the_environment():
    from lerobot_env_multismolvla import MultiSmolVLALiberoConfig

    env = MultiSmolVLALiberoConfig(condition="C1:-depth").env_maker("multismolvla_mini", 0)()
    raw, _ = env.reset(seed=0)
    assert raw["presence"].tolist() == [1, 0, 1, 1] * 2
    env.close()
    with pytest.raises(ValueError, match="C9"):
        MultiSmolVLALiberoConfig(condition="C9:rgb")

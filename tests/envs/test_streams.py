"""The four streams show one state, in one orientation, in the declared units."""

import numpy as np
import pytest
import torch

from lerobot_env_multismolvla.mini import CATEGORY_LABELS, TASK_OBJECTS
from multismolvla.modalities import MINI_LABELS, MODALITIES

pytestmark = pytest.mark.sim

CUBE = MINI_LABELS.index("cube")


def centroid(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(axis=0)


def place_cube(env, position):
    """Put the cube somewhere without simulating, and observe."""
    sim = env.simulation.sim
    start = sim.model._model.joint("cube_1_joint0").qposadr[0]
    sim.data.qpos[start : start + 3] = position
    sim.forward()
    return env._format_raw_obs(env.simulation._get_observations(force_update=True))


def cube_masks(batch, background, camera):
    """Where each modality sees the cube: (H, W) masks."""
    key = f"observation.images.{camera}"
    rgb = batch[key][0].numpy()
    change = (batch[f"{key}_depth"] - background[f"{key}_depth"])[0, 0].abs().numpy()
    return {
        "rgb": (rgb[0] > 0.45) & (rgb[1] < 0.3) & (rgb[2] < 0.3),
        "depth": change > 0.008,
        "seg": (batch[f"{key}_seg"][0, 0].numpy() * 255).round() == CUBE,
        "thermal": batch[f"{key}_thermal"][0, 0].numpy() > 0.7,
    }


@pytest.mark.parametrize("camera", ["image", "image2"])
def test_a_marker_lands_in_the_same_cell_in_every_modality(mini_env, process, camera):
    env = mini_env(0)
    env.reset(seed=0, options={"init_state_id": 0})
    place_cube(env, [-0.02, 0.02, -1.0])  # under the floor: the picture without the cube
    background = process(place_cube(env, [-0.02, 0.02, -1.0]))
    batch = process(place_cube(env, [0.02, 0.03, 0.0225]))
    masks = cube_masks(batch, background, camera)
    for modality, mask in masks.items():
        assert mask.sum() >= 15, f"{modality} does not see the cube"
        offset = np.abs(centroid(mask) - centroid(masks["seg"])).max()
        assert offset < 1.0, f"{modality} sees the cube {offset:.1f} pixels away from segmentation"


def test_processed_pictures_are_upright_and_mirrored_as_in_the_public_data(mini_env, process):
    env = mini_env(0)
    env.reset(seed=0, options={"init_state_id": 0})
    seen = {}
    for name, place in {
        "middle": [0.0, 0.0, 0.0225],
        "near": [0.1, 0.0, 0.0225],
        "left": [0.0, 0.1, 0.0225],
    }.items():
        batch = process(place_cube(env, place))
        seen[name] = centroid((batch["observation.images.image_seg"][0, 0].numpy() * 255).round() == CUBE)
    assert seen["near"][0] > seen["middle"][0] + 3, (
        "what is nearer to the camera must be lower in the picture"
    )
    assert seen["left"][1] < seen["middle"][1] - 3, (
        "the robot's left must be left (mirrored, as LeRobot's step does)"
    )


@pytest.mark.parametrize("camera", ["agentview_image", "robot0_eye_in_hand_image"])
@pytest.mark.parametrize(("quality", "tolerance"), [("fast", 1e-4), ("default", 4e-3)])
def test_depth_agrees_with_ray_casting(mini_env, camera, quality, tolerance):
    import mujoco  # here: it does not import without OpenGL

    # Multisampling (default quality) hands out the depth of one sample, 0.4 pixels beside the pixel's centre.
    env = mini_env(0, render_quality=quality)
    raw, _ = env.reset(seed=0, options={"init_state_id": 3})
    depth = raw[f"{env.camera_name_mapping[camera]}_depth"][..., 0]
    model, data = env.simulation.sim.model._model, env.simulation.sim.data._data
    number = model.camera(camera.removesuffix("_image")).id
    half = np.tan(np.deg2rad(model.cam_fovy[number]) / 2)
    size = depth.shape[0]
    axes = data.cam_xmat[number].reshape(3, 3)
    groups = np.array([0, 1, 1, 0, 0, 0], np.uint8)  # what the renderer draws
    errors = []
    for row in range(2, size, 6):
        for column in range(2, size, 6):
            x, y = (2 * (column + 0.5) / size - 1) * half, (2 * (row + 0.5) / size - 1) * half
            direction = axes @ np.array([x, y, -1.0])
            geom = np.zeros(1, np.int32)
            length = mujoco.mj_ray(model, data, data.cam_xpos[number], direction, groups, 1, -1, geom)
            errors.append(
                abs(length - depth[row, column])
            )  # the direction has unit depth: length = metres of depth
    errors = np.array(errors)
    assert np.median(errors) < tolerance
    assert (errors < 5e-3).mean() > 0.9  # the rest are pixels on an edge


def test_segmentation_uses_the_label_set_only(mini_env):
    for task, objects in enumerate(TASK_OBJECTS):
        env = mini_env(task)
        raw, _ = env.reset(seed=0, options={"init_state_id": 1})
        for camera in ("image", "image2"):
            seg = raw["pixels"][f"{camera}_seg"]
            assert seg[..., 0].max() < len(MINI_LABELS)
            assert (seg[..., 2] == 0).all()
            # One class per instance number (robot and gripper, floor and walls are one each).
            pairs = np.unique(seg[..., :2].reshape(-1, 2), axis=0)
            assert len(pairs) == len(np.unique(pairs[:, 1]))
        classes = {MINI_LABELS[i] for i in np.unique(raw["pixels"]["image_seg"][..., 0])}
        things = {CATEGORY_LABELS[f"mini_{name.removesuffix('_1')}"] for name in objects}
        assert classes == {"background", "robot", "gripper"} | things


def test_thermal_is_an_independent_noisy_sensor(mini_env):
    env = mini_env(0)
    first, _ = env.reset(seed=0, options={"init_state_id": 0})
    again, _ = env.reset(seed=1, options={"init_state_id": 0})
    assert (first["pixels"]["image"] == again["pixels"]["image"]).all()
    assert (first["pixels"]["image_thermal"] != again["pixels"]["image_thermal"]).mean() > 0.3


def test_the_cube_is_warm_and_the_can_is_cold(mini_env):
    warm, cold = mean_temperature(mini_env(0), "cube"), mean_temperature(mini_env(1), "can")
    assert warm > 0.6 > 0.35 > cold


def mean_temperature(env, label: str) -> float:
    """Mean of the thermal picture where segmentation sees the class, in [0, 1]."""
    pixels = env.reset(seed=0, options={"init_state_id": 0})[0]["pixels"]
    return (pixels["image_thermal"][pixels["image_seg"][..., 0] == MINI_LABELS.index(label)] / 255).mean()


def test_presence_and_pictures_follow_the_streams(mini_env, process):
    env = mini_env(0, streams=["depth", "seg"])
    raw, _ = env.reset(seed=0)
    assert raw["presence"].tolist() == [-1, 1, 1, -1] * 2 + [-1] * 4
    assert env.observation_space["presence"].contains(raw["presence"])
    assert set(raw["pixels"]) == {"image_seg", "image2_seg"}
    assert set(raw) == set(env.observation_space.spaces)
    batch = process(raw)
    assert "observation.images.image_padding_mask" not in batch, "nothing is lost"
    assert batch["observation.images.image2_depth_padding_mask"].tolist() == [True]


def test_observation_fits_its_space(mini_env):
    env = mini_env(0)
    raw, _ = env.reset(seed=0)
    assert set(raw) == set(env.observation_space.spaces)
    assert set(raw["pixels"]) == set(env.observation_space["pixels"].spaces)
    for key in raw["pixels"]:
        assert env.observation_space["pixels"][key].contains(raw["pixels"][key]), key
    for key in ("image_depth", "image2_depth", "presence"):
        assert env.observation_space[key].contains(raw[key]), key
    assert len(raw["presence"]) == len(env.cameras) * len(MODALITIES)


def test_processed_batch_has_contract_shapes(mini_env, process):
    batch = process(mini_env(0).reset(seed=0)[0])
    for camera in ("image", "image2"):
        key = f"observation.images.{camera}"
        assert (
            batch[key].shape == batch[f"{key}_seg"].shape == batch[f"{key}_thermal"].shape == (1, 3, 64, 64)
        )
        assert batch[f"{key}_depth"].shape == (1, 1, 64, 64)
        assert batch[f"{key}_depth"].dtype == torch.float32
    assert batch["observation.state"].shape == (1, 8)
    assert "observation.presence" not in batch


@pytest.mark.parametrize(
    ("options", "match"),
    [({"streams": ["lidar"]}, "streams"), ({"streams": []}, "streams"), ({"observation_width": 4}, "8x8")],
)
def test_bad_options_are_named(options, match):
    from lerobot_env_multismolvla import MultiSmolVLALiberoConfig

    with pytest.raises(ValueError, match=match):
        MultiSmolVLALiberoConfig(**options)


@pytest.mark.parametrize(
    ("options", "match"), [({"render_quality": "ultra"}, "quality"), ({"init_split": "x"}, "split")]
)
def test_bad_options_of_the_simulator_are_named(options, match):
    from lerobot_env_multismolvla import MultiSmolVLALiberoConfig

    with pytest.raises(ValueError, match=match):
        MultiSmolVLALiberoConfig(**options)


def test_fast_quality_changes_the_picture_little(mini_env):
    pictures = [
        mini_env(0, render_quality=q).reset(seed=0)[0]["pixels"]["image"] for q in ("default", "fast")
    ]
    assert np.abs(pictures[0].astype(int) - pictures[1].astype(int)).mean() < 4


def test_the_second_wrist_camera_sees_what_the_fingers_hold_and_has_rgb_alone(mini_env):
    """It looks at the same place from the other side of the hand, so the picture is another one."""
    env = mini_env(0)
    raw, _ = env.reset(seed=0, options={"init_state_id": 0})
    assert [name for name in raw["pixels"] if name.startswith("image3")] == ["image3"]
    assert "image3_depth" not in raw
    assert raw["presence"][8:].tolist() == [1, -1, -1, -1]
    fingers = env.simulation.sim.data.get_site_xpos("gripper0_grip_site")
    pixels = place_cube(env, [*fingers[:2], fingers[2] - 0.02])["pixels"]
    for camera in ("image2", "image3"):
        red = (pixels[camera][..., 0] > 150) & (pixels[camera][..., 1] < 80)
        assert red.sum() > 100, camera
        assert 22 < np.argwhere(red)[:, 1].mean() < 42, camera
    assert (pixels["image2"] != pixels["image3"]).any()

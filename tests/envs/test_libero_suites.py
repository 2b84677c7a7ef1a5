"""One task of each public LIBERO suite: LeRobot's own picture, all streams beside it, in one place.

All 40 tasks: ``python docs/libero_survey.py`` (minutes).
"""

import numpy as np
import pytest
import torch

from lerobot_env_multismolvla import MultiSmolVLALiberoConfig
from lerobot_env_multismolvla.labels import geom_tables, label_table
from lerobot_env_multismolvla.mini import SUITE_NAME
from multismolvla.sensors import SensorReader
from multismolvla.tokenizers.labels import LabelTable

pytestmark = [pytest.mark.sim, pytest.mark.libero]

SIZE = 128
TASKS = {"libero_spatial": 4, "libero_object": 1, "libero_goal": 7, "libero_10": 2}


def make(suite, assets, **options):
    options = {"observation_height": SIZE, "observation_width": SIZE, "num_steps_wait": 0, **options}
    config = MultiSmolVLALiberoConfig(task=suite, libero_assets=str(assets), **options)
    return config.env_maker(suite, TASKS.get(suite, 0))()


@pytest.fixture(scope="module", params=TASKS)
def views(request, libero_assets, process):
    """``(ours, theirs, facts)``: processed batches of our environment and of LeRobot's own, of one state."""
    from lerobot_env_multismolvla.libero.setup import asset_root, ensure_libero_config

    ensure_libero_config()  # before the first import of LIBERO, which would ask a question on the terminal
    from lerobot.envs.configs import LiberoEnv as LiberoConfig
    from lerobot.envs.libero import LiberoEnv
    from lerobot.envs.utils import preprocess_observation

    from lerobot_env_multismolvla.multimodal_env import get_suite
    from lerobot_env_multismolvla.processor_multismolvla_libero import add_batch_axis

    suite = request.param
    # Soft resets save half of the time. Where the fixtures stand is then decided when the simulator starts,
    # by NumPy's global generator, which is why both begin with the same number.
    np.random.seed(7)
    env = make(suite, libero_assets, hard_reset=False)
    raw, info = env.reset(seed=7)
    facts = {"labels": env.labels, "state": env.state, "suite": suite, "info": info, "raw": raw}
    ours = process(raw)
    env._stream_cameras.tables = geom_tables(env.simulation, suite, "coco")
    facts["coco"] = process(env.restore(env.state))
    env.close()
    with asset_root(libero_assets):
        options = {
            "observation_height": SIZE,
            "observation_width": SIZE,
            "num_steps_wait": 0,
            "hard_reset": False,
        }
        np.random.seed(7)
        upstream = LiberoEnv(get_suite(suite), TASKS[suite], suite, obs_type="pixels_agent_pos", **options)
        theirs, _ = upstream.reset(seed=7)
    facts["upstream_state"] = upstream._env.get_sim_state()
    upstream.close()
    steps = LiberoConfig(task=suite).get_env_processors()[0]
    return ours, steps.process_observation(preprocess_observation(add_batch_axis(theirs))), facts


def test_rgb_and_state_are_lerobots(views):
    ours, theirs, facts = views
    assert np.array_equal(facts["state"], facts["upstream_state"]), "not the same initial state"
    for camera in ("image", "image2"):
        key = f"observation.images.{camera}"
        difference = (ours[key] - theirs[key]).abs() * 255
        assert (difference > 0.5).float().mean() < 1e-3, f"{camera}: {difference.max():.0f} of 255"
        for turned in (theirs[key].flip(2), theirs[key].flip(3), theirs[key].flip(2, 3)):
            assert ((ours[key] - turned).abs() * 255).mean() > 5, (
                "the picture looks the same when it is turned"
            )
    torch.testing.assert_close(ours["observation.state"][:, :3], theirs["observation.state"][:, :3].float())


def edges(values: torch.Tensor) -> torch.Tensor:
    """Where neighbours differ: bool (H - 1, W - 1)."""
    right = (values[:-1, 1:] - values[:-1, :-1]).abs()
    down = (values[1:, :-1] - values[:-1, :-1]).abs()
    return torch.maximum(right, down)


def test_all_streams_show_the_same_place(views):
    # Where segmentation has its outlines, each other stream must change more than where they lie if it is
    # turned.
    ours, _, facts = views
    for camera in ("image", "image2"):
        key = f"observation.images.{camera}"
        outlines = edges((ours[f"{key}_seg"][0, 1] * 255).round()) > 0  # of the instances
        for stream, values in {
            "rgb": ours[key][0].mean(0),
            "depth": ours[f"{key}_depth"][0, 0].clamp(max=3),
            "thermal": ours[f"{key}_thermal"][0, 0],
        }.items():
            change = edges(values)
            here = change[outlines].mean()
            for name, other in {
                "upside down": change.flip(0),
                "mirrored": change.flip(1),
                "turned": change.flip(0, 1),
            }.items():
                assert here > 1.25 * other[outlines].mean(), f"{facts['suite']} {camera} {stream} {name}"


def test_streams_hold_what_they_should(views):
    ours, _, facts = views
    raw, labels = facts["raw"], facts["labels"]
    seen = {labels[i] for c in ("image", "image2") for i in np.unique(raw["pixels"][f"{c}_seg"][..., 0])}
    assert {"background", "robot", "gripper"} <= seen
    assert len(seen) > 5
    assert "other" not in seen
    assert 0.4 < np.median(raw["image_depth"]) < 3
    assert 0.05 < np.median(raw["image2_depth"]) < 1.5
    assert facts["info"]["init_state_id"] == 0
    for camera in ("image", "image2"):
        assert ours[f"observation.images.{camera}_depth"].shape == (1, 1, SIZE, SIZE)
        assert raw["pixels"][f"{camera}_thermal"].std() > 2
        assert ours[f"observation.images.{camera}_thermal_padding_mask"].all()


def read_ids(batch, num_labels: int) -> torch.Tensor:
    """Segmentation ids as a policy's processor reads them."""
    reader = SensorReader({"image": {"seg": "observation.images.image_seg"}}, num_labels=num_labels)
    return reader.read(batch)["observation.images.image_seg"]


def test_coco_ids_are_those_of_the_policys_own_table(views):
    ours, _, facts = views
    own, coco = read_ids(ours, len(facts["labels"])), read_ids(facts["coco"], 134)
    assert len(coco.unique()) > 2
    assert torch.equal(LabelTable.from_name(label_table(facts["suite"])).map_ids(own), coco)


def test_the_option_for_coco_ids(process):
    pictures = {}
    for seg_labels in ("suite", "coco"):
        config = MultiSmolVLALiberoConfig(seg_labels=seg_labels, streams=["seg"])
        env = config.env_maker(SUITE_NAME, 0)()
        pictures[seg_labels] = read_ids(process(env.reset(seed=0)[0]), len(env.labels))
        env.close()
    assert env.labels[2] == "bicycle"
    assert torch.equal(LabelTable.from_name("mini").map_ids(pictures["suite"]), pictures["coco"])
    with pytest.raises(ValueError, match="seg_labels"):
        MultiSmolVLALiberoConfig(seg_labels="detectron").env_maker(SUITE_NAME, 0)()


def test_a_knocked_camera_sees_the_scene_from_elsewhere(libero_assets):
    """All its streams, and those of no other camera."""
    shown = {}
    for condition in (None, "C5:all.image=moved@5"):
        env = make("libero_object", libero_assets, hard_reset=False, condition=condition)
        shown[condition] = env.reset(seed=0, options={"init_state_id": 0})[0]
        env.close()
    clean, knocked = shown.values()
    for part in ("", "_depth", "_seg", "_thermal"):
        for camera in ("image", "image2"):
            name = f"{camera}{part}"
            one, other = (o.get(name, o["pixels"].get(name)) for o in (clean, knocked))
            assert np.array_equal(one, other) == (camera == "image2"), name


def test_falling_objects_are_told(libero_assets, caplog):
    # Stored states of libero_10's task 0 hold tall objects inside the table; mujoco >= 3.4 throws them up.
    config = MultiSmolVLALiberoConfig(
        task="libero_10",
        libero_assets=str(libero_assets),
        streams=["depth"],
        observation_height=16,
        observation_width=16,
        hard_reset=False,
    )
    env = config.env_maker("libero_10", 0)()
    speeds = {}
    for env.num_steps_wait in (10, 20):
        speeds[env.num_steps_wait] = env.reset(seed=0, options={"init_state_id": 0})[1]["object_speed"]
    env.close()
    assert speeds[10] > 0.05 > speeds[20]
    assert caplog.text.count("--env.num_steps_wait=20") == 1

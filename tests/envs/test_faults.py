"""Fault wrapper: the fault and nothing else."""

import math

import numpy as np
import pytest
from scipy import ndimage

from lerobot_env_multismolvla import faults
from lerobot_env_multismolvla.faults import FaultWrapper
from multismolvla.corruption import parse_condition
from multismolvla.corruption.cross_modal import Displacement

pytestmark = pytest.mark.sim

STREAMS = {
    "rgb": lambda o, c: o["pixels"][c],
    "depth": lambda o, c: o[f"{c}_depth"],
    "seg": lambda o, c: o["pixels"][f"{c}_seg"],
    "thermal": lambda o, c: o["pixels"][f"{c}_thermal"],
}


CAMERAS = ("image", "image2")
#: Of the third camera, which has RGB alone.
THIRD = [1, -1, -1, -1]
ALL = [1] * 8 + THIRD


def run(env, steps: int = 3):
    observation, _ = env.reset(seed=2, options={"init_state_id": 6})
    observations = [observation]
    for _ in range(steps):
        observations.append(env.step(np.array([0.8, 0.5, -0.5, 0, 0, 0, -1], np.float32))[0])
    return observations


@pytest.mark.parametrize(
    ("condition", "touched", "presence"),
    [
        ("C1:-rgb", {("rgb", "image"), ("rgb", "image2")}, [0, 1, 1, 1] * 2 + [0, *THIRD[1:]]),
        ("C1:camera=image2", {(m, "image2") for m in STREAMS}, [1, 1, 1, 1, 0, 0, 0, 0, *THIRD]),
        ("C2:depth=zero", {("depth", "image"), ("depth", "image2")}, ALL),
        ("C2:rgb.image=grey", {("rgb", "image")}, ALL),
        ("C3:rgb=gaussian_noise@3", {("rgb", "image"), ("rgb", "image2")}, ALL),
        ("C3:depth=holes@4", {("depth", "image"), ("depth", "image2")}, ALL),
        ("C2:all.image2=zero", {(m, "image2") for m in STREAMS}, ALL),
        ("C5:depth=shift@8", {("depth", "image"), ("depth", "image2")}, ALL),
        ("C5:thermal.image=rotated", {("thermal", "image")}, ALL),
        ("C5:depth=scale@0.8", {("depth", "image"), ("depth", "image2")}, ALL),
        ("C5:all=swapped", {(m, c) for m in STREAMS for c in ("image", "image2")}, ALL),
        ("C5:all.image=moved@5", {(m, "image") for m in STREAMS}, ALL),
        ("C5:depth.image=turned@5", {("depth", "image")}, ALL),
        ("C5:seg.image2=moved@2", {("seg", "image2")}, ALL),
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


def same(one, other) -> bool:
    return all((stream(one, c) == stream(other, c)).all() for stream in STREAMS.values() for c in CAMERAS)


def pictures(observation, modality: str) -> list[np.ndarray]:
    return [STREAMS[modality](observation, c) for c in CAMERAS]


@pytest.fixture(scope="module")
def clean(mini_env):
    """20 clean frames."""
    return run(mini_env(0), 19)


@pytest.fixture
def short_episode(mini_env, monkeypatch):
    """An environment whose episodes last 20 steps, so that the windows lie in what the tests run."""
    env = mini_env(0)
    monkeypatch.setattr(env.unwrapped, "_max_episode_steps", 20)
    return env


def shown_frames(clean, frames, modality: str) -> list[list[int]]:
    """For each frame the clean frames whose pictures of this modality it shows."""
    return [
        [
            n for n, before in enumerate(clean)
            if all(map(np.array_equal, pictures(before, modality), pictures(after, modality)))
        ]
        for after in frames
    ]  # fmt: skip


def test_a_knocked_camera_sees_the_scene_from_elsewhere(mini_env):
    """All its modalities from the same place; the physics does not notice, and the next episode is whole."""
    env = mini_env(0)
    clean = run(env)

    def broken(text: str) -> list:
        found = run(FaultWrapper(env, parse_condition(text), run_seed=0))
        for before, after in zip(clean, found, strict=True):
            assert np.array_equal(
                before["robot_state"]["joints"]["pos"], after["robot_state"]["joints"]["pos"]
            )
        return found

    def differing(observations: list, modality: str) -> float:
        pairs = zip(clean, observations, strict=True)
        return float(
            np.mean([STREAMS[modality](a, "image") != STREAMS[modality](b, "image") for a, b in pairs])
        )

    small, large = broken("C5:all.image=moved@1"), broken("C5:all.image=moved@5")
    assert 0 < differing(small, "seg") < differing(large, "seg")
    # depth and segmentation are still of one scene: where nothing is near, both say background
    alone = broken("C5:depth.image=moved@5")
    for together, one in zip(large, alone, strict=True):
        assert np.array_equal(STREAMS["depth"](together, "image"), STREAMS["depth"](one, "image"))
    distance = STREAMS["depth"](large[0], "image") - STREAMS["depth"](clean[0], "image")
    assert 0.001 < np.median(np.abs(distance)) < 0.06  # of 5 cm in some direction
    again = run(env)
    assert all(
        np.array_equal(STREAMS["rgb"](a, "image"), STREAMS["rgb"](b, "image"))
        for a, b in zip(clean, again, strict=True)
    )


def test_a_camera_that_is_turned_about_its_line_of_sight_shows_a_turned_picture(mini_env, monkeypatch):
    """By as many degrees, and all of it as far away as before."""
    turn = Displacement(turn=(0.0, 0.0, math.radians(10)))
    monkeypatch.setattr(faults, "draw_displacement", lambda *_: turn)
    env = mini_env(0)
    clean, shown = (
        STREAMS["depth"](run(e, 0)[0], "image").squeeze().astype(float)
        for e in (env, FaultWrapper(env, parse_condition("C5:all.image=turned@10"), run_seed=0))
    )
    rows, columns = np.indices(clean.shape) - (len(clean) - 1) / 2
    inside = np.hypot(rows, columns) < len(clean) / 2 - 1

    def apart(degrees: float) -> float:
        by_hand = ndimage.rotate(clean, degrees, reshape=False, order=1, mode="nearest")
        return float(np.abs(by_hand - shown)[inside].mean())

    found = {degrees: apart(degrees) for degrees in (-30, -20, -10, -5, 0, 5, 10, 20, 30)}
    assert abs(min(found, key=found.__getitem__)) == 10
    assert min(found.values()) < 0.25 * found[0]


def test_people_see_what_a_knocked_camera_would_have_seen(mini_env):
    env = mini_env(0)
    run(env, 0)
    clean = env.clean_rgb()
    run(FaultWrapper(env, parse_condition("C5:all.image=turned@10"), run_seed=0), 0)
    shown = env.clean_rgb()
    assert all(np.array_equal(clean[camera], shown[camera]) for camera in clean)


@pytest.mark.parametrize("modality", ["rgb", "depth"])
def test_delayed_pictures_are_those_of_earlier_steps_and_nothing_else_changes(short_episode, clean, modality):
    frames = run(FaultWrapper(short_episode, parse_condition(f"C4:{modality}=delay@3"), run_seed=0), 19)
    for step, (seen, before, after) in enumerate(
        zip(shown_frames(clean, frames, modality), clean, frames, strict=True)
    ):
        assert max(0, step - 3) in seen
        for other in STREAMS.keys() - {modality}:
            assert all(
                (a == b).all() for a, b in zip(pictures(before, other), pictures(after, other), strict=True)
            )
        assert (before["presence"] == after["presence"]).all()
        assert (before["robot_state"]["joints"]["pos"] == after["robot_state"]["joints"]["pos"]).all()
    assert not (clean[19]["pixels"]["image"] == clean[16]["pixels"]["image"]).all(), "the arm did not move"


@pytest.mark.parametrize("type_", ["frozen", "delay@2", "frame_drop@0.5", "burst", "burst_silent"])
def test_a_fault_in_time_reaches_its_stream_and_no_other(short_episode, clean, type_):
    frames = run(FaultWrapper(short_episode, parse_condition(f"C4:thermal.image2={type_}"), run_seed=0), 19)
    changed = [
        (a["pixels"]["image2_thermal"] != b["pixels"]["image2_thermal"]).any()
        for a, b in zip(clean, frames, strict=True)
    ]
    assert 0 < sum(changed) < 20
    for before, after in zip(clean, frames, strict=True):
        for modality, stream in STREAMS.items():
            for camera in CAMERAS:
                if (modality, camera) != ("thermal", "image2"):
                    assert (stream(before, camera) == stream(after, camera)).all(), (modality, camera)
        assert (before["presence"] == after["presence"])[:7].all()
        for part in ("joints", "eef", "gripper"):
            for key, value in before["robot_state"][part].items():
                assert (value == after["robot_state"][part][key]).all()


def test_frozen_pictures_stay_from_a_random_step_on(short_episode, clean):
    frames = run(FaultWrapper(short_episode, parse_condition("C4:thermal=frozen"), run_seed=0), 19)
    seen = shown_frames(clean, frames, "thermal")  # its noise makes each picture unique
    start = seen[-1][0]
    assert 0 < start < 10
    assert seen == [[min(step, start)] for step in range(20)]


def test_lost_frames_repeat_the_last_one_of_each_camera_by_itself(short_episode, clean):
    frames = run(FaultWrapper(short_episode, parse_condition("C4:thermal=frame_drop@0.5"), run_seed=0), 19)
    fates = []
    for camera in CAMERAS:
        shown = [f["pixels"][f"{camera}_thermal"] for f in frames]
        arrived = [(shown[n] == clean[n]["pixels"][f"{camera}_thermal"]).all() for n in range(20)]
        assert arrived[0]
        assert all(arrived[n] or (shown[n] == shown[n - 1]).all() for n in range(1, 20))
        assert 4 <= sum(arrived) <= 16
        fates.append(arrived)
    assert fates[0] != fates[1]


@pytest.mark.parametrize(("type_", "presence"), [("burst", 0.0), ("burst_silent", 1.0)])
def test_a_burst_takes_all_streams_of_the_condition_at_once(short_episode, clean, type_, presence):
    env = FaultWrapper(short_episode, parse_condition(f"C4:all={type_}"), run_seed=3)
    frames = run(env, 19)
    gone = [n for n, f in enumerate(frames) if not any(p.any() for m in STREAMS for p in pictures(f, m))]
    assert len(gone) == 4
    assert gone == list(range(gone[0], gone[0] + 4))
    for n, frame in enumerate(frames):
        assert frame["presence"].tolist() == [presence if p == 1 and n in gone else p for p in ALL]
        assert n in gone or same(clean[n], frame)
    single = run(FaultWrapper(short_episode, parse_condition("C4:depth.image2=burst_silent"), run_seed=3), 19)
    assert [n for n, f in enumerate(single) if not f["image2_depth"].any()] == gone, "the same window"
    assert all((a["image_depth"] == b["image_depth"]).all() for a, b in zip(clean, single, strict=True))


def test_info_tells_when_a_fault_is_active(short_episode):
    env = FaultWrapper(short_episode, parse_condition("C4:rgb=burst"), run_seed=3)
    _, info = env.reset(seed=2, options={"init_state_id": 6})
    active = [info["fault_active"]]
    active += [env.step(np.zeros(7, np.float32))[4]["fault_active"] for _ in range(19)]
    assert sum(active) == 4
    env = FaultWrapper(short_episode, parse_condition("C5:rgb=rotated"), run_seed=3)
    assert env.reset(seed=2)[1]["fault_active"]


def test_swapped_cameras_and_rotation_show_real_pictures(short_episode, clean):
    swapped = run(FaultWrapper(short_episode, parse_condition("C5:depth=swapped"), run_seed=0), 1)
    assert (swapped[1]["image_depth"] == clean[1]["image2_depth"]).all()
    assert (swapped[1]["image2_depth"] == clean[1]["image_depth"]).all()
    rgb = run(FaultWrapper(short_episode, parse_condition("C5:rgb=swapped"), run_seed=0), 1)[1]["pixels"]
    for camera, following in (("image", "image2"), ("image2", "image3"), ("image3", "image")):
        assert (rgb[camera] == clean[1]["pixels"][following]).all()
    turned = run(FaultWrapper(short_episode, parse_condition("C5:seg.image=rotated"), run_seed=0), 1)
    assert (turned[1]["pixels"]["image_seg"] == clean[1]["pixels"]["image_seg"][::-1, ::-1]).all()


@pytest.mark.parametrize(
    "text",
    [
        "C2:rgb=freeze",
        "C3:rgb=fog@4+seg=label_swap@4",
        "C4:depth=delay@4+seg=frame_drop@0.3",
        "C5:depth=shift@16",
    ],
)
def test_the_same_seed_gives_the_same_episode_bit_for_bit_whatever_ran_before(short_episode, text):
    env = FaultWrapper(short_episode, parse_condition(text), run_seed=5)
    first = run(env, 6)
    env.reset(seed=9, options={"init_state_id": 1})
    env.step(np.ones(7, np.float32))
    again = run(env, 6)
    fresh = run(FaultWrapper(short_episode, parse_condition(text), run_seed=5), 6)
    for one, other, third in zip(first, again, fresh, strict=True):
        assert same(one, other)
        assert same(one, third)
        assert (one["presence"] == other["presence"]).all()


@pytest.fixture
def derived_thermal(short_episode, monkeypatch):
    """As if the environment computed thermal from RGB."""
    provenance = {"rgb": "sensor", "depth": "sensor", "seg": "sensor", "thermal": "derived"}
    monkeypatch.setattr(type(short_episode.unwrapped), "provenance", provenance)
    return short_episode


@pytest.mark.parametrize(
    ("text", "presence"),
    [
        ("C1:-rgb", [0, 1, 1, 0] * 2 + [0, -1, -1, 0]),
        ("C2:rgb=zero", [1, 1, 1, 0] * 2 + [1, -1, -1, 0]),
        ("C3:rgb.image=fog@3", [1, 1, 1, 0, 1, 1, 1, 1, *THIRD]),
        ("C5:rgb=rotated", [1, 1, 1, 0] * 2 + [1, -1, -1, 0]),
        ("C3:depth=holes@3", ALL),
    ],
)
def test_what_is_derived_from_rgb_goes_with_it(derived_thermal, text, presence):
    frame = run(FaultWrapper(derived_thermal, parse_condition(text), run_seed=0), 1)[1]
    assert frame["presence"].tolist() == presence
    for v, camera in enumerate(CAMERAS):
        assert frame["pixels"][f"{camera}_thermal"].any() == bool(presence[4 * v + 3])


@pytest.mark.parametrize(
    "text", ["C4:rgb=frame_drop@0.5", "C4:rgb=frozen", "C4:rgb.image=delay@2", "C2:rgb=freeze"]
)
def test_what_is_derived_from_an_earlier_rgb_picture_is_the_earlier_picture(derived_thermal, clean, text):
    frames = run(FaultWrapper(derived_thermal, parse_condition(text), run_seed=0), 12)
    for n, frame in enumerate(frames):
        # Thermal noise makes each thermal picture unique: it tells which RGB picture this has to be.
        shown = next(
            k
            for k in range(13)
            if (clean[k]["pixels"]["image_thermal"] == frame["pixels"]["image_thermal"]).all()
        )
        assert shown <= n
        assert (clean[shown]["pixels"]["image"] == frame["pixels"]["image"]).all()
        assert frame["presence"].tolist() == ALL
    assert not same(frames[-1], clean[12])


def test_a_thermal_sensor_stays_when_rgb_is_gone(short_episode, clean):
    frame = run(FaultWrapper(short_episode, parse_condition("C1:-rgb"), run_seed=0), 1)[1]
    assert (frame["pixels"]["image_thermal"] == clean[1]["pixels"]["image_thermal"]).all()


def test_soft_faults_repeat_with_the_seed_and_change_with_it(mini_env):
    condition = parse_condition("C3:rgb=gaussian_noise@3")
    first, again, other = (
        run(FaultWrapper(mini_env(0), condition, s), 1)[1]["pixels"]["image"] for s in (0, 0, 1)
    )
    assert (first == again).all()
    assert not (first == other).all()


def test_clean_condition_is_the_identity(mini_env):
    env = mini_env(0)
    clean, wrapped = run(env, 1), run(FaultWrapper(env, parse_condition("C0"), run_seed=0), 1)
    assert (clean[1]["pixels"]["image"] == wrapped[1]["pixels"]["image"]).all()


def test_unknown_camera_is_named(mini_env):
    with pytest.raises(ValueError, match="wrist"):
        FaultWrapper(mini_env(0), parse_condition("C1:camera=wrist"), run_seed=0)


def test_one_camera_cannot_be_exchanged(mini_env, monkeypatch):
    env = mini_env(0)
    monkeypatch.setattr(type(env.unwrapped), "cameras", ("image",))
    with pytest.raises(ValueError, match=r"exchanges cameras.*\['image'\]"):
        FaultWrapper(env, parse_condition("C5:all=swapped"), run_seed=0)


def test_picture_for_people_shows_the_fault(mini_env):
    env = FaultWrapper(mini_env(0), parse_condition("C2:rgb=zero"), run_seed=0)
    env.reset(seed=0)
    assert env.render().shape == (256, 256, 3)
    assert env.render().max() == 0


def test_condition_can_be_an_option_of_the_environment():
    from lerobot_env_multismolvla import MultiSmolVLALiberoConfig

    env = MultiSmolVLALiberoConfig(condition="C1:-depth").env_maker("multismolvla_mini", 0)()
    raw, _ = env.reset(seed=0)
    assert raw["presence"].tolist() == [1, 0, 1, 1] * 2 + [1, 0, -1, -1]
    env.close()
    with pytest.raises(ValueError, match="'C2:thermal=zero' changes thermal.*rgb, depth alone"):
        MultiSmolVLALiberoConfig(condition="C2:thermal=zero", streams=["rgb", "depth"])
    with pytest.raises(ValueError, match="C9"):
        MultiSmolVLALiberoConfig(condition="C9:rgb")

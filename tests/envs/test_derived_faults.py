"""No fault of RGB leaves a back door open: what is computed from RGB shows no more than the RGB that is left.

The bundled environments have sensors only, so a toy one computes thermal from RGB.
"""

from itertools import product

import pytest

from lerobot_env_multismolvla.faults import FaultWrapper
from multismolvla.corruption import Condition, Fault, parse_condition
from multismolvla.provenance import with_derived

CAMERAS = ("image", "image2")
STEPS = 6
TEMPORAL = [("frozen", None), ("delay", 2.0), ("frame_drop", 0.5), ("burst", None), ("burst_silent", None)]


def faults_of(modality: str) -> list[Fault]:
    """One of each kind and meaning, in both cameras and in one."""
    soft, cross = {
        "rgb": (["builtin_noise"], ["rotated", "swapped"]),
        "thermal": (["fixed_pattern"], ["shift", "rotated", "swapped"]),
    }[modality]
    whole = [Fault(modality, "drop")]
    whole += [Fault(modality, t, announced=False) for t in ("zero", "grey", "freeze")]
    whole += [Fault(modality, t, 3, announced=False) for t in soft]
    whole += [Fault(modality, t, announced=t == "burst", parameter=p) for t, p in TEMPORAL]
    whole += [Fault(modality, t, announced=False, parameter=8.0 if t == "shift" else None) for t in cross]
    single = [
        Fault(f.modality, f.type, f.severity, (c,), f.announced, f.parameter)
        for f in whole
        for c in CAMERAS
        if f.type != "swapped"
    ]
    return whole + single


def test_an_attack_leaves_the_sensors_alone_and_drops_what_they_compute_of_its_rgb(toy_env):
    """The picture is changed where the policy looks: here only the clean one could leak."""
    clean = toy_env(STEPS).reset()[0]
    env = FaultWrapper(toy_env(STEPS), parse_condition("C6:rgb.image=policy@4"), run_seed=1)
    seen = env.reset()[0]
    assert (seen["pixels"]["image"] == clean["pixels"]["image"]).all()
    assert (seen["pixels"]["image_thermal"] == 0).all()
    assert (seen["pixels"]["image2_thermal"] == clean["pixels"]["image2_thermal"]).all()
    assert seen["presence"].tolist() == [1, 0, 0, 0, 1, 0, 0, 1]


def source_of(camera: str, own: Fault | None) -> str:
    """Camera whose thermal picture a stream shows."""
    swapped = own is not None and own.type == "swapped"
    return next(c for c in CAMERAS if c != camera) if swapped else camera


@pytest.mark.parametrize("rgb", faults_of("rgb"), ids=lambda f: f"{f.type}-{f.cameras and f.cameras[0]}")
def test_no_combination_of_faults_lets_clean_rgb_through(rgb, toy_env):
    for own in (None, *faults_of("thermal")):
        faults = (rgb,) if own is None else (rgb, own)
        env = FaultWrapper(toy_env(STEPS), Condition(f"{rgb} {own}", "C9", faults), run_seed=1)
        observations = [env.reset()[0]] + [env.step(None)[0] for _ in range(STEPS)]
        for (step, seen), camera in product(enumerate(observations), CAMERAS):
            provenance = source_of(camera, own)
            if not rgb.hits(provenance, "rgb"):
                continue  # its RGB is whole, so nothing can leak
            thermal = seen["pixels"][f"{camera}_thermal"]
            empty = (thermal == thermal.flat[0]).all()
            computed = (thermal == 255 - seen["pixels"][camera]).all()
            assert empty or computed, (rgb, own, camera, step)
            silent = own is not None and own.type in ("zero", "grey")
            if empty and not silent and rgb.type not in ("burst", "burst_silent"):
                number = 4 * CAMERAS.index(camera) + 3
                assert seen["presence"][number] == 0, ("not announced", rgb, own, camera, step)


@pytest.mark.parametrize("own", faults_of("thermal"), ids=lambda f: f"{f.type}-{f.cameras and f.cameras[0]}")
def test_a_fault_of_the_derived_stream_alone_is_what_the_condition_says(own):
    assert with_derived((own,), {"thermal"}, CAMERAS) == (own,)


@pytest.mark.parametrize(
    "text",
    ["C4:all=delay@5", "C5:all=swapped", "C2:all=freeze", "C2:rgb=zero+thermal=zero", "C4:depth=burst"],
)
def test_conditions_that_agree_with_themselves_stay(text):
    faults = parse_condition(text).faults
    assert set(with_derived(faults, {"thermal"}, CAMERAS)) == set(faults)


def test_the_other_camera_keeps_the_derived_streams_own_fault():
    faults = parse_condition("C3:rgb.image=fog@3+thermal=low_contrast@2").faults
    found = {f.cameras: f.type for f in with_derived(faults, {"thermal"}, CAMERAS) if f.modality == "thermal"}
    assert found == {("image",): "drop", ("image2",): "low_contrast"}


def test_sensors_are_left_alone():
    faults = parse_condition("C3:rgb=fog@3+thermal=low_contrast@2").faults
    assert with_derived(faults, set(), CAMERAS) == faults

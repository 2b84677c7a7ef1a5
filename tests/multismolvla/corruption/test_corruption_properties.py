"""What every soft corruption keeps, on pictures of any size and content."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multismolvla.corruption import (
    IMAGENET_C_TYPES,
    SEVERITIES,
    SOFT_TYPES,
    TRAINING_TYPES,
    Fault,
    frame_generator,
    imagenet_c,
    parse_condition,
    seen_in_training,
)
from multismolvla.corruption.soft import apply_soft
from multismolvla.modalities import MODALITIES

#: The package's types have tests of their own; they take up to half a second per picture.
PACKAGE = set(IMAGENET_C_TYPES) - set(imagenet_c.OWN)
OWN = [(m, t) for m in MODALITIES for t in SOFT_TYPES[m] if t not in PACKAGE]
SIZES = st.integers(32, 80)
LABELS = 9


def random_picture(modality: str, height: int, width: int, seed: int) -> torch.Tensor:
    """Blocks of random content with the raw dtype of the environment."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 3 if modality == "rgb" else 1, -(-height // 8), -(-width // 8))
    blocks = torch.rand(shape, generator=generator)
    values = torch.nn.functional.interpolate(blocks, scale_factor=8, mode="nearest")[0, :, :height, :width]
    if modality == "depth":
        return torch.where(values < 0.1, 0.0, values * 5)
    if modality == "seg":
        classes = (values * 9).long()
        return torch.cat([classes, classes * 3, torch.zeros_like(classes)]).to(torch.uint8)
    return (values * 255).to(torch.uint8).expand(3, -1, -1).contiguous()


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.sampled_from(OWN), st.sampled_from(SEVERITIES), SIZES, SIZES, st.integers(0, 2**31))
def test_range_dtype_shape_and_holes_are_kept(kind, severity, height, width, seed):
    modality, type_ = kind
    clean = random_picture(modality, height, width, seed)
    generator = torch.Generator().manual_seed(seed)
    image, valid = apply_soft(clean, None, modality, type_, severity, generator, LABELS)
    assert image.shape == clean.shape
    assert image.dtype == clean.dtype
    if modality == "depth":
        assert valid.dtype == torch.bool
        assert not valid[clean == 0].any()
        assert ((image > 0) == valid).all(), "0 m is no distance: it is the mark of a hole"
        assert torch.isfinite(image).all()
        assert image.max() <= clean.max() * 1.3 + 5
    elif modality == "seg":
        known = range(LABELS) if type_ == "label_swap" else {0, *clean[0].unique().tolist()}
        assert set(image[0].unique().tolist()) <= set(known)
        pairs = set(zip(image[0].flatten().tolist(), image[1].flatten().tolist(), strict=True))
        assert len({i for _, i in pairs}) <= len(set(clean[1].unique().tolist()) | {0})
    else:
        # Grey pictures keep three equal channels.
        assert modality == "rgb" or torch.equal(image[0], image[2])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(OWN), st.sampled_from(SEVERITIES), st.integers(0, 2**62))
def test_a_frame_depends_on_seed_and_step_only(kind, severity, seed):
    modality, type_ = kind
    clean = random_picture(modality, 40, 56, 1)

    def frame(step: int) -> torch.Tensor:
        return apply_soft(clean, None, modality, type_, severity, frame_generator(seed, step, type_), LABELS)[
            0
        ]

    forwards = [frame(step) for step in range(3)]
    backwards = [frame(step) for step in (2, 1, 0)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_split_of_training_and_test_types():
    for modality, types in TRAINING_TYPES.items():
        assert all(seen_in_training(modality, t) for t in types)
    seen = {t for t in SOFT_TYPES["rgb"] if seen_in_training("rgb", t) and not t.startswith("builtin")}
    assert seen == {"gaussian_noise", "gaussian_blur", "brightness"}
    unseen = {*IMAGENET_C_TYPES, "freeze", "delay", "burst", "swapped"} - seen
    assert not any(seen_in_training("rgb", type_) for type_ in unseen)
    assert seen_in_training("depth", "holes")
    assert not seen_in_training("depth", "noise")
    assert seen_in_training("seg", "drop")


@pytest.mark.parametrize(
    ("text", "seen"),
    [("C0", None), ("C1:-rgb", True), ("C2:rgb=zero", False), ("C3:rgb=brightness@2", True),
     ("C3:rgb=fog@2+depth=holes@2", False), ("C4:all=burst", False), ("C5:depth=scale@0.8", False)],
)  # fmt: skip
def test_conditions_know_whether_training_met_them(text, seen):
    assert parse_condition(text).seen_in_training is seen


def test_fault_knows_when_it_begins():
    assert Fault("rgb", "fog", 3).changes_first_frame
    assert Fault("depth", "shift", parameter=8.0).changes_first_frame
    assert not Fault("rgb", "freeze").changes_first_frame
    assert not Fault("rgb", "delay", parameter=5.0).changes_first_frame

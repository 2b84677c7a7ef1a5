"""Soft and hard corruption: invariants that every type and severity must keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multismolvla.corruption import (
    HARD_TYPES,
    IMAGENET_C_TYPES,
    SEVERITIES,
    SOFT_TYPES,
    STATIC_TYPES,
    TRAINING_TYPES,
    episode_seed,
    frame_generator,
    parse_condition,
)
from multismolvla.corruption.hard import apply_hard
from multismolvla.corruption.soft import apply_soft
from multismolvla.modalities import MODALITIES

SIZE = 64
LABELS = 8
ALL_TYPES = [(m, t) for m in MODALITIES for t in SOFT_TYPES[m]]
#: Types of ImageNet-C whose mean difference need not grow, by their published values: other weather picture,
#: other hue direction, another aliasing grid, drops of water before drops of mud, more rounds at a smaller
#: reach.
UNORDERED = {"frost", "snow", "saturate", "elastic_transform", "pixelate", "spatter", "glass_blur"}


def picture(modality: str) -> torch.Tensor:
    """A table-top-like picture as the environment delivers it: raw dtype and native size."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    box = (x > 15) & (x < 35) & (y > 20) & (y < 45)
    can = (x - 48) ** 2 + (y - 30) ** 2 < 64
    if modality == "rgb":
        base = torch.stack([90 + x, 80 + y, 120 + (x // 8 + y // 8) % 2 * 40])
        return torch.where(box, torch.tensor([200, 40, 40])[:, None, None], base).to(torch.uint8)
    if modality == "depth":
        metres = 1.2 + y / 100.0 - 0.3 * box - 0.2 * can
        metres[:2] = 0.0
        return metres[None].to(torch.float32)
    if modality == "seg":
        classes = 3 * box + 4 * can + 1 * (y > 58)
        return torch.stack([classes, classes * 2, torch.zeros_like(classes)]).to(torch.uint8)
    return (80 + 100 * can + 20 * box)[None].expand(3, -1, -1).to(torch.uint8)


def corrupted(modality: str, type_: str, severity: int, seed: int = 7):
    generator = torch.Generator().manual_seed(seed)
    return apply_soft(picture(modality), None, modality, type_, severity, generator, LABELS)


@pytest.mark.parametrize(("modality", "type_"), ALL_TYPES)
def test_every_type_works_at_64_pixels_and_grows_with_severity(modality, type_):
    clean = picture(modality)
    distances = []
    for severity in SEVERITIES:
        image, valid = corrupted(modality, type_, severity)
        assert image.shape == clean.shape
        assert image.dtype == clean.dtype
        assert torch.isfinite(image.float()).all()
        again, _ = corrupted(modality, type_, severity)
        assert torch.equal(image, again), "the same generator must give the same picture"
        if modality == "depth":
            assert valid.dtype == torch.bool
            lost = (clean > 0) & ~valid
            error = ((image - clean).abs() * valid).sum() / valid.sum()
            distances.append(float(error + lost.float().mean()))
        elif modality == "seg":
            distances.append(float((image[0] != clean[0]).float().mean()))
        else:
            distances.append(float((image.float() - clean.float()).abs().mean()))
    assert distances[-1] > 0, "severity 5 changed nothing"
    if type_ not in UNORDERED:
        assert distances == sorted(distances), distances
        assert distances[-1] > distances[0]


@pytest.mark.parametrize(("modality", "type_"), ALL_TYPES)
def test_no_global_random_state_is_touched_and_input_is_kept(modality, type_):
    clean = picture(modality)
    np.random.seed(3)
    torch.manual_seed(3)
    numpy_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    original = clean.clone()
    apply_soft(clean, None, modality, type_, 3, torch.Generator().manual_seed(1), LABELS)
    assert torch.equal(clean, original)
    assert (np.random.get_state()[1] == numpy_before).all()
    assert torch.equal(torch.get_rng_state(), torch_before)


@pytest.mark.parametrize("type_", [t for t in SOFT_TYPES["seg"] if t != "label_swap"])
@pytest.mark.parametrize("seed", range(6))
def test_segmentation_ids_are_never_new(type_, seed):
    clean = picture("seg")
    known = set(clean[0].unique().tolist()) | {0}
    for severity in SEVERITIES:
        image, _ = corrupted("seg", type_, severity, seed)
        assert set(image[0].unique().tolist()) <= known
        assert set(image[1].unique().tolist()) <= set(clean[1].unique().tolist()) | {0}


@pytest.mark.parametrize("seed", range(8))
def test_a_swapped_label_is_another_class_of_the_label_set_while_there_is_one(seed):
    clean = picture("seg")
    image, _ = corrupted("seg", "label_swap", 5, seed)
    assert not ((image[0] == 0) & (clean[0] != 0)).any(), "that would be a removed instance"
    assert image[0].max() < LABELS
    assert torch.equal(image[1], clean[1])
    alone = (clean == clean.max()).to(torch.uint8)
    image, _ = apply_soft(alone, None, "seg", "label_swap", 5, torch.Generator().manual_seed(seed), 2)
    assert set(image[0].unique().tolist()) <= {0, 1}


@pytest.mark.parametrize("seed", range(8))
def test_an_object_keeps_its_wrong_label_when_another_class_comes_into_view(seed):
    before = picture("seg")
    after = before.clone()
    after[0, :10, :10], after[1, :10, :10] = 6, 9
    swapped = [
        apply_soft(p, None, "seg", "label_swap", 5, frame_generator(seed, step, "label_swap"), LABELS)[0]
        for step, p in enumerate((before, after))
    ]
    seen_before = after[0] != 6
    assert torch.equal(swapped[0][0][seen_before], swapped[1][0][seen_before])


@pytest.mark.parametrize("labels", [None, 4, 257])
def test_labels_cannot_be_swapped_without_the_label_set(labels):
    with pytest.raises(ValueError, match=rf"\(4\).*labels={labels}"):
        apply_soft(picture("seg"), None, "seg", "label_swap", 1, torch.Generator(), labels)


@pytest.mark.parametrize("type_", SOFT_TYPES["depth"])
def test_invalid_depth_is_a_mask_and_zero_and_never_returns(type_):
    clean = picture("depth")
    for severity in SEVERITIES:
        image, valid = corrupted("depth", type_, severity)
        assert not valid[clean == 0].any(), "a hole was filled"
        assert (image[~valid] == 0).all()
        assert (image[valid] > 0).all()


def test_hole_areas_follow_the_definition():
    clean = picture("depth")
    for severity, area in zip(SEVERITIES, (0.05, 0.10, 0.20, 0.35, 0.50), strict=True):
        _, valid = apply_soft(
            clean + 0.5, torch.ones(1, SIZE, SIZE, dtype=torch.bool), "depth", "holes", severity,
            torch.Generator().manual_seed(0),
        )  # fmt: skip
        assert float((~valid).float().mean()) == pytest.approx(area, abs=0.01)


def test_float_and_uint8_pictures_get_the_same_fault():
    image = picture("thermal")
    for type_ in SOFT_TYPES["thermal"]:
        as_uint8, _ = apply_soft(image, None, "thermal", type_, 3, torch.Generator().manual_seed(2))
        as_float, _ = apply_soft(image / 255.0, None, "thermal", type_, 3, torch.Generator().manual_seed(2))
        assert (as_uint8.float() / 255 - as_float).abs().max() <= 0.5 / 255 + 1e-6


def test_static_types_keep_one_realisation_and_dynamic_ones_are_indexed_by_step():
    for modality, type_ in [("depth", "noise"), ("depth", "occlusion"), ("thermal", "fixed_pattern")]:
        frames = [
            apply_soft(picture(modality), None, modality, type_, 4, frame_generator(11, step, type_))[0]
            for step in (0, 1, 1)
        ]
        assert torch.equal(frames[1], frames[2]), "a frame drawn twice must be the same"
        assert torch.equal(frames[0], frames[1]) == (type_ in STATIC_TYPES)


def test_episode_seed_is_stable_and_depends_on_every_part():
    base = (0, "suite", 1, 2, "image", "rgb", "gaussian_noise", 3)
    reference = episode_seed(*base)
    assert reference == 9070387714701093741, "the hash must never change: results of old runs depend on it"
    for position, other in enumerate((1, "suit", 2, 3, "image2", "depth", "shot_noise", 4)):
        changed = [*base[:position], other, *base[position + 1 :]]
        assert episode_seed(*changed) != reference


def test_training_types_exist_and_include_no_imagenet_c_definition():
    for modality, types in TRAINING_TYPES.items():
        assert set(types) <= set(SOFT_TYPES[modality])
        assert not set(types) & set(IMAGENET_C_TYPES)
    assert all(len(types) >= 3 for types in SOFT_TYPES.values())


@pytest.mark.parametrize("modality", MODALITIES)
def test_hard_faults(modality):
    clean = picture(modality)
    valid = clean > 0 if modality == "depth" else None
    for type_ in HARD_TYPES:
        if modality == "seg" and type_ in ("grey", "noisy_freeze"):
            with pytest.raises(ValueError, match=r"Class ids have no (mid-grey|sensor noise)"):
                apply_hard(clean, valid, modality, type_)
            with pytest.raises(ValueError, match=f"seg={type_} means nothing"):
                parse_condition(f"C2:seg={type_}")
            continue
        image, _ = apply_hard(clean, valid, modality, type_, clean + 1, torch.Generator().manual_seed(0))
        assert image.shape == clean.shape
        assert image.dtype == clean.dtype
        if type_ in ("drop", "zero"):
            assert not image.any()
        elif type_ == "freeze":
            assert torch.equal(image, clean + 1)
        elif type_ == "noisy_freeze":
            again, _ = apply_hard(clean, valid, modality, type_, clean + 1, torch.Generator().manual_seed(1))
            assert not torch.equal(image, again)
            scale = clean.mean() if modality == "depth" else 255 if clean.dtype == torch.uint8 else 1
            assert 0.002 * scale < (image.float() - (clean + 1).float()).abs().mean() < 0.02 * scale
        else:
            assert len(image.unique()) == 1
    with pytest.raises(ValueError, match="last good picture"):
        apply_hard(clean, valid, modality, "freeze")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((picture("rgb"), None, "sound", "noise", 1), "Unknown modality 'sound'"),
        ((picture("rgb"), None, "rgb", "holes", 1), "Unknown corruption 'holes' for rgb"),
        ((picture("rgb"), None, "rgb", "builtin_noise", 0), "Severity 0"),
        ((picture("rgb")[None], None, "rgb", "builtin_noise", 1), r"must have shape \(C, H, W\)"),
        ((picture("rgb").permute(1, 2, 0), None, "rgb", "builtin_noise", 1), "channels first"),
        ((picture("seg").float(), None, "seg", "boundary", 1), "integer ids"),
        ((picture("depth").double(), None, "depth", "noise", 1), "float32 metres"),
        ((torch.full((1, 8, 8), torch.nan), None, "depth", "noise", 1), "NaN"),
        ((torch.full((1, 8, 8), 300), None, "seg", "boundary", 1), r"must lie in \[0, 255\]"),
    ],
)
def test_bad_pictures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        apply_soft(*arguments, torch.Generator())

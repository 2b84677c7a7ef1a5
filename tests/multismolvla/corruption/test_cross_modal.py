"""Cross-modal faults move pictures and change nothing in them."""

from __future__ import annotations

import math

import pytest
import torch

from multismolvla.corruption import CROSS_MODAL_TYPES, apply_cross
from multismolvla.corruption.cross_modal import PARAMETERS, check_parameter, draw_displacement

HEIGHT, WIDTH = 40, 224


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def depth() -> torch.Tensor:
    return 0.5 + torch.arange(WIDTH).float().expand(1, HEIGHT, WIDTH) / WIDTH


@pytest.mark.parametrize("pixels", PARAMETERS["shift"])
@pytest.mark.parametrize("seed", range(4))
def test_depth_is_shifted_and_what_nobody_measured_is_invalid(pixels, seed):
    clean, n = depth(), int(pixels)
    image, valid = apply_cross(clean, clean > 0, "depth", "shift", pixels, generator(seed))
    assert valid.sum() == HEIGHT * (WIDTH - n)
    assert (image[~valid] == 0).all()
    left = torch.equal(image[..., : WIDTH - n], clean[..., n:])
    right = torch.equal(image[..., n:], clean[..., : WIDTH - n])
    assert left != right


def test_the_direction_is_a_coin_per_episode():
    def first(seed):
        return bool(apply_cross(depth(), None, "depth", "shift", 8, generator(seed))[0][0, 0, 0] == 0)

    assert {first(seed) for seed in range(8)} == {True, False}
    assert first(1) == first(1)


@pytest.mark.parametrize(
    ("width", "expected"), [(224, [2, 4, 8, 16]), (256, [2, 5, 9, 18]), (64, [1, 1, 2, 5])]
)
def test_pixels_are_scaled_to_the_pictures_own_width(width, expected):
    picture = torch.ones(1, 8, width)
    moved = [
        int((apply_cross(picture, picture > 0, "depth", "shift", p, generator())[0] == 0).sum()) // 8
        for p in PARAMETERS["shift"]
    ]
    assert moved == expected


def test_class_ids_are_moved_and_never_mixed_and_thermal_repeats_its_border():
    ids = torch.randint(1, 9, (3, HEIGHT, WIDTH), generator=generator(), dtype=torch.uint8)
    moved, _ = apply_cross(ids, None, "seg", "shift", 16, generator())
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) <= {0, *ids.unique().tolist()}
    thermal = torch.randint(0, 255, (3, HEIGHT, WIDTH), generator=generator(), dtype=torch.uint8)
    moved, _ = apply_cross(thermal, None, "thermal", "shift", 16, generator())
    assert torch.equal(moved[..., 0], thermal[..., 0]) or torch.equal(moved[..., -1], thermal[..., -1])
    assert (moved[..., :16] == moved[..., :1]).all() or (moved[..., -16:] == moved[..., -1:]).all()


@pytest.mark.parametrize("modality", CROSS_MODAL_TYPES)
def test_rotated_is_its_own_inverse(modality):
    channels = 1 if modality == "depth" else 3
    picture = torch.rand(channels, HEIGHT, WIDTH, generator=generator())
    picture[..., :5, :5] = 0
    valid = picture > 0 if modality == "depth" else None
    turned, turned_valid = apply_cross(picture, valid, modality, "rotated", None, generator())
    assert torch.equal(turned[..., 0, 0], picture[..., -1, -1])
    back, back_valid = apply_cross(turned, turned_valid, modality, "rotated", None, generator())
    assert torch.equal(back, picture)
    assert valid is None or torch.equal(back_valid, valid)


@pytest.mark.parametrize("factor", PARAMETERS["scale"])
def test_scale_keeps_holes(factor):
    clean = depth()
    clean[..., :3] = 0
    image, valid = apply_cross(clean, clean > 0, "depth", "scale", factor, generator())
    assert torch.allclose(image, clean * factor)
    assert torch.equal(valid, clean > 0)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="rotated"):
        apply_cross(depth(), None, "rgb", "scale", 0.8, generator())
    with pytest.raises(ValueError, match="swapped"):
        apply_cross(depth(), None, "depth", "swapped", None, generator())
    assert "positive factor" in check_parameter("scale", 1.0)
    assert "positive factor" in check_parameter("scale", float("inf"))
    assert "pixels" in check_parameter("shift", 0.0)
    assert "no number" in check_parameter("rotated", 2)
    assert check_parameter("shift", 8) is None


def test_a_displacement_has_its_length_and_any_direction():
    moved = [draw_displacement("moved", 5, generator(seed)) for seed in range(64)]
    offsets = torch.tensor([d.offset for d in moved])
    assert torch.allclose(offsets.norm(dim=1), torch.full((64,), 0.05))
    assert (offsets.mean(0).abs() < 0.02).all()
    assert all(d.turn == (0, 0, 0) for d in moved)
    turned = draw_displacement("turned", 10, generator(3))
    assert math.isclose(math.dist(turned.turn, (0, 0, 0)), math.radians(10))
    assert turned.offset == (0, 0, 0)
    farther = draw_displacement("moved", 2, generator(0)).offset
    assert torch.allclose(torch.tensor(farther) * 2.5, offsets[0])  # the same way, less far


@pytest.mark.parametrize(
    ("type_", "number"), [("moved", None), ("moved", 101), ("turned", 0), ("turned", 200)]
)
def test_a_displacement_without_a_sensible_size_is_refused(type_, number):
    assert "needs" in check_parameter(type_, number)

"""What rooms do to a camera."""

from __future__ import annotations

import pytest
import torch

from multismolvla.corruption.names import ROOM_TYPES, seen_in_training
from multismolvla.corruption.soft import apply_soft
from multismolvla.health import Cause, Picture, inspect


def scene(side=64):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")[0]


def broken(type_, severity=3, seed=0, depth=None, image=None):
    generator = torch.Generator().manual_seed(seed)
    image = scene() if image is None else image
    return apply_soft(image, None, "rgb", type_, severity, generator, depth=depth)[0]


@pytest.mark.parametrize("type_", ROOM_TYPES)
def test_training_never_meets_them(type_):
    assert not seen_in_training("rgb", type_)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_a_covered_lens_is_dark_and_noisy_but_not_constant(severity):
    image = broken("covered_lens", severity)
    assert image.mean() < 0.15
    assert inspect([Picture(image[None], "rgb")]).cause.item() == Cause.FIT


def test_half_a_picture_is_lost_from_one_side_and_the_other_stays():
    change = (broken("half_covered") - scene()).abs().amax(0)
    lost = (change > 0.05).float().mean().item()
    assert 0.25 < lost < 0.55
    assert min(change[:, -4:].max(), change[:, :4].max(), change[-4:].max(), change[:4].max()) < 0.05


def test_glare_saturates_and_moves():
    first, second = broken("glare", seed=0), broken("glare", seed=1)
    assert (first >= 1).all(0).float().mean() > 0.02
    assert not torch.allclose(first, second, atol=0.1)


def test_smoke_hides_what_is_far():
    depth = torch.cat([torch.full((1, 64, 32), 0.5), torch.full((1, 64, 32), 2.0)], 2)
    image = broken("smoke", depth=depth)
    near, far = (part.std().item() for part in image.split(32, 2))
    clean_near, clean_far = (part.std().item() for part in scene().split(32, 2))
    assert far / clean_far < 0.6 * near / clean_near
    assert near < clean_near

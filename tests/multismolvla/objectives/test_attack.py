"""The attack of training: inside the ball, deterministic, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from multismolvla.objectives.attack import pgd

EPS = 4 / 255


def pictures(number: int = 2, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = [(6, 8), (5, 5)][:number]
    return [torch.rand(3, 3, *size, generator=g) for size in sizes]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quadratic(shown: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([(p - 0.5).square().sum() for p in shown]).sum()


def test_radius_zero_gives_the_pictures_back_and_draws_nothing():
    clean, g = pictures(), generator()
    before, everywhere = g.get_state(), torch.get_rng_state()
    found = pgd(quadratic, clean, 0.0, 0.0, 5, g)
    assert all(torch.equal(f, c) for f, c in zip(found, clean, strict=True))
    assert torch.equal(g.get_state(), before)
    assert torch.equal(torch.get_rng_state(), everywhere)


@pytest.mark.parametrize("steps", [0, 1, 3, 10])
def test_it_stays_in_the_ball_and_in_the_range_of_pixels(steps):
    clean = pictures()
    found = pgd(quadratic, clean, EPS, EPS, steps, generator())
    for f, c in zip(found, clean, strict=True):
        assert f.dtype == torch.float32
        assert (f - c).abs().max() <= EPS + 1e-6
        assert f.min() >= 0
        assert f.max() <= 1
        assert (f - c).abs().max() > EPS / 2
        assert not f.requires_grad


def test_on_a_linear_loss_it_finds_the_corner_that_is_best():
    clean = [p * 0.5 + 0.25 for p in pictures()]  # no pixel near 0 or 1
    slopes = [torch.randn(p.shape, generator=generator(1)) for p in clean]
    found = pgd(lambda s: sum((p * w).sum() for p, w in zip(s, slopes, strict=True)), clean, EPS, EPS, 3,
                generator())  # fmt: skip
    for f, c, w in zip(found, clean, slopes, strict=True):
        assert torch.allclose(f, c + EPS * w.sign(), atol=1e-6)


def test_more_steps_are_not_weaker_than_the_start():
    clean = pictures()
    losses = [quadratic(pgd(quadratic, clean, EPS, EPS / 4, n, generator())).item() for n in (0, 1, 5, 20)]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


def test_samples_without_the_camera_are_left_alone():
    clean = pictures()
    where = [torch.tensor([True, False, True]), torch.tensor([False, False, False])]
    found = pgd(quadratic, clean, EPS, EPS / 4, 3, generator(), where)
    for f, c, w in zip(found, clean, where, strict=True):
        assert torch.equal(f[~w], c[~w])
        assert ((f - c).abs().flatten(1).amax(1) > EPS / 2).tolist() == w.tolist()


def test_the_seed_decides_and_the_global_generator_has_no_part():
    state = torch.get_rng_state()
    one, same, other = (pgd(quadratic, pictures(), EPS, EPS / 4, 2, generator(s)) for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_gradients_flags_and_buffers_stay_as_they_are():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(1)).eval()
    network(pictures(1)[0])
    network[0].weight.grad = torch.ones_like(network[0].weight)
    network[0].bias.requires_grad_(False)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    pgd(lambda shown: network(shown[0]).sum(), pictures(1), EPS, EPS / 4, 3, generator())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert torch.equal(network[0].weight.grad, torch.ones_like(network[0].weight))
    assert [n for n, p in network.named_parameters() if p.grad is not None] == ["0.weight"]
    assert [n for n, p in network.named_parameters() if not p.requires_grad] == ["0.bias"]
    assert not any(m.training for m in network.modules())


def test_it_works_where_gradients_are_off():
    with torch.no_grad():
        found = pgd(quadratic, pictures(), EPS, EPS / 4, 2, generator())
    assert quadratic(found) > quadratic(pictures())


def test_a_loss_that_does_not_see_a_picture_is_an_error():
    """A missing gradient must never pass for robustness."""
    with pytest.raises(RuntimeError):
        pgd(lambda shown: shown[0].sum(), pictures(), EPS, EPS / 4, 1, generator())

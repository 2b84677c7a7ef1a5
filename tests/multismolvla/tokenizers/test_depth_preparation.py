"""From metric depth to the official depth tokenizer's input: what must hold for every picture."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from multismolvla.tokenizers.depth import fill_invalid, prepare_depth, scale_to_unit, standardise

SIDES = st.integers(16, 40)


@st.composite
def scenes(draw, least_range: float = 0.0) -> Tensor:
    """A tabletop-like depth picture (1, 1, H, W) in metres: a tilted plane, a box, noise."""
    height, width = draw(SIDES), draw(SIDES)
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows = torch.linspace(0, 1, height)[:, None]
    depth = draw(st.floats(0.3, 5.0)) + draw(st.floats(least_range, 3.0)) * rows.expand(height, width)
    depth = depth + draw(st.floats(0.0, 0.05)) * torch.rand(height, width, generator=g)
    depth[4:9, 5:12] -= 0.1
    return depth[None, None]


@st.composite
def masks(draw, shape: tuple[int, int]) -> Tensor:
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return (torch.rand(1, 1, *shape, generator=g) < draw(st.floats(0.0, 1.0))).clone()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(scenes(), st.data())
def test_always_finite(depth: Tensor, data) -> None:
    valid = data.draw(masks(tuple(depth.shape[2:])))
    rubbish = data.draw(st.sampled_from([0.0, float("nan"), float("inf"), -7.0, 530.0]))
    out = prepare_depth(torch.where(valid, depth, rubbish), valid)
    assert out.dtype == torch.float32
    assert out.shape == depth.shape
    assert out.isfinite().all()
    assert torch.equal(
        out, prepare_depth(torch.where(valid, depth, 0.0), valid)
    )  # invalid values say nothing


@pytest.mark.parametrize("value", [1e-3, 0.7, 3.3333333, 900.0])
def test_constant_depth_is_all_zero(value: float) -> None:
    out = prepare_depth(torch.full((1, 1, 32, 32), value), torch.ones(1, 1, 32, 32, dtype=torch.bool))
    assert torch.equal(out, torch.zeros_like(out))


def test_no_valid_pixel_and_a_single_one_are_all_zero() -> None:
    depth = torch.full((2, 1, 32, 32), float("nan"))
    valid = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    depth[1, 0, 30, 2], valid[1, 0, 30, 2] = 1.5, True
    assert torch.equal(prepare_depth(depth, valid), torch.zeros(2, 1, 32, 32))
    assert torch.equal(fill_invalid(depth, valid)[1], torch.full((1, 32, 32), 1.5))


def test_float_noise_on_a_flat_map_is_not_blown_up() -> None:
    noise = 1e-6 * torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    out = prepare_depth(1.0 + noise, torch.ones(1, 1, 64, 64, dtype=torch.bool))
    assert out.abs().max() < 1.0
    relief = prepare_depth(1.0 + 1e4 * noise, torch.ones(1, 1, 64, 64, dtype=torch.bool))
    assert relief.std() > 1.0  # 1 cm of relief is a picture


@settings(max_examples=30, deadline=None, derandomize=True)
@given(scenes())
def test_unit_scale_is_the_labels_range(depth: Tensor) -> None:
    unit = scale_to_unit(depth)
    assert unit.min() == 0
    assert unit.max() <= 1
    if depth.max() - depth.min() > 1e-3:
        assert unit.max() == 1


@settings(max_examples=30, deadline=None, derandomize=True)
@given(scenes(0.2), st.floats(0.2, 20.0), st.floats(0.0, 10.0))
def test_scale_and_shift_of_the_scene_cancel(depth: Tensor, scale: float, shift: float) -> None:
    valid = torch.ones_like(depth, dtype=torch.bool)
    one = prepare_depth(depth, valid)
    # At 10 m float32 resolves a micrometre, a few 1e-5 of the smallest range here.
    torch.testing.assert_close(prepare_depth(depth * scale + shift, valid), one, rtol=1e-3, atol=1e-3)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(scenes(0.2), st.floats(0.3, 1.0), st.floats(0.0, 1.0))
def test_standardisation_is_affine_invariant_up_to_its_epsilon(
    depth: Tensor, scale: float, shift: float
) -> None:
    unit = scale_to_unit(depth).double()
    small = unit.float() * scale + shift
    trimmed = unit.flatten().sort().values
    n = trimmed.numel()
    variance = trimmed[n // 10 : 9 * n // 10].var().item()
    # d / sqrt(v + eps) changes relatively by eps / (2 v), largest for the smaller scale.
    bound = 1e-6 / (2 * variance * scale**2)
    out, expected = standardise(small), standardise(unit)
    assert (out - expected).abs().max() <= (bound + 1e-4) * expected.abs().max() + 1e-4


@settings(max_examples=30, deadline=None, derandomize=True)
@given(scenes())
def test_order_is_kept(depth: Tensor) -> None:
    """Larger = farther before and after; equal depths stay equal."""
    out = prepare_depth(depth, torch.ones_like(depth, dtype=torch.bool)).flatten()
    order = depth.flatten().argsort()
    assert (out[order].diff() >= 0).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(scenes(), st.data())
def test_filling_takes_the_nearest_valid_value(depth: Tensor, data) -> None:
    valid = data.draw(masks(tuple(depth.shape[2:])))
    filled = fill_invalid(depth, valid)
    assert torch.equal(filled[valid], depth[valid])
    points = valid[0, 0].nonzero().float()
    if len(points) == 0:
        assert not filled.any()
        return
    for row, column in (~valid[0, 0]).nonzero()[:5].tolist():
        distance = (points - torch.tensor([row, column])).square().sum(1)
        nearest = points[distance == distance.min()].long()
        assert filled[0, 0, row, column] in depth[0, 0][nearest[:, 0], nearest[:, 1]]


def test_a_hole_behaves_like_its_surroundings() -> None:
    """A hole of a third of the picture, far more than the trimming tolerates, moves the rest by little."""
    rows = torch.linspace(1.0, 2.0, 48)[None, None, None, :].expand(1, 1, 48, 48)
    valid = torch.ones(1, 1, 48, 48, dtype=torch.bool)
    valid[:, :, 16:32, :] = False
    holed = prepare_depth(torch.where(valid, rows, 0.0), valid)
    torch.testing.assert_close(holed, prepare_depth(rows, torch.ones_like(valid)), rtol=0, atol=1e-5)


def test_statistics_leave_out_the_extreme_tenths_but_standardise_them() -> None:
    depth = torch.linspace(0, 1, 1000).view(1, 1, 20, 50).clone()
    spoilt = depth.clone()
    spoilt.view(-1)[:100] = -50.0
    spoilt.view(-1)[900:] = 80.0
    out, reference = standardise(spoilt).flatten(), standardise(depth).flatten()
    torch.testing.assert_close(out[100:900], reference[100:900])
    kept = depth.flatten()[100:900]
    torch.testing.assert_close(out[-1].item(), ((80 - kept.mean()) / (kept.var() + 1e-6).sqrt()).item())
    assert abs(out[100:900].mean().item()) < 1e-5
    assert abs(out[100:900].var().item() - 1) < 1e-3


def test_pictures_of_a_batch_are_independent() -> None:
    g = torch.Generator().manual_seed(0)
    depth = torch.rand(4, 1, 24, 24, generator=g) * torch.tensor([1.0, 5.0, 0.1, 2.0]).view(-1, 1, 1, 1)
    valid = torch.rand(4, 1, 24, 24, generator=g) > torch.tensor([0.0, 0.5, 0.9, 1.0]).view(-1, 1, 1, 1)
    single = [prepare_depth(d[None], v[None]) for d, v in zip(depth, valid, strict=True)]
    assert torch.equal(prepare_depth(depth, valid), torch.cat(single))


def test_half_precision_depth_is_prepared_in_float32() -> None:
    depth = (torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) + 0.5).half()
    valid = torch.ones_like(depth, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        out = prepare_depth(depth, valid)
    assert torch.equal(out, prepare_depth(depth.float(), valid))

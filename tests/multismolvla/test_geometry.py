"""Rule 5: what lies in one place lies in one cell, whatever modality, shape or mounting of the camera."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from multismolvla.fourm import FourMConfig, FourMEncoder
from multismolvla.geometry import (
    resize_continuous,
    resize_depth,
    resize_ids,
    rotate_half_turns,
    to_square,
)
from multismolvla.modalities import MODALITIES
from multismolvla.tokenizers import PatchDepthTokenizer, QuadrantSegTokenizer, ThermalGridTokenizer
from multismolvla.tower import MultimodalTower

SIDE, GRID = 32, 4
DOMAINS = {"rgb": "rgb@32", "depth": "tok_depth@32", "seg": "tok_semseg@32", "thermal": "tok_thermal@32"}


def a_tower(square: str = "crop") -> MultimodalTower:
    """A tower whose tokenizers share one grid of 4x4 cells of 8x8 pixels."""
    grid = [GRID, GRID]
    custom = {
        "rgb@32": {"kind": "pixels", "grid": grid, "positions": "sincos"},
        "tok_depth@32": {"kind": "tokens", "vocab": 64, "grid": grid, "positions": "sincos"},
        "tok_semseg@32": {"kind": "tokens", "vocab": 4096, "grid": grid, "positions": "sincos"},
        "tok_thermal@32": {"kind": "tokens", "vocab": 256, "grid": grid, "positions": "sincos"},
    }
    config = FourMConfig(
        dim=16, encoder_depth=1, num_heads=2, image_size=SIDE, patch_size=SIDE // GRID,
        domains_in=tuple(custom), custom_domains=custom,
    )  # fmt: skip
    tokenizers = {
        "depth": PatchDepthTokenizer(grid=GRID, bins=64),
        "seg": QuadrantSegTokenizer(grid=GRID),
        "thermal": ThermalGridTokenizer(grid=GRID),
    }
    return MultimodalTower(FourMEncoder(config, list(custom)), DOMAINS, tokenizers, SIDE, square)


# ---------------------------------------------------------------- marker


def a_scene(
    height: int, width: int, rows: slice | None = None, columns: slice | None = None
) -> dict[str, torch.Tensor]:
    """A grey scene, with one object in it if asked, seen by all four sensors: white, near, class 3, hot."""
    scene = {
        "rgb": torch.full((1, 3, height, width), 0.5),
        "depth": torch.full((1, 1, height, width), 2.0),
        "seg": torch.zeros(1, 1, height, width, dtype=torch.int64),
        "thermal": torch.full((1, 1, height, width), 0.2),
    }
    if rows is not None:
        for modality, value in {"rgb": 1.0, "depth": 0.5, "seg": 3, "thermal": 0.9}.items():
            scene[modality][..., rows, columns] = value
    return scene


def changed_cells(tower: MultimodalTower, scene: dict, empty: dict) -> dict[str, set[tuple[int, int]]]:
    """Per modality, the cells at which the encoder looks in which the object shows most."""
    presence = torch.ones(1, 1, len(MODALITIES), dtype=torch.bool)
    with_, without = (
        tower.encoder_inputs([scene], presence).values,
        tower.encoder_inputs([empty], presence).values,
    )
    cells = {}
    for modality, domain in DOMAINS.items():
        difference = (with_[domain].float() - without[domain].float()).abs()
        if modality == "rgb":
            difference = torch.nn.functional.avg_pool2d(difference.mean(1), SIDE // GRID)
        strongest = difference[0] > 0.5 * difference.max()
        cells[modality] = {tuple(c) for c in strongest.nonzero().tolist()}
    return cells


@pytest.mark.parametrize("half_turns", [0, 1])
@pytest.mark.parametrize("square", ["crop", "stretch"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (96, 128), (128, 80), (61, 97)])
def test_a_marker_lands_in_the_same_cell_in_every_modality(height, width, square, half_turns):
    tower = a_tower(square)
    # the object fills one cell of the square that is cut out (or of the whole picture when that is stretched)
    box_h, box_w = (min(height, width),) * 2 if square == "crop" else (height, width)
    y0, x0 = (height - box_h) // 2, (width - box_w) // 2
    for row, column in [(0, 0), (1, 2), (3, 1)]:
        cell_h, cell_w = box_h / GRID, box_w / GRID
        rows = slice(y0 + round(row * cell_h), y0 + round((row + 1) * cell_h))
        columns = slice(x0 + round(column * cell_w), x0 + round((column + 1) * cell_w))
        scene, empty = (
            {m: rotate_half_turns(x, half_turns) for m, x in seen.items()}
            for seen in (a_scene(height, width, rows, columns), a_scene(height, width))
        )
        turned = (GRID - 1 - row, GRID - 1 - column) if half_turns else (row, column)
        assert changed_cells(tower, scene, empty) == dict.fromkeys(DOMAINS, {turned})


def test_an_object_outside_the_centre_square_is_cut_from_every_modality_alike():
    tower = a_tower("crop")
    scene, empty = a_scene(32, 96, slice(8, 24), slice(2, 18)), a_scene(32, 96)
    presence = torch.ones(1, 1, len(MODALITIES), dtype=torch.bool)
    assert (
        tower.encoder_inputs([scene], presence).fingerprint()
        == tower.encoder_inputs([empty], presence).fingerprint()
    )


# ---------------------------------------------------------------- squares and turns


@given(height=st.integers(1, 40), width=st.integers(1, 40), lead=st.integers(1, 3))
def test_crop_is_the_centre_square_and_keeps_values(height, width, lead):
    image = torch.arange(lead * height * width).view(lead, height, width)
    square = to_square(image)
    side = min(height, width)
    assert square.shape == (lead, side, side)
    top, left = (height - side) // 2, (width - side) // 2
    assert torch.equal(square, image[:, top : top + side, left : left + side])
    assert torch.equal(to_square(image, "stretch"), image)


def test_an_unknown_square_mode_is_named():
    with pytest.raises(ValueError, match="'fit'.*crop.*stretch"):
        to_square(torch.zeros(1, 2, 3), "fit")


@pytest.mark.parametrize("turns", [-2, -1, 0, 1, 2, 3])
def test_half_turns(turns):
    image = torch.arange(6).view(1, 2, 3)
    assert rotate_half_turns(image, turns).tolist() == (
        [[[5, 4, 3], [2, 1, 0]]] if turns % 2 else image.tolist()
    )


# ---------------------------------------------------------------- ids


@settings(deadline=None)
@given(
    ids=st.lists(st.sampled_from([0, 3, 7, 4095, 70000]), min_size=1, max_size=12),
    size=st.integers(1, 24),
    dtype=st.sampled_from([torch.int64, torch.int32]),
)
def test_ids_are_picked_never_mixed(ids, size, dtype):
    image = torch.tensor(ids, dtype=dtype).view(1, 1, 1, -1).expand(1, 1, len(ids), -1)
    resized = resize_ids(image, size)
    assert resized.dtype == dtype
    assert resized.shape == (1, 1, size, size)
    assert set(resized.unique().tolist()) <= set(ids)


def test_ids_are_sampled_at_pixel_centres():
    # 4 -> 2 picks the pixel that holds the centre of each new one: columns 1 and 3, as bilinear's half-pixel
    # centres do
    image = torch.arange(4).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert resize_ids(image, 2)[0, 0, 0].tolist() == [1, 3]


# ---------------------------------------------------------------- depth


def test_depth_averages_over_valid_pixels_only():
    depth = torch.tensor([[[[1.0, 3.0], [9.0, 9.0]]]]).repeat_interleave(4, -1).repeat_interleave(4, -2)
    valid = torch.ones_like(depth, dtype=torch.bool)
    valid[..., 4:, :] = False  # the lower half is a hole full of nonsense
    small, seen = resize_depth(depth, valid, 2)
    assert seen[0, 0].tolist() == [[True, True], [False, False]]
    assert torch.equal(small[0, 0, 1], torch.zeros(2))
    # near the edge between 1 m and 3 m values mix, but nothing of the 9 m reaches them
    assert small[0, 0, 0].min() >= 1.0
    assert small[0, 0, 0].max() <= 3.0


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    height=st.integers(2, 24),
    width=st.integers(2, 24),
    size=st.integers(1, 24),
    hole=st.floats(0, 1),
)
def test_resized_depth_stays_within_the_valid_pixels_range(seed, height, width, size, hole):
    g = torch.Generator().manual_seed(seed)
    depth = 0.3 + 3 * torch.rand(1, 1, height, width, generator=g)
    valid = torch.rand(1, 1, height, width, generator=g) >= hole
    assume(valid.any())
    poisoned = torch.where(valid, depth, torch.nan)  # what is invalid may be anything at all
    small, seen = resize_depth(poisoned, valid, size)
    assert small.isfinite().all()
    assert torch.equal(small[~seen], torch.zeros_like(small[~seen]))
    low, high = depth[valid].min(), depth[valid].max()
    assert (small[seen] >= low - 1e-4).all()
    assert (small[seen] <= high + 1e-4).all()
    if valid.all():
        assert seen.all()
        assert torch.allclose(small, resize_continuous(depth, size), atol=1e-5)


def test_a_hole_neither_spreads_nor_vanishes():
    valid = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    valid[..., 16:48, 16:48] = False  # a quarter of the picture
    _, seen = resize_depth(torch.ones(1, 1, 64, 64), valid, 16)
    assert (~seen).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert not seen[..., 5:11, 5:11].any()
    assert seen[..., :3, :].all()


def test_depth_at_its_own_size_only_clears_what_is_invalid():
    depth, valid = torch.full((1, 1, 4, 4), 2.0), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    valid[..., 0, 0] = False
    same, seen = resize_depth(depth, valid, 4)
    assert torch.equal(seen, valid)
    assert same[0, 0, 0, 0] == 0
    assert same.sum() == 30

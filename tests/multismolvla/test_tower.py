"""The tower: folding of views, presence, and what a fault does to what enters the encoder."""

from __future__ import annotations

import pytest
import torch

from multismolvla.fourm import FourMConfig, FourMEncoder
from multismolvla.modalities import MODALITIES
from multismolvla.tokenizers import PatchDepthTokenizer, QuadrantSegTokenizer, ThermalGridTokenizer
from multismolvla.tower import MultimodalTower

SIDE = 32
DOMAINS = {"rgb": "rgb@32", "depth": "tok_depth@32", "seg": "tok_semseg@32", "thermal": "tok_thermal@32"}
CUSTOM = {
    "rgb@32": {"kind": "pixels", "grid": [4, 4], "positions": "sincos"},
    "tok_depth@32": {"kind": "tokens", "vocab": 64, "grid": [4, 4], "positions": "sincos"},
    "tok_semseg@32": {"kind": "tokens", "vocab": 4096, "grid": [4, 4], "positions": "sincos"},
    "tok_thermal@32": {"kind": "tokens", "vocab": 256, "grid": [2, 2], "positions": "sincos"},
}


@pytest.fixture(scope="module")
def tower() -> MultimodalTower:
    torch.manual_seed(0)
    config = FourMConfig(
        dim=16, encoder_depth=2, num_heads=2, image_size=SIDE, patch_size=8, domains_in=tuple(CUSTOM),
        custom_domains=CUSTOM
    )  # fmt: skip
    encoder = FourMEncoder(config, list(CUSTOM)).eval()
    return MultimodalTower(encoder, DOMAINS, tokenizers(), SIDE)


def tokenizers() -> dict:
    return {
        "depth": PatchDepthTokenizer(grid=4, bins=64),
        "seg": QuadrantSegTokenizer(grid=4),
        "thermal": ThermalGridTokenizer(grid=2),
    }


def a_view(seed: int, batch: int = 3) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "rgb": torch.rand(batch, 3, SIDE, SIDE, generator=g),
        "depth": 0.3 + 2 * torch.rand(batch, 1, SIDE, SIDE, generator=g),
        "depth_valid": torch.rand(batch, 1, SIDE, SIDE, generator=g) > 0.2,
        "seg": torch.randint(0, 8, (batch, 1, SIDE, SIDE), generator=g),
        "thermal": torch.rand(batch, 1, SIDE, SIDE, generator=g),
    }


def all_there(batch: int = 3, views: int = 2) -> torch.Tensor:
    return torch.ones(batch, views, len(MODALITIES), dtype=torch.bool)


@torch.no_grad()
def test_folded_views_equal_one_call_per_view(tower):
    views, presence = [a_view(1), a_view(2)], all_there()
    presence[0, 1, 0] = presence[2, 0, 2] = presence[2, 0, 3] = False
    folded = tower(views, presence)
    for v, streams in enumerate(views):
        alone = tower([streams], presence[:, v : v + 1])
        for m in MODALITIES:
            assert torch.equal(folded.present[m].unflatten(0, (3, 2))[:, v], alone.present[m])
            assert torch.allclose(folded.tokens[m].unflatten(0, (3, 2))[:, v], alone.tokens[m], atol=1e-6)


@pytest.mark.parametrize("poor", [0, 1])
@torch.no_grad()
def test_a_view_without_a_stream_has_no_tokens_of_it(tower, poor):
    views = [a_view(1), a_view(2)]
    views[poor] = {m: x for m, x in views[poor].items() if m in ("rgb", "seg")}
    out = tower(views, all_there())
    for v, streams in enumerate(views):
        alone = tower([streams], all_there(views=1))
        assert set(alone.tokens) == ({"rgb", "seg"} if v == poor else set(MODALITIES))
        for m in MODALITIES:
            present = out.present[m].unflatten(0, (3, 2))[:, v]
            tokens = out.tokens[m].unflatten(0, (3, 2))[:, v]
            if m in alone.tokens:
                assert torch.equal(present, alone.present[m])
                assert torch.allclose(tokens, alone.tokens[m], atol=1e-6)
            else:
                assert not present.any()
                assert torch.equal(tokens, torch.zeros_like(tokens))


@torch.no_grad()
def test_an_absent_modality_is_not_a_black_picture(tower):
    view, presence = a_view(1), all_there(views=1)
    presence[:, :, MODALITIES.index("rgb")] = False
    absent = tower([view], presence)
    without = tower([{m: x for m, x in view.items() if m != "rgb"}], all_there(views=1))
    black = tower([view | {"rgb": torch.zeros_like(view["rgb"])}], all_there(views=1))
    assert "rgb" not in absent.tokens
    for m in ("depth", "seg", "thermal"):
        assert torch.equal(absent.tokens[m], without.tokens[m])
        assert not torch.allclose(absent.tokens[m], black.tokens[m], atol=1e-4)


@pytest.mark.parametrize("views", [[{}, {}], None])
def test_nothing_present_leaves_nothing_in_the_encoder(tower, views):
    presence = all_there() if views else torch.zeros_like(all_there())
    inputs = tower.encoder_inputs(views or [a_view(1), a_view(2)], presence)
    assert inputs.values == {}
    assert inputs.present == {}
    assert inputs.fingerprint() == {}


@torch.no_grad()
def test_cells_without_a_valid_depth_pixel_are_absent(tower):
    view = a_view(1)
    view["depth_valid"] = torch.ones_like(view["depth_valid"])
    view["depth_valid"][:, :, 8:16, 16:24] = False  # exactly the cell (1, 2)
    there = tower([view], all_there(views=1)).present["depth"]
    assert not there[:, 1, 2].any()
    assert there.sum() == 3 * 15
    assert (
        tower([{m: x for m, x in view.items() if m != "depth_valid"}], all_there(views=1))
        .present["depth"]
        .all()
    )


# -- fingerprint: did a fault reach the encoder? -------------------------------------------------------------


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_fault_in_one_modality_changes_its_fingerprint_and_no_other(tower, modality):
    view, presence = a_view(1), all_there(views=1)
    before = tower.encoder_inputs([view], presence).fingerprint()
    assert set(before) == set(DOMAINS.values())
    faulty = dict(view)
    faulty[modality] = view[modality].clone()
    faulty[modality][1, :, 8:24, 8:24] = view[modality][1].amin() if modality != "depth" else 3.5
    after = tower.encoder_inputs([faulty], presence).fingerprint()
    assert {d for d in before if before[d] != after[d]} == {DOMAINS[modality]}


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_lost_sensor_changes_its_fingerprint_and_its_content_does_not_count(tower, modality):
    view, presence = a_view(1), all_there(views=1)
    before = tower.encoder_inputs([view], presence).fingerprint()
    presence[1, 0, MODALITIES.index(modality)] = False
    lost = tower.encoder_inputs([view], presence).fingerprint()
    assert {d for d in before if before[d] != lost[d]} == {DOMAINS[modality]}
    zeroed = view | {modality: view[modality].clone()}
    zeroed[modality][1] = 0
    assert tower.encoder_inputs([zeroed], presence).fingerprint() == lost


def test_the_same_frames_have_the_same_fingerprint(tower):
    one, two = (tower.encoder_inputs([a_view(1), a_view(2)], all_there()).fingerprint() for _ in range(2))
    swapped = tower.encoder_inputs([a_view(2), a_view(1)], all_there()).fingerprint()
    assert one == two
    assert all(one[d] != swapped[d] for d in one)


# -- construction --------------------------------------------------------------------------------------------


def test_a_modality_without_a_tokenizer_is_named(tower):
    incomplete = {m: t for m, t in tokenizers().items() if m != "seg"}
    with pytest.raises(ValueError, match="'seg'.*'depth', 'thermal'"):
        MultimodalTower(tower.encoder, DOMAINS, incomplete, SIDE)


def test_the_order_of_modalities_is_the_projects_whatever_the_options_say(tower):
    shuffled = MultimodalTower(tower.encoder, dict(reversed(DOMAINS.items())), tokenizers(), SIDE)
    assert tuple(shuffled.domains) == MODALITIES
    assert shuffled.gridless == {}


def test_a_gradient_reaches_the_pixels_through_the_frozen_tower(tower):
    """Nothing in the tower learns, and still an attack must know where the pictures move its tokens."""
    frozen = MultimodalTower(tower.encoder.requires_grad_(False), DOMAINS, tokenizers(), SIDE)
    view = a_view(1)
    assert not frozen.wants_gradient(frozen.encoder_inputs([view], all_there(views=1)))
    pixels = view["rgb"].requires_grad_()
    inputs = frozen.encoder_inputs([view], all_there(views=1))
    assert frozen.wants_gradient(inputs)
    (gradient,) = torch.autograd.grad(frozen.encode(inputs).tokens["depth"].pow(2).sum(), pixels)
    assert (gradient.flatten(1).norm(dim=1) > 0).all(), "through attention, as depth's own ids have none"
    tower.encoder.requires_grad_(True)

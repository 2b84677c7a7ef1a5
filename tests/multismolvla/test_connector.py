"""Fusion and connector: absent modalities have no part in anything, and cells stay where they are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from multismolvla.connector import GridConnector, VisualBridge
from multismolvla.fusion import GatedFusion, resample_grid
from multismolvla.modalities import MODALITIES

DIM = 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_tokens(rows: int = 2, grid: int = 4, modalities=MODALITIES) -> dict[str, torch.Tensor]:
    g = generator()
    return {m: torch.randn(rows, grid, grid, DIM, generator=g) for m in modalities}


def everywhere(tokens: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {m: torch.ones(t.shape[:3], dtype=torch.bool) for m, t in tokens.items()}


def a_fusion(grid: int = 4) -> GatedFusion:
    torch.manual_seed(0)
    fusion = GatedFusion(DIM, MODALITIES, grid)
    for gate in fusion.gate.values():  # away from the start, where all gates are equal
        torch.nn.init.normal_(gate.weight)
        torch.nn.init.normal_(gate.bias)
    return fusion


# ---------------------------------------------------------------- resampling


@pytest.mark.parametrize("old", [(14, 14), (7, 14)])
@pytest.mark.parametrize("cell", [(0.1, 0.1), (0.1, 0.9), (0.55, 0.3), (0.9, 0.9)])
def test_a_marked_cell_stays_in_place_through_both_resamplings(old, cell):
    rows, columns = old
    tokens = torch.zeros(1, rows, columns, 1)
    row, column = int(cell[0] * rows), int(cell[1] * columns)
    tokens[0, row, column] = 1.0
    present = torch.ones(1, rows, columns, dtype=torch.bool)
    where = ((row + 0.5) / rows, (column + 0.5) / columns)
    for size in (16, 8):
        tokens, present = resample_grid(tokens, present, size)
        centre = (torch.arange(size) + 0.5) / size
        mass = tokens[0, :, :, 0]
        found = ((mass.sum(1) @ centre) / mass.sum(), (mass.sum(0) @ centre) / mass.sum())
        for seen, expected in zip(found, where, strict=True):
            assert seen.item() == pytest.approx(expected, abs=0.5 / 8)


def test_the_connectors_token_of_a_cell_is_the_one_at_its_place():
    torch.manual_seed(0)
    connector = GridConnector(DIM, 12, mid_grid=16, unshuffle=2, hidden_dim=16)
    assert connector.num_tokens == 64
    tokens, present = torch.zeros(1, 14, 14, DIM), torch.ones(1, 14, 14, dtype=torch.bool)
    plain = connector(tokens, present)
    for row, column in [(0, 0), (3, 10), (6, 4), (13, 13), (13, 0)]:
        marked = tokens.clone()
        marked[0, row, column] = torch.randn(DIM, generator=generator())
        change = (connector(marked, present) - plain).abs().sum(-1).view(8, 8)
        found = change.nonzero().float().mean(0)  # the layer norm hides how much of the mark a token got
        place = (torch.tensor([row, column]) + 0.5) / 14 * 8
        assert change[tuple(place.long())] > 0
        assert ((found + 0.5 - place).abs() <= 1).all()
        assert (change > 0).sum() <= 4  # nothing leaks beyond the neighbouring tokens


def test_absent_cells_have_no_weight_when_resampled():
    tokens, present = torch.ones(1, 4, 4, 1), torch.ones(1, 4, 4, dtype=torch.bool)
    tokens[0, :, 2:], present[0, :, 2:] = 1e4, False
    for size in (2, 6, 8):
        mixed, there = resample_grid(tokens, present, size)
        assert torch.allclose(mixed[there], torch.ones(1))
        assert torch.equal(mixed[~there], torch.zeros_like(mixed[~there]))
        assert there[0, :, 0].all()
        assert not there[0, :, -1].any()


def test_equal_size_is_the_identity_on_present_cells():
    tokens = torch.randn(1, 4, 4, 3, generator=generator())
    present = torch.rand(1, 4, 4, generator=generator(1)) > 0.5
    same, there = resample_grid(tokens, present, 4)
    assert torch.equal(there, present)
    assert torch.equal(same, torch.where(present[..., None], tokens, torch.zeros(())))


# ---------------------------------------------------------------- fusion


def test_the_weights_of_the_present_modalities_sum_to_one():
    fusion = a_fusion()
    with torch.no_grad():
        for m in MODALITIES:  # every modality says the same, so the fused token must say it too
            fusion.value[m].weight.zero_()
            fusion.value[m].bias.fill_(3.0)
    tokens = some_tokens()
    present = everywhere(tokens)
    for lost in range(len(MODALITIES)):
        fused, there, _ = fusion(tokens, present)
        assert torch.allclose(fused, torch.full_like(fused, 3.0), atol=1e-5)
        assert there.all()
        present[MODALITIES[lost]][:] = False
    fused, there, _ = fusion(tokens, present)
    assert not there.any()
    assert torch.equal(fused, torch.zeros_like(fused))


@pytest.mark.parametrize("absent", MODALITIES)
def test_an_absent_modality_changes_nothing_and_learns_nothing(absent):
    fusion = a_fusion()
    tokens = {m: t.requires_grad_() for m, t in some_tokens().items()}
    present = everywhere(tokens)
    present[absent][:] = False
    fused, there, _ = fusion(tokens, present)
    others = {m: t for m, t in tokens.items() if m != absent}
    assert torch.equal(fused, fusion(others, present)[0])
    fused.square().sum().backward()
    for m in MODALITIES:
        sources = [tokens[m], *fusion.value[m].parameters(), fusion.gate[m].weight]
        for parameter in sources:
            gradient = torch.zeros(()) if parameter.grad is None else parameter.grad
            assert bool(gradient.abs().sum() > 0) == (m != absent), m
    assert there.all()


def test_presence_is_per_cell():
    fusion = a_fusion()
    tokens = some_tokens(modalities=("rgb", "depth"))
    present = everywhere(tokens)
    present["depth"][:, 0] = False
    fused, _, _ = fusion(tokens, present)
    alone, _, _ = fusion({"rgb": tokens["rgb"]}, present)
    both, _, _ = fusion(tokens, everywhere(tokens))
    assert torch.allclose(fused[:, 0], alone[:, 0])
    assert torch.allclose(fused[:, 1:], both[:, 1:])
    assert not torch.allclose(fused[:, 0], both[:, 0], atol=1e-3)


def test_the_weight_of_a_modality_compares_it_with_the_others():
    fusion = a_fusion()
    with torch.no_grad():
        for m in MODALITIES:
            fusion.gate[m].weight.zero_()
            # RGB: three times the weight of any other
            fusion.gate[m].bias.fill_(math.log(3.0) if m == "rgb" else 0.0)
    tokens = some_tokens()
    present = everywhere(tokens)
    for lost in (None, "depth", "seg"):  # however many others there are
        if lost:
            present[lost][:] = False
        weights = fusion(tokens, present)[2]
        assert torch.allclose(weights["rgb"], torch.full((2,), 0.75))
        assert bool(weights["depth"].isnan().all()) == (lost is not None)
    assert torch.allclose(weights["thermal"], torch.full((2,), 0.25))
    present["rgb"][:, :, 1:] = False  # where it is alone, nothing can be compared
    assert torch.allclose(fusion(tokens, present)[2]["thermal"], torch.full((2,), 0.25))
    present["rgb"][:] = False
    assert fusion(tokens, present)[2]["thermal"].isnan().all()
    assert not weights["rgb"].requires_grad


def test_it_starts_as_the_plain_mean_of_the_normed_tokens():
    fusion = GatedFusion(DIM, MODALITIES, 4)
    tokens = some_tokens()
    fused, _, _ = fusion(tokens, everywhere(tokens))
    normed = [torch.nn.functional.layer_norm(t, (DIM,)) for t in tokens.values()]
    assert torch.allclose(fused, torch.stack(normed).mean(0), atol=1e-5)


def test_a_coarser_grid_is_brought_to_the_common_one():
    fusion = a_fusion(grid=4)
    tokens = some_tokens(modalities=("rgb",)) | {"thermal": torch.zeros(2, 2, 2, DIM)}
    plain, _, _ = fusion(tokens, everywhere(tokens))
    tokens["thermal"] = tokens["thermal"].clone()
    tokens["thermal"][:, 1, 0] = torch.randn(DIM, generator=generator())
    hot, _, _ = fusion(tokens, everywhere(tokens))
    change = (hot - plain).abs().sum(-1)[0]
    assert (
        change[2:, :2] > 0
    ).all()  # the lower left quarter; its neighbours get what interpolation gives them
    assert (change[0] == 0).all()
    assert (change[:, 3] == 0).all()


# ---------------------------------------------------------------- connector


def test_the_norm_of_the_tokens_is_the_teachers():
    torch.manual_seed(0)
    connector = GridConnector(DIM, 12, 4, 2, 16, with_globals=True)
    teacher = 0.037 * torch.randn(3, 64, 12, generator=generator())
    connector.match_norm(teacher)
    tokens = connector(some_tokens()["rgb"], torch.ones(2, 4, 4, dtype=torch.bool))
    rms = teacher.pow(2).mean().sqrt()
    for made in (tokens, connector.project_globals(torch.randn(2, 3, DIM))):
        assert torch.allclose(made.pow(2).mean(-1).sqrt(), rms, rtol=1e-3)
    assert connector.gain.requires_grad


def test_a_grid_that_cannot_be_folded_is_named():
    with pytest.raises(ValueError, match="connector_grid=15 .*connector_unshuffle=2"):
        GridConnector(DIM, 12, 15, 2, 16)


def a_bridge(**gridless: int) -> VisualBridge:
    torch.manual_seed(0)
    bridge = VisualBridge(
        a_fusion(), GridConnector(DIM, 12, 4, 2, 16, with_globals=bool(gridless)), gridless=gridless
    )
    nn.init.normal_(bridge.absent)
    return bridge


def test_a_view_of_which_nothing_is_left_keeps_its_place():
    """Its tokens stand for nothing; masked tokens would move what follows, see VisualBridge."""
    bridge = a_bridge(one=5, two=2)
    tokens = some_tokens(rows=3)
    present = everywhere(tokens)
    for mask in present.values():
        mask[1] = False
    rows = {"one": torch.randn(3, 5, DIM), "two": torch.randn(3, 2, DIM)}
    there = {"one": torch.tensor([True, True, False]), "two": torch.ones(3, dtype=torch.bool)}
    out, seen, extra, _ = bridge(tokens, present, rows, there)
    assert seen.tolist() == [True, False, True]
    assert torch.equal(out[1], bridge.absent.expand(4, 12))
    assert not torch.isclose(out[0], bridge.absent).any()
    assert torch.equal(extra["one"][2], bridge.absent.expand(5, 12))
    assert {d: r.shape for d, r in extra.items()} == {"one": (3, 5, 12), "two": (3, 2, 12)}
    assert bridge(tokens, present)[2].keys() == {"one", "two"}  # the same tokens, whatever was delivered
    assert a_bridge()(tokens, present)[2] == {}


def test_what_stands_for_nothing_learns_only_where_nothing_is():
    bridge = a_bridge()
    tokens = some_tokens(rows=3)
    present = everywhere(tokens)
    bridge(tokens, present).tokens.sum().backward()
    assert not bridge.absent.grad.any()  # there, so that no process waits for it
    for mask in present.values():
        mask[1] = False
    bridge(tokens, present).tokens.sum().backward()
    assert torch.equal(bridge.absent.grad, torch.full((12,), 4.0))


def test_global_tokens_go_on_where_no_grid_is_left():
    bridge = a_bridge(one=5)
    rows, there = {"one": torch.randn(3, 5, DIM)}, {"one": torch.ones(3, dtype=torch.bool)}
    out, seen, extra, _ = bridge({}, {}, rows, there, rows=3)
    assert torch.equal(out, bridge.absent.expand(3, 4, 12))
    assert not seen.any()
    beside = bridge(some_tokens(rows=3), everywhere(some_tokens(rows=3)), rows, there)[2]
    assert torch.equal(extra["one"], beside["one"])
    extra["one"].sum().backward()
    assert bridge.connector.global_proj.weight.grad is not None

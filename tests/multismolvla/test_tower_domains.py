"""Streams that feed several encoder domains: grids are fused, global tokens stay apart, rows of numbers pass
a trained map.
"""

from __future__ import annotations

import pytest
import torch

from multismolvla.connector import GridConnector, VisualBridge
from multismolvla.fourm import FourMConfig, FourMEncoder
from multismolvla.fourm.soft import add_soft_modality, soft_modality
from multismolvla.fusion import GatedFusion
from multismolvla.modalities import MODALITIES
from multismolvla.tokenizers import Tokens
from multismolvla.tower import ABSENT, MultimodalTower, ids_name, tokenize_view

SIDE, DIM, WIDTH = 32, 16, 5
CUSTOM = {
    "rgb@32": {"kind": "pixels", "grid": [4, 4]},
    "dense@32": {"kind": "tokens", "vocab": 50, "grid": [4, 4]},
    "global": {"kind": "tokens", "vocab": 60, "num_tokens": 3, "positions": "learned"},
    "scene": {"kind": "tokens", "vocab": 70, "num_tokens": 2, "positions": "learned"},
}
BOTH = "dense@32+global"
THERMAL = MODALITIES.index("thermal")


class Route:
    """Stands in for a thermal route: mean temperature per cell and per picture as ids."""

    def __init__(self, *domains: str):
        self.domains = domains

    def encode_domains(self, image: torch.Tensor, valid: torch.Tensor | None = None) -> dict[str, Tokens]:
        cells = torch.nn.functional.adaptive_avg_pool2d(image, 4).flatten(1)
        made = {
            "dense@32": (cells * 49).round().long(),
            "global": (image.flatten(1).mean(1, keepdim=True) * torch.tensor([59.0, 30.0, 10.0]))
            .round()
            .long(),
            "soft_thermal@32": torch.stack([cells**k for k in range(WIDTH)], -1),
        }
        return {
            d: Tokens(made[d], torch.ones(made[d].shape[:2], dtype=torch.bool)) for d in self.domains
        }  # fmt: skip


def encoder(*names: str) -> FourMEncoder:
    config = FourMConfig(
        dim=DIM, encoder_depth=2, num_heads=2, image_size=SIDE, patch_size=8, domains_in=tuple(CUSTOM),
        custom_domains=CUSTOM
    )  # fmt: skip
    made = FourMEncoder(config, names, torch.Generator().manual_seed(0)).eval()
    return made.requires_grad_(False)


def tower(domains: str = BOTH) -> MultimodalTower:
    names = domains.split("+")
    made = encoder("rgb@32", *[n for n in names if n in CUSTOM])
    if "soft_thermal@32" in names:
        add_soft_modality(
            made,
            soft_modality("soft_thermal@32", (4, 4), WIDTH),
            generator=torch.Generator().manual_seed(1),
        )
    return MultimodalTower(made, {"rgb": "rgb@32", "thermal": domains}, {"thermal": Route(*names)}, SIDE)


def view(seed: int = 0, batch: int = 2) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "rgb": torch.rand(batch, 3, SIDE, SIDE, generator=g),
        "thermal": torch.rand(batch, 1, 1, 1, generator=g).expand(-1, -1, SIDE, SIDE)
        * torch.rand(batch, 1, SIDE, SIDE, generator=g),
    }


def there(batch: int = 2, views: int = 1) -> torch.Tensor:
    return torch.ones(batch, views, len(MODALITIES), dtype=torch.bool)


@torch.no_grad()
def test_grid_tokens_are_fused_and_global_ones_stay_apart() -> None:
    out = tower()([view()], there())
    assert set(out.tokens) == {"rgb", "thermal"}
    assert out.tokens["thermal"].shape == (2, 4, 4, DIM)
    assert out.globals["global"].shape == (2, 3, DIM)
    assert out.globals_present["global"].tolist() == [True, True]


@torch.no_grad()
def test_losing_the_modality_loses_all_its_domains() -> None:
    presence = there()
    presence[1, 0, THERMAL] = False
    out = tower()([view()], presence)
    assert out.globals_present["global"].tolist() == [True, False]
    assert out.present["thermal"].flatten(1).any(1).tolist() == [True, False]
    assert torch.equal(out.globals["global"][1], torch.zeros(3, DIM))


@torch.no_grad()
def test_each_domain_has_a_fingerprint() -> None:
    made = tower()
    before = made.encoder_inputs([view()], there()).fingerprint()
    assert set(before) == {"rgb@32", "dense@32", "global"}
    hotter = view() | {"thermal": view()["thermal"] * 0.5}
    after = made.encoder_inputs([hotter], there()).fingerprint()
    assert {d for d in before if before[d] != after[d]} == {"dense@32", "global"}


@torch.no_grad()
def test_cached_ids_are_the_domains_ids_one_after_the_other() -> None:
    made = tower()
    live = view()
    ids = tokenize_view("thermal", live, made.tokenizers["thermal"], SIDE, "crop")
    assert ids.shape == (2, 16 + 3)
    cached = {"rgb": live["rgb"], ids_name("thermal"): ids.to(torch.int16).long()}
    assert (
        made.encoder_inputs([cached], there()).fingerprint()
        == made.encoder_inputs([live], there()).fingerprint()
    )
    with pytest.raises(ValueError, match=r"18 .*'dense@32.global'.* 19"):
        made.encoder_inputs([cached | {ids_name("thermal"): ids[:, 1:]}], there())


@torch.no_grad()
def test_global_tokens_are_there_as_a_whole_or_not_at_all() -> None:
    made = tower()
    ids = tokenize_view("thermal", view(), made.tokenizers["thermal"], SIDE, "crop")
    ids[0, -1] = ABSENT  # a third of the first sample's global tokens
    ids[1, 0] = ABSENT  # one cell of the second's grid
    inputs = made.encoder_inputs([{ids_name("thermal"): ids}], there())
    assert inputs.present["global"].tolist() == [[False] * 3, [True] * 3]
    assert inputs.present["dense@32"].flatten(1).sum(1).tolist() == [16, 15]


@torch.no_grad()
def test_only_global_tokens_left_leave_an_empty_grid() -> None:
    made = tower("global")
    bridge = VisualBridge(
        GatedFusion(DIM, made.fused_modalities, 4),
        GridConnector(DIM, 12, 4, 2, 16, with_globals=True),
        gridless=made.gridless,
    )
    assert made.fused_modalities == ("rgb",)
    assert made.gridless == {"global": 3}
    out = made([{"thermal": view()["thermal"]}], there())
    tokens, seen, extra, _ = bridge(out.tokens, out.present, out.globals, out.globals_present, rows=2)
    assert not seen.any()
    assert torch.equal(tokens, bridge.absent.expand(2, 4, 12))
    assert extra["global"].isfinite().all()
    # one sample of the batch has pictures, the other has not: the grids differ, the global tokens do not
    presence = there()
    presence[1, 0, 0] = False
    mixed = made([view()], presence)
    _, seen, beside, _ = bridge(mixed.tokens, mixed.present, mixed.globals, mixed.globals_present)
    assert seen.tolist() == [True, False]
    assert torch.allclose(beside["global"][1], extra["global"][1], atol=1e-6)


@torch.no_grad()
def test_several_gridless_domains_have_masks_of_their_own() -> None:
    names = ("rgb@32", "global", "scene")

    class Scene:
        domains = ("scene",)

        def encode_domains(self, image, valid=None):
            return {
                "scene": Tokens(torch.ones(len(image), 2).long(), torch.ones(len(image), 2, dtype=torch.bool))
            }

    made = MultimodalTower(
        encoder(*names),
        {"rgb": "rgb@32", "seg": "scene", "thermal": "global"},
        {"seg": Scene(), "thermal": Route("global")},
        SIDE,
    )
    presence = there()
    presence[0, 0, THERMAL] = False
    out = made([view() | {"seg": torch.zeros(2, 1, SIDE, SIDE, dtype=torch.long)}], presence)
    assert {d: m.tolist() for d, m in out.globals_present.items()} == {
        "scene": [True, True],
        "global": [False, True],
    }
    assert sum(made.gridless.values()) == 5


# -- rows of numbers -----------------------------------------------------------------------------------------


def test_soft_rows_reach_the_encoder_and_only_their_map_learns() -> None:
    made = tower("soft_thermal@32")
    inputs = made.encoder_inputs([view()], there())
    assert inputs.values["soft_thermal@32"].shape == (2, 4, 4, WIDTH)
    assert made.wants_gradient(inputs)
    assert not tower().wants_gradient(tower().encoder_inputs([view()], there()))
    out = made.encode(inputs)
    (out.tokens["rgb"].square().sum() + out.tokens["thermal"].square().sum()).backward()
    learned = {n for n, p in made.named_parameters() if p.grad is not None and p.grad.any()}
    prefix = "encoder.encoder_embeddings.soft_thermal@32."
    assert learned == {prefix + n for n in ("mod_emb", "emb_proj.weight", "emb_proj.bias")}


@torch.no_grad()
def test_absent_soft_rows_do_not_exist() -> None:
    made = tower("soft_thermal@32")
    presence = there()
    presence[:, :, THERMAL] = False
    masked, without = made([view()], presence), made([{"rgb": view()["rgb"]}], there())
    assert torch.equal(masked.tokens["rgb"], without.tokens["rgb"])
    assert not torch.allclose(masked.tokens["rgb"], made([view()], there()).tokens["rgb"], atol=1e-5)


def test_the_kindred_embedding_is_taken_over_and_positions_are_fixed() -> None:
    kindred = torch.randn(1, 1, DIM)
    made = add_soft_modality(
        encoder("rgb@32"), soft_modality("soft_thermal@32", (4, 4), WIDTH), mod_emb=kindred
    )
    assert torch.equal(made.mod_emb, kindred)
    assert not isinstance(made.pos_emb, torch.nn.Parameter)
    assert torch.equal(made.pos_emb, encoder("dense@32").encoder_embeddings["dense@32"].pos_emb)


def test_rows_cannot_be_cached_and_wrong_ones_are_named() -> None:
    made = tower("soft_thermal@32")
    with pytest.raises(ValueError, match="cannot be cached as ids"):
        tokenize_view("thermal", view(), made.tokenizers["thermal"], SIDE, "crop")
    with pytest.raises(ValueError, match="rows of numbers, which cannot be cached"):
        made.encoder_inputs([{ids_name("thermal"): torch.zeros(2, 16).long()}], there())
    with pytest.raises(ValueError, match=r"float32 \(2, 16, 4\).*\(B, 16, 5\)"):
        made.encoder({"soft_thermal@32": torch.zeros(2, 16, 4)})
    with pytest.raises(ValueError, match="must be named 'soft_'"):
        soft_modality("tok_depth@224", (4, 4), WIDTH)


# -- construction --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domains", "route", "message"),
    [
        (
            BOTH,
            Route("dense@32"),
            r"\['dense@32'\].*\['dense@32', 'global'\]",
        ),
        ("global+dense@32", Route("dense@32", "global"), "makes .'dense@32', 'global'., but"),
        ("dense@32+rgb@32", Route("dense@32", "rgb@32"), "2 of them with a grid"),
    ],
)
def test_domains_that_do_not_fit_are_named(domains: str, route: Route, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultimodalTower(
            encoder("rgb@32", "dense@32", "global"), {"thermal": domains}, {"thermal": route}, SIDE
        )

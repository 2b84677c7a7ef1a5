"""The three routes from a thermal picture to 4M's inputs, on tiny models in the official layouts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_imagebind import write_tiny_imagebind
from tiny_tokenizers import write_tiny_tokenizers
from torch import Tensor

from multismolvla.fourm import MODALITY_INFO
from multismolvla.thermal.imagebind import (
    ROW_CONVENTIONS,
    ImageBindHead,
    ImageBindThermal,
    ImageBindVision,
)
from multismolvla.tokenizers.interface import StreamTokenizer
from multismolvla.tokenizers.official import VQTokenizer
from multismolvla.tokenizers.thermal_routes import (
    DENSE_DOMAIN,
    GLOBAL_DOMAIN,
    SOFT_DOMAIN,
    BridgeRoute,
    SoftRoute,
    VisionRoute,
    prepare_thermal,
)


class Record:
    """A tokenizer that keeps what it was given; its ids are a coarse rounding of the first channel."""

    def __init__(self) -> None:
        self.features: list[Tensor] = []

    def encode_ids(self, x: Tensor) -> Tensor:
        self.features.append(x)
        if x.ndim == 4:
            return (x[:, 0] * 100).round().long()
        return (x[:, :16] * 100).round().long()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_imagebind(tmp_path_factory.mktemp("imagebind"))


@pytest.fixture(scope="module")
def vision(folder) -> ImageBindVision:
    return ImageBindVision.from_pretrained(folder)


@pytest.fixture(scope="module")
def thermal(folder) -> ImageBindThermal:
    return ImageBindThermal.from_pretrained(folder)


@pytest.fixture(scope="module")
def head(folder) -> ImageBindHead:
    return ImageBindHead.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, VQTokenizer]:
    folders = write_tiny_tokenizers(tmp_path_factory.mktemp("tokenizers"), feature_width=40)
    return {name: VQTokenizer.from_pretrained(folders[name]) for name in ("imagebind", "imagebind_global")}


@pytest.fixture(scope="module")
def routes(vision, thermal, head, tokenizers) -> dict[str, StreamTokenizer]:
    dense, global_ = tokenizers["imagebind"], tokenizers["imagebind_global"]
    return {
        "vision": VisionRoute(vision, dense, global_, rows="norm"),
        "bridge": BridgeRoute(thermal, head, global_, rows="norm"),
        "soft": SoftRoute(thermal),
    }


def picture(batch: int = 1, side: int = 64, seed: int = 0) -> Tensor:
    return torch.rand(batch, 1, side, side, generator=torch.Generator().manual_seed(seed))


def blobs(side: int = 224, seed: int = 0) -> Tensor:
    """Three warm spots on a cool slope, (1, 1, side, side)."""
    axis = torch.linspace(0, 1, side)
    image = 0.2 * axis.expand(side, side)
    for x, y, size in torch.rand(3, 3, generator=torch.Generator().manual_seed(seed)):
        distance = (axis[None] - x) ** 2 + (axis[:, None] - y) ** 2
        image = image + torch.exp(-distance / (0.02 + 0.05 * size))
    return (image / image.max())[None, None]


# ---------------------------------------------------------------- all routes


@pytest.mark.parametrize("name", ["vision", "bridge", "soft"])
@pytest.mark.parametrize("side", [224, 64])
def test_what_comes_out_fits_the_encoder(routes, name: str, side: int) -> None:
    route = routes[name]
    assert isinstance(route, StreamTokenizer)
    out = route.encode_domains(picture(2, side))
    assert tuple(out) == route.domains
    for domain, tokens in out.items():
        assert tokens.present.all()
        assert tokens.present.dtype == torch.bool
        if domain == SOFT_DOMAIN:
            assert tokens.values.shape == (2, 196, 32)
            assert tokens.values.dtype == torch.float32
            assert tokens.values.isfinite().all()
            continue
        info = MODALITY_INFO[domain]
        assert tokens.values.shape == tokens.present.shape == (2, info.num_tokens)
        assert tokens.values.dtype == torch.int64
        assert 0 <= int(tokens.values.min()) <= int(tokens.values.max()) < info.vocab


@pytest.mark.parametrize("name", ["vision", "bridge", "soft"])
def test_a_sample_does_not_depend_on_its_batch(routes, name: str) -> None:
    pair = torch.cat([picture(seed=1), picture(seed=2)])
    for domain, tokens in routes[name].encode_domains(pair).items():
        alone = routes[name].encode_domains(pair[1:])[domain].values
        torch.testing.assert_close(tokens.values[1:], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["vision", "bridge", "soft"])
def test_other_pictures_give_other_tokens(routes, name: str) -> None:
    for domain in routes[name].domains:
        first, second = routes[name].encode_domains(torch.cat([blobs(seed=1), blobs(seed=2)]))[domain].values
        assert not torch.equal(first, second), domain


@pytest.mark.parametrize("name", ["vision", "bridge", "soft"])
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_constant_pictures(routes, name: str, level: float) -> None:
    for tokens in routes[name].encode_domains(torch.full((1, 1, 32, 32), level)).values():
        assert tokens.values.float().isfinite().all()
        assert tokens.present.all()


@pytest.mark.parametrize("name", ["vision", "bridge", "soft"])
def test_autocast_changes_nothing(routes, name: str) -> None:
    plain = routes[name].encode_domains(blobs())
    with torch.autocast("cpu", torch.bfloat16):
        inside = routes[name].encode_domains(blobs())
    for domain in routes[name].domains:
        assert torch.equal(plain[domain].values, inside[domain].values)


def test_lower_precision(folder, tokenizers) -> None:
    """Networks in bfloat16 hand float32 features to the tokenizers."""
    vision = ImageBindVision.from_pretrained(folder, dtype=torch.bfloat16)
    thermal = ImageBindThermal.from_pretrained(folder, dtype=torch.bfloat16)
    head = ImageBindHead.from_pretrained(folder, dtype=torch.bfloat16)
    dense, global_ = Record(), Record()
    VisionRoute(vision, dense, global_, rows="norm").encode_domains(blobs())
    BridgeRoute(thermal, head, global_, rows="norm").encode_domains(blobs())
    assert {x.dtype for x in (*dense.features, *global_.features)} == {torch.float32}
    assert SoftRoute(thermal).encode_domains(blobs())[SOFT_DOMAIN].values.dtype == torch.float32


def test_unusable_pixels_do_not_count_whatever_they_hold(routes) -> None:
    image, valid = picture(), torch.ones(1, 1, 64, 64, dtype=torch.bool)
    valid[..., :16] = False
    other = torch.where(valid, image, float("nan"))
    for route in routes.values():
        a, b = route.encode_domains(image, valid), route.encode_domains(other, valid)
        for domain in route.domains:
            assert torch.equal(a[domain].values, b[domain].values)


def test_presence_follows_the_cells(routes) -> None:
    """Both grids, row-major: the upper quarter is missing, then a fifth of the width is left."""
    valid = torch.ones(2, 1, 224, 224, dtype=torch.bool)
    valid[0, :, :56] = False
    valid[1, :, :, 44:] = False
    image = picture(2, 224)
    dense = routes["vision"].encode_domains(image, valid)
    soft = routes["soft"].encode_domains(image, valid)[SOFT_DOMAIN].present.unflatten(1, (14, 14))
    grid = dense[DENSE_DOMAIN].present.unflatten(1, (16, 16))
    assert not grid[0, :4].any()
    assert grid[0, 4:].all()
    assert grid[1, :, :3].all()
    assert not grid[1, :, 4:].any()
    assert not soft[0, :3].any()
    assert soft[0, 3:].all()  # row 3 is half seen
    assert dense[GLOBAL_DOMAIN].present[0].all()
    assert not dense[GLOBAL_DOMAIN].present[1].any()


@pytest.mark.parametrize("name", ["vision", "bridge", "soft"])
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 3, 64, 64), r"expected floating \(B, 1, H, W\)"),
        (torch.zeros(1, 64, 64), "expected floating"),
        (torch.zeros(1, 1, 0, 0), "expected floating"),
        (torch.zeros(1, 1, 64, 64, dtype=torch.uint8), "got uint8"),
        (torch.zeros(1, 1, 64, 48), "64x48 pixels; expected a square"),
        (torch.full((1, 1, 64, 64), 30.0), "from 30 to 30; expected relative temperature"),
        (torch.full((1, 1, 64, 64), -0.1), "expected relative temperature"),
        (torch.full((1, 1, 64, 64), float("nan")), "4096 valid pixels are NaN"),
        (torch.full((1, 1, 64, 64), float("inf")), "NaN or infinite"),
    ],
)
def test_wrong_pictures(routes, name: str, image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        routes[name].encode_domains(image)


@pytest.mark.parametrize(
    "valid", [torch.ones(1, 1, 64, 64), torch.ones(1, 64, 64, dtype=torch.bool)], ids=["dtype", "shape"]
)
def test_wrong_validity(valid: Tensor) -> None:
    with pytest.raises(ValueError, match=r"valid.*bool \(1, 1, 64, 64\)"):
        prepare_thermal(picture(), valid)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**31 - 1), st.floats(0, 1))
def test_preparation_stays_in_range(side: int, seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 1, side, side, generator=generator)
    valid = torch.rand(2, 1, side, side, generator=generator) < share
    pixels, _ = prepare_thermal(torch.where(valid, image, float("nan")), valid)
    assert pixels.shape == (2, 1, 224, 224)
    assert pixels.min() >= 0
    assert pixels.max() <= 1 + 1e-5


def test_holes_are_filled_with_the_mean() -> None:
    image, valid = picture(side=224), torch.ones(1, 1, 224, 224, dtype=torch.bool)
    valid[..., 100:150, 50:90] = False
    pixels, _ = prepare_thermal(image, valid)
    assert torch.equal(pixels[valid], image[valid])
    torch.testing.assert_close(pixels[~valid], image[valid].mean().expand(2000))


# ---------------------------------------------------------------- vision


def test_vision_route_hands_over_the_right_rows(vision) -> None:
    """Class row to the global tokenizer; patch (r, c) to cell (r, c) of the map; one pass for both."""
    for rows in ROW_CONVENTIONS:
        dense, global_ = Record(), Record()
        passes = []
        hook = vision.modality_trunks["vision"].register_forward_hook(lambda *_, p=passes: p.append(1))
        image = picture(side=224)
        out = VisionRoute(vision, dense, global_, rows=rows).encode_domains(image)
        hook.remove()
        assert len(passes) == 1
        expected = vision.rows(image.expand(-1, 3, -1, -1), rows)
        assert torch.equal(global_.features[0], expected[:, 0])
        for r, c in ((0, 0), (0, 5), (7, 3), (15, 15)):
            assert torch.equal(dense.features[0][:, :, r, c], expected[:, 1 + 16 * r + c])
        assert torch.equal(out[DENSE_DOMAIN].values.view(1, 16, 16), dense.encode_ids(dense.features[0]))


def test_a_warm_spot_shows_first_at_its_own_cell(vision, thermal) -> None:
    """Attention spreads a change over all rows, but the patch itself changes most."""
    image = torch.full((1, 1, 224, 224), 0.4)
    spot = image.clone()
    spot[..., 70:84, 140:154] = 0.9  # vision patch (5, 10)
    record = Record()
    route = VisionRoute(vision, record, rows="trunk")
    ids = [route.encode_domains(x)[DENSE_DOMAIN].values.view(16, 16) for x in (image, spot)]
    difference = (record.features[0] - record.features[1]).norm(dim=1)[0]
    assert divmod(int(difference.argmax()), 16) == (5, 10)
    assert ids[0][5, 10] != ids[1][5, 10]

    spot = image.clone()
    spot[..., 48:64, 176:192] = 0.9  # thermal patch (3, 11)
    soft = [SoftRoute(thermal).encode_domains(x)[SOFT_DOMAIN].values for x in (image, spot)]
    difference = (soft[0] - soft[1]).norm(dim=-1)[0]
    assert divmod(int(difference.argmax()), 14) == (3, 11)


def test_a_warm_spot_changes_real_ids(routes) -> None:
    """Of the cells that a spot is put on, most get another id, and of all others fewer."""
    cells = [(5, 10), (2, 3), (12, 8), (9, 1), (14, 14), (7, 7)]
    image = blobs()
    spots = image.repeat(len(cells), 1, 1, 1)
    for k, (r, c) in enumerate(cells):
        patch = spots[k, :, 14 * r : 14 * r + 14, 14 * c : 14 * c + 14]
        patch.copy_(1 - patch.round())  # cold where it was warm
    ids = routes["vision"].encode_domains(torch.cat([image, spots]))[DENSE_DOMAIN].values.view(-1, 16, 16)
    changed = ids[1:] != ids[0]
    own = sum(bool(changed[k, r, c]) for k, (r, c) in enumerate(cells))
    assert own >= 4
    assert own / len(cells) > 2 * changed.float().mean()


def test_one_tokenizer_is_enough(vision, tokenizers) -> None:
    only = VisionRoute(vision, global_=tokenizers["imagebind_global"], rows="trunk")
    assert only.domains == (GLOBAL_DOMAIN,)
    assert tuple(only.encode_domains(picture())) == (GLOBAL_DOMAIN,)
    with pytest.raises(ValueError, match="no tokenizer"):
        VisionRoute(vision, rows="trunk")


def test_exchanged_tokenizers_are_refused(vision, tokenizers) -> None:
    route = VisionRoute(vision, tokenizers["imagebind_global"], tokenizers["imagebind"], rows="trunk")
    with pytest.raises(ValueError, match="4M tokenizer: got"):
        route.encode_domains(picture())


# ---------------------------------------------------------------- bridge


def test_the_closed_form_inverts_the_head(thermal, head) -> None:
    """The row leads back to the embedding's direction, has the typical length, and is the shortest one."""
    route = BridgeRoute(thermal, head, Record(), rows="norm")
    embeddings = thermal.embedding(picture(3, 224))
    rows = route.class_rows(embeddings)
    assert rows.shape == (3, 40)
    back = rows @ head.projection.T
    cosine = torch.nn.functional.cosine_similarity(back, embeddings)
    torch.testing.assert_close(cosine, torch.ones(3))
    length = math.sqrt(float(head.norm.weight.square().sum() + head.norm.bias.square().sum()))
    torch.testing.assert_close(rows.norm(dim=-1), torch.full((3,), length))
    # The shortest solution has no part that the head maps to zero.
    _, _, v = torch.linalg.svd(head.projection)
    assert (rows @ v[24:].T).abs().max() < 1e-4


def test_the_typical_length_is_that_of_normalised_rows(vision) -> None:
    """What the length is taken from: with random rows, LayerNorm's output is that long on average."""
    norm = vision.head.norm
    raw = torch.randn(2000, 40, generator=torch.Generator().manual_seed(0))
    expected = norm.weight.square().sum() + norm.bias.square().sum()
    assert norm(raw).square().sum(-1).mean() == pytest.approx(float(expected), rel=0.02)


def test_raw_rows_need_a_map(thermal, head) -> None:
    with pytest.raises(ValueError, match="LayerNorm"):
        BridgeRoute(thermal, head, Record(), rows="trunk")


@pytest.mark.parametrize("rows", ROW_CONVENTIONS)
def test_a_learned_map(thermal, head, tmp_path, rows: str) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {
        "weight": torch.randn(40, 24, generator=generator),
        "bias": torch.randn(40, generator=generator),
    }
    save_file(state, tmp_path / "map.safetensors")
    record = Record()
    route = BridgeRoute(thermal, head, record, rows=rows, map_file=tmp_path / "map.safetensors")
    image = picture(side=224)
    route.encode_domains(image)
    unit = thermal.embedding(image) / 10  # officially of length 10
    torch.testing.assert_close(record.features[0], unit @ state["weight"].T + state["bias"])


def test_wrong_maps(thermal, head, tmp_path) -> None:
    path = tmp_path / "map.safetensors"

    def bridge() -> None:
        BridgeRoute(thermal, head, Record(), rows="trunk", map_file=path)

    with pytest.raises(FileNotFoundError, match=r"map\.safetensors"):
        bridge()
    good = {"weight": torch.zeros(40, 24), "bias": torch.zeros(40)}
    for state, message in (
        ({"weight": good["weight"]}, "'bias' is missing"),
        (good | {"weight": torch.zeros(24, 40)}, r"'weight' has shape \(24, 40\)"),
        (good | {"scale": torch.zeros(1)}, "unexpected tensor 'scale'"),
        (good | {"bias": torch.full((40,), float("nan"))}, "'bias' holds NaN"),
    ):
        save_file(state, path)
        with pytest.raises(ValueError, match=message):
            bridge()


def test_heads_of_two_checkpoints(thermal) -> None:
    with torch.device("meta"):
        other = ImageBindHead(40, 25)
    with pytest.raises(ValueError, match="25 .*24"):
        BridgeRoute(thermal, other, Record(), rows="norm")

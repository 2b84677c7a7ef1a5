"""Weight-free tokenizers: exact codes, validity, read-back, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from multismolvla.fourm import MINI_INFO, small_domains
from multismolvla.tokenizers import (
    DominantSegTokenizer,
    ImageTokenizer,
    PatchDepthTokenizer,
    QuadrantSegTokenizer,
    ThermalGridTokenizer,
    make_tokenizers,
    seg_tokenizer,
    structured_token_embedding,
)

ALL = [PatchDepthTokenizer, QuadrantSegTokenizer, ThermalGridTokenizer, DominantSegTokenizer]


def read_back(tokenizer: ImageTokenizer, ids: Tensor) -> Tensor:
    """What ids (B, rows, columns) stand for, as a small picture (B, 1, h, w): bins by their centres."""
    if isinstance(tokenizer, QuadrantSegTokenizer):
        digits = ids[..., None] // tokenizer.num_labels ** torch.arange(4) % tokenizer.num_labels
        rows, columns = ids.shape[1:]
        return digits.view(-1, rows, columns, 2, 2).transpose(2, 3).reshape(-1, 1, 2 * rows, 2 * columns)
    position = ((ids.float() + 0.5) / tokenizer.vocab_size)[:, None]
    if isinstance(tokenizer, PatchDepthTokenizer):
        return tokenizer.near * (tokenizer.far / tokenizer.near) ** position
    return position


def picture(tokenizer: ImageTokenizer, height: int = 64, width: int = 64, batch: int = 2) -> Tensor:
    g = torch.Generator().manual_seed(0)
    if isinstance(tokenizer, QuadrantSegTokenizer | DominantSegTokenizer):
        return torch.randint(tokenizer.num_labels, (batch, 1, height, width), generator=g)
    return torch.rand(batch, 1, height, width, generator=g) * 0.8 + 0.15


@pytest.mark.parametrize(
    ("make", "domain"), list(zip(ALL[:3], ("tok_depth@64", "tok_semseg@64", "tok_thermal@64"), strict=True))
)
def test_defaults_fit_the_mini_domains(make, domain) -> None:
    tokenizer = make()
    assert isinstance(tokenizer, ImageTokenizer)
    assert tokenizer.vocab_size == MINI_INFO[domain].vocab
    assert tokenizer.grid == MINI_INFO[domain].grid


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("size", [(64, 64), (24, 40), (8, 8), (96, 48)])
def test_any_divisible_size(make, size) -> None:
    tokenizer = make()
    ids, present = tokenizer.encode(picture(tokenizer, *size))
    assert ids.shape == present.shape == (2, *tokenizer.grid)
    assert ids.dtype == torch.int64
    assert present.all()
    assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size


@pytest.mark.parametrize("make", ALL)
def test_samples_are_independent(make) -> None:
    tokenizer = make()
    image = picture(tokenizer, batch=3)
    ids, _ = tokenizer.encode(image)
    assert torch.equal(tokenizer.encode(image[1:2])[0], ids[1:2])


@pytest.mark.parametrize("make", ALL)
def test_non_square_grid_is_row_major(make) -> None:
    tokenizer = make((2, 4))
    image = picture(tokenizer, 16, 32)
    ids, _ = tokenizer.encode(image)
    single = make((1, 1)).encode(image[:, :, 8:16, 16:24])[0]
    assert ids.shape == (2, 2, 4)
    assert torch.equal(ids[:, 1, 2], single[:, 0, 0])


@pytest.mark.parametrize("make", ALL[:3])
def test_reading_back_and_encoding_again_is_stable(make) -> None:
    tokenizer = make()
    ids = torch.randint(
        tokenizer.vocab_size, (2, *tokenizer.grid), generator=torch.Generator().manual_seed(0)
    )
    again, present = tokenizer.encode(read_back(tokenizer, ids))
    assert torch.equal(again, ids)
    assert present.all()


@pytest.mark.parametrize("make", ALL)
def test_cells_below_a_quarter_valid_are_absent(make) -> None:
    tokenizer = make(2)
    image = picture(tokenizer, 8, 8, 1)
    valid = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    valid[..., :2, :2] = True  # 4 of 16 pixels: just enough
    valid[..., 0, 4:7] = True  # 3 of 16
    ids, present = tokenizer.encode(image, valid)
    assert present.tolist() == [[[True, False], [False, False]]]
    seen = make(1).encode(image[..., :2, :2])[0]
    assert ids[0, 0, 0] == seen[0, 0, 0] or tokenizer.modality == "segmentation"
    assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size


def test_depth_is_log_quantised() -> None:
    tokenizer = PatchDepthTokenizer(grid=1, bins=100, near=0.1, far=10.0)  # 50 bins per decade
    depths = (
        torch.tensor([0.1001, 0.1047, 0.1048, 1.001, 9.99, 10.0, 50.0, 0.01])
        .view(-1, 1, 1, 1)
        .expand(-1, 1, 2, 2)
    )
    assert tokenizer.encode(depths)[0].flatten().tolist() == [0, 0, 1, 50, 99, 99, 99, 0]
    width = math.log(100) / 100
    decoded = read_back(tokenizer, tokenizer.encode(depths)[0])[:6]
    assert ((decoded.flatten() / depths[:6, 0, 0, 0]).log().abs() <= width / 2 + 1e-5).all()


def test_depth_mean_ignores_invalid_pixels() -> None:
    tokenizer = PatchDepthTokenizer(grid=1)
    image = torch.tensor([[1.0, 1.2], [0.0, float("nan")]])[None, None]
    valid = torch.tensor([[True, True], [True, False]])[None, None]
    ids, present = tokenizer.encode(image, valid)
    assert present.all()
    assert torch.equal(ids, tokenizer.encode(torch.full((1, 1, 1, 1), 1.1))[0])


@pytest.mark.parametrize("value", [0.0, 0.7, 500.0])
def test_constant_and_empty_depth_are_finite(value) -> None:
    tokenizer = PatchDepthTokenizer()
    ids, present = tokenizer.encode(torch.full((1, 1, 64, 64), value))
    assert len(ids.unique()) == 1
    assert bool(present.all()) is (value > 0)


def test_segmentation_codes_quadrants_as_digits() -> None:
    image = torch.tensor([[1, 1, 7, 7], [1, 2, 7, 0], [3, 3, 5, 5], [3, 3, 4, 4]])[None, None]
    ids, present = QuadrantSegTokenizer(grid=1).encode(image)
    assert ids.item() == 1 + 7 * 8 + 3 * 64 + 5 * 512  # the tie of 4 and 5 goes to the higher label
    assert present.item()


def test_segmentation_of_odd_patches_shares_the_middle() -> None:
    image = torch.tensor([[1, 1, 2], [1, 1, 2], [3, 3, 4]])[None, None]
    # With sides of 3 the doubled quadrants are 3x3: top right sees columns 1 (half) and 2, and so on.
    ids, _ = QuadrantSegTokenizer(grid=1).encode(image)
    assert read_back(QuadrantSegTokenizer(grid=1), ids)[0, 0].tolist() == [[1, 2], [3, 4]]
    single = torch.full((1, 1, 1, 1), 6)
    assert QuadrantSegTokenizer(grid=1).encode(single)[0].item() == 6 * (1 + 8 + 64 + 512)


def test_segmentation_quadrant_unseen_follows_its_patch() -> None:
    image = torch.tensor([[2, 0, 9, 9], [2, 2, 9, 9], [9, 9, 9, 9], [9, 9, 9, 9]])[None, None]
    valid = image != 9
    ids, present = QuadrantSegTokenizer(grid=1).encode(image, valid)
    assert ids.item() == 2 * (1 + 8 + 64 + 512)
    assert present.item()


def test_of_a_large_label_set_the_dominant_thing_and_its_quadrants_are_told() -> None:
    tokenizer = DominantSegTokenizer(grid=1, num_labels=33)

    def told(quadrants: list[int]) -> tuple[int, list[int]]:
        image = torch.tensor(quadrants).view(1, 1, 2, 2).repeat_interleave(3, 2).repeat_interleave(3, 3)
        number = tokenizer.encode(image)[0].item()
        return number // 16, [q for q in range(4) if number >> q & 1]

    assert told([0, 0, 0, 0]) == (0, [0, 1, 2, 3])
    assert told([0, 0, 0, 31]) == (31, [3])  # one quadrant of a thing beats three of the background
    assert told([7, 9, 7, 0]) == (7, [0, 2])
    assert told([7, 9, 0, 0]) == (9, [1])  # of equals the higher label
    assert told([32, 32, 32, 32]) == (32, [0, 1, 2, 3])
    one_hot = tokenizer.features().view(-1, 4, 33)
    assert one_hot[16 * 7 + 5].argmax(1).tolist() == [7, 0, 7, 0]
    assert isinstance(seg_tokenizer(8, 8), QuadrantSegTokenizer)
    assert isinstance(seg_tokenizer(8, 9), DominantSegTokenizer)


def test_a_large_label_set_fits_its_own_domain_and_not_the_mini_one() -> None:
    domains = {m: d for m, d in small_domains(128, seg_vocab=16 * 33).items() if m != "rgb"}
    made = make_tokenizers("patch", domains, num_labels=33, image_size=128)
    ids, present = made["seg"].encode(torch.randint(33, (2, 1, 128, 128)))
    assert ids.shape == (2, 8, 8)
    assert present.all()
    assert ids.max() < 16 * 33
    with pytest.raises(ValueError, match="knows 527"):
        make_tokenizers("patch", {"seg": small_domains(128, 527)["seg"]}, num_labels=33, image_size=128)
    with pytest.raises(ValueError, match="image_size 100.*multiple of 8"):
        small_domains(100)


def test_thermal_bins_are_linear() -> None:
    values = torch.tensor([0.0, 0.49999, 0.5, 1.0]).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    assert ThermalGridTokenizer(grid=1, bins=10).encode(values)[0].flatten().tolist() == [0, 4, 5, 9]


@pytest.mark.parametrize(
    ("tokenizer", "image", "valid", "message"),
    [
        (PatchDepthTokenizer(), torch.ones(1, 1, 60, 64), None, "depth.*height 60.*8 cells"),
        (PatchDepthTokenizer(), torch.ones(1, 1, 64, 0), None, "64, 0"),
        (PatchDepthTokenizer(), torch.ones(1, 3, 64, 64), None, r"float32 \(1, 3, 64, 64\)"),
        (PatchDepthTokenizer(), torch.ones(64, 64), None, r"expected floating \(B, 1, H, W\)"),
        (PatchDepthTokenizer(), torch.ones(1, 1, 64, 64, dtype=torch.int32), None, "int32.*floating"),
        (PatchDepthTokenizer(), torch.full((1, 1, 8, 8), float("nan")), None, "64 valid pixels are NaN"),
        (PatchDepthTokenizer(), torch.full((1, 1, 8, 8), float("inf")), None, "NaN or infinite"),
        (PatchDepthTokenizer(), torch.full((1, 1, 8, 8), -1.0), None, "-1.*metres"),
        (PatchDepthTokenizer(), torch.full((1, 1, 8, 8), 1200.0), None, "1200.*metres.*unit"),
        (PatchDepthTokenizer(), torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8), "valid is float32.*bool"),
        (
            PatchDepthTokenizer(),
            torch.ones(1, 1, 8, 8),
            torch.ones(1, 8, 8) > 0,
            r"valid is bool \(1, 8, 8\)",
        ),
        (ThermalGridTokenizer(), torch.full((1, 1, 8, 8), 36.6), None, r"36\.6.*\[0, 1\]"),
        (ThermalGridTokenizer(), torch.full((1, 1, 8, 8), float("nan")), None, "thermal.*NaN"),
        (ThermalGridTokenizer(), torch.ones(1, 1, 8, 8, dtype=torch.uint8), None, "uint8.*floating"),
        (QuadrantSegTokenizer(), torch.full((1, 1, 8, 8), 8), None, "label 8.*background.*other"),
        (QuadrantSegTokenizer(), torch.full((1, 1, 8, 8), -1), None, "label -1"),
        (QuadrantSegTokenizer(), torch.ones(1, 1, 8, 8), None, "float32.*integer"),
    ],
)
def test_bad_pictures_are_named(tokenizer, image, valid, message) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(image, valid)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PatchDepthTokenizer(near=2.0, far=1.0),
        lambda: PatchDepthTokenizer(grid=0),
        lambda: QuadrantSegTokenizer(num_labels=1),
        lambda: DominantSegTokenizer(num_labels=1),
    ],
)
def test_bad_settings_are_named(make) -> None:
    with pytest.raises(ValueError, match="Tokenizer"):
        make()


def test_invalid_pixels_may_hold_anything() -> None:
    nothing = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    for tokenizer, image in (
        (PatchDepthTokenizer(), torch.full((1, 1, 8, 8), float("nan"))),
        (ThermalGridTokenizer(), torch.full((1, 1, 8, 8), float("nan"))),
        (QuadrantSegTokenizer(), torch.full((1, 1, 8, 8), 255)),
    ):
        ids, present = tokenizer.encode(image, nothing)
        assert not present.any()
        assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size


def similarity(table: Tensor, a: int, b: int) -> float:
    return torch.cosine_similarity(table[a], table[b], dim=0).item()


@pytest.mark.parametrize("make", ALL)
def test_structured_embedding_scale_and_generator(make) -> None:
    tokenizer = make()
    tables = [
        structured_token_embedding(tokenizer, 48, torch.Generator().manual_seed(3), std=0.3) for _ in range(2)
    ]
    assert tables[0].shape == (tokenizer.vocab_size, 48)
    assert torch.equal(*tables)
    assert abs(tables[0].square().mean().sqrt().item() - 0.3) < 1e-5
    assert tables[0].mean(0).abs().max() < 1e-4


@pytest.mark.parametrize("make", [PatchDepthTokenizer, ThermalGridTokenizer])
def test_structured_embedding_is_ordinal(make) -> None:
    table = structured_token_embedding(make(), 96, torch.Generator().manual_seed(0))
    n = len(table)
    near, middle, far = (
        similarity(table, n // 4, n // 4 + step) for step in (n // 256 or 1, n // 10, n // 2)
    )
    assert near > 0.99
    assert near > middle + 0.1
    assert middle > far


def test_structured_embedding_is_compositional() -> None:
    table = structured_token_embedding(QuadrantSegTokenizer(), 96, torch.Generator().manual_seed(0))
    # Changing the top-left quadrant from label 1 to 2 moves every code by the same vector.
    torch.testing.assert_close(table[2] - table[1], table[2 + 5 * 64] - table[1 + 5 * 64], rtol=0, atol=1e-5)
    assert similarity(table, 1 + 8, 2 + 8) > similarity(table, 1 + 8, 2 + 3 * 8 + 4 * 64 + 5 * 512)

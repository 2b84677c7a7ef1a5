"""An absent modality, patch or sample does not exist for the encoder."""

from __future__ import annotations

import pytest
import torch
from reference_rows import encode_rows
from torch import Tensor

from multismolvla.fourm import MINI_INFO, FourMConfig, FourMEncoder

NAMES = tuple(MINI_INFO)
B = 4


@pytest.fixture
def encoder() -> FourMEncoder:
    encoder = FourMEncoder(FourMConfig.mini(32, 2, 4), NAMES)
    encoder.init_weights(torch.Generator().manual_seed(0), std=0.2)  # large enough for attention to matter
    return encoder


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "rgb@64": torch.rand(B, 3, 64, 64, generator=g),
        "tok_depth@64": torch.randint(1024, (B, 8, 8), generator=g),
        "tok_semseg@64": torch.randint(4096, (B, 8, 8), generator=g),
        "tok_thermal@64": torch.randint(256, (B, 4, 4), generator=g),
    }


def partial_masks(seed: int = 2) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = {"rgb@64": 64, "tok_depth@64": 64, "tok_semseg@64": 64, "tok_thermal@64": 16}
    return {name: torch.rand(B, n, generator=g) < 0.6 for name, n in sizes.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in b:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("drop_absent", [True, False])
@pytest.mark.parametrize("absent", [("rgb@64",), ("tok_depth@64", "tok_thermal@64"), NAMES[1:]])
def test_masked_equals_left_out(encoder, inputs, drop_absent, absent) -> None:
    presence = {name: torch.zeros(B, dtype=torch.bool) for name in absent}

    masked = encoder(inputs, presence, drop_absent=drop_absent)

    same(masked, encoder({n: v for n, v in inputs.items() if n not in absent}))
    assert all(not masked[name].any() for name in absent)


def test_masked_patches_equal_removed_rows(encoder, inputs) -> None:
    """Against the blocks run on hand-picked rows of each sample alone."""
    masks = partial_masks()
    rows = torch.cat(list(encoder.embed(inputs, masks).values()), dim=1)
    valid = torch.cat(list(masks.values()), dim=1)
    out = torch.cat(list(encoder(inputs, masks).values()), dim=1)
    for b in range(B):
        x = rows[b : b + 1, valid[b]]
        for block in encoder.encoder:
            x = block(x)
        torch.testing.assert_close(out[b, valid[b]], encoder.encoder_norm(x)[0], rtol=0, atol=1e-5)
        assert not out[b, ~valid[b]].any()


def test_both_ways_agree(encoder, inputs) -> None:
    masks = partial_masks()
    masks["rgb@64"][1] = False
    same(encoder(inputs, masks, drop_absent=True), encoder(inputs, masks, drop_absent=False))


def test_both_ways_agree_in_gradients(encoder, inputs) -> None:
    masks = partial_masks()
    reference = gradients(encoder, inputs, masks, True)
    for name, gradient in gradients(encoder, inputs, masks, False).items():
        torch.testing.assert_close(gradient, reference[name], rtol=1e-4, atol=1e-5, msg=name)


def gradients(encoder, inputs, masks, drop_absent) -> dict[str, Tensor]:
    encoder.zero_grad()
    out = encoder(inputs, masks, drop_absent=drop_absent)
    sum(v.square().mean() for v in out.values()).backward()
    return {name: p.grad.clone() for name, p in encoder.named_parameters()}


def test_order_of_modalities_is_irrelevant(encoder, inputs) -> None:
    masks = partial_masks()
    backwards = dict(reversed(inputs.items()))
    same(encoder(backwards, masks), encoder(inputs, masks))


def test_samples_are_independent(encoder, inputs) -> None:
    masks = partial_masks()
    alone = encoder({n: v[2:3] for n, v in inputs.items()}, {n: m[2:3] for n, m in masks.items()})
    same({n: v[2:3] for n, v in encoder(inputs, masks).items()}, alone)


@pytest.mark.parametrize("drop_absent", [True, False])
def test_sample_with_nothing_is_zero_and_harmless(encoder, inputs, drop_absent) -> None:
    there = torch.tensor([True, False, True, True])
    out = encoder(inputs, dict.fromkeys(NAMES, there), drop_absent=drop_absent)

    same({n: v[there] for n, v in out.items()}, encoder({n: v[there] for n, v in inputs.items()}))
    assert all(not v[1].any() for v in out.values())
    sum(v.square().mean() for v in out.values()).backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("drop_absent", [True, False])
def test_batch_with_nothing_is_zero(encoder, inputs, drop_absent) -> None:
    nothing = torch.zeros(B, dtype=torch.bool)
    out = encoder(inputs, dict.fromkeys(NAMES, nothing), drop_absent=drop_absent)
    assert all(not v.any() for v in out.values())


@pytest.mark.parametrize("drop_absent", [True, False])
def test_values_of_absent_tokens_may_be_anything(encoder, inputs, drop_absent) -> None:
    """A dead camera delivers NaN, a dead tokenizer ids of -1; neither numbers nor gradients may notice."""
    masks = partial_masks()
    clean = gradients(encoder, inputs, masks, drop_absent)
    dirty = dict(inputs)
    patches = masks["rgb@64"].view(B, 1, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    dirty["rgb@64"] = torch.where(patches, inputs["rgb@64"], float("nan"))
    for name in NAMES[1:]:
        there = masks[name].view_as(inputs[name])
        dirty[name] = torch.where(there, inputs[name], torch.randint_like(inputs[name], -5, 9000))

    same(encoder(dirty, masks, drop_absent=drop_absent), encoder(inputs, masks, drop_absent=drop_absent))
    for name, gradient in gradients(encoder, dirty, masks, drop_absent).items():
        torch.testing.assert_close(gradient, clean[name], rtol=0, atol=1e-6)


def test_each_modality_changes_the_others(encoder, inputs) -> None:
    full = encoder(inputs)
    for absent in NAMES:
        out = encoder({n: v for n, v in inputs.items() if n != absent})
        assert all((out[n] - full[n]).abs().max() > 1e-3 for n in out), absent


def test_budget_keeps_the_first_present_tokens(encoder, inputs) -> None:
    masks = partial_masks()
    rows = encode_rows(encoder, inputs, masks, 40)
    valid = torch.cat(list(masks.values()), dim=1)
    cut = valid & (valid.cumsum(1) <= 40)
    split = dict(zip(inputs, torch.split(cut, [64, 64, 64, 16], dim=1), strict=True))
    flat = torch.cat(list(encoder(inputs, split).values()), dim=1)
    torch.testing.assert_close(rows.tokens[0], flat[0, cut[0]], rtol=0, atol=1e-5)


def test_budget_larger_than_all_tokens_pads(encoder, inputs) -> None:
    rows = encode_rows(encoder, inputs, None, 256)
    assert rows.tokens.shape == (B, 256, 32)
    assert int(rows.padding.sum()) == B * (256 - 208)
    assert not rows.tokens[rows.padding].any()


def test_bfloat16(encoder, inputs) -> None:
    masks = partial_masks()
    masks["rgb@64"][0] = False
    exact = encoder(inputs, masks)
    rounded = encoder.to(torch.bfloat16)(inputs, masks)
    for name in exact:
        assert rounded[name].dtype == torch.bfloat16
        assert (rounded[name].float() - exact[name]).abs().mean() < 0.03 * exact[name].abs().mean() + 1e-6


def test_text_positions_count_present_tokens_only() -> None:
    config = FourMConfig(32, 1, 2, ("caption", "t5_caption"))
    encoder = FourMEncoder(config, ["caption", "t5_caption"], torch.Generator().manual_seed(0))
    ids = torch.tensor([[5, 9, 7, 3]])
    gaps = torch.tensor([[True, False, True, True]])
    vectors = torch.randn(1, 4, 4096)
    out = encoder({"caption": ids, "t5_caption": vectors}, {"caption": gaps, "t5_caption": gaps})
    kept = encoder({"caption": ids[gaps][None], "t5_caption": vectors[gaps][None]})
    for name in out:
        torch.testing.assert_close(out[name][gaps][None], kept[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "presence", "message"),
    [
        ({"rgb@64": torch.rand(B, 3, 32, 64)}, None, r"rgb@64.*\(4, 3, 32, 64\).*64"),
        ({"rgb@64": torch.zeros(B, 3, 64, 64, dtype=torch.uint8)}, None, "uint8.*floating"),
        ({"tok_depth@64": torch.zeros(B, 8, 8)}, None, "tok_depth@64.*float32.*integer ids"),
        ({"tok_depth@64": torch.zeros(B, 63, dtype=torch.long)}, None, "63 tokens.*64"),
        ({"tok_depth@64": torch.full((B, 64), 1024)}, None, "1024.*outside the vocabulary"),
        ({"tok_depth@64": torch.full((B, 64), -1)}, None, "-1.*outside the vocabulary"),
        ({"tok_depth@64": torch.zeros(B + 1, 64, dtype=torch.long)}, None, "batch size 5"),
        ({"tok_normal@224": torch.zeros(B, 196)}, None, "without modality 'tok_normal@224'"),
        ({}, {"depth": torch.ones(B, dtype=torch.bool)}, "without modality 'depth'"),
        ({}, {"rgb@64": torch.ones(B)}, "presence.*float32.*bool"),
        ({}, {"rgb@64": torch.ones(B, 16, dtype=torch.bool)}, r"presence.*\(4, 16\).*\(4, 64\)"),
    ],
)
def test_bad_input_is_named(encoder, inputs, changes, presence, message) -> None:
    with pytest.raises(ValueError, match=message):
        encoder(inputs | changes, presence)


def test_no_input_at_all_is_named(encoder) -> None:
    with pytest.raises(ValueError, match="no modality at all"):
        encoder({})

"""The official tokenizers reproduce the reference's recorded numbers and the official inventories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nearness import assert_near
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_tokenizers import write_tiny_tokenizers
from torch import Tensor

from multismolvla import weights
from multismolvla.pretrained import TOKENIZER_SOURCES
from multismolvla.tokenizers import quantize
from multismolvla.tokenizers.depth import standardise
from multismolvla.tokenizers.interface import ImageTokenizer
from multismolvla.tokenizers.official import OfficialDepthTokenizer, OfficialSegTokenizer, VQTokenizer
from multismolvla.tokenizers.vit import full_float32
from multismolvla.tokenizers.vq_config import VQConfig

GOLDEN = ("depth", "semseg", "imagebind", "imagebind_global")
INPUT = {
    "depth": "standardised",
    "semseg": "shifted",
    "imagebind": "features",
    "imagebind_global": "features",
}
CASES = [(n, c) for n in GOLDEN for c in ("case0", "case1") if c == "case0" or n in ("depth", "semseg")]
#: State of the training loop and of the decoder side, which encoding does not need.
UNUSED = {"quantize._codebook.initted", "quantize._codebook.cluster_size", "quantize.to_v.weight"}


@pytest.fixture(scope="module")
def golden_tokenizers(golden: Path, tmp_path_factory) -> dict[str, tuple[dict[str, Tensor], VQTokenizer]]:
    """Each golden file written as an official folder and read from there."""
    made = {}
    for name in GOLDEN:
        path = golden / f"tok_{name}_tiny.safetensors"
        with safe_open(path, "pt") as file:
            meta = {k: json.loads(v) for k, v in file.metadata().items() if v[0] == "{"}
        data = load_file(path)
        state = {k.removeprefix("state."): v for k, v in data.items() if k.startswith("state.")}
        sizes = meta.get("encoder", {})
        encoder = {"dim": sizes["dim"], "depth": sizes["depth"], "num_heads": sizes["heads"]} if sizes else {}
        folder = tmp_path_factory.mktemp(name)
        weights.write(folder, meta["config"] | ({"encoder": encoder} if encoder else {}), state)
        made[name] = (data, VQTokenizer.from_pretrained(folder))
    return made


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, Path]:
    return write_tiny_tokenizers(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(("name", "case"), CASES)
@torch.no_grad()
def test_golden_case(golden_tokenizers, name: str, case: str) -> None:
    data, tokenizer = golden_tokenizers[name]
    x = data[f"{case}.in.{INPUT[name]}"]
    assert_near(tokenizer.latent(x), data[f"{case}.out.latent"])
    expected = data[f"{case}.out.tokens"].long()
    if name == "imagebind_global":
        expected = expected.flatten(1)
        assert torch.equal(expected, data[f"{case}.out.tokens_for_4m"].long())
    ids = tokenizer.encode_ids(x)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, expected)
    one_by_one = torch.cat([tokenizer.encode_ids(sample[None]) for sample in x])
    assert torch.equal(one_by_one, expected)
    if name != "imagebind_global":
        chosen = tokenizer.quantize.codes[ids].movedim(-1, 1)
        assert torch.equal(chosen, data[f"{case}.out.quant"])


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_golden_preparation(golden_tokenizers, case: str) -> None:
    depth = golden_tokenizers["depth"][0]
    assert_near(standardise(depth[f"{case}.in.depth_u16"] / 65535), depth[f"{case}.in.standardised"])
    seg = golden_tokenizers["semseg"][0]
    shifted = (seg[f"{case}.in.class_ids_u8"] + 1).long()  # uint8: void 255 wraps around to 0
    assert torch.equal(shifted, seg[f"{case}.in.shifted"].long())


@pytest.mark.parametrize("name", GOLDEN)
def test_official_inventory(golden: Path, name: str) -> None:
    inventory = json.loads((golden / "official_keys" / f"tok_{name}.json").read_text())
    with torch.device("meta"):
        tokenizer = VQTokenizer(VQConfig.from_dict(inventory["config"]))
    built = {key: list(tensor.shape) for key, tensor in tokenizer.state_dict().items()}
    stored = {key: shape for key, (_, shape) in inventory["tensors"].items() if key not in UNUSED}
    assert built == stored
    assert inventory["hub_id"] in TOKENIZER_SOURCES.values()


@pytest.mark.parametrize("name", GOLDEN)
def test_chunked_lookup_gives_the_same_ids(golden_tokenizers, name: str, monkeypatch) -> None:
    data, tokenizer = golden_tokenizers[name]
    monkeypatch.setattr(quantize, "MAX_SCORES", 7 * 64)
    ids = tokenizer.encode_ids(data[f"case0.in.{INPUT[name]}"])
    assert torch.equal(ids.flatten(), data["case0.out.tokens"].long().flatten())


@pytest.mark.parametrize("name", GOLDEN)
@torch.no_grad()
def test_autocast_changes_no_id(golden_tokenizers, name: str) -> None:
    """Ids made inside a mixed-precision training step equal those that a tool cached before."""
    data, tokenizer = golden_tokenizers[name]
    x = data[f"case0.in.{INPUT[name]}"]
    with torch.autocast("cpu", torch.bfloat16):
        latent = tokenizer.latent(x)
        ids = tokenizer.encode_ids(x)
        looked_up = tokenizer.quantize(latent)
    assert latent.dtype == torch.float32
    assert torch.equal(ids.flatten(), data["case0.out.tokens"].long().flatten())
    assert torch.equal(looked_up, ids)
    assert torch.equal(best_codes(tokenizer, latent), ids)


@pytest.mark.parametrize("name", ["imagebind", "imagebind_global"])
@torch.no_grad()
def test_lookup_is_exact_on_narrow_latents(tiny, name: str) -> None:
    """Many random latents, also in bfloat16 and under autocast: the lookup itself is always float32."""
    tokenizer = VQTokenizer.from_pretrained(tiny[name], dtype=torch.bfloat16)
    width, side = (128, 1) if tokenizer.config.is_mlp else (8, 20)
    latent = torch.randn(6, width, side, side, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.quantize(latent), best_codes(tokenizer, latent))


@torch.autocast("cpu", enabled=False)
def best_codes(tokenizer: VQTokenizer, latent: Tensor) -> Tensor:
    """Ids of the best codes by the definition, in float64."""
    if tokenizer.config.is_mlp:
        codes = tokenizer.quantize.codes.double()
        keys = torch.stack(
            [c @ w for c, w in zip(codes, tokenizer.quantize.to_k.weight.double(), strict=True)]
        )
        chunks = latent.double().flatten(1).chunk(len(codes), dim=1)
        return torch.stack([c @ k.T for c, k in zip(chunks, keys, strict=True)], dim=1).argmax(-1)
    codes = torch.nn.functional.normalize(tokenizer.quantize.codes.double(), dim=-1)
    rows = torch.nn.functional.normalize(latent.double(), dim=1)
    return torch.einsum("bdhw,kd->bhwk", rows, codes).argmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_post_mlp_stays_in_float32_under_autocast(tiny, dtype) -> None:
    tokenizer = VQTokenizer.from_pretrained(tiny["depth"], dtype=dtype)
    seen = []
    post = tokenizer.encoder.post_mlp
    handles = [
        module.register_forward_hook(lambda _m, args, out: seen.append((args[0].dtype, out.dtype)))
        for module in (tokenizer.encoder.norm_mlp, post.fc1, post.fc2, tokenizer.quant_proj)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        tokenizer.encode_ids(torch.ones(1, 1, 32, 32))
    for handle in handles:
        handle.remove()
    assert seen == [(torch.float32, torch.float32)] * 4


def test_narrow_dtype_leaves_projection_and_codebook_alone(tiny) -> None:
    wide = VQTokenizer.from_pretrained(tiny["imagebind"])
    narrow = VQTokenizer.from_pretrained(tiny["imagebind"], dtype=torch.bfloat16)
    kept = ("encoder.norm_mlp", "encoder.post_mlp", "quant_proj", "quantize")
    for key, tensor in narrow.state_dict().items():
        if key.startswith(kept):
            assert torch.equal(tensor, wide.state_dict()[key]), key
        else:
            assert tensor.dtype == torch.bfloat16, key
    x = torch.randn(1, 40, 16, 16, generator=torch.Generator().manual_seed(0))
    assert (narrow.encode_ids(x) == wide.encode_ids(x)).float().mean() > 0.5
    again = wide.half().float()  # moving a whole policy about must not round the codes
    assert torch.equal(again.quantize.codes, narrow.quantize.codes)


def test_weights_stored_narrow_are_computed_wide(tiny, tmp_path) -> None:
    state = load_file(tiny["depth"] / "model.safetensors")
    save_file({k: v.bfloat16() for k, v in state.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((tiny["depth"] / "config.json").read_text())
    tokenizer = VQTokenizer.from_pretrained(tmp_path)
    assert {t.dtype for t in tokenizer.state_dict().values()} == {torch.float32}
    assert tokenizer.latent(torch.ones(1, 1, 32, 32)).dtype == torch.float32


def test_full_float32_turns_tf32_off_and_back_on() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with full_float32(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("size", [(224, 224), (448, 448), (32, 48), (16, 240)])
def test_any_multiple_of_the_patch(tiny, size) -> None:
    tokenizer = OfficialDepthTokenizer(VQTokenizer.from_pretrained(tiny["depth"]), size)
    assert isinstance(tokenizer, ImageTokenizer)
    depth = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(1)) + 0.3
    ids, present = tokenizer.encode(depth)
    assert tuple(ids.shape) == (1, *tokenizer.grid) == (1, size[0] // 16, size[1] // 16)
    assert ids.dtype == torch.int64
    assert present.all()
    assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    transposed = VQTokenizer.from_pretrained(tiny["depth"]).encoder
    table = transposed.positions((size[0] // 16, size[1] // 16))
    assert tuple(table.shape[2:]) == tokenizer.grid


def test_position_table_is_interpolated_half_pixel_centred(tiny) -> None:
    encoder = VQTokenizer.from_pretrained(tiny["depth"]).encoder
    assert encoder.positions((28, 28)) is encoder.pos_emb
    # From 28 to 14 with half-pixel centres each new cell lies midway between four old ones; the cubic kernel
    # there is (-3, 19, 19, -3) / 32 (a = -0.75). Written out: no antialiasing.
    weights_1d = torch.tensor([-3.0, 19.0, 19.0, -3.0]) / 32
    window = encoder.pos_emb[0, :, 9:13, 13:17]
    expected = torch.einsum("dij,i,j->d", window, weights_1d, weights_1d)
    torch.testing.assert_close(encoder.positions((14, 14))[0, :, 5, 7], expected, rtol=0, atol=1e-5)


def test_depth_cells_below_a_quarter_valid_are_absent(tiny) -> None:
    tokenizer = OfficialDepthTokenizer(VQTokenizer.from_pretrained(tiny["depth"]), 32)
    depth = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(2)) + 0.5
    depth[..., :16, :16] = 0.0
    depth[..., :8, :8] = 1.0  # exactly a quarter
    depth[..., 16:, 16:] = 0.0
    depth[..., 16:24, 16:23] = 1.0  # one column less
    ids, present = tokenizer.encode(depth)
    assert present.tolist() == [[[True, True], [True, False]]]
    assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    valid = torch.ones_like(depth, dtype=torch.bool)
    valid[..., 16:, :16] = False
    assert tokenizer.encode(depth, valid)[1].tolist() == [[[True, True], [False, False]]]
    nothing = tokenizer.encode(torch.full_like(depth, float("nan")), torch.zeros_like(valid))
    assert not nothing[1].any()


def test_depth_ids_do_not_depend_on_the_rest_of_the_batch(tiny) -> None:
    tokenizer = OfficialDepthTokenizer(VQTokenizer.from_pretrained(tiny["depth"]), 48)
    depth = torch.rand(3, 1, 48, 48, generator=torch.Generator().manual_seed(3))
    depth[1] = 0.0
    depth[2, :, 10:30] = 0.0
    together = tokenizer.encode(depth)[0]
    assert torch.equal(torch.cat([tokenizer.encode(d[None])[0] for d in depth]), together)


def test_seg_is_always_present_and_invalid_means_none(tiny) -> None:
    tokenizer = OfficialSegTokenizer(VQTokenizer.from_pretrained(tiny["seg"]), 32)
    assert isinstance(tokenizer, ImageTokenizer)
    assert tokenizer.grid == (2, 2)
    labels = torch.randint(134, (2, 1, 32, 32), generator=torch.Generator().manual_seed(4))
    valid = torch.ones_like(labels, dtype=torch.bool)
    valid[..., :16] = False
    ids, present = tokenizer.encode(labels, valid)
    assert present.all()
    assert torch.equal(ids, tokenizer.encode(torch.where(valid, labels, 0))[0])
    assert not torch.equal(ids, tokenizer.encode(labels)[0])
    assert torch.equal(ids, tokenizer.encode(labels.to(torch.uint8), valid)[0])


def test_vectors_come_with_or_without_their_map_axes(tiny) -> None:
    tokenizer = VQTokenizer.from_pretrained(tiny["imagebind_global"])
    rows = torch.randn(3, 40, generator=torch.Generator().manual_seed(5))
    ids = tokenizer.encode_ids(rows)
    assert ids.shape == (3, 16)
    assert torch.equal(ids, tokenizer.encode_ids(rows[..., None, None]))


def test_tokenizer_is_frozen_and_has_no_decoder(tiny) -> None:
    tokenizer = VQTokenizer.from_pretrained(tiny["seg"])
    assert not tokenizer.training
    assert not any(p.requires_grad for p in tokenizer.parameters())
    assert not [k for k in tokenizer.state_dict() if k.startswith("decoder")]
    assert "decoder.proj.weight" in weights.stored_keys(tiny["seg"] / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_type": "fsq"}, r"config\.json: .*quant_type = 'fsq' is not implemented; expected 'lucid'"),
        ({"quant_type": "memcodes"}, "quant_type = 'memcodes'"),
        ({"enc_type": "resnet50"}, "enc_type = 'resnet50'"),
        (
            {"enc_type": "vit_h_enc", "encoder": ...},
            "enc_type = 'vit_h_enc'.*no field 'encoder'|field 'encoder'",
        ),
        ({"encoder": {"dim": 32}}, "lacks 'depth'"),
        ({"encoder": {"dim": 30, "depth": 1, "num_heads": 4}}, "multiple of num_heads"),
        ({"norm_codes": False}, "norm_codes = False"),
        ({"undo_std": True}, "undo_std = True"),
        ({"sync_codebook": True}, "sync_codebook = True"),
        ({"post_mlp": False}, "post_mlp = False"),
        ({"post_mlp": ...}, "post_mlp = False"),
        ({"image_size_enc": 224}, "image_size_enc = 224"),
        ({"num_codebooks": 2}, "num_codebooks = 2"),
        ({"codebook_size": "8-8-8"}, "codebook_size is '8-8-8'"),
        ({"codebook_size": ...}, "field 'codebook_size' is missing"),
        ({"latent_dim": 0}, "latent_dim is 0"),
        # Fits no longer with the weights: the first bad tensor is named.
        ({"codebook_size": 32}, r"'quantize\._codebook\.embed' has shape \(64, 8\).*\(32, 8\)"),
        ({"image_size": 224}, r"'encoder\.pos_emb' has shape \(1, 32, 28, 28\)"),
        ({"n_channels": 3}, r"'encoder\.proj\.weight' has shape \(32, 1, 16, 16\)"),
        ({"n_labels": 9}, r"'cls_emb\.weight' is missing"),
        (
            {"encoder": {"dim": 32, "depth": 2, "num_heads": 2}},
            r"'encoder\.blocks\.1\.norm1\.weight' is missing",
        ),
    ],
)
def test_bad_configs_are_named(tiny, tmp_path, changes, message) -> None:
    config = json.loads((tiny["depth"] / "config.json").read_text()) | changes
    config = {k: v for k, v in config.items() if v is not ...}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((tiny["depth"] / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=message):
        VQTokenizer.from_pretrained(tmp_path)


def test_tokenizers_for_something_else_are_refused(tiny) -> None:
    depth, seg, imagebind = (VQTokenizer.from_pretrained(tiny[n]) for n in ("depth", "seg", "imagebind"))
    with pytest.raises(ValueError, match=r"depth.*n_channels = 6.* 1"):
        OfficialDepthTokenizer(seg)
    with pytest.raises(ValueError, match=r"depth.*n_channels = 40.* 1"):
        OfficialDepthTokenizer(imagebind)
    with pytest.raises(ValueError, match=r"segmentation.*n_labels = None.* 134"):
        OfficialSegTokenizer(depth)
    with pytest.raises(ValueError, match="image_size 100.* 16"):
        OfficialDepthTokenizer(depth, 100)


@pytest.mark.parametrize(
    ("name", "image", "valid", "message"),
    [
        ("depth", torch.ones(1, 1, 64, 64), None, r"\(64, 64\).*grid \(2, 2\) needs \(32, 32\)"),
        ("depth", torch.ones(1, 3, 32, 32), None, r"got float32 \(1, 3, 32, 32\)"),
        ("depth", torch.ones(1, 1, 32, 32, dtype=torch.int32), None, "int32.*floating"),
        ("depth", torch.full((1, 1, 32, 32), float("nan")), None, "1024 valid pixels are NaN"),
        ("depth", torch.full((1, 1, 32, 32), float("inf")), None, "NaN or infinite"),
        ("depth", torch.full((1, 1, 32, 32), -0.5), None, "from -0.5"),
        ("depth", torch.full((1, 1, 32, 32), 1200.0), None, "1200.*metres"),
        ("depth", torch.ones(1, 1, 32, 32), torch.ones(1, 1, 32, 32), "valid is float32"),
        ("seg", torch.ones(1, 1, 32, 32), None, "float32.*integer"),
        (
            "seg",
            torch.full((1, 1, 32, 32), 134),
            None,
            "class id 134 is outside the label set of 134.*LabelTable",
        ),
        ("seg", torch.full((1, 1, 32, 32), -1), None, "class id -1"),
    ],
)
def test_bad_pictures_are_named(tiny, name, image, valid, message) -> None:
    wrapper = {"depth": OfficialDepthTokenizer, "seg": OfficialSegTokenizer}[name]
    tokenizer = wrapper(VQTokenizer.from_pretrained(tiny[name]), 32)
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(image, valid)


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        (
            "imagebind",
            torch.ones(1, 39, 16, 16),
            r"float32 \(1, 39, 16, 16\); expected floating \(B, 40, H, W\)",
        ),
        ("imagebind", torch.ones(1, 40, 0, 16), "multiples of 1"),
        ("imagebind", torch.full((1, 40, 4, 4), float("nan")), "latents are NaN or infinite"),
        ("imagebind_global", torch.full((1, 40), float("inf")), "latents are NaN or infinite"),
        ("imagebind_global", torch.ones(1, 41), r"expected floating \(B, 40\)"),
        ("seg", torch.ones(1, 16, 16), r"integer class ids \(B, H, W\)"),
        ("depth", torch.ones(1, 1, 20, 16), "multiples of 16"),
    ],
)
def test_bad_tokenizer_input_is_named(tiny, name, x, message) -> None:
    with pytest.raises(ValueError, match=message):
        VQTokenizer.from_pretrained(tiny[name]).encode_ids(x)

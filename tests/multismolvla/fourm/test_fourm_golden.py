"""The encoder reproduces the reference implementation's recorded numbers and the official inventories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nearness import assert_near
from reference_rows import encode_rows
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from multismolvla.fourm import MODALITY_INFO, FourMConfig, FourMEncoder
from multismolvla.fourm.embeddings import normalise_rgb, sincos_1d, sincos_2d

CASES = ("a_rgb", "b_full", "b2_global", "c1_missing", "c2_partial", "c3_budget256", "d_caption")


@pytest.fixture(scope="module")
def tiny(golden: Path) -> tuple[dict[str, Tensor], dict, FourMEncoder]:
    """Tensors, case table and the encoder of ``fourm21_tiny``.

    Its vocabularies are scaled down, which an official name must not be; the missing rows are filled up with
    NaN, which also proves that they are never touched.
    """
    path = golden / "fourm21_tiny.safetensors"
    with safe_open(path, "pt") as file:
        meta = {key: json.loads(value) for key, value in file.metadata().items() if value[0] == "{"}
    data = load_file(path)
    sizes = meta["config"]
    names = sizes["modalities"]
    config = FourMConfig(sizes["dim"], sizes["encoder_depth"], sizes["num_heads"], tuple(names))
    assert config.mlp_hidden == sizes["mlp_hidden"]
    encoder = FourMEncoder(config, names).eval()
    state = {key: data[f"state.{key}"] for key in encoder.state_dict()}
    for name in sizes["vocab_sizes"]:
        key = f"encoder_embeddings.{name}.token_emb.weight"
        full = torch.full((MODALITY_INFO[name].vocab, config.dim), float("nan"))
        full[: len(state[key])] = state[key]
        state[key] = full
    encoder.load_state_dict(state, strict=True)
    return data, meta["cases"], encoder


def case_inputs(data: dict[str, Tensor], case: str, order: list[str]) -> tuple[dict, dict]:
    inputs, presence = {}, {}
    for name in order:
        values = data.get(f"{case}.in.{name}.tensor")
        inputs[name] = data["in.rgb_u8"].float() / 255 if values is None else values
        presence[name] = ~data[f"{case}.in.{name}.input_mask"]
    return inputs, presence


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_tiny_case(tiny, case: str) -> None:
    data, cases, encoder = tiny
    order, budget = cases[case]["order"], cases[case]["budget"]
    inputs, presence = case_inputs(data, case, order)

    rows = encode_rows(encoder, inputs, presence, budget)

    padding = data[f"{case}.out.encoder_mask"]
    assert torch.equal(rows.padding, padding)
    assert torch.equal(rows.mod_id, data[f"{case}.out.mod_id"].long())
    there = ~padding
    assert torch.equal(rows.source_index[there], data[f"{case}.out.source_index"].long()[there])
    stored = data[f"{case}.out.rows"].long()
    kept = there[:, stored]
    assert_near(rows.tokens[:, stored][kept], data[f"{case}.out.tokens"][kept])
    count = there.sum(1, keepdim=True)
    assert_near((rows.tokens * there[..., None]).sum(1) / count, data[f"{case}.out.mean_valid"])
    assert_near((rows.tokens * there[..., None]).abs().amax(1), data[f"{case}.out.max_abs_valid"])

    first = stored[:12]
    flat = torch.cat(list(encoder.embed(inputs, presence).values()), dim=1)
    index = rows.source_index[:, first]
    entered = flat.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, flat.shape[-1]))
    assert_near(entered * (index >= 0)[..., None], data[f"{case}.out.encoder_input"])


@pytest.mark.parametrize("case", [c for c in CASES if c != "c3_budget256"])
@pytest.mark.parametrize("drop_absent", [True, False])
@torch.no_grad()
def test_tiny_case_in_place(tiny, case: str, drop_absent: bool) -> None:
    """Both ways of being absent give the reference's numbers at the tokens' own places."""
    data, cases, encoder = tiny
    inputs, presence = case_inputs(data, case, cases[case]["order"])

    out = encoder(inputs, presence, drop_absent=drop_absent)

    flat = torch.cat(list(out.values()), dim=1)
    stored = data[f"{case}.out.rows"].long()
    index = data[f"{case}.out.source_index"].long()[:, stored]
    kept = ~data[f"{case}.out.encoder_mask"][:, stored]
    actual = flat.gather(1, index[..., None].expand(-1, -1, flat.shape[-1]))
    assert_near(actual[kept], data[f"{case}.out.tokens"][kept])


@torch.no_grad()
def test_tiny_embeddings(tiny) -> None:
    data, cases, encoder = tiny
    pixels = data["in.rgb_u8"].float() / 255
    probe = normalise_rgb(pixels)[:, :, 100:104, 50:66]
    assert_near(probe, data["expect.rgb_norm_probe"], 1e-6)

    rgb = encoder.encoder_embeddings["rgb@224"]
    assert_near(rgb.content(pixels)[:, :8], data["a_rgb.out.patch_proj"])
    assert_near(rgb.pos_emb + rgb.mod_emb, data["a_rgb.out.pos_plus_mod"])

    inputs, presence = case_inputs(data, "b_full", cases["b_full"]["order"])
    rows = encoder.embed(inputs, presence)
    for name in inputs:
        if name != "rgb@224":
            assert_near(rows[name][:, :4], data[f"b_full.out.emb.{name}"])


def test_position_tables(tiny) -> None:
    data, _, _ = tiny
    for name, table, tolerance in (
        ("rgb@224", sincos_2d((14, 14), 48), 1e-6),
        ("tok_imagebind@224", sincos_2d((16, 16), 48), 1e-6),
        ("caption", sincos_1d(512, 48), 5e-5),  # the reference rounds angles up to 511 to float32
    ):
        assert_near(table[None], data[f"state.encoder_embeddings.{name}.pos_emb"], tolerance)


@torch.no_grad()
def test_hub_layout(golden: Path) -> None:
    """The loader takes the official folder layout unchanged."""
    folder = golden / "fourm21_hub_tiny"
    data = load_file(folder / "cases.safetensors")
    with safe_open(folder / "cases.safetensors", "pt") as file:
        order = json.loads(file.metadata()["order"])
    encoder = FourMEncoder.from_pretrained(folder, order)
    inputs = {n: data[f"in.{n}.tensor"] if n != "rgb@224" else data["in.rgb_u8"].float() / 255 for n in order}
    presence = {n: ~data[f"in.{n}.input_mask"] for n in order}

    rows = encode_rows(encoder, inputs, presence, data["out.tokens"].shape[1])

    assert torch.equal(rows.padding, data["out.encoder_mask"])
    assert torch.equal(rows.mod_id, data["out.mod_id"].long())
    assert_near(rows.tokens[~rows.padding], data["out.tokens"][~rows.padding])


@pytest.mark.parametrize("size", ["B", "L", "XL"])
def test_official_inventory(golden: Path, size: str) -> None:
    inventory = json.loads((golden / "official_keys" / f"fourm21_{size}.json").read_text())
    with torch.device("meta"):
        encoder = FourMEncoder(FourMConfig.official(size), list(MODALITY_INFO))
    built = {key: list(tensor.shape) for key, tensor in encoder.state_dict().items()}
    assert built == {key: shape for key, (_, shape) in inventory["tensors"].items()}


def test_modality_ids() -> None:
    expected = {"rgb@224": 20716, "tok_dinov2_global": 29172, "sam_instance": 1938, "t5_caption": 28551}
    assert {name: MODALITY_INFO[name].mod_id for name in expected} == expected
    assert len(MODALITY_INFO) == 19

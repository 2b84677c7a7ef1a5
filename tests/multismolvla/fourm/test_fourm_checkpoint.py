"""Configs and checkpoint files: round trips, laziness, and errors that name what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from multismolvla import weights
from multismolvla.fourm import (
    MINI_DOMAINS,
    MINI_INFO,
    MODALITY_INFO,
    FourMConfig,
    FourMEncoder,
    FourMModality,
)
from multismolvla.modalities import MODALITIES

NAMES = ("rgb@224", "tok_depth@224", "tok_dinov2_global")


@pytest.fixture
def config() -> FourMConfig:
    return FourMConfig(16, 2, 2, (*NAMES, "tok_semseg@224"), domains_out=("tok_depth@224",), decoder_depth=3)


@pytest.fixture
def folder(config: FourMConfig, tmp_path: Path) -> Path:
    """A saved encoder with three modalities and, as official files have, a decoder that nobody asked for."""
    encoder = FourMEncoder(config, NAMES, torch.Generator().manual_seed(0))
    encoder.save_pretrained(tmp_path)
    edit(
        tmp_path, lambda state: state.update({"decoder.0.attn.qkv.weight": torch.full((4, 4), float("nan"))})
    )
    return tmp_path


def edit(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file({k: v.contiguous() for k, v in state.items()}, path)


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def test_save_and_load_gives_the_same_encoder(config, folder) -> None:
    written = FourMEncoder(config, NAMES, torch.Generator().manual_seed(0))
    read = FourMEncoder.from_pretrained(folder, NAMES)
    assert not read.training
    assert read.config.domains_in == NAMES
    assert list(read.state_dict()) == list(written.state_dict())
    for key, tensor in written.state_dict().items():
        assert torch.equal(read.state_dict()[key], tensor), key
    assert all(p.requires_grad for p in read.parameters())
    pixels = torch.rand(1, 3, 224, 224)
    assert torch.equal(read({"rgb@224": pixels})["rgb@224"], written({"rgb@224": pixels})["rgb@224"])


def test_saved_files_have_the_official_form(folder) -> None:
    state = load_file(folder / "model.safetensors")
    assert not state["encoder_norm.bias"].any()
    assert not state["encoder.0.norm1.bias"].any()
    official = {
        *("act_layer", "decoder_depth", "dim", "domains_in", "domains_out", "encoder_depth", "gated_mlp"),
        *(
            "image_size",
            "mlp_bias",
            "mlp_ratio",
            "norm_bias",
            "num_heads",
            "patch_size",
            "proj_bias",
            "qkv_bias",
        ),
        "share_modality_embeddings",
    }
    assert set(json.loads((folder / "config.json").read_text())) == official
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_saving_over_the_files_one_was_read_from(folder) -> None:
    encoder = FourMEncoder.from_pretrained(folder, NAMES)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    encoder.save_pretrained(folder)
    again = FourMEncoder.from_pretrained(folder, NAMES).state_dict()
    assert all(torch.equal(again[k], v) for k, v in before.items())
    assert all(torch.equal(encoder.state_dict()[k], v) for k, v in before.items())


def test_only_needed_tensors_are_read(folder, monkeypatch) -> None:
    read: list[str] = []
    real = weights.safe_open

    class Spy:
        def __init__(self, *args, **kwargs):
            self.opened = real(*args, **kwargs)

        def __enter__(self):
            self.file = self.opened.__enter__()
            return self

        def __exit__(self, *args):
            return self.opened.__exit__(*args)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def get_tensor(self, key):
            read.append(key)
            return self.file.get_tensor(key)

    monkeypatch.setattr(weights, "safe_open", Spy)
    encoder = FourMEncoder.from_pretrained(folder, ["tok_depth@224"])
    assert sorted(read) == sorted(encoder.state_dict())
    assert not [key for key in read if "rgb" in key or "decoder" in key]


def test_dtype_is_converted(folder) -> None:
    encoder = FourMEncoder.from_pretrained(folder, NAMES, dtype=torch.bfloat16)
    assert {t.dtype for t in encoder.state_dict().values()} == {torch.bfloat16}
    assert FourMEncoder.from_pretrained(folder, NAMES).encoder_norm.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("encoder.1.mlp.fc3.weight"), r"'encoder\.1\.mlp\.fc3\.weight' is missing"),
        (
            lambda s: [s.update({f"model.{k}": s.pop(k)}) for k in list(s)],
            r"'encoder_embeddings\.rgb@224\.mod_emb' is missing.*strip the prefix 'model\.'",
        ),
        (
            lambda s: s.update({"encoder.0.attn.qkv.weight": torch.zeros(48, 8)}),
            r"'encoder\.0\.attn\.qkv\.weight' has shape \(48, 8\).*\(48, 16\)",
        ),
        (
            lambda s: s.update({"encoder.0.attn.proj.weight": torch.zeros(16, 16, dtype=torch.int32)}),
            r"'encoder\.0\.attn\.proj\.weight' is I32",
        ),
        (lambda s: s["encoder.0.norm2.bias"].fill_(0.1), r"'encoder\.0\.norm2\.bias' is not zero"),
        (lambda s: s["encoder_norm.weight"].fill_(float("nan")), r"'encoder_norm\.weight' holds NaN"),
    ],
)
def test_bad_weights_are_named(folder, change, message) -> None:
    edit(folder, change)
    with pytest.raises(ValueError, match=message):
        FourMEncoder.from_pretrained(folder, NAMES)


@pytest.mark.parametrize("size", [0, 4, 2000, -100])
def test_truncated_weights_are_named(folder, size) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors.*truncated"):
        FourMEncoder.from_pretrained(folder, NAMES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": ...}, "field 'dim' is missing"),
        ({"gated_mlp": ...}, "field 'gated_mlp' is missing"),
        ({"gated_mlp": False}, "gated_mlp = False is not implemented"),
        ({"act_layer": "GELU"}, "act_layer = 'GELU' is not implemented"),
        ({"qkv_bias": True}, "qkv_bias = True"),
        ({"norm_bias": True}, "norm_bias = True"),
        ({"share_modality_embeddings": True}, "share_modality_embeddings = True"),
        ({"qk_norm": True}, "qk_norm = True is not implemented"),
        ({"num_register_tokens": 4}, "num_register_tokens = 4 is not implemented"),
        ({"layer_scale": 1.0}, "unknown field 'layer_scale'"),
        ({"dim": "16"}, "dim is '16'"),
        ({"dim": 18}, "dim 18 must be a multiple"),
        ({"num_heads": 3}, r"num_heads \(3\)"),
        ({"mlp_ratio": "4"}, "mlp_ratio is '4'"),
        ({"domains_in": "rgb@224"}, "domains_in is 'rgb@224'"),
        ({"domains_in": []}, "domains_in is empty"),
        ({"domains_in": ["rgb@224", "tok_edge@224"]}, "'tok_edge@224' is neither official"),
        ({"patch_size": 8}, "'rgb@224' means.*Declare a custom domain"),
    ],
)
def test_bad_config_is_named(folder, changes, message) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        FourMEncoder.from_pretrained(folder, NAMES)


def test_options_at_their_defaults_are_accepted(folder) -> None:
    edit_config(
        folder, qk_norm=False, num_register_tokens=0, decoder_sep_mask=True, drop_path_rate_encoder=0.0
    )
    FourMEncoder.from_pretrained(folder, NAMES)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_damaged_config_is_named(folder, text) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        FourMEncoder.from_pretrained(folder, NAMES)


def test_missing_files_are_named(folder) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        FourMEncoder.from_pretrained(folder, NAMES)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        FourMEncoder.from_pretrained(folder / "nowhere", NAMES)


def test_hub_without_network_says_what_to_do(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as caught:
        FourMEncoder.from_pretrained("EPFL-VILAB/4M-21_B", ["rgb@224"])
    for part in ("EPFL-VILAB/4M-21_B", "non-commercial", "config.json", "By hand", "hf download"):
        assert part in str(caught.value)


def test_modality_outside_the_checkpoint_is_named(folder) -> None:
    with pytest.raises(ValueError, match=r"'tok_semseg@224'.*\['rgb@224'"):
        FourMEncoder.from_pretrained(folder, ["tok_semseg@224"])
    with pytest.raises(ValueError, match="one or more different"):
        FourMEncoder.from_pretrained(folder, ["rgb@224", "rgb@224"])


def test_official_config_round_trip(golden) -> None:
    path = golden / "fourm21_hub_tiny" / "config.json"
    assert FourMConfig.from_json(path).to_dict() == json.loads(path.read_text())


def test_official_sizes() -> None:
    assert [FourMConfig.official(s).mlp_hidden for s in ("B", "L", "XL")] == [2048, 2730, 5461]
    with pytest.raises(ValueError, match="no size 'S'"):
        FourMConfig.official("S")


def test_custom_domains_round_trip(tmp_path) -> None:
    domains = {name: info.to_dict() for name, info in MINI_INFO.items()}
    domains["tok_touch"] = {"kind": "tokens", "vocab": 9, "num_tokens": 5, "positions": "learned"}
    config = FourMConfig(16, 1, 2, tuple(domains), image_size=64, patch_size=8, custom_domains=domains)
    FourMEncoder(config, list(domains)).save_pretrained(tmp_path)
    read = FourMEncoder.from_pretrained(tmp_path, list(domains))
    assert read.config.custom_domains == config.custom_domains
    assert read.grid("tok_thermal@64") == (4, 4)
    assert read.grid("tok_touch") == (1, 5)
    assert read.modality("tok_touch").positions == "learned"
    assert FourMConfig.from_dict(config.to_dict()) == config


def test_pixel_grid_follows_image_and_patch_size() -> None:
    config = FourMConfig(
        16, 1, 2, ("rgb@96",), image_size=96, patch_size=8, custom_domains={"rgb@96": {"kind": "pixels"}}
    )
    info = config.modality("rgb@96")
    assert (info.grid, info.image_size, info.patch_size) == ((12, 12), (96, 96), 8)


@pytest.mark.parametrize(
    ("domain", "fields", "message"),
    [
        ("rgb@224", {"kind": "pixels"}, r"'rgb@224'.*official"),
        ("x", {"kind": "audio"}, "kind is 'audio'"),
        ("x", {"kind": "tokens", "grid": [2, 2]}, "vocab is None"),
        ("x", {"kind": "tokens", "vocab": 4}, "num_tokens is None"),
        ("x", {"kind": "tokens", "vocab": 4, "grid": [2]}, r"grid is \[2\]"),
        ("x", {"kind": "tokens", "vocab": 4, "grid": [2, 2], "num_tokens": 5}, "contradicts grid"),
        ("x", {"kind": "tokens", "vocab": 4, "grid": [2, 2], "positions": "rope"}, "positions is 'rope'"),
        ("x", {"kind": "tokens", "vocab": 4, "grid": [2, 2], "vocabulary": 4}, "unknown field 'vocabulary'"),
        ("x", {"kind": "pixels", "patch_size": 15}, "no multiple of patch size 15"),
    ],
)
def test_bad_custom_domain_is_named(domain, fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        FourMConfig(16, 1, 2, (domain,), custom_domains={domain: fields})


def test_random_weights_follow_the_generator() -> None:
    config = FourMConfig(16, 1, 2, ("rgb@224", "t5_caption"))
    torch.manual_seed(5)
    made = [
        FourMEncoder(config, ["rgb@224", "t5_caption"], torch.Generator().manual_seed(0)) for _ in range(2)
    ]
    for key, tensor in made[0].state_dict().items():
        assert torch.equal(tensor, made[1].state_dict()[key]), key
    weight = made[0].encoder[0].attn.qkv.weight
    assert 0.015 < weight.std() < 0.02
    assert weight.abs().max() <= 0.04
    assert not made[0].encoder_embeddings["t5_caption"].emb_proj.bias.any()


def test_meta_device_draws_nothing_and_can_be_filled() -> None:
    config = FourMConfig(16, 1, 2, ("rgb@224",))
    with torch.device("meta"):
        encoder = FourMEncoder(config, ["rgb@224"])
    assert all(t.is_meta for t in encoder.state_dict().values())
    encoder = encoder.to_empty(device="cpu")
    encoder.init_weights(torch.Generator().manual_seed(0))
    reference = FourMEncoder(config, ["rgb@224"], torch.Generator().manual_seed(0))
    assert all(torch.equal(t, reference.state_dict()[k]) for k, t in encoder.state_dict().items())


def test_table_of_modalities_is_consistent() -> None:
    for name, info in (MODALITY_INFO | MINI_INFO).items():
        assert info.name == name
        assert info.grid is None or info.num_tokens == info.grid[0] * info.grid[1]


def test_mini_domains() -> None:
    assert tuple(MINI_DOMAINS) == MODALITIES
    assert tuple(MINI_DOMAINS.values()) == tuple(MINI_INFO) == FourMConfig.mini(16, 1, 2).domains_in
    for name, info in MINI_INFO.items():
        assert FourMModality.from_dict(name, info.to_dict(), 64, 8) == info

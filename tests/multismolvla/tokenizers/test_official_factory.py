"""Official tokenizers by name: checked against the encoder's domains at once, read at the first picture."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_imagebind import write_tiny_imagebind
from tiny_tokenizers import write_tiny_tokenizers

from multismolvla.fourm import MODALITY_INFO, FourMModality
from multismolvla.fourm.soft import soft_modality
from multismolvla.tokenizers import OfficialOptions, make_tokenizers
from multismolvla.tokenizers.labels import LabelTable

SIZE = 64
GRID = (14, 14)
DEPTH = FourMModality("tok_depth@x", "tokens", "sincos", 196, GRID, SIZE)
SEG = FourMModality("tok_semseg@x", "tokens", "sincos", 196, GRID, SIZE)
DENSE = FourMModality("tok_imagebind@224", "tokens", "sincos", 256, (16, 16), SIZE)
GLOBAL = FourMModality("tok_imagebind_global", "tokens", "learned", 16, vocab=SIZE)
SOFT = soft_modality("soft_thermal@224", GRID, 32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("official")
    write_tiny_tokenizers(root, codebook_size=SIZE)
    write_tiny_imagebind(root / "network")
    return root


def options(root: Path, **changes: Any) -> OfficialOptions:
    sources = {p: str(root / p) for p in ("depth", "seg", "imagebind", "imagebind_global")}
    settings = {"tokenizer_sources": sources, "imagebind": str(root / "network"), "imagebind_rows": "norm"}
    return OfficialOptions(**(settings | changes))


def picture(modality: str) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    if modality == "seg":
        return (
            torch.randint(0, 134, (2, 1, 14, 14), generator=g)
            .repeat_interleave(16, 2)
            .repeat_interleave(16, 3)
        )
    return 0.2 + 0.7 * torch.rand(2, 1, 224, 224, generator=g)


@pytest.mark.parametrize(
    ("modality", "domains", "route", "lengths"),
    [
        ("depth", (DEPTH,), "vision", (196,)),
        ("seg", (SEG,), "vision", (196,)),
        ("thermal", (DENSE, GLOBAL), "vision", (256, 16)),
        ("thermal", (GLOBAL,), "bridge", (16,)),
        ("thermal", (SOFT,), "soft", (196,)),
    ],
)
def test_weights_are_read_at_the_first_picture(files, modality, domains, route, lengths, caplog) -> None:
    with caplog.at_level("INFO"):
        made = make_tokenizers(
            "official", {modality: domains}, 134, official=options(files, thermal_route=route)
        )[modality]
        assert not made.loaded
        assert made.domains == tuple(d.name for d in domains)
        assert "Reading the weights" not in caplog.text
        tokens = made.encode_domains(picture(modality))
    assert made.loaded
    assert f"Reading the weights of the {modality} tokenizer" in caplog.text
    for info, length in zip(domains, lengths, strict=True):
        values = tokens[info.name].values
        assert values.shape[:2] == (2, length)
        assert info.vocab is None or (
            values.dtype == torch.int64 and 0 <= values.min() <= values.max() < SIZE
        )
        assert len(values.unique()) > 1


@pytest.mark.parametrize(
    ("modality", "domain", "message"),
    [
        ("depth", MODALITY_INFO["tok_depth@224"], r"makes 64 different ids.*'tok_depth@224' takes 8192"),
        (
            "depth",
            FourMModality("tok_depth@x", "tokens", "sincos", 784, (28, 28), SIZE),
            r"\(14, 14\) per picture, but the encoder's 'tok_depth@x' takes 64, \(28, 28\)",
        ),
        (
            "thermal",
            FourMModality("tok_imagebind_global", "tokens", "learned", 8, vocab=SIZE),
            "16 per picture, but the encoder's 'tok_imagebind_global' takes 64, 8",
        ),
        ("thermal", DEPTH, "thermal_route='vision' makes .*'tok_depth@x'"),
        ("depth", GLOBAL, "serves one domain with a grid"),
    ],
)  # fmt: skip
def test_a_tokenizer_for_another_size_is_refused(files, modality, domain, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_tokenizers("official", {modality: domain}, 134, official=options(files))


def test_a_bridge_from_raw_rows_without_a_map_is_refused_at_once(files) -> None:
    raw = options(files, thermal_route="bridge", imagebind_rows="trunk")
    with pytest.raises(ValueError, match="--policy.bridge_map"):
        make_tokenizers("official", {"thermal": GLOBAL}, 134, official=raw)


def test_a_tokenizer_for_another_modality_is_refused(files) -> None:
    swapped = OfficialOptions(tokenizer_sources={"depth": str(files / "seg")})
    with pytest.raises(
        ValueError, match=r"tokenizer_sources\['depth'\].*n_labels = 134.*4M_tokenizers_depth"
    ):
        make_tokenizers("official", {"depth": DEPTH}, 134, official=swapped)


def test_missing_files_stop_at_once_unless_the_data_hold_ids(files, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    nowhere = OfficialOptions(tokenizer_sources={"depth": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        make_tokenizers("official", {"depth": DEPTH}, 134, official=nowhere)
    with pytest.raises(FileNotFoundError, match="(?s)EPFL-VILAB/4M_tokenizers_depth_8k_224-448.*Licence"):
        make_tokenizers("official", {"depth": DEPTH}, 134)
    made = make_tokenizers("official", {"depth": DEPTH}, 134, official=nowhere, unread=["depth"])["depth"]
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        made.encode_domains(picture("depth"))


def test_other_weights_than_recorded_are_refused(files, tmp_path) -> None:
    made = make_tokenizers("official", {"depth": DEPTH}, 134, official=options(files))["depth"]
    recorded = made.check_fingerprints()
    write_tiny_tokenizers(tmp_path, codebook_size=SIZE, seed=1)
    other = options(files, tokenizer_sources={"depth": str(tmp_path / "depth")})
    made = make_tokenizers("official", {"depth": DEPTH}, 134, official=other, fingerprints=recorded)["depth"]
    with pytest.raises(ValueError, match="depth .* fingerprint"):
        made.encode_domains(picture("depth"))
    shutil.rmtree(tmp_path / "depth")


def test_pictures_in_another_label_set_are_mapped_and_a_wrong_size_is_named(files) -> None:
    mini = options(files, seg_labels="mini")
    seg = make_tokenizers("official", {"seg": SEG}, 8, official=mini)["seg"]
    labels = torch.full((1, 1, 224, 224), 3)  # cube
    coco = make_tokenizers("official", {"seg": SEG}, 134, official=options(files))["seg"]
    same = coco.encode_domains(torch.full_like(labels, 84))  # cardboard
    assert torch.equal(seg.encode_domains(labels)[SEG.name].values, same[SEG.name].values)
    with pytest.raises(ValueError, match="'mini'.* 8 .*num_labels=134"):
        make_tokenizers("official", {"seg": SEG}, 134, official=mini)
    with pytest.raises(ValueError, match="134 ids, but num_labels=8"):
        make_tokenizers("official", {"seg": SEG}, 8, official=options(files))


@pytest.mark.parametrize("table", ["mini", "coco_panoptic"])
def test_labels_outside_the_table_are_void_by_choice_alone(files, table) -> None:
    known = LabelTable.load(table).num_source_ids
    void = options(files, seg_labels=table, seg_unknown="void")
    seg = make_tokenizers("official", {"seg": SEG}, known + 5, official=void)["seg"]
    labels = torch.full((1, 1, 224, 224), 3)
    unknown = labels.clone()
    unknown[..., :112, :] = known + 4
    made = seg.encode_domains(unknown)[SEG.name].values
    unknown[..., :112, :] = 0  # nothing, in both tables
    assert torch.equal(made, seg.encode_domains(unknown)[SEG.name].values)
    assert not torch.equal(made, seg.encode_domains(labels)[SEG.name].values)
    with pytest.raises(ValueError, match=f"{known} ids.*num_labels={known + 5}.*seg_unknown=void"):
        make_tokenizers("official", {"seg": SEG}, known + 5, official=options(files, seg_labels=table))
    with pytest.raises(ValueError, match=f"{known} ids.*num_labels={known - 1}"):
        make_tokenizers("official", {"seg": SEG}, known - 1, official=void)

"""The published checkpoints: sizes against the recorded inventories, licences, what a policy needs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from multismolvla.pretrained import (
    IMAGEBIND,
    SOURCES,
    TOKENIZER_SOURCES,
    is_hub_id,
    licence_of,
    needed_by,
)

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("size", ["B", "L", "XL"])
def test_sizes_of_the_towers(golden, size) -> None:
    recorded = json.loads((golden / "official_keys" / f"fourm21_{size}.json").read_text())
    source = SOURCES[recorded["hub_id"]]
    assert source.size_bytes == 4 * recorded["total_elements_in_file"]
    assert source.known == "computed"


@pytest.mark.parametrize("size", ["XL", "L", "B"])
def test_sizes_of_thermalgen(golden, size) -> None:
    def elements(name: str, keep: str) -> int:
        tensors = json.loads((golden / "official_keys" / f"thermalgen_{name}-2.json").read_text())["tensors"]
        return sum(math.prod(shape) for key, (_, shape) in tensors.items() if keep in key)

    both_vaes = elements("XL", "_vae.")  # the same two in every size
    assert SOURCES[f"xjh19972/ThermalGen-{size}-2"].size_bytes == 4 * (elements(size, "<sit>.") + both_vaes)


@pytest.mark.parametrize("name", ["depth", "semseg", "imagebind", "imagebind_global"])
def test_tokenizers_are_the_recorded_ones_and_larger_than_their_encoder_half(golden, name) -> None:
    recorded = json.loads((golden / "official_keys" / f"tok_{name}.json").read_text())
    half = 4 * sum(math.prod(shape) for _, shape in recorded["tensors"].values())
    assert half < SOURCES[recorded["hub_id"]].size_bytes < 4 * half


def test_every_source_is_told_whole() -> None:
    for repo, source in SOURCES.items():
        assert source.repo == repo
        assert repo.count("/") == 1
        assert source.url.endswith(repo)
        assert source.known in {"listed", "computed", "estimated"}
        assert source.licence
        assert source.purpose
        assert source.size_bytes > 1_000_000
    assert "non-commercial" in licence_of("EPFL-VILAB/4M-21_L")
    assert "https://huggingface.co/some/thing" in licence_of("some/thing")


def test_licences_of_folders(tmp_path) -> None:
    assert "whatever lies in this folder" in licence_of(str(tmp_path))
    (tmp_path / "source.json").write_text('{"licence": "some conditions"}')
    assert licence_of(str(tmp_path)) == "some conditions"


def test_what_is_a_hub_id(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "folder").mkdir(parents=True)
    assert is_hub_id("somebody/else")
    assert not any(
        is_hub_id(w) for w in ("own/folder", "./x", "/a/b", "~/b", "a/b/c", "{stage:base}", "imagebind.pth")
    )


def test_the_tokenizers_defaults_are_registered() -> None:
    domains = {"thermal": "tok_imagebind@224+tok_imagebind_global", "depth": "tok_depth@224"}
    domains["seg"] = "tok_semseg@224"
    needed = needed_by({"tokenizers": "official", "domains": domains})
    assert set(TOKENIZER_SOURCES.values()) | {IMAGEBIND} <= set(needed)
    assert set(needed) <= set(SOURCES)


def test_what_a_policy_needs() -> None:
    assert list(needed_by({"vision_tower": "siglip", "base_checkpoint": "lerobot/smolvla_base"})) == [
        "lerobot/smolvla_base",
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    ]
    weight_free = needed_by({"domains": {"depth": "tok_depth@224"}, "vlm_model_name": "some/folder"})
    assert weight_free == {
        "some/folder": "configuration and processor of the language model",
        "EPFL-VILAB/4M-21_B": "vision tower, size B",
    }
    own = needed_by(
        {
            "tokenizers": "official",
            "domains": {"rgb": "rgb@224", "depth": "tok_depth@224", "thermal": "tok_imagebind_global"},
            "tokenizer_sources": {"depth": "my/depth"},
            "imagebind": "imagebind_huge.pth",
        }
    )
    assert own["my/depth"] == "depth ids"
    assert own["imagebind_huge.pth"] == "thermal routes"
    assert "EPFL-VILAB/4M_tokenizers_depth_8k_224-448" not in own
    assert "EPFL-VILAB/4M_tokenizers_ImageBind-H14_8k_224-448" not in own


def test_every_licence_is_documented() -> None:
    rows = [f"| [{s.repo}]({s.url}) | {s.licence} | {s.purpose} | {s.size} |" for s in SOURCES.values()]
    text = (REPO / "docs/licences.md").read_text()
    missing = [row for row in rows if row not in text]
    assert not missing, "Licence table of docs/licences.md, to be pasted:\n" + "\n".join(rows)


def test_the_registry_imports_nothing_heavy() -> None:
    code = "import sys, multismolvla.pretrained; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]

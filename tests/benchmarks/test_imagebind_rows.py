"""Which rows a tokenizer was trained on is found where it is known."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from imagebind_rows import compare_row_conventions, main
from PIL import Image
from tiny_imagebind import write_tiny_imagebind
from tiny_tokenizers import write_tiny_tokenizers
from torch import Tensor

from multismolvla.thermal.imagebind import ROW_CONVENTIONS, ImageBindVision
from multismolvla.tokenizers.official import VQTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    write_tiny_imagebind(root / "network")
    write_tiny_tokenizers(root, feature_width=40)
    return root


@pytest.fixture(scope="module")
def vision(folder: Path) -> ImageBindVision:
    return ImageBindVision.from_pretrained(folder / "network")


class Codes:
    """A tokenizer whose latents are the features and whose codes are some of the rows it was trained on."""

    def __init__(self, rows: Tensor) -> None:
        self.quantize = self
        self.codes = rows[:, 1:].flatten(0, 1)

    def latent(self, x: Tensor) -> Tensor:
        return x


def blobs(seed: int) -> Tensor:
    """Three bright spots on a dark slope, (1, 3, 224, 224): many patches alike, so that codes are shared."""
    axis = torch.linspace(0, 1, 224)
    image = 0.2 * axis.expand(224, 224)
    for x, y, size in torch.rand(3, 3, generator=torch.Generator().manual_seed(seed)):
        distance = (axis[None] - x) ** 2 + (axis[:, None] - y) ** 2
        image = image + torch.exp(-distance / (0.02 + 0.05 * size))
    return (image / image.max()).expand(1, 3, 224, 224)


@pytest.mark.parametrize("truth", ROW_CONVENTIONS)
def test_the_comparison_finds_the_convention(vision: ImageBindVision, truth: str) -> None:
    images = torch.cat([blobs(seed) for seed in range(6)])
    rows = vision.rows(images, truth)
    result = compare_row_conventions(vision, Codes(rows), images, batch_size=4)
    other = next(c for c in ROW_CONVENTIONS if c != truth)
    assert result[truth].mean_max_cosine == pytest.approx(1, abs=1e-5)
    assert result[other].mean_max_cosine < 0.999
    assert result[truth].distinct_codes > result[other].distinct_codes


def test_the_comparison_takes_the_official_tokenizer(vision: ImageBindVision, folder: Path) -> None:
    images = torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    dense = VQTokenizer.from_pretrained(folder / "imagebind")
    result = compare_row_conventions(vision, dense, images, batch_size=2)
    for convention in ROW_CONVENTIONS:
        maps = vision.rows(images, convention)[:, 1:].transpose(1, 2).unflatten(2, (16, 16))
        assert result[convention].distinct_codes == len(dense.encode_ids(maps).unique())
        assert 0 < result[convention].mean_max_cosine <= 1


def test_the_script_reads_photographs(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    for number, size in enumerate([(300, 240), (224, 224)]):
        Image.effect_noise(size, 60).convert("RGB").save(tmp_path / f"{number}.png")
    arguments = [f"--pictures={tmp_path}", f"--imagebind={folder / 'network'}"]
    monkeypatch.setattr(sys, "argv", ["x", *arguments, f"--tokenizer={folder / 'imagebind'}"])
    main()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ROW_CONVENTIONS)

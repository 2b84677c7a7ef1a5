"""The encoder at the published sizes: file inventory, memory while loading, arithmetic in bfloat16."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from multismolvla.fourm import FourMConfig, FourMEncoder
from multismolvla.pretrained import SOURCES

SIZES = ("B", "L", "XL")
BOUND = 1.3  # peak while loading, relative to the tensors that are kept


@pytest.mark.parametrize("size", SIZES)
def test_the_synthetic_files_hold_what_the_official_ones_hold(golden, size) -> None:
    from support.loading import inventory

    recorded = json.loads((golden / "official_keys" / f"fourm21_{size}.json").read_text())
    built = inventory(FourMConfig.official(size))
    assert len(built) == recorded["total_tensors_in_file"]
    assert sum(math.prod(shape) for shape in built.values()) == recorded["total_elements_in_file"]
    assert {k: list(built[k]) for k in recorded["tensors"]} == {
        k: s for k, (_, s) in recorded["tensors"].items()
    }
    assert SOURCES[f"EPFL-VILAB/4M-21_{size}"].size_bytes == 4 * recorded["total_elements_in_file"]


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read as Linux tells it"
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_b_takes_hardly_more_than_what_is_kept(tmp_path, dtype) -> None:
    """3.4 GB of file, 0.43 GB (0.22 GB in bfloat16) kept; mapped pages count."""
    from support.loading import measure_loading, write_official

    length = write_official(tmp_path, "B")
    assert abs(length - SOURCES["EPFL-VILAB/4M-21_B"].size_bytes) < 100_000  # the header
    assert (tmp_path / "model.safetensors").stat().st_blocks * 512 < 1_000_000, "the file must be sparse"
    result = measure_loading(tmp_path, dtype)
    assert result.kept_bytes == pytest.approx(0.433e9 if dtype == "float32" else 0.2165e9, rel=0.01)
    assert result.peak_bytes <= BOUND * result.kept_bytes, result


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_official_widths_compute_in_bfloat16(size) -> None:
    """One block of the published width, all domains of the product: bfloat16 stays near float32."""
    whole = FourMConfig.official(size)
    names = ("rgb@224", "tok_imagebind_global")
    config = FourMConfig(whole.dim, 1, whole.num_heads, names)
    encoder = FourMEncoder(config, names, torch.Generator().manual_seed(0)).eval()
    inputs = {
        "rgb@224": torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1)),
        "tok_imagebind_global": torch.arange(16)[None],
    }
    exact = encoder(inputs)
    rounded = encoder.to(torch.bfloat16)(inputs)
    for name in names:
        assert rounded[name].dtype == torch.bfloat16
        error = (rounded[name].float() - exact[name]).norm() / exact[name].norm()
        assert error < 0.02, (name, error)


def test_attention_is_fused(monkeypatch) -> None:
    calls = []
    fused = F.scaled_dot_product_attention

    def spy(*args, **kwargs):
        calls.append(args[0].shape)
        return fused(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    encoder = FourMEncoder(FourMConfig(32, 2, 2, ("rgb@224",)), ["rgb@224"])
    encoder({"rgb@224": torch.rand(3, 3, 224, 224)})
    assert calls == [(3, 2, 196, 16)] * 2


def test_gradient_only_where_wanted() -> None:
    """Frozen: no graph is kept, unless the picture itself wants a gradient (adversarial pictures do)."""
    encoder = FourMEncoder(FourMConfig(32, 2, 2, ("rgb@224",)), ["rgb@224"]).requires_grad_(False)
    pixels = torch.rand(1, 3, 224, 224)
    assert encoder({"rgb@224": pixels})["rgb@224"].grad_fn is None
    pixels.requires_grad_()
    encoder({"rgb@224": pixels})["rgb@224"].square().sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0
    assert all(p.grad is None for p in encoder.parameters())


def test_building_on_the_meta_device_loads_nothing_heavy() -> None:
    """PyTorch's own initialisation of embeddings would import its compiler there: 115 MB and seconds."""
    import subprocess

    code = (
        "import sys, torch; from multismolvla.fourm import FourMConfig, FourMEncoder\n"
        "before = set(sys.modules)\n"
        "with torch.device('meta'): FourMEncoder(FourMConfig.official('XL'), ['rgb@224', 'tok_depth@224'])\n"
        "print(len(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20

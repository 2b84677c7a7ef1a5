"""The official perception stack in miniature: official domains and file layouts, random weights, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from multismolvla.fourm import FourMConfig, FourMEncoder
from multismolvla.thermal.tiny import write_tiny_imagebind
from multismolvla.tokenizers.tiny import write_tiny_tokenizers

THERMAL = {
    "vision": "tok_imagebind@224+tok_imagebind_global",
    "bridge": "tok_imagebind_global",
    "soft": "soft_thermal@224",
}
PICTURES = {"rgb": "rgb@224", "depth": "tok_depth@224", "seg": "tok_semseg@224"}


def write_official(root: Path, seed: int = 0) -> Path:
    """Write ``fourm21``, ``imagebind`` and the tokenizers' folders into ``root``; vocabularies as officially."""
    write_tiny_tokenizers(root / "8k", codebook_size=8192, seed=seed)
    write_tiny_tokenizers(root / "4k", codebook_size=4096, seed=seed)
    write_tiny_imagebind(root / "imagebind", seed=seed)
    names = [*PICTURES.values(), "tok_imagebind@224", "tok_imagebind_global"]
    config = FourMConfig(dim=32, encoder_depth=2, num_heads=2, domains_in=tuple(names))
    FourMEncoder(config, names, torch.Generator().manual_seed(seed)).save_pretrained(root / "fourm21")
    return root


def sources(root: Path) -> dict[str, str]:
    made = {p: str(root / "8k" / p) for p in ("depth", "imagebind", "imagebind_global")}
    return made | {"seg": str(root / "4k" / "seg")}


def official_options(root: Path, route: str = "vision") -> dict[str, Any]:
    """Options of a policy; its pictures are the mini suite's, so segmentation goes through a label table."""
    return {
        "encoder": str(root / "fourm21"), "domains": PICTURES | {"thermal": THERMAL[route]}, "tokenizers": "official",
        "tokenizer_sources": sources(root), "seg_labels": "mini", "thermal_route": route, "imagebind": str(root / "imagebind"),
        "imagebind_rows": "norm", "image_size": 224, "fusion_grid": 14, "connector_grid": 8,
    }  # fmt: skip

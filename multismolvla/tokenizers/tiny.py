"""Tiny tokenizers in the official file layout, with random weights: for tests and for trying out configurations.

Their ids mean nothing. Grids are the official ones (patch 16, position table 28x28), so a pipeline that runs with them
runs with the published files unchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multismolvla import weights
from multismolvla.tokenizers.official import VQConfig, VQTokenizer
from multismolvla.tokenizers.recipe import NUM_OFFICIAL_LABELS

_COMMON: dict[str, Any] = {
    "image_size": 448,
    "image_size_enc": None,
    "n_labels": None,
    "post_mlp": True,
    "patch_size": 16,
    "num_codebooks": 1,
    "norm_codes": True,
    "norm_latents": False,
    "sync_codebook": False,
    "undo_std": False,
    "dec_type": "vit_tiny_dec",
}
_VIT: dict[str, Any] = {
    "enc_type": "vit_tiny_enc",
    "encoder": {"dim": 32, "depth": 1, "num_heads": 2},
    "quant_type": "lucid",
    "latent_dim": 8,
}


def write_tiny_tokenizers(
    folder: str | Path, *, feature_width: int = 40, codebook_size: int = 64, seed: int = 0
) -> dict[str, Path]:
    """Write four tiny tokenizers, each as ``config.json`` + ``model.safetensors`` in a folder of its own.

    Args:
        folder: where to make the folders ``depth``, ``seg``, ``imagebind`` and ``imagebind_global``.
        feature_width: channels of the ImageBind features that the last two take (1280 officially).
        codebook_size: number of ids of each; at most that of the encoder's domain.
        seed: of the random weights.

    Returns:
        {purpose: folder}, as ``tokenizer_sources`` of the policy takes it.
    """
    maps = _COMMON | _VIT | {"codebook_size": codebook_size}
    mlp = {
        "enc_type": "BottleneckMLP/B_1-Wi_24",
        "quant_type": "memcodes",
        "latent_dim": 128,
        "num_codebooks": 16,
    }
    configs = {
        "depth": maps | {"n_channels": 1, "patch_proj": True},
        "seg": maps | {"n_channels": 6, "n_labels": NUM_OFFICIAL_LABELS, "patch_proj": True},
        "imagebind": maps | {"n_channels": feature_width, "patch_proj": False},
        "imagebind_global": maps
        | mlp
        | {"n_channels": feature_width, "patch_proj": False, "image_size": 224},
    }
    del configs["imagebind_global"]["encoder"]
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for purpose, config in configs.items():
        state = _random_state(VQTokenizer(VQConfig.from_dict(config)), generator)
        # What official files hold beside the encoder half and readers must leave alone.
        state["decoder.proj.weight"] = torch.full((2, 2), float("nan"))
        made[purpose] = Path(folder) / purpose
        weights.write(made[purpose], config, state)
    return made


def _random_state(tokenizer: VQTokenizer, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of ordinary size: unit gain, norms around one, positions and codes of order one."""
    state = {}
    for key, tensor in tokenizer.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if key.endswith("bias"):
            state[key] = 0.1 * noise
        elif "norm" in key:
            state[key] = 1 + 0.1 * noise
        elif key.endswith("weight") and key != "cls_emb.weight":
            state[key] = noise / tensor[0].numel() ** 0.5
        else:
            state[key] = noise
    return state

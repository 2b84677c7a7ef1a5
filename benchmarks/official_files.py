"""4M-21 checkpoints in the official layout without the official values: every tensor of the file, all zero.

The files are sparse: they have the official length and take no room on the disk. What loads them maps, reads and counts
the same pages as for the real ones.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from pathlib import Path

from multismolvla.fourm import MODALITY_INFO, FourMConfig, FourMEncoder

_TEXT = ("caption", "det", "metadata", "human_poses", "color_palette", "sam_instance")


def inventory(config: FourMConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of an official file: the encoder's, and what an encoder-only reader must skip.

    Numbers of tensors and elements agree with the published files (tests/multismolvla/test_fourm_official_size.py).
    """
    import torch

    with torch.device("meta"):
        encoder = FourMEncoder(config, config.domains_in)
    tensors = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    dim, hidden = config.dim, config.mlp_hidden
    for i in range(config.decoder_depth):
        block = f"decoder.{i}."
        for norm in ("norm1", "query_norm", "context_norm", "norm2"):
            tensors |= {f"{block}{norm}.weight": (dim,), f"{block}{norm}.bias": (dim,)}
        tensors |= {
            f"{block}self_attn.qkv.weight": (3 * dim, dim),
            f"{block}self_attn.proj.weight": (dim, dim),
            f"{block}cross_attn.q.weight": (dim, dim),
            f"{block}cross_attn.kv.weight": (2 * dim, dim),
            f"{block}cross_attn.proj.weight": (dim, dim),
            f"{block}mlp.fc1.weight": (hidden, dim),
            f"{block}mlp.fc2.weight": (dim, hidden),
            f"{block}mlp.fc3.weight": (hidden, dim),
        }
    for name in config.domains_out:
        info = MODALITY_INFO[name]
        if info.vocab is not None:
            tensors |= {
                f"decoder_embeddings.{name}.mod_emb": (1, 1, dim),
                f"decoder_embeddings.{name}.pos_emb": (1, info.num_positions, dim),
                f"decoder_embeddings.{name}.token_emb.weight": (info.vocab, dim),
                f"decoder_embeddings.{name}.to_logits.weight": (info.vocab, dim),
            }
    return tensors | {
        "decoder_norm.weight": (dim,),
        "decoder_norm.bias": (dim,),
        "decoder_proj_context.weight": (dim, dim),
        "decoder_proj_context.bias": (dim,),
        "mask_token": (1, 1, dim),
    }


def write_official(folder: Path, size: str, depth: int | None = None) -> int:
    """Write ``config.json`` and a sparse ``model.safetensors`` of 4M-21.

    Args:
        folder: where; made when missing.
        size: ``B``, ``L`` or ``XL``.
        depth: blocks of encoder and decoder; ``None`` = the official number.

    Returns:
        Length of the weights file in bytes.
    """
    config = FourMConfig.official(size)
    if depth is not None:
        config = dataclasses.replace(config, encoder_depth=depth, decoder_depth=depth)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, shape in inventory(config).items():
        start, end = end, end + 4 * math.prod(shape)
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1))
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path.stat().st_size

"""Soft modalities: rows of another network in place of embedded ids, through a small trained map.

This is how thermal route ``soft`` enters the encoder. The encoder stays frozen; only what is added here
learns. Names begin with `SOFT_PREFIX`, so that checkpoints can tell these tensors from the frozen ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multismolvla.fourm.embeddings import FourMEmbedding
from multismolvla.fourm.encoder import FourMEncoder
from multismolvla.fourm.modality import MODALITY_INFO, FourMModality

SOFT_PREFIX = "soft_"


def soft_modality(name: str, grid: tuple[int, int], width: int) -> FourMModality:
    """A modality outside the vocabulary: rows (B, rows * columns, width) on a grid, with sin-cos positions.

    Raises:
        ValueError: the name does not begin with `SOFT_PREFIX`.
    """
    if not name.startswith(SOFT_PREFIX) or name in MODALITY_INFO:
        raise ValueError(
            f"A domain of rows must be named {SOFT_PREFIX!r}..., got {name!r}: other names stand for ids."
        )
    return FourMModality(name, "features", "sincos", grid[0] * grid[1], grid, width=width)


def add_soft_modality(
    encoder: FourMEncoder,
    info: FourMModality,
    *,
    mod_emb: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> FourMEmbedding:
    """Give an encoder a soft modality.

    Args:
        encoder: gets the embedding under ``encoder_embeddings.<name>``.
        info: from `soft_modality`.
        mod_emb: modality embedding (1, 1, D) of a similar modality to start from; ``None`` = random.
        generator: source of the random weights.

    Returns:
        The embedding: linear map, modality embedding (both trainable) and fixed positions.
    """
    embedding = FourMEmbedding(info, encoder.config.dim)
    embedding.init_weights(generator)
    if mod_emb is not None:
        with torch.no_grad():
            embedding.mod_emb.copy_(mod_emb)
    like = encoder.encoder_norm.weight
    encoder.encoder_embeddings[info.name] = embedding.to(device=like.device, dtype=like.dtype)
    return embedding

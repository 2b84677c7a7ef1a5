"""Initial token tables that know what the weight-free ids mean.

A table drawn at random tells a fresh tower nothing about which of 1,024 depths are alike; learning that costs more
steps than the mini preset has. Projecting the tokenizer's own features gives order and compositionality for free.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multismolvla.tokenizers.weight_free import WeightFreeTokenizer


def structured_token_embedding(
    tokenizer: WeightFreeTokenizer, dim: int, generator: torch.Generator | None = None, std: float = 0.02
) -> Tensor:
    """Random projection of a tokenizer's features.

    Depth and thermal: neighbouring bins get similar rows. Segmentation: a row is the sum over the quadrants of one
    random vector per (quadrant, label).

    Args:
        tokenizer: whose ids to embed.
        dim: width D of the rows.
        generator: CPU generator of the projection; ``None`` = PyTorch's global one.
        std: root mean square of the returned entries; 0.02 is what a plain table has. In a short localisation probe
            (250 steps, width 64) segmentation did best at 0.02 and lost beyond 0.3; depth liked 0.3 a little better.

    Returns:
        float32 (vocab_size, D), mean zero over the ids.
    """
    features = tokenizer.features()
    features = features - features.mean(dim=0)
    table = features @ torch.randn(features.shape[1], dim, generator=generator)
    return table * (std / table.square().mean().sqrt())

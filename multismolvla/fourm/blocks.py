"""Transformer blocks of 4M and the packing that lets them skip absent tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


class ScaleNorm(nn.LayerNorm):
    """LayerNorm with a scale only; ``bias`` is the all-zero buffer that the official files store."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=NORM_EPS, bias=False)
        del self._parameters["bias"]
        self.register_buffer("bias", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last axis; unlike the parent, never add ``bias``."""
        return F.layer_norm(x, self.normalized_shape, self.weight, None, self.eps)


class Packing(NamedTuple):
    """Where the rows of a packed token list belong.

    Attributes:
        source: (T,) flat index of each present token in (B * S).
        slots: (T,) flat index in the dense attention batch (samples with at least one token, ``length``).
        key_mask: bool (samples, 1, 1, length), True = key; ``None`` when nothing is padded.
        samples: number of samples with at least one token.
        length: greatest number of tokens of a sample.
    """

    source: Tensor
    slots: Tensor
    key_mask: Tensor | None
    samples: int
    length: int


def pack(valid: Tensor) -> Packing | None:
    """How to run only the present tokens (bool (B, S)); ``None`` when no token of the batch is present.

    The linear layers see the T present tokens without any padding; attention alone pads to the longest
    sample.
    """
    counts = valid.sum(dim=1)
    length = int(counts.max())
    if length == 0:
        return None
    some = counts > 0
    samples = int(some.sum())
    rank = valid.cumsum(dim=1) - 1 + (some.cumsum(dim=0) - 1)[:, None] * length  # (B, S)
    source = valid.flatten().nonzero().squeeze(1)
    key_mask = None
    if len(source) < samples * length:  # some sample is padded
        key_mask = torch.arange(length, device=valid.device) < counts[some][:, None]  # (samples, length)
        key_mask = key_mask[:, None, None]
    return Packing(source, rank.flatten()[source], key_mask, samples, length)


class MaskedAttention(nn.Module):
    """Multi-head self-attention without biases; q, k, v stacked in ``qkv``, heads contiguous."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, key_mask: Tensor | None, packing: Packing | None) -> Tensor:
        """Attend.

        Args:
            x: (B, S, D), or (T, D) with ``packing``.
            key_mask: bool, broadcastable to (B, 1, S, S); not used with ``packing``, which has its own.
            packing: where the rows of ``x`` belong.
        """
        qkv = self.qkv(x)
        if packing is not None:
            dense = qkv.new_zeros(packing.samples * packing.length, qkv.shape[-1])
            qkv = dense.index_copy(0, packing.slots, qkv).view(packing.samples, packing.length, -1)
            key_mask = packing.key_mask
        heads = qkv.unflatten(-1, (3, self.num_heads, -1))  # (B, S, 3, heads, D / heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, heads, S, D / heads)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)
        y = y.transpose(1, 2).flatten(2)  # (B, S, D)
        rows: Tensor = self.proj(y if packing is None else y.flatten(0, 1)[packing.slots])
        return rows


class GatedMLP(nn.Module):
    """fc2(SiLU(fc1(x)) * fc3(x)) without biases."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, dim, bias=False)
        self.fc3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        y: Tensor = self.fc2(F.silu(self.fc1(x)) * self.fc3(x))
        return y


class EncoderBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, mlp_hidden: int) -> None:
        super().__init__()
        self.norm1 = ScaleNorm(dim)
        self.attn = MaskedAttention(dim, num_heads)
        self.norm2 = ScaleNorm(dim)
        self.mlp = GatedMLP(dim, mlp_hidden)

    def forward(self, x: Tensor, key_mask: Tensor | None = None, packing: Packing | None = None) -> Tensor:
        """Same shapes and masks as `MaskedAttention.forward`."""
        x = x + self.attn(self.norm1(x), key_mask, packing)
        rows: Tensor = x + self.mlp(self.norm2(x))
        return rows

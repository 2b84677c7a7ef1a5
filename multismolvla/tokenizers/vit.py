"""Encoders of the official 4M tokenizers: a vision transformer for maps, a bottleneck MLP for single vectors.

Parameter names are those of the official files. A codebook's nearest row flips on near ties, so precision is
a property of the tokenizer (the dtype it was loaded with, `KeepFloat32`) and never of what happens around it
(`full_float32`): ids cached by a tool and ids made inside a training step must be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multismolvla.transformer import MLP, Attention

NORM_EPS = 1e-6


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute float32 as float32: no autocast, and no TF32 (LeRobot switches it on, cuDNN has it on)."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


class KeepFloat32(nn.Module):
    """A module that moves between devices but ignores changes of dtype (``.half()``, ``.bfloat16()``)."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        return super()._apply(keep, recurse)  # type: ignore[no-untyped-call]


class PostNorm(KeepFloat32, nn.LayerNorm):
    """LayerNorm in front of the float32 tail."""


class PostMLP(KeepFloat32, MLP):
    """The float32 tail's MLP."""


class ViTBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MLP(dim, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class ViTEncoder(nn.Module):
    """Vision transformer without class token and without final norm.

    Args:
        in_channels: channels C of the input.
        dim: width D.
        depth: number of blocks.
        num_heads: attention heads.
        patch_size: side of a patch in pixels; 1 = the input is a feature map already.
        table: side G of the stored position table.
    """

    def __init__(
        self, in_channels: int, dim: int, depth: int, num_heads: int, patch_size: int, table: int
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.pos_emb: Tensor
        self.register_buffer("pos_emb", torch.zeros(1, dim, table, table))
        self.blocks = nn.ModuleList(ViTBlock(dim, num_heads) for _ in range(depth))
        self.norm_mlp = PostNorm(dim, eps=NORM_EPS)
        self.post_mlp = PostMLP(dim, nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """Encode.

        Args:
            x: (B, C, H, W) in the weights' dtype.

        Returns:
            float32 (B, D, H / patch, W / patch).
        """
        y = self.proj(x)
        grid = (y.shape[2], y.shape[3])
        y = (y + self.positions(grid)).flatten(2).transpose(1, 2)  # (B, h w, D), row-major
        for block in self.blocks:
            y = block(y)
        y = y.float()
        y = y + self.post_mlp(self.norm_mlp(y))
        return y.transpose(1, 2).unflatten(2, grid)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The stored table (1, D, G, G) brought to ``grid`` by bicubic interpolation without antialiasing."""
        if tuple(self.pos_emb.shape[2:]) == grid:
            return self.pos_emb
        # In float32: at 224 this is a real interpolation (28x28 -> 14x14) of values that later decide about
        # ids.
        table = F.interpolate(self.pos_emb.float(), grid, mode="bicubic", align_corners=False)
        return table.to(self.pos_emb.dtype)


class BottleneckMLP(KeepFloat32):
    """Residual MLP over single vectors.

    Args:
        in_channels: width of the input vector.
        dim: inner and outer width.
        depth: number of residual blocks.
    """

    def __init__(self, in_channels: int, dim: int, depth: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(in_channels, dim)
        self.blocks = nn.ModuleList(_Bottleneck(dim) for _ in range(depth))
        # Default epsilon 1e-5, unlike the transformer's.
        self.layernorms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.linear_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Run on float (B, C, 1, 1); gives float32 (B, D, 1, 1)."""
        y = self.linear_in(x.float().flatten(1))
        for block, norm in zip(self.blocks, self.layernorms, strict=True):
            y = y + block(norm(y))
        y = self.linear_out(y)
        return y[..., None, None]


class _Bottleneck(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return y

"""Layers of ImageBind's branches, under the official parameter names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multismolvla.transformer import MLP

#: Side of the pictures in pixels; the position tables fit no other.
IMAGE_SIZE = 224
NORM_EPS = 1e-6
_FRAMES = 2  # temporal kernel of the vision stem; a still picture is the same frame twice


class ClassRow(nn.Module):
    """Picks the class row: (B, N, D) -> (B, D)."""

    def forward(self, rows: Tensor) -> Tensor:
        """Pick row 0."""
        return rows[:, 0]


class LogitScale(nn.Module):
    """Multiplies by exp of a stored number, at most 100."""

    def __init__(self) -> None:
        super().__init__()
        self.log_logit_scale: Tensor
        self.register_buffer("log_logit_scale", torch.tensor(math.log(10.0)))

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, D) by the stored factor."""
        return x * self.log_logit_scale.float().exp().clamp(max=100.0)


class UnitLength(nn.Module):
    """Scales vectors to length one, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return F.normalize(x.float(), dim=-1)


class TrunkBlock(nn.Module):
    """Pre-norm transformer block; `bias_kv` appends one learned key and value to every sample's."""

    def __init__(self, width: int, num_heads: int, bias_kv: bool) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = nn.MultiheadAttention(width, num_heads, add_bias_kv=bias_kv, batch_first=True)
        self.norm_2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        y = self.norm_1(x)
        # Without the attention map PyTorch takes its fused attention.
        x = x + self.attn(y, y, y, need_weights=False)[0]
        rows: Tensor = x + self.mlp(self.norm_2(x))
        return rows


class Trunk(nn.Module):
    """Transformer blocks; vision alone has a LayerNorm before them. Rows (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, num_blocks: int, num_heads: int, bias_kv: bool, pre_norm: bool) -> None:
        super().__init__()
        norms = [nn.LayerNorm(width, eps=NORM_EPS)] if pre_norm else []
        self.pre_transformer_layer = nn.Sequential(*norms)
        self.blocks = nn.ModuleList(TrunkBlock(width, num_heads, bias_kv) for _ in range(num_blocks))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = self.pre_transformer_layer(x)
        for block in self.blocks:
            x = block(x)
        return x


class Preprocessor(nn.Module):
    """Patches, class token, positions: (B, C, 224, 224) -> (B, 1 + patches, width)."""

    def __init__(self, width: int, patch_size: int, stem: nn.Module) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.rgbt_stem = stem
        positions = torch.zeros(1, 1 + (IMAGE_SIZE // patch_size) ** 2, width)
        self.pos_embedding_helper = nn.ParameterDict({"pos_embed": positions})

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed prepared pixels."""
        patches = self.rgbt_stem(pixels)
        rows = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        positioned: Tensor = rows + self.pos_embedding_helper["pos_embed"]
        return positioned


class VisionStem(nn.Module):
    """The 3-D convolution over two frames, for a still: the kernel summed over time, exactly."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        kernel = (_FRAMES, patch_size, patch_size)
        conv = nn.Conv3d(3, width, kernel_size=kernel, stride=kernel, bias=False)
        self.proj = nn.Sequential(nn.Identity(), conv)  # officially index 0 repeats the frame

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) -> (B, N, D), row-major."""
        kernel = self.proj[1].weight
        assert isinstance(kernel, Tensor)
        return F.conv2d(pixels, kernel.sum(2), stride=kernel.shape[3:]).flatten(2).transpose(1, 2)


class ThermalStem(nn.Module):
    """Patches of a one-channel picture (B, 1, H, W) and their LayerNorm: (B, N, D)."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.norm_layer = nn.LayerNorm(width, eps=1e-5)  # PyTorch's default, unlike all other norms here

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 1, H, W) -> (B, N, D), row-major."""
        rows: Tensor = self.norm_layer(self.proj(pixels).flatten(2).transpose(1, 2))
        return rows

"""ThermalGen's denoiser: a latent flow-matching transformer (SiT) that sees the RGB picture's latent.

The work is split by what it depends on, so that a sampler does each part only as often as needed:
    `SiT.modulation` on
time and label, `SiT.context` on the RGB latent, `SiT.velocity` on the noisy latent. `SiT.forward` does all
three, as the reference does at every evaluation. Parameter names are the official ones. Reference:
arplaboratory/ThermalGen.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multismolvla.transformer import MLP, Attention

NORM_EPS = 1e-6
TIME_FEATURES = 256


class Architecture(NamedTuple):
    """Sizes behind a published name."""

    hidden: int
    depth: int
    heads: int


#: ``arch`` of ``model_config`` -> sizes. ``tiny`` is the size of test checkpoints and nothing published.
ARCHITECTURES = {
    "S": Architecture(384, 12, 6),
    "B": Architecture(768, 12, 12),
    "L": Architecture(1024, 24, 16),
    "XL": Architecture(1152, 28, 16),
    "tiny": Architecture(48, 2, 4),
}


@dataclass(frozen=True)
class SiTConfig:
    """Sizes of the denoiser.

    Attributes:
        hidden: width D, a multiple of 4 and of ``heads``.
        depth: number of blocks.
        heads: attention heads.
        patch_size: side of a patch in latent pixels.
        channels: of the latents, thermal and RGB alike.
        num_classes: labels; one more row, `null_label`, means "no label".
        injection: how RGB enters. ``cross``: queries from RGB tokens, keys and values from thermal ones, in
            every block. ``concat``: RGB tokens appended to the thermal ones.

    Raises:
        ValueError: sizes that do not divide, or an unknown ``injection``.
    """

    hidden: int
    depth: int
    heads: int
    patch_size: int = 2
    channels: int = 4
    num_classes: int = 1000
    injection: str = "cross"

    def __post_init__(self) -> None:
        if self.hidden % 4 or self.hidden % self.heads:
            raise ValueError(
                f"SiT: hidden size {self.hidden} must be a multiple of 4 and of heads ({self.heads})."
            )
        if self.injection not in ("cross", "concat"):
            raise ValueError(f"SiT: injection {self.injection!r} is unknown; expected 'cross' or 'concat'.")

    @property
    def null_label(self) -> int:
        """The label that stands for none (1000 officially)."""
        return self.num_classes


class Modulation(NamedTuple):
    """What time and label do to the network; broadcasts over samples that share both.

    Attributes:
        blocks: one (B or 1, 9 or 6, D) per block.
        final: (B or 1, 2, D).
    """

    blocks: tuple[Tensor, ...]
    final: Tensor


class Context(NamedTuple):
    """What the RGB latent contributes; the same at every time.

    Attributes:
        positions: (n, D).
        tokens: (B, n, D) RGB tokens; ``None`` for ``cross``, whose blocks need only their queries.
        queries: per block (B, heads, n, D / heads); empty for ``concat``.
    """

    positions: Tensor
    tokens: Tensor | None
    queries: tuple[Tensor, ...]


@functools.lru_cache(maxsize=16)
def position_table(rows: int, columns: int, dim: int) -> Tensor:
    """Sine-cosine positions of a grid of patches, row-major.

    For a square grid a token's numbers are (row, column). For others the reference builds the grid
    width-major and reads it height-major: its numbers are (m div rows, m mod rows) of the flat index m. The
    weights know it that way, so it is kept; official training was square only.

    Args:
        rows: patches from top to bottom.
        columns: patches from left to right.
        dim: width, a multiple of 4.

    Returns:
        float32 (rows * columns, dim), computed in float64.
    """
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    index = torch.arange(rows * columns)
    first = (index // rows).double()[:, None] * frequencies
    second = (index % rows).double()[:, None] * frequencies
    return torch.cat([first.sin(), first.cos(), second.sin(), second.cos()], dim=1).float()


def time_features(t: Tensor) -> Tensor:
    """Times (B,) in [0, 1], not scaled by 1000, to float32 (B, 256): cosines, then sines."""
    half = TIME_FEATURES // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return _norm(x) * (1 + scale) + shift


def _adaptive(hidden: int, chunks: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(hidden, chunks * hidden))


class PatchEmbedding(nn.Module):
    """Latent (B, C, H, W) to row-major tokens (B, n, D)."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.hidden, config.patch_size, config.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """See class."""
        rows: Tensor = self.proj(x)
        return rows.flatten(2).transpose(1, 2)


class TimeEmbedding(nn.Module):
    """Times (B,) in [0, 1] to (B, D)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, t: Tensor) -> Tensor:
        """See class."""
        first: nn.Linear = self.mlp[0]  # type: ignore[assignment]
        rows: Tensor = self.mlp(time_features(t).to(first.weight.dtype))
        return rows


class LabelEmbedding(nn.Module):
    """Labels int64 (B,) in [0, num_classes] to (B, D); the last row means "no label"."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(config.num_classes + 1, config.hidden)

    def forward(self, y: Tensor) -> Tensor:
        """See class."""
        rows: Tensor = self.embedding_table(y)
        return rows


class CrossAttention(nn.Module):
    """Queries from RGB tokens, keys and values from thermal ones; row j is added to row j of thermal."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 2 * hidden)
        self.qkv_RGB = nn.Linear(hidden, hidden)
        self.proj = nn.Linear(hidden, hidden)

    def queries(self, rgb: Tensor) -> Tensor:
        """Normalised RGB tokens (B, n, D) -> (B, heads, n, D / heads)."""
        q: Tensor = self.qkv_RGB(rgb).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return q

    def forward(self, x: Tensor, q: Tensor) -> Tensor:
        """(B, n, D) and `queries` -> (B, n, D)."""
        k, v = self.qkv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        rows: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return rows


class SiTBlock(nn.Module):
    """Self-attention, cross-attention (``cross`` only), MLP, each modulated and gated by time and label."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        cross = config.injection == "cross"
        self.attn = Attention(config.hidden, config.heads)
        self.cross_attn = CrossAttention(config.hidden, config.heads) if cross else None
        self.mlp = MLP(config.hidden, nn.GELU(approximate="tanh"))
        self.adaLN_modulation = _adaptive(config.hidden, 9 if cross else 6)

    def rgb_queries(self, rgb: Tensor) -> Tensor:
        """The cross-attention's queries from normalised RGB tokens (B, n, D)."""
        assert self.cross_attn is not None
        return self.cross_attn.queries(rgb)

    def forward(self, x: Tensor, modulation: Tensor, queries: Tensor | None) -> Tensor:
        """(B, n, D), (B or 1, 9 or 6, D) and the RGB queries -> (B, n, D)."""
        parts = modulation[:, :, None].unbind(1)  # each (B or 1, 1, D): shift, scale, gate, ...
        x = x + parts[2] * self.attn(_modulate(x, parts[0], parts[1]))
        if self.cross_attn is not None:
            x = x + parts[5] * self.cross_attn(_modulate(x, parts[3], parts[4]), queries)
        shift, scale, gate = parts[-3:]
        rows: Tensor = x + gate * self.mlp(_modulate(x, shift, scale))
        return rows


class FinalLayer(nn.Module):
    """Tokens to patches."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.adaLN_modulation = _adaptive(config.hidden, 2)
        self.linear = nn.Linear(config.hidden, config.patch_size**2 * config.channels)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """(B, n, D) and (B or 1, 2, D) -> (B, n, patch * patch * channels), channels last."""
        shift, scale = modulation[:, :, None].unbind(1)
        rows: Tensor = self.linear(_modulate(x, shift, scale))
        return rows


class SiT(nn.Module):
    """Velocity of the thermal latent, given time, label and the RGB latent.

    Example:
        >>> net = SiT(SiTConfig(48, 2, 4))
        >>> z, rgb = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
        >>> net(z, torch.tensor([0.5]), torch.tensor([1000]), rgb).shape
        torch.Size([1, 4, 8, 8])

    Args:
        config: sizes.
    """

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbedding(config)
        self.x_RGB_embedder = PatchEmbedding(config)
        self.t_embedder = TimeEmbedding(config.hidden)
        self.y_embedder = LabelEmbedding(config)
        self.blocks = nn.ModuleList(SiTBlock(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of the computation."""
        return self.x_embedder.proj.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.x_embedder.proj.weight.device

    def modulation(self, t: Tensor, y: Tensor) -> Modulation:
        """All that time and label contribute.

        Args:
            t: float (K,), 0 = noise to 1 = data.
            y: int64 (K,) in [0, num_classes].

        Returns:
            Modulations with leading size K.
        """
        c = self.t_embedder(t) + self.y_embedder(y)

        def chunks(layer: nn.Sequential) -> Tensor:
            rows: Tensor = layer(c).unflatten(-1, (-1, self.config.hidden))
            return rows

        blocks = tuple(chunks(block.adaLN_modulation) for block in self.blocks)  # type: ignore[arg-type]
        return Modulation(blocks, chunks(self.final_layer.adaLN_modulation))

    def context(self, x_rgb: Tensor) -> Context:
        """All that the RGB latent contributes.

        Args:
            x_rgb: float (B, channels, H, W), scaled by the RGB normalizer.

        Raises:
            ValueError: other channels, or sides that are no multiples of the patch size.
        """
        rows, columns = self._grid(x_rgb)
        positions = position_table(rows, columns, self.config.hidden).to(self.device, self.dtype)
        tokens = self.x_RGB_embedder(x_rgb.to(self.dtype)) + positions
        if self.config.injection == "concat":
            return Context(positions, tokens, ())
        normed = _norm(tokens)
        queries = tuple(block.rgb_queries(normed) for block in self.blocks)  # type: ignore[operator]
        return Context(positions, None, queries)

    def velocity(self, x: Tensor, modulation: Modulation, context: Context) -> Tensor:
        """Velocity of the noisy latent.

        Args:
            x: float (B, channels, H, W).
            modulation: from `modulation`, leading size B or 1.
            context: from `context`, of the same batch and size.

        Returns:
            (B, channels, H, W) in the dtype of the weights.
        """
        grid = self._grid(x)
        tokens = self.x_embedder(x.to(self.dtype)) + context.positions
        n = tokens.shape[1]
        if context.tokens is not None:
            tokens = torch.cat([tokens, context.tokens], dim=1)
        queries = context.queries or (None,) * len(self.blocks)
        for block, changes, query in zip(self.blocks, modulation.blocks, queries, strict=True):
            tokens = block(tokens, changes, query)
        patches = self.final_layer(tokens[:, :n], modulation.final)
        p, c = self.config.patch_size, self.config.channels
        patches = patches.view(len(x), *grid, p, p, c).permute(0, 5, 1, 3, 2, 4)
        return patches.reshape(len(x), c, grid[0] * p, grid[1] * p)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, x_rgb: Tensor) -> Tensor:
        """Velocity with nothing kept from one call to the next, as in the reference.

        Args:
            x: noisy latent, float (B, channels, H, W).
            t: float (B,), 0 = noise to 1 = data.
            y: labels, int64 (B,).
            x_rgb: RGB latent, shape of ``x``.
        """
        return self.velocity(x, self.modulation(t, y), self.context(x_rgb))

    def _grid(self, latent: Tensor) -> tuple[int, int]:
        c, p = self.config.channels, self.config.patch_size
        if latent.ndim != 4 or latent.shape[1] != c or latent.shape[2] % p or latent.shape[3] % p:
            raise ValueError(
                f"SiT: latent is {tuple(latent.shape)}; expected (B, {c}, H, W) with H and W multiples of "
                f"{p}."
            )
        return latent.shape[2] // p, latent.shape[3] // p

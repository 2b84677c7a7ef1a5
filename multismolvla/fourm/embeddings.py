"""Encoder embeddings of 4M: content + position + modality, one module per modality.

Absent tokens are cleaned *before* the content layer: a dead sensor may deliver NaN pixels or ids of -1, and
multiplying by a zero mask afterwards would still poison the weights' gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multismolvla.checks import shape_and_dtype
from multismolvla.fourm.modality import FourMModality

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def sincos_1d(num_positions: int, dim: int) -> Tensor:
    """Fixed 1-D position table, float32 (num_positions, dim).

    Row p is [sin(p w), cos(p w)] with w_k = 10000^(-k / (dim / 2)).
    """
    return _sincos(torch.arange(num_positions, dtype=torch.float64, device="cpu"), dim).float()


def sincos_2d(grid: tuple[int, int], dim: int) -> Tensor:
    """Fixed 2-D positions of a row-major grid, float32 (rows * columns, dim): half rows, half columns."""
    rows = _sincos(torch.arange(grid[0], dtype=torch.float64, device="cpu"), dim // 2)  # (h, D/2)
    columns = _sincos(torch.arange(grid[1], dtype=torch.float64, device="cpu"), dim // 2)  # (w, D/2)
    rows = rows[:, None].expand(-1, grid[1], -1)
    columns = columns[None].expand(grid[0], -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).float()  # (h * w, D)


def _sincos(positions: Tensor, dim: int) -> Tensor:
    half = dim // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device="cpu") / half)
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def normalise_rgb(
    pixels: Tensor, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> Tensor:
    """Subtract mean and divide by deviation, channel by channel; 4M takes ImageNet's statistics.

    Args:
        pixels: floating (B, 3, H, W), RGB order, in [0, 1].
        mean: per channel.
        std: per channel.

    Returns:
        float32 (B, 3, H, W).
    """
    # Channel by channel with Python numbers: buffers would be rounded by `.to(bfloat16)`, fresh tensors would
    # have to be copied to the accelerator in each call.
    channels = [(pixels[:, c].float() - mean[c]) / std[c] for c in range(3)]
    return torch.stack(channels, dim=1)


class FourMEmbedding(nn.Module):
    """Content, position and modality embedding of one modality, under the official parameter names.

    Args:
        info: the modality.
        dim: width D of the encoder.
    """

    def __init__(self, info: FourMModality, dim: int) -> None:
        super().__init__()
        self.info = info
        self.mod_emb = nn.Parameter(torch.empty(1, 1, dim))
        table = torch.empty(1, info.num_positions, dim)
        if info.positions == "learned":
            self.pos_emb = nn.Parameter(table)
        else:
            self.register_buffer("pos_emb", table)
        if info.kind == "pixels":
            assert info.patch_size is not None
            self.proj = nn.Linear(3 * info.patch_size**2, dim, bias=False)
        elif info.kind in ("vectors", "features"):
            assert info.width is not None
            self.emb_proj = nn.Linear(info.width, dim)
        else:
            assert info.vocab is not None
            # Not nn.Embedding(vocab, dim): its own draw is thrown away here, and on the meta device that draw
            # alone loads 115 MB of PyTorch's compiler.
            self.token_emb = nn.Embedding.from_pretrained(torch.empty(info.vocab, dim), freeze=False)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None, std: float = 0.02) -> None:
        """Draw new weights: truncated normal; fixed positions are recomputed, biases are zero."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            else:
                nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)
        if self.info.positions == "sincos":
            dim = self.mod_emb.shape[-1]
            grid = self.info.grid
            self.pos_emb.copy_(sincos_2d(grid, dim) if grid else sincos_1d(self.info.num_positions, dim))

    def forward(self, values: Tensor, present: Tensor | None = None) -> Tensor:
        """Embed one modality.

        Args:
            values: pixels: float (B, 3, H, W) in [0, 1]; ids: integer (B, N) or (B, h, w); vectors: float
                (B, N, width); features: float (B, N, width) or (B, h, w, width).
            present: bool (B, N), True = the token is there; ``None`` = all are.

        Returns:
            (B, N, D) in the weights' dtype; zero rows where not present.

        Raises:
            ValueError: wrong shape or dtype, or an id outside the vocabulary (checked on the CPU only, where
                reading the extremes costs no synchronisation).
        """
        content = self.content(values, present)
        positions: Tensor = self.pos_emb
        if self.info.text_like:
            length = content.shape[1]
            if present is None:
                positions = positions[:, :length]
            else:
                rank = (present.cumsum(dim=1) - 1).clamp(min=0)
                positions = positions[0][rank]  # (B, N, D)
        rows: Tensor = content + positions + self.mod_emb
        return rows if present is None else torch.where(present[..., None], rows, torch.zeros_like(rows))

    def content(self, values: Tensor, present: Tensor | None = None) -> Tensor:
        """Content part of `forward` alone: (B, N, D), with the input of absent tokens replaced by zeros."""
        if self.info.vocab is not None:
            return self._lookup(values, present)
        if self.info.kind == "pixels":
            rows, layer = self._patches(values), self.proj
        else:
            rows, layer = self._rows(values), self.emb_proj
        if present is not None:
            rows = torch.where(present[..., None], rows, torch.zeros_like(rows))
        content: Tensor = layer(rows.to(layer.weight.dtype))
        return content

    def _patches(self, pixels: Tensor) -> Tensor:
        """Normalised pictures (B, 3, H, W) cut into (B, N, patch * patch * 3), channel last in a patch."""
        grid, size, patch = self.info.grid, self.info.image_size, self.info.patch_size
        assert grid is not None
        assert size is not None
        assert patch is not None
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, *size) or not pixels.is_floating_point():
            raise ValueError(
                f"{self.info.name!r}: got {shape_and_dtype(pixels)}; expected floating (B, 3, {size[0]}, "
                f"{size[1]}) in [0, 1]. Resize and convert before the encoder."
            )
        x = normalise_rgb(pixels).view(-1, 3, grid[0], patch, grid[1], patch)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, h * w, p * p * 3)

    def _rows(self, values: Tensor) -> Tensor:
        """Checked rows of numbers (B, N, width)."""
        info = self.info
        on_grid = info.grid is not None and values.ndim == 4 and tuple(values.shape[1:3]) == info.grid
        rows = values.flatten(1, 2) if on_grid else values
        length = "N" if info.text_like else info.num_tokens
        fits = info.text_like or rows.shape[1:2] == (info.num_tokens,)
        if rows.ndim != 3 or rows.shape[2] != info.width or not fits or not rows.is_floating_point():
            raise ValueError(
                f"{info.name!r}: got {shape_and_dtype(values)}; expected floating (B, {length}, "
                f"{info.width})."
            )
        self._check_length(rows.shape[1])
        return rows

    def _lookup(self, ids: Tensor, present: Tensor | None) -> Tensor:
        info, vocab = self.info, self.token_emb.num_embeddings
        grid_ok = info.grid is not None and ids.ndim == 3 and tuple(ids.shape[1:]) == info.grid
        if ids.is_floating_point() or ids.dtype == torch.bool or not (ids.ndim == 2 or grid_ok):
            expected = f" or (B, {info.grid[0]}, {info.grid[1]})" if info.grid else ""
            raise ValueError(
                f"{info.name!r}: got {shape_and_dtype(ids)}; expected integer ids of shape (B, N){expected}."
            )
        ids = ids.flatten(1).long()
        self._check_length(ids.shape[1])
        if not info.text_like and ids.shape[1] != info.num_tokens:
            found = ids.shape[1]
            raise ValueError(f"{info.name!r}: got {found} tokens per sample; expected {info.num_tokens}.")
        if present is not None:
            ids = torch.where(present, ids, torch.zeros_like(ids))
        if ids.device.type == "cpu" and ids.numel():
            low, high = (int(v) for v in ids.aminmax())
            if low < 0 or high >= vocab:
                raise ValueError(
                    f"{info.name!r}: token id {low if low < 0 else high} is outside the vocabulary [0, "
                    f"{vocab}). Use the tokenizer that belongs to this modality."
                )
        rows: Tensor = self.token_emb(ids)
        return rows

    def _check_length(self, length: int) -> None:
        if self.info.text_like and length > self.info.num_positions:
            raise ValueError(
                f"{self.info.name!r}: {length} tokens per sample, but the position table has "
                f"{self.info.num_positions} rows. Truncate the text."
            )

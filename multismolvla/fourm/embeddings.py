"""Encoder embeddings of 4M: content + position + modality, one module per modality.

Absent tokens are cleaned *before* the content layer: a dead sensor may deliver NaN pixels or ids of -1, and
multiplying by a zero mask afterwards would still poison the weights' gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multismolvla.fourm.modality import FourMModality

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def sincos_1d(num_positions: int, dim: int) -> Tensor:
    """Fixed 1-D position table, float32 (num_positions, dim): [sin(p w), cos(p w)], w_k = 10000^(-k / (dim / 2))."""
    return _sincos(torch.arange(num_positions, dtype=torch.float64, device="cpu"), dim).float()


def sincos_2d(grid: tuple[int, int], dim: int) -> Tensor:
    """Fixed 2-D position table of a row-major grid, float32 (rows * columns, dim): first half rows, second columns."""
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


def normalise_rgb(pixels: Tensor) -> Tensor:
    """ImageNet-normalise pixels.

    Args:
        pixels: floating (B, 3, H, W), RGB order, in [0, 1].

    Returns:
        float32 (B, 3, H, W).
    """
    # Channel by channel with Python numbers: buffers would be rounded by `.to(bfloat16)`, fresh tensors would have
    # to be copied to the accelerator in each call.
    channels = [(pixels[:, c].float() - IMAGENET_MEAN[c]) / IMAGENET_STD[c] for c in range(3)]
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
            # Not nn.Embedding(vocab, dim): its own draw is thrown away here, and on the meta device that draw alone
            # loads 115 MB of PyTorch's compiler.
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
            values: pixels: float (B, 3, H, W) in [0, 1]; ids: integer (B, N) or (B, h, w); vectors: float (B, N, width);
                features: float (B, N, width) or (B, h, w, width).
            present: bool (B, N), True = the token is there; ``None`` = all are.

        Returns:
            (B, N, D) in the weights' dtype; zero rows where not present.

        Raises:
            ValueError: wrong shape or dtype, or an id outside the vocabulary (checked on the CPU only, where reading
                the extremes costs no synchronisation).
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
        kind = self.info.kind
        if kind == "pixels":
            rows = self._patches(values)
        elif kind == "vectors":
            rows = self._vectors(values)
        elif kind == "features":
            rows = self._features(values)
        else:
            return self._lookup(values, present)
        if present is not None:
            rows = torch.where(present[..., None], rows, torch.zeros_like(rows))
        layer = self.proj if kind == "pixels" else self.emb_proj
        content: Tensor = layer(rows.to(layer.weight.dtype))
        return content

    def _patches(self, pixels: Tensor) -> Tensor:
        """Cut normalised pictures (B, 3, H, W) into (B, N, patch * patch * 3), channel last inside a patch."""
        info = self.info
        assert info.grid is not None
        assert info.image_size is not None
        assert info.patch_size is not None
        if (
            pixels.ndim != 4
            or tuple(pixels.shape[1:]) != (3, *info.image_size)
            or not pixels.is_floating_point()
        ):
            raise ValueError(
                f"{info.name!r}: got {_describe(pixels)}; expected floating (B, 3, {info.image_size[0]}, "
                f"{info.image_size[1]}) in [0, 1]. Resize and convert before the encoder."
            )
        (h, w), p = info.grid, info.patch_size
        x = normalise_rgb(pixels).view(-1, 3, h, p, w, p)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, h * w, p * p * 3)

    def _vectors(self, values: Tensor) -> Tensor:
        info = self.info
        if values.ndim != 3 or values.shape[2] != info.width or not values.is_floating_point():
            raise ValueError(
                f"{info.name!r}: got {_describe(values)}; expected floating (B, N, {info.width})."
            )
        self._check_length(values.shape[1])
        return values

    def _features(self, values: Tensor) -> Tensor:
        info = self.info
        rows = values.flatten(1, 2) if values.ndim == 4 and tuple(values.shape[1:3]) == info.grid else values
        if (
            rows.ndim != 3
            or tuple(rows.shape[1:]) != (info.num_tokens, info.width)
            or not rows.is_floating_point()
        ):
            raise ValueError(
                f"{info.name!r}: got {_describe(values)}; expected floating (B, {info.num_tokens}, {info.width})."
            )
        return rows

    def _lookup(self, ids: Tensor, present: Tensor | None) -> Tensor:
        info = self.info
        grid_ok = info.grid is not None and ids.ndim == 3 and tuple(ids.shape[1:]) == info.grid
        if ids.is_floating_point() or ids.dtype == torch.bool or not (ids.ndim == 2 or grid_ok):
            expected = f" or (B, {info.grid[0]}, {info.grid[1]})" if info.grid else ""
            raise ValueError(
                f"{info.name!r}: got {_describe(ids)}; expected integer ids of shape (B, N){expected}."
            )
        ids = ids.flatten(1).long()
        if info.text_like:
            self._check_length(ids.shape[1])
        elif ids.shape[1] != info.num_tokens:
            raise ValueError(
                f"{info.name!r}: got {ids.shape[1]} tokens per sample; expected {info.num_tokens}."
            )
        if present is not None:
            ids = torch.where(present, ids, torch.zeros_like(ids))
        if ids.device.type == "cpu" and ids.numel():
            low, high = (int(v) for v in ids.aminmax())
            if low < 0 or high >= self.token_emb.num_embeddings:
                raise ValueError(
                    f"{info.name!r}: token id {low if low < 0 else high} is outside the vocabulary "
                    f"[0, {self.token_emb.num_embeddings}). Use the tokenizer that belongs to this modality."
                )
        rows: Tensor = self.token_emb(ids)
        return rows

    def _check_length(self, length: int) -> None:
        if length > self.info.num_positions:
            raise ValueError(
                f"{self.info.name!r}: {length} tokens per sample, but the position table has {self.info.num_positions} "
                "rows. Truncate the text."
            )


def _describe(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}"

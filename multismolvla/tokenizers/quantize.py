"""Codebook lookup of the official 4M tokenizers: cosine codebook and memory codes, always in float32.

Both look up one chunk of latents at a time: the scores of 64 pictures against 8192 codes would be 400 MB at
    once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multismolvla.tokenizers.vit import KeepFloat32, full_float32

#: Scores held at once: 2^24 floats = 64 MB.
MAX_SCORES = 1 << 24

_EPS = 1e-12


class CosineCodebook(KeepFloat32):
    """The ``lucid`` quantizer with ``norm_codes``: the row with the largest cosine.

    Args:
        codebook_size: number K of codes.
        dim: their width.
    """

    def __init__(self, codebook_size: int, dim: int) -> None:
        super().__init__()
        self._codebook = nn.Module()
        # Running averages, only nearly of unit length.
        self._codebook.register_buffer("embed", torch.zeros(codebook_size, dim))
        self._unit: Tensor
        self.register_buffer("_unit", torch.zeros(codebook_size, dim), persistent=False)
        self.register_load_state_dict_post_hook(_prepare)  # type: ignore[no-untyped-call]

    @property
    def codes(self) -> Tensor:
        """Raw codes, float32 (K, D)."""
        return self._codebook.embed  # type: ignore[return-value]

    def prepare(self) -> None:
        """Normalise the codes once; runs by itself after loading."""
        self._unit = F.normalize(self.codes, dim=-1, eps=_EPS)

    def forward(self, latent: Tensor) -> Tensor:
        """Nearest code of each position: float (B, D, h, w) -> int64 (B, h, w)."""
        with full_float32(latent.device):
            rows = F.normalize(latent.float().movedim(1, -1), dim=-1, eps=_EPS)
            chunks = rows.flatten(0, 2).split(max(1, MAX_SCORES // len(self._unit)))
            ids = torch.cat([(chunk @ self._unit.T).argmax(-1) for chunk in chunks])
        return ids.view(rows.shape[:-1])


class MemoryCodes(KeepFloat32):
    """The ``memcodes`` quantizer: per codebook the key with the largest plain dot product.

    Args:
        codebook_size: number K of codes per codebook.
        num_codebooks: number H of codebooks; each looks at its own contiguous share of the latent.
        dim: width of the latent, a multiple of H.
    """

    def __init__(self, codebook_size: int, num_codebooks: int, dim: int) -> None:
        super().__init__()
        width = dim // num_codebooks
        self.codes: Tensor
        self.register_buffer("codes", torch.zeros(num_codebooks, codebook_size, width))
        self.to_k = nn.Module()
        self.to_k.register_buffer("weight", torch.zeros(num_codebooks, width, width))
        self._keys: Tensor
        self.register_buffer("_keys", torch.zeros(num_codebooks, codebook_size, width), persistent=False)
        self.register_load_state_dict_post_hook(_prepare)  # type: ignore[no-untyped-call]

    def prepare(self) -> None:
        """Multiply codes and key map once; runs by itself after loading."""
        with full_float32(self.codes.device):
            self._keys = torch.einsum("hnd,hdc->hnc", self.codes, self.to_k.weight)

    def forward(self, latent: Tensor) -> Tensor:
        """Best key per codebook: float (B, D, 1, 1) -> int64 (B, H)."""
        heads, codes, _ = self._keys.shape
        with full_float32(latent.device):
            rows = latent.float().flatten(1).unflatten(1, (heads, -1))  # (B, H, D / H)
            chunks = rows.split(max(1, MAX_SCORES // (heads * codes)))
            scores = (torch.einsum("bhc,hnc->bhn", chunk, self._keys) for chunk in chunks)
            return torch.cat([s.argmax(-1) for s in scores])


def _prepare(module: CosineCodebook | MemoryCodes, _: object) -> None:
    module.prepare()

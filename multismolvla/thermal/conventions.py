"""Which of ImageBind's rows 4M's ImageBind tokenizers were trained on: a question for the published weights to answer."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from multismolvla.thermal.imagebind import ROW_CONVENTIONS, ImageBindVision


class _Codebook(Protocol):
    @property
    def codes(self) -> Tensor:
        """Float (K, D)."""
        ...


class DenseTokenizer(Protocol):
    """What is needed of `multismolvla.tokenizers.official.VQTokenizer` for feature maps."""

    @property
    def quantize(self) -> _Codebook:
        """Holds the codes."""
        ...

    def latent(self, x: Tensor, /) -> Tensor:
        """Float (B, C, h, w) -> float (B, D, h, w)."""
        ...


@torch.no_grad()
def compare_row_conventions(
    vision: ImageBindVision, dense_tokenizer: DenseTokenizer, images: Tensor, *, batch_size: int = 8
) -> dict[str, dict[str, float]]:
    """Tokenize photographs from raw and from normalised rows and tell which the tokenizer seems to know.

    The reference called a patched copy of ImageBind that was never published, so the documents leave open
    whether its 1280-d rows were the last block's output or that output after the head's LayerNorm. On the
    features a codebook was trained on, latents lie near codes and many codes are in use; on others both drop.
    With the weights fetched (1.3 GB + 0.7 GB are read) and a hundred or more everyday photographs of
    different content::

        from multismolvla.thermal.conventions import compare_row_conventions
        from multismolvla.thermal.imagebind import ImageBindVision
        from multismolvla.tokenizers.official import VQTokenizer
        from multismolvla.tokenizers.recipe import TOKENIZER_SOURCES

        vision = ImageBindVision.from_pretrained("nielsr/imagebind-huge", device="cuda")
        dense = VQTokenizer.from_pretrained(TOKENIZER_SOURCES["imagebind"], device="cuda")
        compare_row_conventions(vision, dense, photographs)  # float (B, 3, 224, 224) in [0, 1]

    Set ``imagebind_rows`` to the convention that is higher in both numbers. If they disagree or differ
    little, the photographs are too few or too alike.

    Args:
        vision: ImageBind's vision branch.
        dense_tokenizer: the dense ImageBind tokenizer.
        images: RGB photographs, float (B, 3, 224, 224) in [0, 1]; not thermal, which either convention is
            foreign to.
        batch_size: pictures at a time.

    Returns:
        Convention -> ``mean_max_cosine``, the mean over all patches of the largest cosine between latent and
        codes, and ``distinct_codes``, the number of different codes chosen.

    Raises:
        ValueError: no picture, or pictures that the vision branch refuses.
    """
    if len(images) == 0:
        raise ValueError("compare_row_conventions: no pictures. Give a hundred or more photographs.")
    codes = F.normalize(dense_tokenizer.quantize.codes.float(), dim=-1)  # (K, D)
    cosines: dict[str, list[Tensor]] = {convention: [] for convention in ROW_CONVENTIONS}
    chosen: dict[str, list[Tensor]] = {convention: [] for convention in ROW_CONVENTIONS}
    for batch in images.split(batch_size):
        raw = vision.rows(batch.to(vision.device), "trunk")
        for convention, rows in (("trunk", raw), ("norm", vision.head.norm(raw))):
            maps = rows[:, 1:].float().transpose(1, 2).unflatten(2, vision.grid)  # (B, C, 16, 16)
            latent = F.normalize(dense_tokenizer.latent(maps).float().movedim(1, -1), dim=-1)
            cosine, code = (latent.flatten(0, 2) @ codes.T).max(dim=-1)
            cosines[convention].append(cosine)
            chosen[convention].append(code)
    return {
        convention: {
            "mean_max_cosine": float(torch.cat(cosines[convention]).double().mean()),
            "distinct_codes": len(torch.cat(chosen[convention]).unique()),
        }
        for convention in ROW_CONVENTIONS
    }

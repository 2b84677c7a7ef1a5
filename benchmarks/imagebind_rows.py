"""Which of ImageBind's rows were 4M's ImageBind tokenizers trained on? The published weights can tell.

    python benchmarks/imagebind_rows.py --pictures=FOLDER --device=cuda    # reads 1.3 GB + 0.7 GB of weights

The reference called a patched copy of ImageBind that was never published, so the documents leave open whether
its 1280-wide rows were the last block's output or that output after the head's LayerNorm. On the features
that a codebook was trained on, latents lie near codes and many codes are in use; on others both drop. Give a
hundred or more everyday photographs of different content (not thermal ones, which are foreign to either).
Then set ``imagebind_rows`` to the convention that is higher in both numbers; if they disagree or differ
little, the photographs are too few or too alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from thermalgen import SUFFIXES, read_file
from torch import Tensor

from multismolvla.geometry import resize_continuous, to_square
from multismolvla.pretrained import IMAGEBIND, TOKENIZER_SOURCES
from multismolvla.thermal.imagebind import ROW_CONVENTIONS, ImageBindVision
from multismolvla.thermal.imagebind_layers import IMAGE_SIZE


class _Codebook(Protocol):
    codes: Tensor


class DenseTokenizer(Protocol):
    """What is needed of `multismolvla.tokenizers.official.VQTokenizer`."""

    quantize: _Codebook

    def latent(self, x: Tensor, /) -> Tensor:
        """Float (B, C, h, w) -> float (B, D, h, w)."""


@dataclass(frozen=True)
class Agreement:
    """How well rows fit a codebook.

    Attributes:
        mean_max_cosine: mean over all patches of the largest cosine between latent and codes.
        distinct_codes: number of different codes chosen.
    """

    mean_max_cosine: float
    distinct_codes: int


@torch.no_grad()
def compare_row_conventions(
    vision: ImageBindVision, dense: DenseTokenizer, images: Tensor, *, batch_size: int = 8
) -> dict[str, Agreement]:
    """Tokenize photographs from raw and from normalised rows.

    Args:
        vision: ImageBind's vision branch.
        dense: the dense ImageBind tokenizer.
        images: RGB, float (B, 3, 224, 224) in [0, 1].
        batch_size: pictures at a time.

    Returns:
        Convention -> agreement.
    """
    codes = F.normalize(dense.quantize.codes.float(), dim=-1)  # (K, D)
    cosines: dict[str, list[Tensor]] = {convention: [] for convention in ROW_CONVENTIONS}
    chosen: dict[str, list[Tensor]] = {convention: [] for convention in ROW_CONVENTIONS}
    for batch in images.split(batch_size):
        raw = vision.rows(batch.to(vision.device), "trunk")
        for convention, rows in (("trunk", raw), ("norm", vision.head.norm(raw))):
            maps = rows[:, 1:].float().transpose(1, 2).unflatten(2, vision.grid)  # (B, C, 16, 16)
            latent = F.normalize(dense.latent(maps).float().movedim(1, -1), dim=-1)
            cosine, code = (latent.flatten(0, 2) @ codes.T).max(dim=-1)
            cosines[convention].append(cosine)
            chosen[convention].append(code)
    return {
        convention: Agreement(
            float(torch.cat(cosines[convention]).double().mean()), len(torch.cat(chosen[convention]).unique())
        )
        for convention in ROW_CONVENTIONS
    }


@dataclass
class Options:
    """Options of benchmarks/imagebind_rows.py."""

    pictures: Path  # folder of photographs
    imagebind: str = IMAGEBIND  # hub id, folder or .pth file
    tokenizer: str = TOKENIZER_SOURCES["imagebind"]
    device: str = "cpu"
    batch_size: int = 8


def main() -> None:
    """Command line entry."""
    import draccus

    from multismolvla.tokenizers.official import VQTokenizer

    options = draccus.parse(Options)
    vision = ImageBindVision.from_pretrained(options.imagebind, device=options.device)
    dense = VQTokenizer.from_pretrained(options.tokenizer, device=options.device)
    files = sorted(p for p in options.pictures.iterdir() if p.suffix.lower() in SUFFIXES)
    pictures = [resize_continuous(to_square(read_file(p))[None], IMAGE_SIZE).clamp(0, 1) for p in files]
    for convention, found in compare_row_conventions(
        vision, dense, torch.cat(pictures), batch_size=options.batch_size
    ).items():
        print(f"{convention:6} cosine {found.mean_max_cosine:.4f}, {found.distinct_codes} codes")


if __name__ == "__main__":
    main()

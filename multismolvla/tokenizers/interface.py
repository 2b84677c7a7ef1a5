"""What the tower asks of every tokenizer, learned or weight-free."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class ImageTokenizer(Protocol):
    """Turns a canonical picture (see `multismolvla.modalities.SPECS`) into a grid of token ids."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the token grid."""
        ...

    def encode(self, image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokenize.

        Args:
            image: canonical picture (B, C, H, W) of the tokenizer's modality.
            valid: bool (B, 1, H, W), True = usable pixel; ``None`` = as the modality defines it.

        Returns:
            ids int64 (B, rows, columns) in [0, vocab_size), and present bool (B, rows, columns): False where the
            token must be treated as absent because too little of it was seen.
        """
        ...

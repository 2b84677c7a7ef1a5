"""What the tower asks of every tokenizer, learned or weight-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class ImageTokenizer(Protocol):
    """Turns a canonical picture (see `multismolvla.modalities`) into a grid of token ids."""

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
            ids int64 (B, rows, columns) in [0, vocab_size), and present bool (B, rows, columns): False where
            the token must be treated as absent because too little of it was seen.
        """
        ...


@dataclass(frozen=True)
class Tokens:
    """What one encoder domain gets from a stream.

    Attributes:
        values: int64 (B, N) ids, or float (B, N, width) rows for a domain outside the vocabulary, which a
            trained map embeds (thermal route ``soft``).
        present: bool (B, N), True = this token is there.
    """

    values: Tensor
    present: Tensor


@runtime_checkable
class StreamTokenizer(Protocol):
    """Turns a canonical picture into the tokens of several encoder domains, from one pass of a large network.

    A thermal picture, for instance, gives dense and global ImageBind tokens.
    """

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the encoder domains, in the order in which their cached ids are concatenated."""
        ...

    def encode_domains(self, image: Tensor, valid: Tensor | None = None) -> dict[str, Tokens]:
        """Tokenize: domain -> tokens, for each of `domains`. Arguments as for `ImageTokenizer.encode`."""
        ...

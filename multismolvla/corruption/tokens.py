"""Soft faults of token ids, for training from cached ids, where the pictures are not at hand.

What a disturbed picture does to its tokens, in the two forms that need no decoder: a block of tokens that is
absent (occluded or not measured) and single tokens that name something else (noise moves a latent into
another code's cell). Their severities are not calibrated against those of pictures.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from multismolvla.corruption.generic import occlusion_mask

#: Share of a picture's tokens that name something else.
SWAPPED_FRACTION = (0.05, 0.10, 0.20, 0.35, 0.50)
TOKEN_TYPES: tuple[str, ...] = ("missing_block", "random_ids")


def corrupt_tokens(
    values: Tensor, present: Tensor, vocab: int | None, type: str, severity: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Corrupt the tokens of one picture.

    Args:
        values: int64 ids (h, w) or (N,) without a grid, or float rows (h, w, width).
        present: bool (h, w) or (N,).
        vocab: number of ids; ``None`` for rows, which cannot be swapped.
        type: one of ``TOKEN_TYPES``.
        severity: 1 (weak) to 5 (strong).
        generator: CPU generator.

    Returns:
        Values and presence, new tensors. ``missing_block`` takes tokens away; ``random_ids`` draws ids evenly
        from the vocabulary. Tokens without a grid have no block: there ``missing_block`` is ``random_ids``,
        which changes at least one. Rows have no vocabulary: there ``random_ids`` is ``missing_block``.

    Raises:
        ValueError: unknown type or severity, or rows without a grid, which neither fault can strike.
    """
    if type not in TOKEN_TYPES or not 1 <= severity <= len(SWAPPED_FRACTION):
        raise ValueError(
            f"Unknown token corruption {type!r}@{severity!r}. Expected one of {TOKEN_TYPES}, severity 1 to 5."
        )
    placed = present.ndim == 2
    if vocab is None and not placed:
        raise ValueError(
            f"Rows without a grid, presence {tuple(present.shape)}, cannot be disturbed. Expected ids, or "
            "rows on a grid (h, w)."
        )
    if vocab is None or (type == "missing_block" and placed):
        gone = occlusion_mask(present.shape[0], present.shape[1], severity, generator)[0]
        return values.clone(), present & ~gone.to(present.device)
    hit = torch.rand(values.shape, generator=generator) < SWAPPED_FRACTION[severity - 1]
    other = torch.randint(vocab, values.shape, generator=generator)
    if not placed and not hit.any():  # a handful of tokens; weak severities would mostly miss them all
        hit[torch.randint(len(hit), (), generator=generator)] = True
    return torch.where(hit.to(values.device), other.to(values), values), present.clone()

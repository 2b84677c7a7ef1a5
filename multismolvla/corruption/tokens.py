"""Soft faults of token ids, for training from cached ids, where the pictures are not at hand.

What a disturbed picture does to its tokens, in the two forms that need no decoder: a block of tokens that is
absent (occluded or not measured) and single tokens that name something else (noise moves a latent into
another code's cell). Their severities are not calibrated against those of pictures.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from multismolvla.corruption.training import occlusion_masks

#: Share of a picture's tokens that name something else.
SWAPPED_FRACTION = (0.05, 0.10, 0.20, 0.35, 0.50)
TOKEN_TYPES: tuple[str, ...] = ("missing_block", "random_ids")


def corrupt_tokens(
    values: Tensor,
    present: Tensor,
    vocab: int | None,
    kind: Tensor,
    severity: Tensor,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """Corrupt the tokens of R pictures, each by one of ``TOKEN_TYPES``.

    Args:
        values: int64 ids (R, h, w) or (R, N) without a grid, or float rows (R, h, w, width).
        present: bool (R, h, w) or (R, N).
        vocab: number of ids; ``None`` for rows, which cannot be swapped.
        kind: float (R,) in [0, 1), which type, evenly.
        severity: int64 (R,), 1 (weak) to 5 (strong); 0 leaves a picture alone.
        generator: on the values' device.

    Returns:
        Values and presence, new tensors. ``missing_block`` takes tokens away; ``random_ids`` draws ids evenly
        from the vocabulary. Tokens without a grid have no block: there ``missing_block`` is ``random_ids``,
        which changes at least one. Rows have no vocabulary: there ``random_ids`` is ``missing_block``.

    Raises:
        ValueError: rows without a grid, which neither fault can strike.
    """
    placed, device = present.ndim == 3, values.device
    if vocab is None and not placed:
        raise ValueError(
            f"Rows without a grid, presence {tuple(present.shape)}, cannot be disturbed. Expected ids, or "
            "rows on a grid (R, h, w)."
        )
    severity, blocks = severity.to(device), (kind < 1 / len(TOKEN_TYPES)).to(device)
    draws = torch.rand(len(values), 3, generator=generator, device=device)
    if vocab is None:
        blocks = torch.ones_like(blocks)
    elif not placed:
        blocks = torch.zeros_like(blocks)
    if placed:
        gone = occlusion_masks(present.shape[1:], torch.where(blocks, severity, 0), draws)
        present = present & ~gone
    if vocab is None:
        return values.clone(), present
    share = torch.tensor((0.0, *SWAPPED_FRACTION), device=device)[torch.where(blocks, 0, severity)]
    rate = torch.rand(values.shape, generator=generator, device=device)
    hit = rate < share.view(-1, *[1] * (values.ndim - 1))
    if not placed:  # a handful of tokens; weak severities would mostly miss them all
        hit |= (rate == rate.amin(1, keepdim=True)) & (severity > 0)[:, None]
    other = torch.randint(vocab, values.shape, generator=generator, device=device).to(values)
    return torch.where(hit, other, values), present.clone()

"""Rows of all ranks in one batch, for losses that compare samples with each other."""

from __future__ import annotations

import torch
from torch import Tensor


def world() -> int:
    """Number of processes that train together; 1 outside of distributed training."""
    distributed = torch.distributed
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1


def gathered(rows: Tensor) -> Tensor:
    """All ranks' rows (B, ...) in rank order: (W * B, ...); every rank must have as many.

    A loss of gathered rows is the same on all ranks. Each rank sends its gradient into its own rows alone,
    times W, so that the mean over the ranks, which DDP takes, is the gradient of a single process with the
    whole batch. Nothing is communicated in the backward pass: there it could meet DDP's own messages in
    another order on each rank, and wait forever.
    """
    ranks = world()
    if ranks == 1:
        return rows
    sent = rows.detach().contiguous()
    flags = sent.dtype == torch.bool  # which not all backends can send
    sent = sent.to(torch.uint8) if flags else sent
    parts = [torch.empty_like(sent) for _ in range(ranks)]
    torch.distributed.all_gather(parts, sent)
    if flags:
        return torch.cat(parts).bool()
    parts[torch.distributed.get_rank()] = rows.detach() + (rows - rows.detach()) * ranks
    return torch.cat(parts)


def summed(values: Tensor) -> Tensor:
    """The sum over all ranks, without gradient."""
    total = values.detach().clone()
    if world() > 1:
        torch.distributed.all_reduce(total)
    return total

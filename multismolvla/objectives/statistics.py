"""Running mean and variance of frozen features, kept in checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multismolvla.objectives.ranks import summed


class RunningStatistics(nn.Module):
    """Mean and variance per channel over the batches seen so far, of all ranks.

    The first batches count alike; once ``1 / momentum`` of them were seen, older ones fade.

    Args:
        width: number of channels.
        momentum: share of the newest batch later on.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, width: int, momentum: float = 0.01):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def update(self, rows: Tensor, counted: Tensor) -> None:
        """Take in rows (R, width) where ``counted``, bool (R,); nothing happens if no rank has any."""
        sums = summed(torch.cat([counted.sum()[None].float(), _sum_where(rows.float(), counted)]))
        number = sums[0]
        mean = sums[1:] / number.clamp_min(1)
        # around the batch's own mean: the frames of a task differ by little beside what they have in common
        variance = summed(_sum_where((rows.float() - mean).square(), counted)) / number.clamp_min(1)
        rate = torch.where(number > 0, (1 / (self.batches + 1)).clamp_min(self.momentum), 0.0)
        between = rate * (1 - rate) * (mean - self.mean).square()
        self.variance.lerp_(variance, rate).add_(between)
        self.mean.lerp_(mean, rate)
        self.batches += number > 0

    def standardised(self, rows: Tensor) -> Tensor:
        """Rows (..., width) at mean 0 and variance 1 per channel, without gradient."""
        return (rows.detach().float() - self.mean) * self.variance.clamp_min(1e-6).rsqrt()


def _sum_where(rows: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted[:, None], rows, 0.0).sum(0)

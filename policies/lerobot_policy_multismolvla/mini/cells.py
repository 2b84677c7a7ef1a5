"""Targets and heads of the mini preset's pre-training: what is in each cell of the pictures?

The vision half of the stand-in for pre-training, the same for both towers; `.grounding` is the language half.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class CellHeads:
    """Linear heads from one feature per cell to what is in that cell; thrown away after pre-training.

    Args:
        dim: width D of the features.
        labels: size of the label set.
        generator: of the initial weights.
        parts: labels per cell P, as in `cell_targets`.
    """

    def __init__(self, dim: int, labels: int, generator: torch.Generator, parts: int = 4):
        self.labels, self.parts = labels, parts
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            # labels of the parts; depth, temperature and colour of four quadrants
            self.net: nn.Module = nn.Linear(dim, parts * labels + 4 + 4 + 12)

    def loss(
        self, features: Tensor, target: dict[str, Tensor], class_weight: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of (R, N, D) features against what `cell_targets` returns."""
        out = self.net(features)
        label, depth, heat, colour = out.split([self.parts * self.labels, 4, 4, 12], dim=-1)
        label = label.unflatten(-1, (self.parts, self.labels))
        ce = F.cross_entropy(label.flatten(0, 2), target["seg"].flatten(), weight=class_weight)
        d = F.smooth_l1_loss(depth, target["depth"])
        t = F.mse_loss(heat, target["thermal"])
        c = F.mse_loss(colour, target["rgb"])
        hit = (label.argmax(-1) == target["seg"]) & (target["seg"] > 2)
        share = hit.sum() / (target["seg"] > 2).sum().clamp_min(1)
        return ce + d + 4 * t + 2 * c, {"label_loss": ce.item(), "object_recall": share.item()}


def cell_targets(
    rgb: Tensor, depth: Tensor, seg: Tensor, thermal: Tensor, grid: int, parts: int = 4
) -> dict[str, Tensor]:
    """Per cell: the majority label of each of its parts; log depth, temperature and colour per quadrant.

    Args:
        rgb: float (R, 3, S, S) in [0, 1].
        depth: float (R, 1, S, S), metres.
        seg: int64 (R, 1, S, S).
        thermal: float (R, 1, S, S) in [0, 1].
        grid: cells per side.
        parts: square parts P of a cell, each with a label; 4 = its quadrants.

    Returns:
        ``seg`` int64 (R, N, P), ``depth`` and ``thermal`` float (R, N, 4), ``rgb`` float (R, N, 12).
    """
    across = math.isqrt(parts)

    def by_cell(x: Tensor, across: int = 2) -> Tensor:  # (R, C, a * g, a * g) -> (R, N, a * a * C)
        return F.pixel_unshuffle(x, across).flatten(2).transpose(1, 2)

    def mean(x: Tensor) -> Tensor:
        return by_cell(F.adaptive_avg_pool2d(x, 2 * grid))

    one_hot = F.one_hot(seg[:, 0], int(seg.max()) + 1).permute(0, 3, 1, 2).float()
    label = F.adaptive_avg_pool2d(one_hot, across * grid).argmax(1, keepdim=True)
    return {
        "seg": by_cell(label.float(), across).round().long(),
        "depth": 2 * torch.log(mean(depth).clamp(0.05, 10.0)),
        "thermal": mean(thermal),
        "rgb": mean(rgb),
    }


def class_weight(seg: Tensor, labels: int) -> Tensor:
    """Weight of each label in the loss, float (labels,): the rarer, the heavier, within bounds.

    Args:
        seg: uint8 (R, 1, S, S); every seventh picture is counted.
        labels: size of the label set.
    """
    counts = torch.bincount(seg[::7].flatten().long(), minlength=labels).float()
    return (counts.sum() / counts.clamp_min(1)).pow(0.5).clamp_max(30.0) / 3.0

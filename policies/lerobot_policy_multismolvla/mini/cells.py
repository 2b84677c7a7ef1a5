"""Targets and heads of the mini preset's pre-training: what is in each cell of the pictures?

The vision half of the stand-in for pre-training, the same for both towers; `.grounding` is the language half.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class CellHeads:
    """Linear heads from one feature per cell to what is in that cell; thrown away after pre-training."""

    def __init__(self, dim: int, labels: int, generator: torch.Generator):
        self.labels = labels
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            # labels, depth, temperature and colour of four quadrants
            self.net: nn.Module = nn.Linear(dim, 4 * labels + 4 + 4 + 12)

    def loss(
        self, features: Tensor, target: dict[str, Tensor], class_weight: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of (R, N, D) features against per-quadrant targets (R, N, 4[, C])."""
        out = self.net(features)
        label, depth, heat, colour = out.split([4 * self.labels, 4, 4, 12], dim=-1)
        label = label.unflatten(-1, (4, self.labels))
        ce = F.cross_entropy(label.flatten(0, 2), target["seg"].flatten(), weight=class_weight)
        d = F.smooth_l1_loss(depth, target["depth"])
        t = F.mse_loss(heat, target["thermal"])
        c = F.mse_loss(colour, target["rgb"])
        hit = (label.argmax(-1) == target["seg"]) & (target["seg"] > 2)
        share = hit.sum() / (target["seg"] > 2).sum().clamp_min(1)
        return ce + d + 4 * t + 2 * c, {"label_loss": ce.item(), "object_recall": share.item()}


def cell_targets(rgb: Tensor, depth: Tensor, seg: Tensor, thermal: Tensor, grid: int) -> dict[str, Tensor]:
    """Per cell and quadrant: majority label, log depth, temperature and mean colour.

    Args:
        rgb: float (R, 3, S, S) in [0, 1].
        depth: float (R, 1, S, S), metres.
        seg: int64 (R, 1, S, S).
        thermal: float (R, 1, S, S) in [0, 1].
        grid: cells per side.

    Returns:
        ``seg`` int64 (R, N, 4), ``depth`` and ``thermal`` float (R, N, 4), ``rgb`` float (R, N, 12).
    """
    side = 2 * grid

    def quadrants(x: Tensor) -> Tensor:  # (R, C, 2g, 2g) -> (R, N, 4 * C)
        return F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)

    def mean(x: Tensor) -> Tensor:
        return quadrants(F.adaptive_avg_pool2d(x, side))

    one_hot = F.one_hot(seg[:, 0], int(seg.max()) + 1).permute(0, 3, 1, 2).float()
    label = F.adaptive_avg_pool2d(one_hot, side).argmax(1, keepdim=True)
    return {
        "seg": quadrants(label.float()).round().long(),
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

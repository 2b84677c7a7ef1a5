"""Gated fusion: the token grids of the modalities that are present become one grid per view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def resample_grid(tokens: Tensor, present: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Resample a token grid to ``size`` x ``size``, averaging present cells only.

    Args:
        tokens: (B, h, w, D).
        present: bool (B, h, w).
        size: side of the new grid.

    Returns:
        Tokens (B, size, size, D), zero where nothing present was near, and presence (B, size, size).
    """
    if tokens.shape[1:3] == (size, size):
        return tokens * present[..., None], present
    weight = present[:, None].to(tokens.dtype)  # (B, 1, h, w)
    grid = tokens.permute(0, 3, 1, 2) * weight  # (B, D, h, w)
    mass = F.interpolate(weight, (size, size), mode="bilinear", align_corners=False)
    mixed = F.interpolate(grid, (size, size), mode="bilinear", align_corners=False) / mass.clamp_min(1e-6)
    new_present = mass[:, 0] > 1e-3
    return mixed.permute(0, 2, 3, 1) * new_present[..., None], new_present


class GatedFusion(nn.Module):
    """Per grid cell, a gated mean over the modalities that are present there.

    Each modality has a linear map (starting at the identity) and a scalar gate; the gates of the present
    modalities go through a softmax, so an absent one has weight exactly zero and the remaining ones sum to
    one: the scale of the fused token does not depend on how many sensors are alive.

    Args:
        dim: width D of the encoder.
        modalities: names in the fixed order.
        grid: side of the common grid.
    """

    def __init__(self, dim: int, modalities: Sequence[str], grid: int):
        super().__init__()
        self.modalities = tuple(modalities)
        self.grid = grid
        self.norm = nn.ModuleDict({m: nn.LayerNorm(dim) for m in self.modalities})
        values = {m: nn.Linear(dim, dim) for m in self.modalities}
        gates = {m: nn.Linear(dim, 1) for m in self.modalities}
        for m in self.modalities:
            nn.init.eye_(values[m].weight)
            for parameter in (values[m].bias, gates[m].weight, gates[m].bias):
                nn.init.zeros_(parameter)
        self.value, self.gate = nn.ModuleDict(values), nn.ModuleDict(gates)

    def forward(
        self, tokens: Mapping[str, Tensor], present: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Fuse.

        Args:
            tokens: per modality (B, h_m, w_m, D).
            present: per modality bool (B, h_m, w_m).

        Returns:
            Fused tokens (B, g, g, D), zero where no modality is present; presence (B, g, g); and the weight
            of each modality, see :func:`modality_weight`, (B), without gradient.
        """
        values, logits, masks = [], [], []
        names = [m for m in self.modalities if m in tokens]
        for m in names:
            grid, mask = resample_grid(tokens[m], present[m], self.grid)
            grid = self.norm[m](grid)
            values.append(self.value[m](grid))
            logits.append(self.gate[m](grid)[..., 0])
            masks.append(mask)
        mask = torch.stack(masks)  # (M, B, g, g)
        logit = torch.stack(logits).masked_fill(~mask, torch.finfo(values[0].dtype).min)
        weight = torch.softmax(logit, dim=0) * mask  # uniform where all are absent, hence the mask
        fused = (weight[..., None] * torch.stack(values)).sum(0)  # (B, g, g, D)
        return fused, mask.any(0), dict(zip(names, modality_weight(weight.detach(), mask), strict=True))


def modality_weight(weight: Tensor, present: Tensor) -> Tensor:
    """How much each modality counts beside the others: its weight against the mean weight of the others.

    Unlike the weight itself it does not depend on how many sensors are present, so it shows whether the
    fusion turns away from a sensor that is disturbed.

    Args:
        weight: (M, B, g, g), summing to one over the modalities that are present.
        present: bool, the same shape.

    Returns:
        (M, B) in [0, 1], the mean over the cells in which another modality is present, too: 0.5 = as much as
        the others on average; NaN if there is no such cell.
    """
    number = present.sum(0)  # (B, g, g)
    others = (1 - weight) / (number - 1).clamp_min(1)
    compared = present & (number > 1)
    share = torch.where(compared, weight / (weight + others), 0.0)
    return share.flatten(2).sum(2) / compared.flatten(2).sum(2)  # 0 / 0 = NaN

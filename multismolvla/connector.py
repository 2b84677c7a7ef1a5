"""From the encoder's token grids to the language model's visual tokens.

``GridConnector`` resamples the fused grid of a view in two dimensions, folds 2x2 neighbours into channels and
maps it to the width of the language model. One-dimensional pooling over raster order would displace tokens by
more than a quarter of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from multismolvla.fusion import GatedFusion, resample_grid


class GridConnector(nn.Module):
    """Token grid -> visual tokens of the language model.

    h x h -> ``mid_grid`` x ``mid_grid`` (2-D bilinear) -> pixel-unshuffle by ``unshuffle`` -> LayerNorm ->
    MLP -> RMS norm times a learned gain. With 4M-21: 14x14 -> 16x16 -> 8x8 = 64 tokens, as many as SigLIP
    gives SmolVLA per view. SmolVLA multiplies visual tokens by sqrt(width) whatever arrives (lerobot 0.6.1),
    so the norm is part of the interface: ``match_norm`` starts the gain at the teacher's root mean square.

    Args:
        in_dim: width of the incoming grid.
        out_dim: width of the language model.
        mid_grid: side after resampling.
        unshuffle: side of the block folded into channels; divides ``mid_grid``.
        hidden_dim: width of the MLP's hidden layer.
        with_globals: whether to make the projection for global tokens.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        mid_grid: int,
        unshuffle: int,
        hidden_dim: int,
        with_globals: bool = False,
    ):
        super().__init__()
        if mid_grid % unshuffle:
            raise ValueError(f"connector_grid={mid_grid} is no multiple of connector_unshuffle={unshuffle}.")
        self.mid_grid, self.unshuffle = mid_grid, unshuffle
        folded = in_dim * unshuffle**2
        self.norm = nn.LayerNorm(folded)
        self.mlp = nn.Sequential(nn.Linear(folded, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, out_dim))
        self.gain = nn.Parameter(torch.ones(out_dim))
        if with_globals:
            self.global_norm = nn.LayerNorm(in_dim)
            self.global_proj = nn.Linear(in_dim, out_dim)

    @property
    def num_tokens(self) -> int:
        """Tokens per view, without the global ones."""
        return (self.mid_grid // self.unshuffle) ** 2

    def forward(self, grid: Tensor, present: Tensor) -> Tensor:
        """Map a grid (B, h, h, D) with presence bool (B, h, h) to tokens (B, N, out_dim)."""
        grid, _ = resample_grid(grid, present, self.mid_grid)
        folded = F.pixel_unshuffle(grid.permute(0, 3, 1, 2), self.unshuffle)  # (B, D * u * u, g, g)
        return self._scaled(self.mlp(self.norm(folded.flatten(2).transpose(1, 2))))

    def project_globals(self, tokens: Tensor) -> Tensor:
        """Map global tokens (B, G, D) to (B, G, out_dim) at the norm of the others."""
        return self._scaled(self.global_proj(self.global_norm(tokens)))

    def _scaled(self, tokens: Tensor) -> Tensor:
        return F.rms_norm(tokens, (tokens.shape[-1],)) * self.gain

    @torch.no_grad()
    def match_norm(self, teacher_tokens: Tensor) -> None:
        """Set the gain to the root mean square of the teacher's tokens (B, N, out_dim)."""
        self.gain.fill_(teacher_tokens.float().pow(2).mean().sqrt().item())


class ZeroGate(nn.Module):
    """tanh of one learned number that starts at zero: at first nothing passes."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Scale a tensor of any shape."""
        return torch.tanh(self.value) * x


class VisualTokens(NamedTuple):
    """What `VisualBridge` makes of R = B * V views.

    Attributes:
        tokens: (R, N, out_dim).
        seen: bool (R,), whether a view has any grid token.
        global_tokens: per gridless domain (R, G, out_dim).
        modality_weights: per fused modality its `multismolvla.fusion.modality_weight`, (R,).
    """

    tokens: Tensor
    seen: Tensor
    global_tokens: dict[str, Tensor]
    modality_weights: dict[str, Tensor]


class VisualBridge(nn.Module):
    """Fusion and connector: everything trainable between the frozen tower and the language model.

    A view of which nothing is seen still has its tokens: all of them are one learned vector, zero at first.
    Were they masked instead, everything behind them would move up, for SmolVLA's positions count what is
    there, and the language model would meet an order of tokens that it hardly knows. docs/training.md has
    what that costs.

    One module, so that stage 2 can name it once in PEFT's ``modules_to_save``. PEFT wraps such modules and
    forwards only ``forward``; nothing outside may call other methods during training.

    Args:
        fusion: of the modalities.
        connector: to the language model's width.
        views: names of the views. Each has a vector that is added to its tokens, zero at first and found by
            its name. Empty = no such vectors.
        gridless: domain -> G, its number of tokens.
    """

    def __init__(
        self,
        fusion: GatedFusion,
        connector: GridConnector,
        views: Sequence[str] = (),
        gridless: Mapping[str, int] | None = None,
    ):
        super().__init__()
        out_dim = len(connector.gain)
        self.fusion = fusion
        self.connector = connector
        self._gridless = dict(gridless or {})
        # "." separates the names of modules
        self._views = tuple(view.replace(".", "_") for view in views)
        self.view_embedding = nn.ParameterDict({v: nn.Parameter(torch.zeros(out_dim)) for v in self._views})
        self.absent = nn.Parameter(torch.zeros(out_dim))

    def forward(
        self,
        tokens: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        globals_: Mapping[str, Tensor] | None = None,
        globals_present: Mapping[str, Tensor] | None = None,
        rows: int | None = None,
    ) -> VisualTokens:
        """Map what the tower gave for R = B * V views.

        Args:
            tokens: per modality (R, h, w, D); a modality that no sample has may be left out.
            present: per modality bool (R, h, w).
            globals_: per gridless domain (R, G, D); likewise.
            globals_present: per gridless domain bool (R,).
            rows: R; ``None`` = as ``tokens`` has them.
        """
        rows = len(next(iter(tokens.values()))) if rows is None else rows
        seen = torch.zeros(rows, dtype=torch.bool, device=self.absent.device)
        weights: dict[str, Tensor] = {}
        made: Tensor | None = None
        if tokens:
            fused, mask, weights = self.fusion(tokens, present)
            made, seen = self.connector(fused, mask), mask.flatten(1).any(1)
        extra: dict[str, Tensor] = {}
        for domain, number in self._gridless.items():
            if globals_ and globals_present and domain in globals_:
                projected = self.connector.project_globals(globals_[domain])
                extra[domain] = self._finish(projected, globals_present[domain], number)
            else:
                extra[domain] = self._finish(None, torch.zeros_like(seen), number)
        return VisualTokens(self._finish(made, seen, self.connector.num_tokens), seen, extra, weights)

    def _finish(self, made: Tensor | None, seen: Tensor, number: int) -> Tensor:
        """Tokens (R, number, D): those made where something is seen, else what stands for nothing."""
        nothing = self.absent.expand(len(seen), number, -1)
        tokens = nothing if made is None else torch.where(seen[:, None, None], made, nothing.to(made.dtype))
        return self._mark_view(tokens)

    def _mark_view(self, tokens: Tensor) -> Tensor:
        """Add the views' embeddings to (R, N, D), R = B * V with the views in order."""
        if not self._views:
            return tokens
        embedding = torch.stack([self.view_embedding[v] for v in self._views])  # (V, D)
        return tokens + embedding.repeat(len(tokens) // len(embedding), 1)[:, None]

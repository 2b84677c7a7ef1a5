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
        alive: bool (R,), whether a view has any grid token.
        global_tokens: per gridless domain (R, G, out_dim).
        modality_weights: per fused modality its `multismolvla.fusion.modality_weight`, (R,).
    """

    tokens: Tensor
    alive: Tensor
    global_tokens: dict[str, Tensor]
    modality_weights: dict[str, Tensor]


class VisualBridge(nn.Module):
    """Fusion and connector: everything trainable between the frozen tower and the language model.

    One module, so that stage 2 can name it once in PEFT's ``modules_to_save``. PEFT wraps such modules and
    forwards only ``forward``; nothing outside may call other methods during training.

    Args:
        fusion: of the modalities.
        connector: to the language model's width.
        views: names of the views. Each has a vector that is added to its tokens, zero at first and found by
            its name: SmolVLA's positions count what is there, so that with one view left nothing else would
            say which one it is. Empty = no such vectors.
        out_dim: the language model's width.
    """

    def __init__(
        self,
        fusion: GatedFusion,
        connector: GridConnector,
        views: Sequence[str] = (),
        out_dim: int = 0,
    ):
        super().__init__()
        self.fusion = fusion
        self.connector = connector
        # "." separates the names of modules
        self._views = tuple(view.replace(".", "_") for view in views)
        self.view_embedding = nn.ParameterDict({v: nn.Parameter(torch.zeros(out_dim)) for v in self._views})

    def forward(
        self,
        tokens: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        globals_: Mapping[str, Tensor] | None = None,
    ) -> VisualTokens:
        """Map what the tower gave for R = B * V views.

        Args:
            tokens: per modality (R, h, w, D); empty where only global tokens are left.
            present: per modality bool (R, h, w).
            globals_: per gridless domain (R, G, D).
        """
        extra = {d: self._mark_view(self.connector.project_globals(r)) for d, r in (globals_ or {}).items()}
        if not tokens:  # no grid to fuse: the view's grid tokens are masked, its global ones are not
            some = next(iter(extra.values()))
            nothing = some.new_zeros(len(some), self.connector.num_tokens, some.shape[-1])
            alive = torch.zeros(len(some), dtype=torch.bool, device=some.device)
            return VisualTokens(nothing, alive, extra, {})
        fused, mask, weights = self.fusion(tokens, present)
        made = self._mark_view(self.connector(fused, mask))
        return VisualTokens(made, mask.flatten(1).any(1), extra, weights)

    def _mark_view(self, tokens: Tensor) -> Tensor:
        """Add the views' embeddings to (R, N, D), R = B * V with the views in order."""
        if not self._views:
            return tokens
        embedding = torch.stack([self.view_embedding[v] for v in self._views])  # (V, D)
        return tokens + embedding.repeat(len(tokens) // len(embedding), 1)[:, None]

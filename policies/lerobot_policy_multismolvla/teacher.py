"""The teacher of stage 1: the base checkpoint's SigLIP and its connector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lerobot_policy_multismolvla.checkpoints import load_teacher


class Teacher:
    """SigLIP and its connector, frozen.

    Not a module, so that the policy that holds it neither saves it nor shows it to the optimizer.

    Args:
        vision: SigLIP, as upstream built it.
        connector: what follows it there.
        loaded: whether they have their weights; otherwise :meth:`load` reads them, once they are needed.
    """

    def __init__(self, vision: nn.Module, connector: nn.Module, *, loaded: bool):
        self._parts: tuple[Any, Any] = (vision.eval(), connector.eval())
        self._loaded = loaded
        for part in self._parts:
            part.requires_grad_(False)

    def load(self, source: str) -> None:
        """Read the weights from a SmolVLA checkpoint (folder or hub id), unless they are loaded."""
        if not self._loaded:
            load_teacher(*self._parts, source)
            self._loaded = True

    @torch.no_grad()
    def tokens(self, images: list[Tensor]) -> Tensor:
        """Visual tokens (B, V, N, D) of pictures, per view float (B, 3, H, W) in [-1, 1]."""
        vision, connector = (part.to(images[0].device) for part in self._parts)
        tokens = [
            connector(vision(pixel_values=i.to(vision.dtype), patch_attention_mask=None).last_hidden_state)
            for i in images
        ]
        return torch.stack(tokens, 1)

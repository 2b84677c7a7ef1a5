"""What is taken over of upstream's model: language model and expert, and SigLIP as the teacher of stage 1.

Nothing of upstream is copied or patched.
"""

from __future__ import annotations

from typing import Any

import torch
from lerobot.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel
from torch import Tensor, nn

from lerobot_policy_multismolvla.checkpoints import load_teacher


class AdoptedVLM(SmolVLMWithExpertModel):
    """Upstream's language model and expert without the vision path.

    Overrides what touches ``vision_model`` by name after construction (lerobot 0.6.1: ``train`` and
    ``embed_image``); upstream's ``set_requires_grad`` runs in its constructor only, while SigLIP is still
    there.
    """

    @classmethod
    def adopt(cls, upstream: SmolVLMWithExpertModel) -> AdoptedVLM:
        """Take over ``upstream``'s children and attributes; ``upstream`` must not be used afterwards."""
        adopted = cls.__new__(cls)
        adopted.__dict__ = upstream.__dict__
        return adopted

    def train(self, mode: bool = True) -> AdoptedVLM:
        """Train or evaluation mode; the frozen language model stays in evaluation mode, as upstream's."""
        nn.Module.train(self, mode)
        if self.train_expert_only:
            self.vlm.eval()
        elif self.freeze_vision_encoder and hasattr(self.get_vlm_model(), "vision_model"):  # siglip+fourm
            self.get_vlm_model().vision_model.eval()
        return self

    def embed_image(self, image: Tensor) -> Tensor:
        """Visual tokens (B, N, D) of the bridge pass through; upstream would run SigLIP on a picture here."""
        return image


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

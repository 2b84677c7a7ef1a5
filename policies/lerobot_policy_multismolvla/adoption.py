"""Upstream's language model and expert without the vision path; nothing of upstream is copied or patched."""

from __future__ import annotations

from lerobot.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel
from torch import Tensor, nn


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

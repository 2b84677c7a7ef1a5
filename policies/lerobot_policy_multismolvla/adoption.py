"""Upstream's language model and expert without the vision path, so that nothing of upstream is copied or patched."""

from __future__ import annotations

from lerobot.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel
from torch import Tensor, nn


class AdoptedVLM(SmolVLMWithExpertModel):
    """Upstream's language model and expert without the vision path.

    Overrides what touches ``vision_model`` by name after construction (lerobot 0.6.1: ``train`` and ``embed_image``); upstream's
    ``set_requires_grad`` runs in its constructor only, while SigLIP is still there.
    """

    @classmethod
    def adopt(cls, upstream: SmolVLMWithExpertModel) -> AdoptedVLM:
        """Take over ``upstream``'s children and plain attributes; ``upstream`` must not be used afterwards."""
        adopted = cls.__new__(cls)
        adopted.__dict__ = upstream.__dict__
        return adopted

    @property
    def has_siglip(self) -> bool:
        """Whether SigLIP is still part of this model (``siglip+fourm``)."""
        return hasattr(self.get_vlm_model(), "vision_model")

    def train(self, mode: bool = True) -> AdoptedVLM:
        """Train or evaluation mode; the frozen language model stays in evaluation mode as upstream keeps it."""
        nn.Module.train(self, mode)
        if self.train_expert_only:
            self.vlm.eval()
        elif self.has_siglip and self.freeze_vision_encoder:
            self.get_vlm_model().vision_model.eval()
        return self

    def embed_image(self, image: Tensor) -> Tensor:
        """Visual tokens (B, N, D) made by the bridge pass through; upstream would run SigLIP on a picture here."""
        return image

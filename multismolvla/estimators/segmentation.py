"""COCO panoptic classes from RGB by a ``Mask2FormerForUniversalSegmentation`` of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from multismolvla.estimators.files import load_network, recipe_of
from multismolvla.estimators.interface import EstimatorRecipe, check_finite
from multismolvla.tokenizers.label_sets import COCO_PANOPTIC

# Side at which Mask2Former's post-processing works, whatever the input (transformers 5.5).
_MASK_SIDE = 384


@dataclass
class SegmentationEstimator:
    """COCO panoptic classes from RGB: the arg-max class map, every pixel named."""

    model: Any  # Mask2Former
    processor: Any  # its image processor
    table: Tensor  # int64 (classes of the network,) -> ids of the tokenizer's label set (COCO panoptic + 1)
    recipe: EstimatorRecipe
    autocast: torch.dtype | None = None  # as of `DepthEstimator`

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        *,
        revision: str | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> SegmentationEstimator:
        """Load a Mask2Former whose classes are COCO panoptic's; they are matched by name, not by position."""
        from transformers import Mask2FormerForUniversalSegmentation

        model, processor, tensors = load_network(
            Mask2FormerForUniversalSegmentation, source, "segmentation", device, revision
        )
        names = [str(model.config.id2label[c]) for c in range(model.config.num_labels)]
        recipe = recipe_of(source, tensors, dtype)
        return cls(model, processor, _label_ids(names, source), recipe, dtype)

    @torch.no_grad()
    def estimate(self, rgb: Tensor) -> Tensor:
        """See `Estimator.estimate`."""
        size = dict(self.processor.size)
        side = size if {"height", "width"} <= set(size) else {"height": _MASK_SIDE, "width": _MASK_SIDE}
        inputs = self.processor(images=list(rgb.cpu()), return_tensors="pt", do_rescale=False, size=side)
        device = self.model.device
        with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            out = self.model(pixel_values=inputs["pixel_values"].to(device))
        for scores in (out.class_queries_logits, out.masks_queries_logits):
            check_finite(scores, self.recipe, "scores")  # their largest would be a class like any other
        maps = []
        for b in range(len(rgb)):  # picture by picture: 133 full-size score maps each
            one = SimpleNamespace(
                class_queries_logits=out.class_queries_logits[b : b + 1].float(),
                masks_queries_logits=out.masks_queries_logits[b : b + 1].float(),
            )
            maps += self.processor.post_process_semantic_segmentation(one, target_sizes=[rgb.shape[-2:]])
        return self.table.to(device)[torch.stack(maps)][:, None]


def _label_ids(names: Sequence[str], source: str) -> Tensor:
    """Ids of the tokenizer's label set for a network's classes: int64 (classes,)."""
    from multismolvla.tokenizers.labels import LabelTable

    table = LabelTable.from_name("coco_contiguous")
    if all(name == f"LABEL_{c}" for c, name in enumerate(names)):  # no names: only the order is left
        if len(names) != len(COCO_PANOPTIC):
            raise ValueError(
                f"{source}: its {len(names)} classes have no names. Expected the {len(COCO_PANOPTIC)} of "
                "COCO panoptic."
            )
        return table.map_ids(torch.arange(len(names)))
    try:
        return torch.tensor([table.map_name(name) for name in names])
    except ValueError as error:
        raise ValueError(f"{source} does not segment COCO panoptic's classes: {error}") from error

"""Depth from RGB by any network of transformers' ``AutoModelForDepthEstimation``, e.g. Depth Anything V2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multismolvla.estimators.files import load_network, recipe_of
from multismolvla.estimators.interface import EstimatorRecipe, Setting, check_finite

#: Nominal metres of the nearest and the farthest pixel of a relative estimate.
RELATIVE_RANGE_M = (0.3, 3.0)


def depth_from_disparity(disparity: Tensor, range_m: tuple[float, float] = RELATIVE_RANGE_M) -> Tensor:
    """Affine-invariant depth from relative disparity (larger = nearer), as Depth Anything delivers it.

    Scale and shift of the disparity are unknown, so they are fixed per picture: its largest value becomes
    ``near``, its smallest ``far``, and ``1 / depth`` is linear between them. 4M's depth tokenizer
    standardises every picture, so the range hardly reaches it; nothing else may take these values for metres.

    Args:
        disparity: float (B, 1, H, W), finite.
        range_m: (near, far) in nominal metres.

    Returns:
        float32 (B, 1, H, W) in [near, far]; ``far`` throughout where the disparity is constant.
    """
    near, far = range_m
    flat = disparity.float().flatten(1)
    low, high = (x[:, None, None, None] for x in flat.aminmax(dim=1))
    share = (disparity.float() - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    return 1.0 / (1.0 / far + share.clamp(0, 1) * (1.0 / near - 1.0 / far))


@dataclass
class DepthEstimator:
    """Depth from RGB."""

    model: Any  # network with predicted_depth
    processor: Any  # its image processor
    metric: bool  # the output is metres, not relative disparity
    recipe: EstimatorRecipe
    range_m: tuple[float, float] = RELATIVE_RANGE_M  # (near, far) of a relative estimate
    autocast: torch.dtype | None = None  # of the network's matrix products; None = float32

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        *,
        output: str = "auto",
        range_m: tuple[float, float] = RELATIVE_RANGE_M,
        revision: str | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> DepthEstimator:
        """Load a depth network of transformers from a hub id or folder.

        Args:
            source: any network of ``AutoModelForDepthEstimation``.
            output: ``relative``, ``metric``, or ``auto``: as its config declares.
            range_m: nominal metres of the nearest and farthest pixel of a relative estimate.
            revision: commit, branch or tag on the hub; ``None`` = the newest.
            device: where it runs.
            dtype: of its matrix products; ``None`` = float32.

        Raises:
            FileNotFoundError: not there; the message says how to get it.
            ValueError: the files are damaged or no depth network, or its output's meaning is not declared.
        """
        from transformers import AutoModelForDepthEstimation

        if not 0 < range_m[0] < range_m[1]:
            raise ValueError(
                f"{source}: range_m={tuple(range_m)}; expected nominal metres 0 < nearest < farthest, such "
                f"as {RELATIVE_RANGE_M}."
            )
        model, processor, tensors = load_network(
            AutoModelForDepthEstimation, source, "depth estimation", device, revision
        )
        declared = getattr(model.config, "depth_estimation_type", None)
        if output == "auto" and declared not in ("relative", "metric"):
            raise ValueError(
                f"{source}: its config does not say whether the output is relative disparity or metres "
                f"(depth_estimation_type={declared!r}). Read the model card and give --depth_output=relative "
                "or metric."
            )
        metric = (declared if output == "auto" else output) == "metric"
        settings: dict[str, Setting] = {"output": "metric" if metric else "relative"}
        if not metric:
            settings["range_m"] = (float(range_m[0]), float(range_m[1]))
        recipe = recipe_of(source, tensors, dtype, **settings)
        return cls(model, processor, metric, recipe, (float(range_m[0]), float(range_m[1])), dtype)

    @torch.no_grad()
    def estimate(self, rgb: Tensor) -> Tensor:
        """See `Estimator.estimate`; metres where the network is metric."""
        # Prepared on the CPU always, where a data set's pictures are: a GPU resizes to other values.
        pixels = self.processor(images=list(rgb.cpu()), return_tensors="pt", do_rescale=False)["pixel_values"]
        device = self.model.device
        with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            raw = self.model(pixel_values=pixels.to(device)).predicted_depth
        raw = torch.nn.functional.interpolate(
            raw.float()[:, None], rgb.shape[-2:], mode="bilinear", align_corners=False
        )
        check_finite(raw, self.recipe, "depth")
        return raw.clamp_min(0) if self.metric else depth_from_disparity(raw, self.range_m)

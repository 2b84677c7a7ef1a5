"""Depth, segmentation and thermal pictures estimated from RGB, in the units of ``multismolvla.modalities``.

What they deliver is *derived*: it holds nothing that the RGB picture does not, and is lost together with it.
Each estimator reads a hub id or a local folder in the official layout: for depth any network of transformers'
``AutoModelForDepthEstimation``, for segmentation a ``Mask2FormerForUniversalSegmentation``, for temperature a
`multismolvla.thermal.thermalgen.ThermalGen`. Tested with tiny networks in these layouts; the published files
were not tried yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

from multismolvla import weights
from multismolvla.tokenizers.label_sets import COCO_PANOPTIC
from multismolvla.tokenizers.recipe import file_fingerprint
from multismolvla_data.annotate.config import RELATIVE_RANGE_M

_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
# Side at which Mask2Former's post-processing works, whatever the input (transformers 5.5).
_MASK_SIDE = 384

#: Tables in published files that hold nothing learned: computed from the configuration, the last of a loss.
_NOT_LEARNED = (
    "relative_position_index", "position_ids", "attn_mask", "num_batches_tracked", "criterion.empty_weight",
)  # fmt: skip

#: (episode, frame within it) in the source data set; decides the noise of a generative estimator.
FrameId = tuple[int, int]


Setting = str | int | float | None | tuple[float, ...]


@dataclass(frozen=True)
class EstimatorRecipe:
    """What decides an estimator's pictures."""

    model: str  # hub id, or the name of the folder
    revision: str | None  # commit on the hub; None for a folder
    fingerprint: str  # of the weights
    dtype: str  # in which the network computes
    settings: Mapping[str, Setting]  # what else decides its pictures


class Estimator(Protocol):
    """Estimates one modality from RGB."""

    recipe: EstimatorRecipe

    def estimate(self, rgb: Tensor, frames: Sequence[FrameId]) -> Tensor:
        """Estimate.

        Args:
            rgb: float32 (B, 3, H, W) in [0, 1], upright.
            frames: which frames these are.

        Returns:
            Canonical picture (B, 1, H, W) on the CPU: depth float32 metres, segmentation int64, thermal
            float32 in [0, 1].
        """
        ...


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
        device: str = "cpu",
        autocast: torch.dtype | None = None,
    ) -> DepthEstimator:
        """Load a depth network of transformers from a hub id or folder.

        Its output is ``relative``, ``metric``, or ``auto``: as its config declares.

        Raises:
            FileNotFoundError: not there; the message says how to get it.
            ValueError: the files are damaged or no depth network, or its output's meaning is not declared.
        """
        from transformers import AutoModelForDepthEstimation

        model, processor, tensors = _load(AutoModelForDepthEstimation, source, "depth estimation", device)
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
        recipe = _recipe(source, tensors, autocast, **settings)
        return cls(model, processor, metric, recipe, range_m, autocast)

    @torch.no_grad()
    def estimate(self, rgb: Tensor, frames: Sequence[FrameId]) -> Tensor:  # noqa: ARG002
        """See `Estimator.estimate`; metres where the network is metric."""
        pixels = self.processor(images=list(rgb), return_tensors="pt", do_rescale=False)["pixel_values"]
        device = self.model.device
        with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            raw = self.model(pixel_values=pixels.to(device)).predicted_depth
        raw = torch.nn.functional.interpolate(
            raw.float()[:, None], rgb.shape[-2:], mode="bilinear", align_corners=False
        )
        if not bool(raw.isfinite().all()):
            raise ValueError(
                f"{self.recipe.model} gave NaN or infinite depth for frames {list(frames)}. Use "
                "--dtype=float32."
            )
        return (raw.clamp_min(0) if self.metric else depth_from_disparity(raw, self.range_m)).cpu()


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
        cls, source: str, *, device: str = "cpu", autocast: torch.dtype | None = None
    ) -> SegmentationEstimator:
        """Load a Mask2Former whose classes are COCO panoptic's; they are matched by name, not by position."""
        from transformers import Mask2FormerForUniversalSegmentation

        model, processor, tensors = _load(Mask2FormerForUniversalSegmentation, source, "segmentation", device)
        names = [str(model.config.id2label[c]) for c in range(model.config.num_labels)]
        recipe = _recipe(source, tensors, autocast)
        return cls(model, processor, _label_ids(names, source), recipe, autocast)

    @torch.no_grad()
    def estimate(self, rgb: Tensor, frames: Sequence[FrameId]) -> Tensor:  # noqa: ARG002
        """See `Estimator.estimate`."""
        size = dict(self.processor.size)
        side = size if {"height", "width"} <= set(size) else {"height": _MASK_SIDE, "width": _MASK_SIDE}
        inputs = self.processor(images=list(rgb), return_tensors="pt", do_rescale=False, size=side)
        device = self.model.device
        with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
            out = self.model(pixel_values=inputs["pixel_values"].to(device))
        maps = []
        for b in range(len(rgb)):  # picture by picture: 133 full-size score maps each
            one = SimpleNamespace(
                class_queries_logits=out.class_queries_logits[b : b + 1].float(),
                masks_queries_logits=out.masks_queries_logits[b : b + 1].float(),
            )
            maps += self.processor.post_process_semantic_segmentation(one, target_sizes=[rgb.shape[-2:]])
        return self.table[torch.stack(maps).cpu()][:, None]


@dataclass(frozen=True)
class ThermalSettings:
    """Arguments of `multismolvla.thermal.thermalgen.ThermalGen.generate`, by the same names."""

    steps: int = 4
    method: str = "euler"
    label: int | None = None
    cfg_scale: float = 1.0
    size: int = 256
    noise_mode: str = "episode"
    seed: int = 0


@dataclass
class ThermalEstimator:
    """Thermal pictures from RGB by ThermalGen, with noise that belongs to the frame or to its episode."""

    model: Any  # ThermalGen
    settings: ThermalSettings
    recipe: EstimatorRecipe

    @classmethod
    def from_pretrained(
        cls, source: str, settings: ThermalSettings, *, device: str = "cpu", dtype: torch.dtype | None = None
    ) -> ThermalEstimator:
        """Load ThermalGen, its weights in ``dtype`` (``None`` = float32), from a hub id or folder."""
        from multismolvla.thermal.thermalgen import ThermalGen

        tensors = weights.locate(source)[1]
        model = ThermalGen.from_pretrained(source, dtype=dtype, device=device)
        return cls(model, settings, _recipe(source, tensors, dtype, **asdict(settings)))

    def estimate(self, rgb: Tensor, frames: Sequence[FrameId]) -> Tensor:
        """See `Estimator.estimate`."""
        thermal: Tensor = self.model.generate(rgb, frames=list(frames), **asdict(self.settings))
        return thermal.float().cpu()


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


def _load(auto: Any, source: str, task: str, device: str) -> tuple[Any, Any, Path]:
    """Network, image processor and file of weights; every learned weight must be in the file and be used."""
    from safetensors import SafetensorError
    from transformers import AutoImageProcessor
    from transformers.utils import logging as transformers_logging

    config, _, tensors = weights.locate(source, _FILES)
    weights.stored_keys(tensors)  # names a truncated file before transformers stumbles over it
    transformers_logging.disable_progress_bar()
    try:
        model, found = auto.from_pretrained(
            config.parent, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (ValueError, RuntimeError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{source} cannot be read as a network for {task}: {first}") from error
    # A surplus table is left out without harm; of missing ones, only the loss's is never read here.
    tolerated = {"missing_keys": _NOT_LEARNED[-1:], "mismatched_keys": (), "unexpected_keys": _NOT_LEARNED}
    for kind, harmless in tolerated.items():
        keys = sorted(key for key in map(str, found[kind]) if not key.endswith(harmless))
        if keys:
            raise ValueError(
                f"{tensors}: {len(keys)} {kind.replace('_', ' ')}, first {keys[0]}. Config and weights do "
                f"not belong together, or it is no network for {task}."
            )
    processor = AutoImageProcessor.from_pretrained(config.parent, local_files_only=True)
    return model.eval().requires_grad_(False).to(device), processor, tensors


def _recipe(source: str, tensors: Path, dtype: torch.dtype | None, **settings: Setting) -> EstimatorRecipe:
    parts = tensors.parts
    revision = parts[parts.index("snapshots") + 1] if "snapshots" in parts else None
    name = source if revision else Path(source).name  # a folder's place says nothing on another machine
    number = str(dtype or torch.float32).removeprefix("torch.")
    return EstimatorRecipe(name, revision, file_fingerprint(tensors), number, settings)

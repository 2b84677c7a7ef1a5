"""Depth, segmentation and thermal pictures estimated from RGB, as canonical pictures (``multismolvla.modalities.SPECS``).

What they deliver is *derived*: it holds nothing that the RGB picture does not, and is lost together with it. Each
estimator reads a hub id or a local folder in the official layout:

============ ================================================== ==========================================
modality     default                                            network
============ ================================================== ==========================================
depth        ``depth-anything/Depth-Anything-V2-Small-hf``      any ``AutoModelForDepthEstimation``
segmentation ``facebook/mask2former-swin-base-coco-panoptic``   ``Mask2FormerForUniversalSegmentation``
thermal      ``xjh19972/ThermalGen-XL-2``                       `multismolvla.thermal.thermalgen.ThermalGen`
============ ================================================== ==========================================

Not proven with the published files yet: written after the official code and layouts, run so far with tiny networks in these.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

from multismolvla import weights
from multismolvla.tokenizers.label_sets import COCO_PANOPTIC
from multismolvla.tokenizers.recipe import file_fingerprint
from multismolvla_data.annotate.config import RELATIVE_RANGE_M

logger = logging.getLogger(__name__)

_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
# Mask2Former's post-processing works at this side whatever the input (transformers 5.5); other sides would be squashed.
_MASK_SIDE = 384

#: Tables in published files that hold nothing learned: computed from the configuration, or needed for a loss only.
_NOT_LEARNED = (
    "relative_position_index",
    "position_ids",
    "attn_mask",
    "num_batches_tracked",
    "criterion.empty_weight",
)

#: (episode, frame within it) in the source dataset; decides the noise of a generative estimator.
FrameId = tuple[int, int]


class Estimator(Protocol):
    """Estimates one modality from RGB."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What decides the estimates: model, revision, fingerprint of the weights, settings (JSON types)."""
        ...

    def estimate(self, rgb: Tensor, frames: Sequence[FrameId]) -> Tensor:
        """Estimate.

        Args:
            rgb: float32 (B, 3, H, W) in [0, 1], upright.
            frames: which frames these are.

        Returns:
            Canonical picture (B, 1, H, W) on the CPU: depth float32 metres, segmentation int64, thermal float32 [0, 1].
        """
        ...


def depth_from_disparity(disparity: Tensor, range_m: tuple[float, float] = RELATIVE_RANGE_M) -> Tensor:
    """Affine-invariant depth from relative disparity (larger = nearer), as Depth Anything delivers it.

    Scale and shift of the disparity are unknown, so they are fixed per picture: its largest value becomes ``near``, its
    smallest ``far``, and ``1 / depth`` is linear between them:
    ``1/depth = 1/far + (d - min) / (max - min) * (1/near - 1/far)``. The result is positive and falls with
    disparity. 4M's depth tokenizer standardises every picture, so the choice of range hardly reaches it; nothing
    else may take these values for metres.

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
    """Depth from RGB.

    Attributes:
        model: network with ``predicted_depth``.
        processor: its image processor.
        metric: the output is metres; otherwise it is relative disparity, see `depth_from_disparity`.
        provenance: see `Estimator`.
        range_m: (near, far) of a relative estimate.
        autocast: dtype of the network's matrix products; ``None`` = float32.
    """

    model: Any
    processor: Any
    metric: bool
    provenance: dict[str, Any]
    range_m: tuple[float, float] = RELATIVE_RANGE_M
    autocast: torch.dtype | None = None

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
        """Load a depth network of transformers.

        Args:
            source: hub id or folder.
            output: ``relative``, ``metric``, or ``auto``: as the network's config declares.
            range_m: (near, far) of a relative estimate.
            device: where to compute.
            autocast: see the class.

        Raises:
            FileNotFoundError: not there; the message says how to get it.
            ValueError: the files are damaged or no depth network, or its output's meaning is not declared.
        """
        from transformers import AutoModelForDepthEstimation

        model, processor, provenance = _load(AutoModelForDepthEstimation, source, "depth estimation", device)
        declared = getattr(model.config, "depth_estimation_type", None)
        if output == "auto" and declared not in ("relative", "metric"):
            raise ValueError(
                f"{source}: its config does not say whether the output is relative disparity or metres "
                f"(depth_estimation_type={declared!r}). Read the model card and give --depth_output=relative or metric."
            )
        metric = (declared if output == "auto" else output) == "metric"
        provenance |= {"output": "metric" if metric else "relative", "autocast": _name(autocast)}
        if not metric:
            provenance |= {"range_m": [float(r) for r in range_m]}
        return cls(model, processor, metric, provenance, range_m, autocast)

    @torch.no_grad()
    def estimate(self, rgb: Tensor, frames: Sequence[FrameId]) -> Tensor:  # noqa: ARG002
        """See `Estimator.estimate`; metres where the network is metric."""
        pixels = self.processor(images=list(rgb), return_tensors="pt", do_rescale=False)["pixel_values"]
        device = self.model.device
        with _autocast(device, self.autocast):
            raw = self.model(pixel_values=pixels.to(device)).predicted_depth
        raw = torch.nn.functional.interpolate(
            raw.float()[:, None], rgb.shape[-2:], mode="bilinear", align_corners=False
        )
        if not bool(raw.isfinite().all()):
            raise ValueError(
                f"{self.provenance['model']} gave NaN or infinite depth for frames {list(frames)}. Use --dtype=float32."
            )
        return (raw.clamp_min(0) if self.metric else depth_from_disparity(raw, self.range_m)).cpu()


@dataclass
class SegmentationEstimator:
    """COCO panoptic classes from RGB: the arg-max class map, every pixel named.

    Attributes:
        model: Mask2Former.
        processor: its image processor.
        table: int64 (classes of the network,), class -> id of the tokenizer's label set (COCO panoptic + 1).
        provenance: see `Estimator`.
        autocast: see `DepthEstimator`.
    """

    model: Any
    processor: Any
    table: Tensor
    provenance: dict[str, Any]
    autocast: torch.dtype | None = None

    @classmethod
    def from_pretrained(
        cls, source: str, *, device: str = "cpu", autocast: torch.dtype | None = None
    ) -> SegmentationEstimator:
        """Load a Mask2Former whose classes are COCO panoptic's; they are matched by name, not by position.

        Raises:
            FileNotFoundError: not there; the message says how to get it.
            ValueError: the files are damaged or no Mask2Former, or a class is not one of COCO panoptic's.
        """
        from transformers import Mask2FormerForUniversalSegmentation

        model, processor, provenance = _load(
            Mask2FormerForUniversalSegmentation, source, "segmentation", device
        )
        names = [str(model.config.id2label[c]) for c in range(model.config.num_labels)]
        return cls(
            model, processor, _label_ids(names, source), provenance | {"autocast": _name(autocast)}, autocast
        )

    @torch.no_grad()
    def estimate(self, rgb: Tensor, frames: Sequence[FrameId]) -> Tensor:  # noqa: ARG002
        """See `Estimator.estimate`."""
        size = dict(self.processor.size)
        side = size if {"height", "width"} <= set(size) else {"height": _MASK_SIDE, "width": _MASK_SIDE}
        inputs = self.processor(images=list(rgb), return_tensors="pt", do_rescale=False, size=side)
        device = self.model.device
        with _autocast(device, self.autocast):
            out = self.model(pixel_values=inputs["pixel_values"].to(device))
        maps = []
        for b in range(len(rgb)):  # picture by picture: 133 full-size score maps each
            one = SimpleNamespace(
                class_queries_logits=out.class_queries_logits[b : b + 1].float(),
                masks_queries_logits=out.masks_queries_logits[b : b + 1].float(),
            )
            maps += self.processor.post_process_semantic_segmentation(one, target_sizes=[rgb.shape[-2:]])
        return self.table[torch.stack(maps).cpu()][:, None]


@dataclass
class ThermalEstimator:
    """Thermal pictures from RGB by ThermalGen, with noise that belongs to the frame or to its episode.

    Attributes:
        model: ThermalGen.
        options: further arguments of ``generate``.
        provenance: see `Estimator`.
    """

    model: Any
    options: dict[str, Any]
    provenance: dict[str, Any]

    @classmethod
    def from_pretrained(
        cls, source: str, *, device: str = "cpu", dtype: torch.dtype | None = None, **options: Any
    ) -> ThermalEstimator:
        """Load ThermalGen.

        Args:
            source: hub id or folder.
            device: where to compute.
            dtype: of the weights; ``None`` = float32.
            options: arguments of `multismolvla.thermal.thermalgen.ThermalGen.generate`: ``steps``, ``method``, ``label``,
                ``cfg_scale``, ``size``, ``noise_mode``, ``seed``.

        Raises:
            FileNotFoundError: not there; the message says how to get it.
            ValueError: the files are damaged or no ThermalGen.
        """
        from multismolvla.thermal.thermalgen import ThermalGen

        tensors = weights.locate(source)[1]
        model = ThermalGen.from_pretrained(source, dtype=dtype, device=device)
        return cls(model, options, provenance_of(source, tensors) | {"dtype": _name(dtype), **options})

    def estimate(self, rgb: Tensor, frames: Sequence[FrameId]) -> Tensor:
        """See `Estimator.estimate`."""
        thermal: Tensor = self.model.generate(rgb, frames=list(frames), **self.options)
        return thermal.float().cpu()


def _label_ids(names: Sequence[str], source: str) -> Tensor:
    """Ids of the tokenizer's label set for a network's classes: int64 (classes,)."""
    from multismolvla.tokenizers.labels import LabelTable

    table = LabelTable.from_name("coco_contiguous")
    if all(
        name == f"LABEL_{c}" for c, name in enumerate(names)
    ):  # a config without names: only the order is left
        if len(names) != len(COCO_PANOPTIC):
            raise ValueError(
                f"{source}: its {len(names)} classes have no names. Expected the {len(COCO_PANOPTIC)} of COCO panoptic."
            )
        return table.map_ids(torch.arange(len(names)))
    try:
        return torch.tensor([table.map_name(name) for name in names])
    except ValueError as error:
        raise ValueError(f"{source} does not segment COCO panoptic's classes: {error}") from error


def _load(auto: Any, source: str, task: str, device: str) -> tuple[Any, Any, dict[str, Any]]:
    """Network, image processor and provenance; every learned weight must be in the file and be used."""
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
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        # A surplus table is left out without harm; of missing ones, only the loss's is never read here.
        harmless = {"unexpected_keys": _NOT_LEARNED, "missing_keys": ("criterion.empty_weight",)}.get(
            kind, ()
        )
        keys = sorted(key for key in map(str, found[kind]) if not key.endswith(harmless))
        if keys:
            raise ValueError(
                f"{tensors}: {len(keys)} {kind.replace('_', ' ')}, first {keys[0]}. Config and weights do not belong "
                f"together, or it is no network for {task}."
            )
    processor = AutoImageProcessor.from_pretrained(config.parent, local_files_only=True)
    return model.eval().requires_grad_(False).to(device), processor, provenance_of(source, tensors)


def provenance_of(source: str, tensors: Path) -> dict[str, Any]:
    """Where weights come from: ``model``, ``revision`` (hub commit, or ``None`` for a folder) and ``fingerprint``."""
    parts = tensors.parts
    revision = parts[parts.index("snapshots") + 1] if "snapshots" in parts else None
    name = source if revision else Path(source).name  # a folder's place says nothing on another machine
    return {"model": name, "revision": revision, "fingerprint": file_fingerprint(tensors)}


@contextlib.contextmanager
def _autocast(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    with torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext():
        yield


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype or torch.float32).removeprefix("torch.")

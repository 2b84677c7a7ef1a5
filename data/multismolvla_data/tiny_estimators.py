"""Tiny random estimators in the official layouts, for tests, benchmarks and trials without downloads. Their output means nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_SIDE = 28


def write_tiny_networks(root: Path) -> dict[str, Any]:
    """Write every network that an annotation reads, estimators and tokenizers.

    Args:
        root: folder for all of them.

    Returns:
        The options of `multismolvla_data.annotate_config.AnnotateConfig` that name them.
    """
    from multismolvla.thermal.tiny import write_tiny_imagebind
    from multismolvla.thermal.tiny_thermalgen import write_tiny_thermalgen
    from multismolvla.tokenizers.tiny import write_tiny_tokenizers

    # the encoder's domains take the official numbers of ids
    tokenizers = write_tiny_tokenizers(root / "tokenizers", codebook_size=8192)
    tokenizers["seg"] = write_tiny_tokenizers(root / "small", codebook_size=4096)["seg"]
    return {
        "depth_model": str(write_tiny_depth_estimator(root / "depth")),
        "seg_model": str(write_tiny_segmenter(root / "seg")),
        "thermal_model": str(write_tiny_thermalgen(root / "thermalgen")),
        "tokenizer_sources": {k: str(v) for k, v in tokenizers.items()},
        "imagebind": str(write_tiny_imagebind(root / "imagebind")),
    }


def write_tiny_depth_estimator(folder: str | Path, *, metric: bool = False, seed: int = 0) -> Path:
    """Write a Depth Anything network of 21 thousand parameters.

    Args:
        folder: made where missing.
        metric: declare the output as metres instead of relative disparity.
        seed: of the weights.

    Returns:
        The folder.
    """
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTImageProcessor,
    )

    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=_SIDE,
        patch_size=14,
        mlp_ratio=2,
        reshape_hidden_states=False,
        apply_layernorm=True,
        out_indices=[1, 2],
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=16,
        reassemble_factors=[2, 1],
        neck_hidden_sizes=[8, 8],
        fusion_hidden_size=8,
        head_in_index=-1,
        head_hidden_size=4,
        depth_estimation_type="metric" if metric else "relative",
        max_depth=4 if metric else None,
    )
    model = DepthAnythingForDepthEstimation(config)
    _randomise(model, seed)
    processor = DPTImageProcessor(
        size={"height": _SIDE, "width": _SIDE},
        ensure_multiple_of=14,
        keep_aspect_ratio=True,
        resample=3,
        do_normalize=True,
    )
    return _save(model, processor, folder)


def write_tiny_segmenter(folder: str | Path, *, names: tuple[str, ...] | None = None, seed: int = 0) -> Path:
    """Write a Mask2Former of 117 thousand parameters.

    Args:
        folder: made where missing.
        names: of its classes; default: COCO panoptic's.
        seed: of the weights.

    Returns:
        The folder.
    """
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    from multismolvla.tokenizers.coco import COCO_PANOPTIC

    classes = names or COCO_PANOPTIC
    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=5,
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
    )
    model = Mask2FormerForUniversalSegmentation(config)
    _randomise(model, seed)
    processor = Mask2FormerImageProcessor(
        size={"height": 64, "width": 64}, num_labels=len(classes), ignore_index=255
    )
    return _save(model, processor, folder)


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights that answer to the picture: unit gain, no bias left at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(
                noise * gain + (1.0 if parameter.ndim == 1 and bool((parameter == 1).all()) else 0.0)
            )


def _save(model: object, processor: object, folder: str | Path) -> Path:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)  # type: ignore[attr-defined]
    processor.save_pretrained(folder)  # type: ignore[attr-defined]
    return Path(folder)

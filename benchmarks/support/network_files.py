"""Files with random networks in the official layouts, for benchmarks of what reads them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from support.policy_models import Sizes

#: What 4M reads of four modalities; thermal as dense and global ids of ImageBind.
DOMAINS = {
    "rgb": "rgb@224",
    "depth": "tok_depth@224",
    "seg": "tok_semseg@224",
    "thermal": "tok_imagebind@224+tok_imagebind_global",
}


@dataclass(frozen=True)
class Scale:
    """Width, depth and heads of the networks.

    Attributes:
        encoder: the 4M encoder, and the tokenizers.
        imagebind: ImageBind's vision branch.
        language: the language model, with its key-value heads.
    """

    encoder: tuple[int, int, int]
    imagebind: tuple[int, int, int]
    language: tuple[int, int, int, int]  # width, layers, heads, key-value heads


SCALES = {
    "official": Scale((768, 12, 12), (1280, 32, 16), (960, 16, 15, 5)),
    "third": Scale((384, 4, 6), (640, 11, 8), (480, 5, 15, 5)),
    "smallest": Scale((32, 1, 2), (40, 1, 4), (48, 2, 3, 1)),
}


def policy_sizes(scale: Scale, folder: Path) -> Sizes:
    """Of a policy that reads four modalities with 4M's own tokenizers, which are written into ``folder``.

    Vanilla SmolVLA's vision network is a tiny one.
    """
    width, layers, heads, key_heads = scale.language

    def encoder() -> Any:
        from multismolvla.fourm import FourMConfig

        dim, depth, encoder_heads = scale.encoder
        names = tuple(d for several in DOMAINS.values() for d in several.split("+"))
        return FourMConfig(dim=dim, encoder_depth=depth, num_heads=encoder_heads, domains_in=names)

    return Sizes(
        vlm={
            "text_width": width, "text_layers": layers, "text_heads": heads, "text_kv_heads": key_heads,
            "text_mlp": 8 * width // 3, "vision_width": 32, "vision_layers": 1, "image_size": 64,
            "patch_size": 8,
        },
        vocab=264,
        fourm=encoder,
        domains=DOMAINS,
        policy={"num_vlm_layers": layers, "resize_imgs_with_padding": (64, 64)},
        bridge={
            "tokenizers": "official", "tokenizer_sources": write_tokenizers(folder, scale),
            "imagebind": str(folder / "network"), "imagebind_rows": "norm",
        },
        side=256,
        batch_size=1,
    )  # fmt: skip


def write_tokenizers(folder: Path, scale: Scale) -> dict[str, str]:
    """Random tokenizers and ImageBind in the official layout."""
    import torch
    from tiny_imagebind import write_tiny_imagebind

    from multismolvla import weights
    from multismolvla.tokenizers.official import VQTokenizer
    from multismolvla.tokenizers.vq_config import VQConfig

    dim, depth, heads = scale.encoder
    features, blocks, feature_heads = scale.imagebind
    write_tiny_imagebind(
        folder / "network",
        vision_width=features,
        thermal_width=dim,
        num_blocks=blocks,
        num_heads=feature_heads,
        joint_dim=1024,  # official, as a branch of official width must have it
    )
    vit = {
        "image_size": 448, "enc_type": "vit_scaled_enc", "patch_size": 16, "quant_type": "lucid",
        "latent_dim": 32,
        "encoder": {"dim": dim, "depth": depth, "num_heads": heads}, "post_mlp": True, "codebook_size": 8192,
    }  # fmt: skip
    configs: dict[str, dict[str, Any]] = {
        "depth": vit | {"n_channels": 1},
        "seg": vit | {"n_channels": 64, "n_labels": 134, "codebook_size": 4096},
        "imagebind": vit | {"n_channels": features, "patch_proj": False},
        "imagebind_global": {
            "image_size": 224, "enc_type": f"BottleneckMLP/B_2-Wi_{dim}", "patch_size": 16,
            "quant_type": "memcodes",
            "latent_dim": 512, "num_codebooks": 16, "codebook_size": 8192, "n_channels": features,
            "patch_proj": False,
            "post_mlp": True,
        },
    }  # fmt: skip
    for part, config in configs.items():
        g = torch.Generator().manual_seed(0)
        state = VQTokenizer(VQConfig.from_dict(config)).state_dict()
        weights.write(
            folder / part, config, {k: 0.05 * torch.randn(v.shape, generator=g) for k, v in state.items()}
        )
    return {part: str(folder / part) for part in configs}


def write_estimators(
    folder: Path, modalities: Collection[str] = ("depth", "seg", "thermal"), *, tiny: bool = False
) -> dict[str, str]:
    """The estimators of depth, segmentation and thermal.

    Args:
        folder: where to.
        modalities: of which.
        tiny: the tests' networks instead of the sizes of Depth Anything V2 Small, Mask2Former Swin-B and
            ThermalGen B/2 (2 GB).

    Returns:
        Modality -> folder.
    """
    import tiny_estimators as tiny_ones
    from tiny_thermalgen import write_tiny_thermalgen

    writers: dict[str, Callable[[Path], str | Path]] = {
        "depth": tiny_ones.write_tiny_depth_estimator if tiny else _write_depth_anything,
        "seg": tiny_ones.write_tiny_segmenter if tiny else _write_mask2former,
        "thermal": write_tiny_thermalgen if tiny else partial(write_tiny_thermalgen, arch="B", vae=None),
    }
    return {modality: str(writers[modality](folder / modality)) for modality in modalities}


def _write_depth_anything(folder: Path) -> str:
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTImageProcessor,
    )

    backbone = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
        reshape_hidden_states=False,
        apply_layernorm=True,
        out_indices=[3, 6, 9, 12],
    )
    config = DepthAnythingConfig(
        backbone_config=backbone, neck_hidden_sizes=[48, 96, 192, 384], fusion_hidden_size=64
    )
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    size = {"height": 518, "width": 518}
    DPTImageProcessor(size=size, ensure_multiple_of=14, keep_aspect_ratio=True, resample=3).save_pretrained(
        folder
    )
    return str(folder)


def _write_mask2former(folder: Path) -> str:
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    from multismolvla.tokenizers.label_sets import COCO_PANOPTIC

    backbone = SwinConfig(
        image_size=384,
        embed_dim=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        window_size=12,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    names = dict(enumerate(COCO_PANOPTIC))
    config = Mask2FormerConfig(
        backbone_config=backbone, id2label=names, label2id={name: i for i, name in names.items()}
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    size = {"height": 384, "width": 384}
    Mask2FormerImageProcessor(size=size, num_labels=len(names), ignore_index=255).save_pretrained(folder)
    return str(folder)

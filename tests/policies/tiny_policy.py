"""Tiny policies for tests: sizes, features, batches. Random weights, official formats, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PolicyFeature

from lerobot_policy_multismolvla.tiny_vlm import TinyVLMConfig
from multismolvla.modalities import default_view_map

SIDE = 64
TINY = TinyVLMConfig(
    text_width=48, text_layers=2, text_heads=3, text_kv_heads=1, text_mlp=96, vision_width=32, vision_layers=1
)


def common_options(root: Path) -> dict[str, Any]:
    return {
        "vlm_model_name": str(root / "vlm"), "load_vlm_weights": False, "num_vlm_layers": 2, "chunk_size": 4,
        "n_action_steps": 2, "resize_imgs_with_padding": (SIDE, SIDE), "device": "cpu", "push_to_hub": False,
        "freeze_vision_encoder": False, "train_expert_only": False, "num_steps": 3,
    }  # fmt: skip


def actions() -> dict[str, PolicyFeature]:
    return {"action": PolicyFeature(FeatureType.ACTION, (7,))}


def rgb_features() -> dict[str, PolicyFeature]:
    pictures = {
        f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE))
        for c in ("image", "image2")
    }
    return pictures | {"observation.state": PolicyFeature(FeatureType.STATE, (8,))}


def all_features() -> dict[str, PolicyFeature]:
    channels = {"rgb": 3, "depth": 1, "seg": 3, "thermal": 3}
    pictures = {
        key: PolicyFeature(FeatureType.VISUAL, (channels[m], SIDE, SIDE))
        for streams in default_view_map().values()
        for m, key in streams.items()
    }
    return pictures | {"observation.state": PolicyFeature(FeatureType.STATE, (8,))}


def canonical_batch(size: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch as it leaves the policy's pre-processor, with objects of several classes and holes in depth."""
    g = torch.Generator().manual_seed(seed)
    batch: dict[str, torch.Tensor] = {}
    for streams in default_view_map().values():
        batch[streams["rgb"]] = torch.rand(size, 3, SIDE, SIDE, generator=g)
        depth = 0.4 + torch.rand(size, 1, SIDE, SIDE, generator=g)
        valid = torch.rand(size, 1, SIDE, SIDE, generator=g) > 0.1
        batch[streams["depth"]] = torch.where(valid, depth, 0.0)
        batch[f"{streams['depth']}_valid"] = valid
        coarse = torch.randint(0, 8, (size, 1, 16, 16), generator=g)
        batch[streams["seg"]] = coarse.repeat_interleave(4, -1).repeat_interleave(4, -2)
        batch[streams["thermal"]] = torch.rand(size, 1, SIDE, SIDE, generator=g)
    batch["observation.state"] = torch.randn(size, 8, generator=g)
    batch["action"] = torch.randn(size, 4, 7, generator=g)
    batch["observation.language.tokens"] = torch.randint(8, 200, (size, 12), generator=g)
    batch["observation.language.attention_mask"] = torch.ones(size, 12, dtype=torch.bool)
    return batch


def flow_inputs(size: int = 3) -> dict[str, torch.Tensor]:
    """Fixed noise and time, so that two losses can be compared."""
    g = torch.Generator().manual_seed(7)
    return {"noise": torch.randn(size, 4, 32, generator=g), "time": torch.rand(size, generator=g)}


def chunk(policy: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The action chunk for fixed sampling noise."""
    return policy.predict_action_chunk(
        dict(batch), noise=flow_inputs(len(batch["observation.state"]))["noise"]
    )

"""Fixtures: a folder of tiny foundation models, and factories of configurations and policies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from tiny_dataset import write_dataset
from tiny_policy import SIDE, TINY, actions, all_features, canonical_batch, common_options, rgb_features

from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from lerobot_policy_multismolvla.mini.tiny_vlm import build_tiny_vlm
from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from multismolvla.fourm import MINI_DOMAINS, FourMConfig, FourMEncoder


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``vlm`` (SmolVLM), ``fourm`` (4M-21 layout) and ``base`` (a SmolVLA checkpoint), all
    random.
    """
    root = tmp_path_factory.mktemp("hub")
    build_tiny_vlm(root / "vlm", TINY)
    torch.manual_seed(0)
    FourMEncoder(FourMConfig.mini(32, 2, 2), list(MINI_DOMAINS.values())).save_pretrained(root / "fourm")
    base = SmolVLAPolicy(
        SmolVLAConfig(**common_options(root), input_features=rgb_features(), output_features=actions())
    )
    base.save_pretrained(root / "base")
    return root


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobotDataset of two short episodes with all modalities."""
    return write_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def make_config(hub: Path) -> Callable[..., MultiSmolVLAConfig]:
    """Factory of tiny configurations; keyword arguments override."""

    def make(**options: Any) -> MultiSmolVLAConfig:
        tower = options.get("vision_tower", "fourm")
        defaults: dict[str, Any] = common_options(hub) | {
            "input_features": rgb_features() if tower == "siglip" else all_features(),
            "output_features": actions(),
            "encoder": str(hub / "fourm"), "domains": MINI_DOMAINS, "image_size": SIDE, "fusion_grid": 8,
            "dtype": "float32",
            "connector_grid": 8, "connector_hidden": 64, "base_checkpoint": str(hub / "base"),
            "curriculum_steps": 100,
        }  # fmt: skip
        return MultiSmolVLAConfig(**(defaults | options))

    return make


@pytest.fixture
def make_policy(make_config: Callable[..., MultiSmolVLAConfig]) -> Callable[..., MultiSmolVLAPolicy]:
    """Factory of tiny policies in evaluation mode; same seed, same weights."""

    def make(**options: Any) -> MultiSmolVLAPolicy:
        torch.manual_seed(1)
        return MultiSmolVLAPolicy(make_config(**options)).eval()

    return make


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return canonical_batch()

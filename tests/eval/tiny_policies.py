"""Untrained policies of every kind, small enough for tests, saved with their processors as LeRobot saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature

SIDE = 64
#: The tokenizer that LeRobot's processors of the pi family name; it is not here.
PALIGEMMA = "google/paligemma-3b-pt-224"
STATE = {"mean": torch.zeros(8), "std": torch.ones(8), "q01": -torch.ones(8), "q99": torch.ones(8)}
ACTION = {"mean": torch.zeros(7), "std": torch.ones(7), "q01": -torch.ones(7), "q99": torch.ones(7)}
STATS = {"observation.state": STATE, "action": ACTION}
PLAIN = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}


def save(policy: Any, folder: Path) -> str:
    from lerobot.policies.factory import make_pre_post_processors

    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(policy.config, dataset_stats=STATS):
        processor.save_pretrained(folder)
    return str(folder)


def rgb_options(cameras: tuple[str, ...] = ("image", "image2")) -> dict[str, Any]:
    pictures = {
        f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE)) for c in cameras
    }
    return {
        "input_features": pictures | {"observation.state": PolicyFeature(FeatureType.STATE, (8,))},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (7,))},
        "device": "cpu",
        "push_to_hub": False,
    }


def save_act(folder: Path, cameras: tuple[str, ...] = ("image", "image2")) -> str:
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    torch.manual_seed(0)
    config = ACTConfig(
        **rgb_options(cameras), chunk_size=2, n_action_steps=2, dim_model=16, n_heads=2, dim_feedforward=16,
        n_encoder_layers=1, n_decoder_layers=1, n_vae_encoder_layers=1, use_vae=False,
        pretrained_backbone_weights=None, normalization_mapping=PLAIN,
    )  # fmt: skip
    return save(ACTPolicy(config), folder)


def save_diffusion(folder: Path) -> str:
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    torch.manual_seed(0)
    config = DiffusionConfig(
        **rgb_options(), n_obs_steps=2, horizon=8, n_action_steps=2, down_dims=(16, 32), n_groups=4,
        diffusion_step_embed_dim=16, spatial_softmax_num_keypoints=4, num_train_timesteps=10, num_inference_steps=2,
        pretrained_backbone_weights=None, normalization_mapping=PLAIN,
    )  # fmt: skip
    return save(DiffusionPolicy(config), folder)


def save_smolvla(folder: Path, vlm: Path) -> str:
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    torch.manual_seed(0)
    return save(SmolVLAPolicy(SmolVLAConfig(**smolvla_options(vlm))), folder)


def smolvla_options(vlm: Path) -> dict[str, Any]:
    return {
        **rgb_options(), "vlm_model_name": str(vlm), "load_vlm_weights": False, "num_vlm_layers": 2, "chunk_size": 4,
        "n_action_steps": 2, "resize_imgs_with_padding": (SIDE, SIDE), "freeze_vision_encoder": False,
        "train_expert_only": False, "num_steps": 3,
    }  # fmt: skip


def save_pi(kind: str, folder: Path, tokenizer: Path, monkeypatch: Any) -> str:
    """pi0 or pi05 with 0.1 million weights instead of the billions of its smallest variant.

    LeRobot has no options for these sizes, so they are changed on the way into its constructors, also when the checkpoint is
    loaded: ``monkeypatch`` must live that long.
    """
    from importlib import import_module

    from lerobot.policies.factory import make_policy_config
    from lerobot.processor import tokenizer_processor

    module = import_module(f"lerobot.policies.{kind}.modeling_{kind}")
    width = 32
    make_vlm, make_expert = module.PaliGemmaForConditionalGenerationWithPiGemma, module.PiGemmaForCausalLM
    sizes = module.GemmaConfig(width=width, depth=2, mlp_dim=32, num_heads=2, num_kv_heads=1, head_dim=16)

    def small_vlm(config: Any) -> Any:
        config.text_config.vocab_size = 1000
        vision = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        }
        for name, value in {**vision, "projection_dim": width}.items():
            setattr(config.vision_config, name, value)
        return make_vlm(config=config)

    def small_expert(config: Any) -> Any:
        config.vocab_size = 10
        return make_expert(config=config)

    monkeypatch.setattr(module, "get_gemma_config", lambda variant: sizes)
    monkeypatch.setattr(module, "PaliGemmaForConditionalGenerationWithPiGemma", small_vlm)
    monkeypatch.setattr(module, "PiGemmaForCausalLM", small_expert)
    torch.manual_seed(0)
    config = make_policy_config(
        kind, **rgb_options(), chunk_size=4, n_action_steps=2, num_inference_steps=2, image_resolution=(28, 28),
        max_state_dim=8, max_action_dim=7,
    )  # fmt: skip
    policy = module.PI0Policy(config) if kind == "pi0" else module.PI05Policy(config)
    load = tokenizer_processor.AutoTokenizer.from_pretrained
    with monkeypatch.context() as here:
        here.setattr(
            tokenizer_processor.AutoTokenizer,
            "from_pretrained",
            lambda name, **options: load(str(tokenizer), **options),
        )
        save(policy, folder)
    steps = folder / "policy_preprocessor.json"
    steps.write_text(steps.read_text().replace(PALIGEMMA, str(tokenizer)))
    return str(folder)


def save_ours(root: Path) -> Path:
    """A SmolVLA in ``root/vanilla`` and a MultiSmolVLA that stands on it, with all sensors, in ``root/ours``."""
    from tiny_policy import TINY, all_features

    from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
    from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
    from lerobot_policy_multismolvla.pretrain import MINI_DOMAINS, PretrainConfig, mini_fourm_config
    from lerobot_policy_multismolvla.tiny_vlm import build_tiny_vlm
    from multismolvla.fourm import FourMEncoder

    vlm = build_tiny_vlm(root / "vlm", TINY)
    torch.manual_seed(0)
    sizes = mini_fourm_config(PretrainConfig(dim=32, depth=2, heads=2))
    FourMEncoder(sizes, list(MINI_DOMAINS.values())).save_pretrained(root / "fourm")
    base = save_smolvla(root / "vanilla", vlm)
    config = MultiSmolVLAConfig(
        **{**smolvla_options(vlm), "input_features": all_features()}, encoder=str(root / "fourm"), domains=MINI_DOMAINS,
        image_size=SIDE, fusion_grid=8, connector_grid=8, connector_hidden=64, dtype="float32", base_checkpoint=base,
    )  # fmt: skip
    save(MultiSmolVLAPolicy(config), root / "ours")
    return root

"""Randomly initialised policies and batches of given sizes; weights are in a temporary folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla_run.presets import load_preset

if TYPE_CHECKING:
    import torch

REPO = Path(__file__).resolve().parents[2]
PRESETS = ("tiny", "real", "smallest")
TRAINED = ("lora", "expert", "full")
#: At its full probability from the second step on, as the presets have it.
_CORRUPTION = {
    "corruption_probability": 0.3,
    "corruption_source": "ids",
    "corruption_ramp": 1e-6,
    "curriculum_steps": 1_000_000,
}


def _dropout() -> dict[str, Any]:
    """That of the preset `mini`, at its full probability."""
    args = load_preset("mini", REPO / "configs").stage("robust").args
    shares = {key.removeprefix("policy."): args[key] for key in args if key.startswith("policy.dropout_")}
    return shares | {"dropout_mode": "fixed"}


#: The 4M tower trained with that corruption and dropout.
DISTURBED = "fourm+disturbed"
_DISTURBANCE = _CORRUPTION | _dropout()
#: What is added to the 4M tower's training; of RLBind its stage 1, at full radius from the second step on.
_ADDED: dict[str, dict[str, Any]] = {
    "fourm+corruption": _CORRUPTION,
    DISTURBED: _DISTURBANCE,
    "fourm+consistency": _DISTURBANCE | {"consistency_weight": 0.1},  # it looks again at what was disturbed
    "fourm+robult": {"robult": {"weight": 1.0}},
    "fourm+rlbind": {"rlbind": {"weight": 1.0, "anchor": 0.0, "distribution": 0.0, "attack_ramp": 1e-6}},
}
TOWERS = ("siglip", "fourm", "siglip+fourm", *_ADDED)
_TASKS = ["put the cube in the basket", "put the can on the plate", "push the cup away"]


@dataclass
class Sizes:
    """What a preset builds.

    Attributes:
        vlm: arguments of ``TinyVLMConfig``.
        vocab: entries of the language model's embedding.
        fourm: makes the encoder's configuration.
        domains: modality -> encoder domain.
        policy: options of both policies (chunk, layers, picture size of SigLIP).
        bridge: options of the 4M policy alone.
        side: side of the pictures in the batch, pixels.
        batch_size: default batch size of a training step.
        language: language tokens per sample.
    """

    vlm: dict[str, int]
    vocab: int
    fourm: Any
    domains: dict[str, str]
    policy: dict[str, Any]
    bridge: dict[str, Any]
    side: int
    batch_size: int
    language: int = 16
    lora_rank: int = field(default=16)


def sizes(preset: str, stage: str) -> Sizes:
    """Sizes of ``tiny`` (the mini preset, read from configs/mini.yaml), ``real`` or ``smallest`` (for tests).

    Args:
        preset: name of the preset.
        stage: training stage; the mini preset draws noise and time several times per observation, differently
            by stage.

    Raises:
        ValueError: unknown preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"--preset={preset!r} is unknown. Expected one of {list(PRESETS)}.")
    return _real() if preset == "real" else _mini(stage, smallest=preset == "smallest")


def _mini(stage: str, smallest: bool) -> Sizes:
    import yaml

    from lerobot_policy_multismolvla.mini.pretrain import GRID, PretrainConfig
    from multismolvla.fourm import MINI_DOMAINS, FourMConfig

    preset = yaml.safe_load((REPO / "configs" / "mini.yaml").read_text())
    stages = {name: values.get("args", {}) for name, values in preset["stages"].items()}
    names = {f.name for f in fields(PretrainConfig)} - {"dataset", "output"}
    towers = PretrainConfig(**{k: v for k, v in stages["pretrain"].items() if k in names})
    if smallest:
        towers = replace(
            towers, dim=32, depth=1, heads=2, text_width=48, text_layers=2, vision_width=32, vision_layers=1
        )
    side = towers.image_size
    read = {k.removeprefix("policy."): v for k, v in stages["connector"].items() if k.startswith("policy.")}
    policy = {k: read[k] for k in ("chunk_size", "n_action_steps")} | {"num_vlm_layers": towers.text_layers}
    policy["flow_samples"] = stages[stage].get("policy.flow_samples", 1)
    policy |= {"num_steps": 2, "chunk_size": 4, "n_action_steps": 2} if smallest else {}
    return Sizes(
        vlm={
            "text_width": towers.text_width, "text_layers": towers.text_layers,
            "text_mlp": 8 * towers.text_width // 3,
            "vision_width": towers.vision_width, "vision_layers": towers.vision_layers,
            "image_size": side, "patch_size": side // GRID,
        },
        vocab=264,
        fourm=lambda: FourMConfig.mini(towers.dim, towers.depth, towers.heads),
        domains=dict(MINI_DOMAINS),
        policy=policy | {"resize_imgs_with_padding": (side,) * 2},
        bridge={k: read[k] for k in ("image_size", "fusion_grid", "connector_grid", "connector_unshuffle",
            "connector_hidden")},
        side=side,
        batch_size=2 if smallest else preset["train_args"]["batch_size"],
        language=28,  # the mini preset's tokenizer makes one token per byte of the instruction
    )  # fmt: skip


def _real() -> Sizes:
    """4M-21 B, SmolVLM2-500M's SigLIP at 512 pixels, its language model cut to 16 layers as SmolVLA does."""

    def official() -> Any:
        from multismolvla.fourm import FourMConfig

        return FourMConfig.official("B")

    return Sizes(
        vlm={
            "text_width": 960, "text_layers": 16, "text_heads": 15, "text_kv_heads": 5, "text_mlp": 2560,
            "vision_width": 768, "vision_layers": 12, "vision_heads": 12,
            "image_size": 512, "patch_size": 16, "scale_factor": 4,
        },
        vocab=49280,
        fourm=official,
        # The weight-free tokenizers' ids fit the official vocabularies (1024 of 8192, 4096 of 4096); the
        # official route of thermal is another one than theirs, hence no thermal here.
        domains={"rgb": "rgb@224", "depth": "tok_depth@224", "seg": "tok_semseg@224"},
        policy={"num_vlm_layers": 16, "resize_imgs_with_padding": (512, 512)},
        bridge={},  # the configuration's defaults are the official sizes
        side=256,
        batch_size=1,
    )  # fmt: skip


@dataclass
class Options:
    """What of a preset is built, and how it is trained."""

    modalities: list[str]
    stage: str
    trained: str
    device: str
    seed: int


class PolicyFactory:
    """Builds policies that share sizes: language model, expert and projections are the same in all.

    Args:
        preset: the sizes.
        options: see :class:`Options`.
        scratch: folder for random weights that some class insists on reading from disk; the caller deletes
            it.
    """

    def __init__(self, preset: Sizes, options: Options, scratch: Path):
        from lerobot_policy_multismolvla.mini.tiny_vlm import TinyVLMConfig, build_tiny_vlm

        self.preset, self.options, self.scratch = preset, options, scratch
        vlm = build_tiny_vlm(scratch / "vlm", TinyVLMConfig(**preset.vlm))
        config = json.loads((vlm / "config.json").read_text())
        config["text_config"]["vocab_size"] = preset.vocab
        (vlm / "config.json").write_text(json.dumps(config))

    def build(self, tower: str) -> Any:
        """A policy ready for training, wrapped for LoRA where that is asked for."""
        import torch

        from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
        from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy

        config = MultiSmolVLAConfig(**self._config(tower))  # may write weights, which draws numbers
        torch.manual_seed(self.options.seed)
        policy = MultiSmolVLAPolicy(config)
        # Stage 1 knows no adapters, neither may the policy it is compared with have them: they slow down
        # acting, too.
        if self.options.trained == "lora" and self.options.stage == "robust":
            policy.config.pretrained_path = (
                policy.config.pretrained_path or "random"
            )  # LoRA asks for a pretrained policy
            policy = policy.wrap_with_peft(
                peft_cli_overrides={
                    "method_type": "LORA",
                    "r": self.preset.lora_rank,
                    "lora_alpha": 2 * self.preset.lora_rank,
                }
            )
        return policy.to(self.options.device)

    def _config(self, tower: str) -> dict[str, Any]:
        full = self.options.trained == "full"
        added = self._added(tower)
        tower = "fourm" if added else tower
        values: dict[str, Any] = {
            "vision_tower": tower, "vlm_model_name": str(self.scratch / "vlm"), "load_vlm_weights": False,
            "device": self.options.device, "dtype": "float32", "stage": self.options.stage,
            "dropout_mode": "none",
            "freeze_vision_encoder": not full, "train_expert_only": not full,
            "input_features": self._features(tower), "output_features": self._action(), **self.preset.policy,
        }  # fmt: skip
        if tower != "siglip":
            values |= self.preset.bridge | added
            values["encoder"] = str(self._encoder())
            values["domains"] = {m: self.preset.domains[m] for m in self.options.modalities}
            if self.options.stage == "connector" and tower == "fourm":
                values["base_checkpoint"] = str(self._base())
        return values

    @staticmethod
    def _added(tower: str) -> dict[str, Any]:
        """Options that switch on what a tower's name ends with."""
        from multismolvla.objectives.options import ObjectivesOptions, RlbindOptions, RobultOptions

        given = _ADDED.get(tower, {})
        if given.keys().isdisjoint({"robult", "rlbind"}):
            return given
        robult, rlbind = RobultOptions(**given.get("robult", {})), RlbindOptions(**given.get("rlbind", {}))
        return {
            "objectives": ObjectivesOptions(robult=robult, rlbind=rlbind, tasks=list(_TASKS)),
            "curriculum_steps": 1_000_000,
            "pretrained_path": "random" if "rlbind" in given else None,  # it follows upon a trained connector
        }

    def _encoder(self) -> Path:
        """Random encoder weights in the official layout, written once."""
        from multismolvla.fourm import FourMEncoder

        folder = self.scratch / "fourm"
        if not (folder / "config.json").is_file():
            domains = [d for m in self.options.modalities for d in self.preset.domains[m].split("+")]
            FourMEncoder(self.preset.fourm(), domains).save_pretrained(folder)
        return folder

    def _base(self) -> Path:
        """A random SmolVLA checkpoint: the teacher of stage 1."""
        from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
        from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy

        folder = self.scratch / "base"
        if not (folder / "model.safetensors").is_file():
            MultiSmolVLAPolicy(MultiSmolVLAConfig(**self._config("siglip"))).save_pretrained(folder)
        return folder

    def _features(self, tower: str) -> dict[str, Any]:
        from lerobot.configs.types import FeatureType, PolicyFeature

        from multismolvla.modalities import default_view_map

        side = self.preset.side
        channels = {"rgb": 3, "depth": 1, "seg": 3, "thermal": 3}
        wanted = ["rgb"] if tower == "siglip" else self.options.modalities
        pictures = {
            key: PolicyFeature(FeatureType.VISUAL, (channels[modality], side, side))
            for streams in default_view_map().values()
            for modality, key in streams.items()
            if modality in wanted
        }
        return pictures | {"observation.state": PolicyFeature(FeatureType.STATE, (8,))}

    @staticmethod
    def _action() -> dict[str, Any]:
        from lerobot.configs.types import FeatureType, PolicyFeature

        return {"action": PolicyFeature(FeatureType.ACTION, (7,))}

    def batch(self, size: int, chunk: int) -> dict[str, torch.Tensor]:
        """Random canonical batch of two views with the chosen modalities, as the pre-processor leaves it."""
        import torch

        from multismolvla.modalities import default_view_map

        g = torch.Generator().manual_seed(self.options.seed)
        shape = (size, 1, self.preset.side, self.preset.side)
        batch: dict[str, torch.Tensor] = {}
        for streams in default_view_map().values():
            batch[streams["rgb"]] = torch.rand(size, 3, *shape[2:], generator=g)
            if "depth" in self.options.modalities:
                batch[streams["depth"]] = 0.4 + torch.rand(shape, generator=g)
                batch[f"{streams['depth']}_valid"] = torch.ones(shape, dtype=torch.bool)
            if "seg" in self.options.modalities:
                batch[streams["seg"]] = torch.randint(0, 8, shape, generator=g)
            if "thermal" in self.options.modalities:
                batch[streams["thermal"]] = torch.rand(shape, generator=g)
        batch["observation.state"] = torch.randn(size, 8, generator=g)
        batch["action"] = torch.randn(size, chunk, 7, generator=g)
        batch["observation.language.tokens"] = torch.randint(
            8, 200, (size, self.preset.language), generator=g
        )
        batch["observation.language.attention_mask"] = torch.ones(
            size, self.preset.language, dtype=torch.bool
        )
        number = torch.arange(size)
        batch |= {"task_index": number % len(_TASKS), "episode_index": number, "index": 1000 * number}
        return {key: value.to(self.options.device) for key, value in batch.items()}

"""Policies under evaluation, loaded as ``lerobot-eval`` loads them, so that any LeRobot policy can be compared."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from multismolvla_eval.checkpoints import checkpoint_hash, resolve_checkpoint
from multismolvla_eval.sources import Batch, EnvironmentSource

logger = logging.getLogger(__name__)


class Policy(Protocol):
    """What the roll-out needs of a policy.

    Attributes:
        config: LeRobot's configuration, ``None`` for built-in policies.
        checkpoint: hash of weights and configuration.
        privileged: whether it reads the simulator's state; such a policy bounds the others from above.
    """

    config: Any
    checkpoint: str
    privileged: bool

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest."""

    def reset(self) -> None:
        """Forget the last episode."""

    def watch(self, env: gym.Env) -> None:
        """The raw environment of the episode, just reset; only privileged policies look at it."""

    def prepare(self, batch: Batch) -> Batch:
        """The policy's own pre-processor: what comes out stands at the encoder's door."""

    def act(self, batch: Batch) -> Tensor:
        """Action for the environment, float (1, A), from a prepared batch."""

    def at_the_door(self) -> EncoderDoor | None:
        """What the last ``act`` gave to the encoder; ``None`` for policies that do not show it."""


@dataclass(frozen=True)
class EncoderDoor:
    """What a multimodal encoder was given.

    Attributes:
        hashes: per modality present, the hash of everything the encoder sees of it.
        tokens: token ids (h, w) per (camera, modality), for those that are tokenized.
    """

    hashes: dict[str, str]
    tokens: dict[tuple[str, str], np.ndarray]


class BuiltinPolicy:
    """A policy without weights: ``zero`` stands still, ``random`` draws uniformly from [-1, 1]."""

    config = None
    privileged = False

    def __init__(self, kind: str, action_dim: int) -> None:
        self.kind, self.action_dim = kind, action_dim
        self.checkpoint = f"builtin:{kind}"

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest."""
        return {"type": self.checkpoint, "reads": []}

    def reset(self) -> None:
        """Nothing to forget."""

    def watch(self, env: gym.Env) -> None:
        """It needs no simulator."""

    def prepare(self, batch: Batch) -> Batch:
        """Nothing to prepare."""
        return batch

    def act(self, batch: Batch) -> Tensor:
        """One action; the random one uses the global generator, as stochastic policies do."""
        if self.kind == "zero":
            return torch.zeros(1, self.action_dim)
        return torch.rand(1, self.action_dim) * 2 - 1

    def at_the_door(self) -> None:
        """It has no encoder."""
        return


class LeRobotPolicy:
    """A LeRobot checkpoint with its processors.

    Args:
        path: folder (also one of a training run, then its last checkpoint) or hub id.
        source: the environment; its features tell LeRobot the inputs.
        device: overrides the checkpoint's device.
        rename_map: as LeRobot's option.

    Raises:
        FileNotFoundError: the path is a folder without a policy.
        ValueError: the policy's pictures, state or actions are not those of the environment.
    """

    privileged = False

    def __init__(
        self, path: str, source: EnvironmentSource, device: str | None, rename_map: dict[str, str]
    ) -> None:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.envs.utils import env_to_policy_features
        from lerobot.policies.factory import make_policy, make_pre_post_processors
        from lerobot.utils.import_utils import register_third_party_plugins

        from multismolvla_eval.features import check_features, with_masks

        register_third_party_plugins()
        folder = resolve_checkpoint(path)
        config = PreTrainedConfig.from_pretrained(folder)
        config.pretrained_path = Path(folder)
        if device is not None:
            config.device = device
        check_features(path, config, env_to_policy_features(source.config), rename_map)
        self.policy: Any = make_policy(cfg=config, env_cfg=source.config, rename_map=rename_map)
        self.policy.eval()
        self.config = config
        self.preprocessor, self.postprocessor = make_pre_post_processors(
            policy_cfg=config,
            pretrained_path=str(folder),
            preprocessor_overrides={
                "device_processor": {"device": str(self.policy.config.device)},
                "rename_observations_processor": {"rename_map": with_masks(rename_map)},
            },
        )
        self.path = path
        self.checkpoint = checkpoint_hash(folder)

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest."""
        config = self.config
        parameters = sum(p.numel() for p in self.policy.parameters())
        return {
            "path": self.path,
            "type": config.type,
            "device": str(config.device),
            "parameters": parameters,
            "peft": bool(getattr(config, "use_peft", False)),
            "n_action_steps": getattr(config, "n_action_steps", None),
            "chunk_size": getattr(config, "chunk_size", None),
            "vision_tower": getattr(config, "vision_tower", None),
            "reads": sorted(config.input_features or {}),
        }

    def reset(self) -> None:
        """Empty the action queue and the processors' memory."""
        self.policy.reset()
        self.preprocessor.reset()
        self.postprocessor.reset()

    def watch(self, env: gym.Env) -> None:
        """It sees what the environment observes and nothing else."""

    def prepare(self, batch: Batch) -> Batch:
        """The policy's pre-processor pipeline."""
        return self.preprocessor(batch)

    def act(self, batch: Batch) -> Tensor:
        """``select_action`` and the policy's post-processor, in the modes of ``lerobot-eval``."""
        amp = bool(getattr(self.config, "use_amp", False))
        autocast: Any = torch.autocast(torch.device(self.config.device).type) if amp else nullcontext()
        with torch.inference_mode(), autocast:
            action = self.policy.select_action(batch)
        return self.postprocessor(action)

    def at_the_door(self) -> EncoderDoor | None:
        """The tower's inputs, as MultiSmolVLA keeps them after each forward pass; ``None`` for other policies."""
        door = getattr(self.policy, "door", None)
        if door is None:
            return None
        prints = door.fingerprint()
        hashes = {
            m: "+".join(prints[d][:12] for d in domains if d in prints)
            for m, domains in door.domains.items()
            if any(d in prints for d in domains)
        }
        tokens = {}
        for modality, domain in [(m, d) for m, domains in door.domains.items() for d in domains]:
            ids = door.inputs.get(domain)
            if ids is None or ids.ndim != 3:  # pixels, rows of numbers, or tokens without a grid
                continue
            shown = torch.where(door.present[domain], ids, -1).cpu().numpy()
            for number, view in enumerate(self.config.views):
                tokens[view, modality] = shown[number]
        return EncoderDoor(hashes, tokens)


def load_policy(
    path: str, source: EnvironmentSource, device: str | None = None, rename_map: dict[str, str] | None = None
) -> Policy:
    """A built-in policy (``builtin:zero``), a LeRobot checkpoint, or one without pictures (``blind:checkpoint``).

    Raises:
        ValueError: a checkpoint is to run in an environment that LeRobot does not know.
    """
    if path == "builtin:expert":
        from multismolvla_eval.baselines import ExpertPolicy

        return ExpertPolicy()
    if path.startswith("builtin:"):
        return BuiltinPolicy(path.removeprefix("builtin:"), source.action_dim)
    if source.config is None:
        raise ValueError(
            f"The policy {path!r} needs a LeRobot environment; this one has no LeRobot configuration."
        )
    policy = LeRobotPolicy(path.removeprefix("blind:"), source, device, rename_map or {})
    if not path.startswith("blind:"):
        return policy
    from multismolvla_eval.baselines import BlindPolicy

    return BlindPolicy(policy)

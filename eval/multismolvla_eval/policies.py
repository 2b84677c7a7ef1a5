"""Policies under evaluation, loaded as ``lerobot-eval`` loads them, so that any LeRobot policy can be compared."""

from __future__ import annotations

import hashlib
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from multismolvla_eval.sources import Batch, EnvironmentSource

logger = logging.getLogger(__name__)


class Policy(Protocol):
    """What the roll-out needs of a policy.

    Attributes:
        config: LeRobot's configuration, ``None`` for built-in policies.
        checkpoint: hash of weights and configuration.
    """

    config: Any
    checkpoint: str

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest."""

    def reset(self) -> None:
        """Forget the last episode."""

    def prepare(self, batch: Batch) -> Batch:
        """The policy's own pre-processor: what comes out stands at the encoder's door."""

    def act(self, batch: Batch) -> Tensor:
        """Action for the environment, float (1, A), from a prepared batch."""

    def tokens(self, batch: Batch) -> dict[tuple[str, str], np.ndarray] | None:
        """Token ids (h, w) per (camera, modality) of a prepared batch, for the picture; ``None`` without tokenizers."""


class BuiltinPolicy:
    """A policy without weights: ``zero`` stands still, ``random`` draws uniformly from [-1, 1]."""

    config = None

    def __init__(self, kind: str, action_dim: int) -> None:
        self.kind, self.action_dim = kind, action_dim
        self.checkpoint = f"builtin:{kind}"

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest."""
        return {"type": self.checkpoint, "reads": []}

    def reset(self) -> None:
        """Nothing to forget."""

    def prepare(self, batch: Batch) -> Batch:
        """Nothing to prepare."""
        return batch

    def act(self, batch: Batch) -> Tensor:
        """One action; the random one uses the global generator, as stochastic policies do."""
        if self.kind == "zero":
            return torch.zeros(1, self.action_dim)
        return torch.rand(1, self.action_dim) * 2 - 1

    def tokens(self, batch: Batch) -> None:
        """It has no tokenizers."""
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
    """

    def __init__(
        self, path: str, source: EnvironmentSource, device: str | None, rename_map: dict[str, str]
    ) -> None:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import make_policy, make_pre_post_processors
        from lerobot.utils.import_utils import register_third_party_plugins

        register_third_party_plugins()
        folder = resolve_checkpoint(path)
        config = PreTrainedConfig.from_pretrained(folder)
        config.pretrained_path = Path(folder)
        if device is not None:
            config.device = device
        self.policy: Any = make_policy(cfg=config, env_cfg=source.config, rename_map=rename_map)
        self.policy.eval()
        self.config = config
        self.preprocessor, self.postprocessor = make_pre_post_processors(
            policy_cfg=config,
            pretrained_path=str(folder),
            preprocessor_overrides={
                "device_processor": {"device": str(self.policy.config.device)},
                "rename_observations_processor": {"rename_map": rename_map},
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

    def tokens(self, batch: Batch) -> dict[tuple[str, str], np.ndarray] | None:
        """Token ids of the tower's tokenizers, if the policy offers them."""
        token_grids = getattr(self.policy, "token_grids", None)
        if token_grids is None:
            return None
        with torch.no_grad():
            return token_grids(batch)


def resolve_checkpoint(path: str) -> str:
    """The folder with ``config.json`` that a path means.

    Accepts the folder itself, LeRobot's checkpoint folder around it, and a training run's output folder (its last
    checkpoint). Anything that is no local folder is taken for a hub id.

    Raises:
        FileNotFoundError: the folder exists and holds no policy, or the path looks like a file path and does not exist.
    """
    folder = Path(path).expanduser()
    candidates = (folder, folder / "pretrained_model", folder / "checkpoints" / "last" / "pretrained_model")
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return str(candidate)
    if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise FileNotFoundError(
            f"No policy under {path!r}: none of {[str(c / 'config.json') for c in candidates]} exists. Train first, or "
            "give the folder that holds config.json, or a hub id like user/name."
        )
    return path


def checkpoint_hash(folder: str) -> str:
    """Hash of a local checkpoint's weights and JSON files; the hub id itself for a hub checkpoint."""
    root = Path(folder)
    if not root.is_dir():
        return f"hub:{folder}"
    digest = hashlib.sha256()
    for path in sorted(p for p in root.iterdir() if p.suffix in (".json", ".safetensors")):
        digest.update(path.name.encode())
        with open(path, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]


def load_policy(
    path: str, source: EnvironmentSource, device: str | None = None, rename_map: dict[str, str] | None = None
) -> Policy:
    """A built-in policy (``builtin:zero``) or a LeRobot checkpoint.

    Raises:
        ValueError: a checkpoint is to run in an environment that LeRobot does not know.
    """
    if path.startswith("builtin:"):
        return BuiltinPolicy(path.removeprefix("builtin:"), source.action_dim)
    if source.config is None:
        raise ValueError(
            f"The policy {path!r} needs a LeRobot environment; this one has no LeRobot configuration."
        )
    return LeRobotPolicy(path, source, device, rename_map or {})

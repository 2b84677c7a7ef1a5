"""Policies under evaluation, loaded as ``lerobot-eval`` loads them, so that any LeRobot policy can be compared."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from multismolvla.inspection import LastLook, find_last_look
from multismolvla_eval.environments import Batch, EnvironmentSource
from multismolvla_eval.policies.announcing import announce, announcement
from multismolvla_eval.policies.checkpoints import checkpoint_hash, checkpoint_path, resolve_checkpoint
from multismolvla_eval.policies.interface import EncoderDoor

logger = logging.getLogger(__name__)


class ProcessedPolicy:
    """What stands around a LeRobot policy: its configuration and processors, no weights.

    Args:
        path: folder (also one of a training run, then its last checkpoint) or hub id.
        source: the environment; its features tell LeRobot the inputs.
        device: overrides the checkpoint's device.
        rename_map: as LeRobot's option.

    Raises:
        FileNotFoundError: the path is a folder without a policy, or without its weights.
        ValueError: the policy's pictures, state or actions are not those of the environment.
    """

    privileged = False

    def __init__(
        self, path: str, source: EnvironmentSource, device: str | None, rename_map: dict[str, str]
    ) -> None:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.envs.utils import env_to_policy_features
        from lerobot.utils.import_utils import register_third_party_plugins

        from multismolvla_eval.policies.features import check_features, check_labels

        register_third_party_plugins()
        self.path, self.folder = path, resolve_checkpoint(path)
        config = PreTrainedConfig.from_pretrained(self.folder)
        config.pretrained_path = Path(self.folder)
        if device is not None:
            config.device = device
        check_features(path, config, env_to_policy_features(source.config), rename_map)
        check_labels(path, config, source.describe().get("labels", ()))
        self.config: Any = config
        self._cameras, self._rename_map = source.cameras, rename_map

    def _load_processors(self, rename_map: dict[str, str]) -> None:
        from lerobot.policies.factory import make_pre_post_processors

        from multismolvla_eval.policies.features import with_masks

        self.preprocessor, self.postprocessor = make_pre_post_processors(
            policy_cfg=self.config,
            pretrained_path=str(self.folder),
            preprocessor_overrides={
                "device_processor": {"device": str(self.config.device)},
                "rename_observations_processor": {"rename_map": with_masks(rename_map)},
            },
        )

    def reset(self) -> None:
        """Empty the processors' memory."""
        self.preprocessor.reset()
        self.postprocessor.reset()

    def watch(self, env: gym.Env) -> None:
        """It sees what the environment observes and nothing else."""

    def prepare(self, batch: Batch) -> Batch:
        """The policy's pre-processor pipeline; losses are announced as this type of policy understands them."""
        return announce(self.config.type, self.config.image_features, self.preprocessor(batch))


class LeRobotPolicy(ProcessedPolicy):
    """A LeRobot checkpoint with its processors; see :class:`ProcessedPolicy`."""

    def __init__(
        self, path: str, source: EnvironmentSource, device: str | None, rename_map: dict[str, str]
    ) -> None:
        from lerobot.policies.factory import make_policy

        from multismolvla_eval.policies.features import check_weights

        super().__init__(path, source, device, rename_map)
        check_weights(path, self.folder)
        self.policy: Any = make_policy(cfg=self.config, env_cfg=source.config, rename_map=rename_map)
        self.policy.eval()
        self._load_processors(rename_map)
        self._ahead, self._masks_absent = plans_ahead(self.config), False
        self.checkpoint = checkpoint_hash(self.folder)

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest."""
        from multismolvla_eval.policies.features import describe_input

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
            **describe_input(config, self._cameras, self._rename_map),
            **announcement(config.type),
        }

    def reset(self) -> None:
        """Empty the action queue and the processors' memory."""
        self.policy.reset()
        super().reset()

    def act(self, batch: Batch) -> Tensor:
        """The chunk's part that is executed, or one ``select_action``; then the post-processor.

        The modes are those of ``lerobot-eval``, and so are the actions.
        """
        if self._ahead:
            return self.postprocessor(self.chunk(batch)[0])
        with inference_modes(self.config):
            action = self.policy.select_action(batch)
        return self.postprocessor(action)

    def chunk(self, batch: Batch, **noise: Tensor) -> Tensor:
        """The actions (B, n, A) that are executed before the next look, before the post-processor."""
        with inference_modes(self.config):
            return self.policy.predict_action_chunk(batch, **noise)[:, : self.config.n_action_steps]

    def mask_absent_tokens(self) -> None:
        """Make the 4M tower's shapes, and so its rounding, independent of what the other rows of a batch lack."""
        from multismolvla.tower import MultimodalTower

        self._masks_absent = True
        for module in self.policy.modules():
            if isinstance(module, MultimodalTower):
                module.drop_absent = False

    def _last_look(self) -> LastLook | None:
        shows = find_last_look(self.policy)
        return None if shows is None else shows.last_look()

    def at_the_door(self, row: int = 0) -> EncoderDoor | None:
        """The tower's inputs, as MultiSmolVLA keeps them after each forward pass; ``None`` for other policies.

        Args:
            row: which one of the batch.
        """
        look = self._last_look()
        if look is None:
            return None
        whole = look.inputs
        views = tuple(self.config.views)
        rows = slice(row * len(views), (row + 1) * len(views))
        present = {d: x[rows] for d, x in whole.present.items()}
        seen = [d for d, x in present.items() if not self._masks_absent or x.any()]
        door = replace(
            whole,
            values={d: whole.values[d][rows] for d in seen},
            present={d: present[d] for d in seen},
        )
        prints = door.fingerprint()
        hashes = {
            m: "+".join(prints[d][:12] for d in domains if d in prints)
            for m, domains in door.domains.items()
            if any(d in prints for d in domains)
        }
        tokens = {}
        for modality, domain in [(m, d) for m, domains in door.domains.items() for d in domains]:
            ids = door.values.get(domain)
            if ids is None or ids.ndim != 3:  # pixels, rows of numbers, or tokens without a grid
                continue
            shown = torch.where(door.present[domain], ids, -1).cpu().numpy()
            for number, view in enumerate(views):
                tokens[view, modality] = shown[number]
        return EncoderDoor(hashes, tokens)

    def trust(self, row: int = 0) -> dict[str, float]:
        """The fusion's weights, see `multismolvla.fusion.modality_weight`, mean over the views that have other modalities.

        Args:
            row: which one of the batch.
        """
        look = self._last_look()
        if look is None:
            return {}
        views = len(self.config.views)
        means = {
            m: x[row * views : (row + 1) * views].nanmean().item() for m, x in look.modality_weights.items()
        }
        return {m: value for m, value in means.items() if not math.isnan(value)}


@contextmanager
def inference_modes(config: Any) -> Iterator[None]:
    """The modes in which ``lerobot-eval`` calls a policy."""
    amp = bool(getattr(config, "use_amp", False))
    autocast: Any = torch.autocast(torch.device(config.device).type) if amp else nullcontext()
    with torch.inference_mode(), autocast:
        yield


#: Policies whose ``select_action`` is known (lerobot 0.6.1) to do nothing but to hand out ``predict_action_chunk`` of the
#: present observation, and whether that takes its noise as an argument. Others may remember earlier observations.
_CHUNKED = {"smolvla": True, "multismolvla": True, "pi0": True, "pi05": True, "act": False}


def plans_ahead(config: Any) -> bool:
    """Whether a policy's next ``n_action_steps`` actions follow from one observation alone.

    Temporal ensembling looks at every observation, real-time chunking and relative actions at more than one.
    """
    rtc = getattr(config, "rtc_config", None)
    return (
        config.type in _CHUNKED
        and getattr(config, "n_obs_steps", 1) == 1
        and getattr(config, "temporal_ensemble_coeff", None) is None
        and not (rtc is not None and rtc.enabled)
        and not getattr(config, "use_relative_actions", False)
    )


def draw_noise(config: Any) -> dict[str, Tensor]:
    """The ``noise`` argument of one chunk (1, chunk, width), from torch's global generator; empty for policies without.

    On a CPU these are the very numbers that the policy would draw for itself.
    """
    if not _CHUNKED[config.type]:
        return {}
    return {"noise": torch.normal(0.0, 1.0, (1, config.chunk_size, config.max_action_dim))}


def planning_checkpoints(paths: Iterable[str]) -> list[str]:
    """The different checkpoints among policies' paths whose chunks a policy server can compute, in order."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    found = dict.fromkeys(p for p in map(checkpoint_path, paths) if p is not None)
    return [p for p in found if plans_ahead(PreTrainedConfig.from_pretrained(resolve_checkpoint(p)))]

"""Any LeRobot policy, loaded as ``lerobot-eval`` does it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from multismolvla.health import MEMORY_KEY, Cause, Verdict
from multismolvla.inspection import ShowsLastLook, find_last_look
from multismolvla.modalities import MODALITIES, Modality
from multismolvla_eval.config import EstimatorOptions
from multismolvla_eval.environments import Batch, EnvironmentSource
from multismolvla_eval.policies.announcing import GAP_READERS, MASK_READERS, announce
from multismolvla_eval.policies.checkpoints import (
    NO_HEALTH,
    policy_hash,
    resolve_checkpoint,
    training_samples,
)
from multismolvla_eval.policies.interface import Look, PolicyServer, StreamHealth, as_request
from multismolvla_eval.records.schema import PolicyFacts


class LeRobotPolicy:
    """A LeRobot checkpoint with its processors.

    With a policy server, the weights of a policy that plans ahead are there; its processors and its noise
    stay here. The noise comes from this process's global generator, which every episode seeds, as it does for
    weights that are here.

    Args:
        path: folder (also one of a training run, then its last checkpoint) or hub id.
        source: the environment; its features tell LeRobot the inputs.
        device: overrides the checkpoint's device.
        rename_map: as LeRobot's option.
        server: has the weights of policies that plan ahead; without it all weights are loaded here.
        estimators: where the networks are that the policy estimates with, and what counts without them.

    Attributes:
        policy: LeRobot's policy; ``None`` where a server has it.
        cameras: of the environment.
        rename_map: environment's key -> policy's.

    Raises:
        FileNotFoundError: the path is a folder without a policy, or without its weights.
        ValueError: the policy's pictures, state or actions are not those of the environment.
    """

    def __init__(
        self,
        path: str,
        source: EnvironmentSource,
        device: str | None = None,
        rename_map: Mapping[str, str] | None = None,
        server: PolicyServer | None = None,
        estimators: EstimatorOptions | None = None,
    ) -> None:
        from lerobot.envs.utils import env_to_policy_features
        from lerobot.policies.factory import make_policy, make_pre_post_processors
        from lerobot.processor import TokenizerProcessorStep

        from multismolvla_eval.policies.features import (
            check_features,
            check_labels,
            refuse_missing_weights,
            with_masks,
        )

        self.path, self.rename_map, self.cameras = path, dict(rename_map or {}), source.cameras
        config = stored_config(path, estimators)
        self._folder = str(config.pretrained_path)
        self._server = server if plans_ahead(config) else None
        if self._server is not None:
            config.device = "cpu"
        elif device is not None:
            config.device = device
        check_features(path, config, env_to_policy_features(source.config), self.rename_map)
        check_labels(path, config, source.facts().labels)
        self.config: Any = config
        self.policy: Any = None
        if self._server is None:
            refuse_missing_weights(path, self._folder)
            self.policy = make_policy(cfg=config, env_cfg=source.config, rename_map=self.rename_map)
            self.policy.eval()
            self.policy.reset()  # networks that it lacks are named now, not as an episode's crash
        self._shows: ShowsLastLook | None = None if self.policy is None else find_last_look(self.policy)
        self.preprocessor, self.postprocessor = make_pre_post_processors(
            policy_cfg=config,
            pretrained_path=self._folder,
            preprocessor_overrides={
                "device_processor": {"device": str(config.device)},
                "rename_observations_processor": {"rename_map": with_masks(self.rename_map)},
            },
        )
        if self._server is not None:
            # instructions of all lengths share a batch; what is added is masked
            for step in self.preprocessor.steps:
                if isinstance(step, TokenizerProcessorStep):
                    step.padding = "max_length"
        self._first, self._look = True, Look()
        self._memory: dict[str, Tensor] = config.first_memory() if config.type == "multismolvla" else {}

    def facts(self) -> PolicyFacts:
        """See `Policy`; the device is the one that has the weights."""
        return self._facts

    @cached_property
    def _facts(self) -> PolicyFacts:
        from multismolvla_eval.policies.features import what_it_reads

        if self._server is not None:
            return self._server.facts(self.path)
        config = self.config
        reads = what_it_reads(config, self.cameras, self.rename_map)
        return PolicyFacts(
            path=self.path,
            type=config.type,
            checkpoint=policy_hash(self.path),
            reads=reads.keys,
            modalities=reads.modalities,
            views=reads.views,
            provenance=reads.provenance,
            derives=reads.derives,
            mask_reaches_policy=config.type in (*MASK_READERS, *GAP_READERS),
            needs_a_picture=config.type in GAP_READERS,
            device=str(config.device),
            parameters=sum(p.numel() for p in self.policy.parameters()),
            training_samples=training_samples(self._folder),
            peft=bool(getattr(config, "use_peft", False)),
            n_action_steps=getattr(config, "n_action_steps", None),
            chunk_size=getattr(config, "chunk_size", None),
            vision_tower=getattr(config, "vision_tower", None),
            attacks=possible_attacks(config),
        )

    def reset(self) -> None:
        """Empty the action queue and the processors' memory."""
        if self.policy is not None:
            self.policy.reset()
        self.preprocessor.reset()
        self.postprocessor.reset()
        self._first, self._look = True, Look()

    def watch(self, env: gym.Env) -> None:
        """It sees what the environment observes and nothing else."""

    def prepare(self, batch: Batch) -> Batch:
        """The policy's pre-processor; losses are announced as this type of policy understands them."""
        return announce(self.config.type, self.config.image_features, self.preprocessor(batch))

    def act(self, batch: Batch) -> Tensor:
        """The chunk's part that is executed, or one ``select_action``; then the post-processor.

        The modes are those of ``lerobot-eval``, and so are the actions.
        """
        if self._server is not None:
            # the server's policy serves many episodes, so each brings along what is to be remembered of it
            remembered = {key: torch.from_numpy(array) for key, array in self._look.memory.items()}
            batch = batch | self._memory | remembered
            reply = self._server.answer(as_request(self.path, batch, draw_noise(self.config), self._first))
            actions, self._look = torch.from_numpy(reply.actions), reply.look
        else:
            actions = self.chunk(batch)[0] if plans_ahead(self.config) else self._select(batch)
            self._look = self.look(0, self._first)
        self._first = False
        # one after the other, as lerobot-eval does: our guard compares each action with the one before
        return torch.cat([self.postprocessor(action) for action in actions.split(1)])

    def last_look(self) -> Look:
        """See `Policy`; the encoder's inputs are hashed at an episode's first look only."""
        return self._look

    def chunk(self, batch: Batch, **noise: Tensor) -> Tensor:
        """The actions (B, n, A) that are executed before the next look, before the post-processor."""
        with inference_modes(self.config):
            return self.policy.predict_action_chunk(batch, **noise)[:, : self.config.n_action_steps]

    def _select(self, batch: Batch) -> Tensor:
        with inference_modes(self.config):
            return self.policy.select_action(batch)

    def keep_shapes(self) -> None:
        """Make our policy's shapes, and so its rounding, independent of the other rows of a batch."""
        from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy

        for module in self.policy.modules():  # adapters are around it
            if isinstance(module, MultiSmolVLAPolicy):
                module.keep_shapes()

    def look(self, row: int, first: bool) -> Look:
        """What the policy saw of one row of its last batch.

        Args:
            row: number in the batch.
            first: whether to hash the encoder's inputs, too.
        """
        seen = None if self._shows is None else self._shows.last_look()
        if seen is None:
            return Look()
        views = tuple(self.config.views)
        rows = slice(row * len(views), (row + 1) * len(views))
        means = {m: x[rows].nanmean().item() for m, x in seen.modality_weights.items()}
        weights = {m: mean for m, mean in means.items() if not math.isnan(mean)}
        health = self._health(seen.health, row)
        memory = {key: x[row : row + 1].cpu().numpy() for key, x in seen.derived.items()}
        if seen.health is not None:
            memory[MEMORY_KEY] = seen.health.memory[row : row + 1].float().cpu().numpy()
        if not first:
            return Look(modality_weight=weights, health=health, memory=memory)
        present = {d: x[rows] for d, x in seen.inputs.present.items() if x[rows].any()}
        inputs = replace(
            seen.inputs, values={d: seen.inputs.values[d][rows] for d in present}, present=present
        )
        hashes = inputs.fingerprint()
        by_modality = {m: [d for d in domains if d in hashes] for m, domains in inputs.domains.items()}
        tokens: dict[tuple[str, str], np.ndarray] = {}
        for modality, domain in [(m, d) for m, domains in by_modality.items() for d in domains]:
            ids = inputs.values[domain]
            if ids.ndim == 3:  # the others are pixels, rows of numbers, or tokens without a grid
                shown = torch.where(present[domain], ids, -1).cpu().numpy()
                tokens |= {(view, modality): shown[number] for number, view in enumerate(views)}
        joined = {
            m: "+".join(hashes[d][:12] for d in domains) for m, domains in by_modality.items() if domains
        }
        return Look(joined, tokens, weights, health, memory)

    def _health(self, verdict: Verdict | None, row: int) -> dict[str, StreamHealth]:
        if verdict is None:
            return {}
        names = [f"{view}.{m}" for view in self.config.views for m in MODALITIES]
        causes, scores = verdict.cause[row].tolist(), verdict.score[row].tolist()
        return {
            name: StreamHealth(Cause(cause).label if cause else None, score)
            for name, cause, score in zip(names, causes, scores, strict=True)
            if not math.isnan(score)
        }


def stored_config(path: str, estimators: EstimatorOptions | None = None) -> Any:
    """LeRobot's configuration of a checkpoint; after ``no_health:`` with ``health`` switched off.

    What a policy makes of a world without pictures is a question of the protocol (``C2:all=zero`` is what a
    policy without vision sees), so ours acts there, though a robot would hold.

    Args:
        path: of the checkpoint.
        estimators: what holds on this machine in the place of what the checkpoint says of its estimators.

    Raises:
        FileNotFoundError: the path is a folder without a policy.
        ValueError: the policy has no health that could be switched off.
    """
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    folder = resolve_checkpoint(path.removeprefix(NO_HEALTH))
    config: Any = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = Path(folder)
    if hasattr(config, "on_blind"):
        config.on_blind = "act"
    if estimators is not None and hasattr(config, "missing_estimator"):
        config.estimator_sources = config.estimator_sources | estimators.estimator_sources
        config.missing_estimator = estimators.missing_estimator or config.missing_estimator
    if path.startswith(NO_HEALTH):
        if not hasattr(config, "health"):
            raise ValueError(f"{path!r}: a policy of type {config.type} does not judge its pictures.")
        config.health = "off"
    return config


@contextmanager
def inference_modes(config: Any) -> Iterator[None]:
    """The modes in which ``lerobot-eval`` calls a policy."""
    with torch.inference_mode(), mixed_precision(config):
        yield


def mixed_precision(config: Any) -> AbstractContextManager[Any]:
    """Autocast, if the policy asks for it."""
    if getattr(config, "use_amp", False):
        return torch.autocast(torch.device(config.device).type)
    return nullcontext()


#: Policies whose ``select_action`` is known (lerobot 0.6.1) to do nothing but to hand out
#: ``predict_action_chunk`` of the present observation, and whether that takes its noise as an argument.
#: Others may remember earlier observations.
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


#: Policies whose visual tokens and velocities are known here.
FLOW_TYPES = ("smolvla", "multismolvla")


def possible_attacks(config: Any) -> list[str]:
    """The types of attack (C6) that a policy can be put under; none if it reads no RGB.

    Args:
        config: LeRobot's configuration of it.
    """
    from multismolvla_eval.policies.features import streams_by_modality

    if Modality.RGB not in streams_by_modality(config):
        return []
    against_actions = ["policy"] if plans_ahead(config) else []
    return [*against_actions, *(["feature"] if config.type in FLOW_TYPES else []), "random_sign"]


def takes_noise(config: Any) -> bool:
    """Whether the chunks of a policy that plans ahead follow from noise, too."""
    return _CHUNKED[config.type]


def draw_noise(config: Any) -> dict[str, Tensor]:
    """The ``noise`` argument of one chunk (1, chunk, width), from torch's global generator, if it takes one.

    On a CPU these are the very numbers that the policy would draw for itself.
    """
    if not takes_noise(config):
        return {}
    return {"noise": torch.normal(0.0, 1.0, (1, config.chunk_size, config.max_action_dim))}

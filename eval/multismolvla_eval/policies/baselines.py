"""Policies that say what a score means: the scripted expert is an upper bound, one without vision a lower."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from lerobot.utils.constants import OBS_IMAGES
from msgspec.structs import replace
from torch import Tensor

from multismolvla.modalities import Modality, modality_of_key, padding_mask_key
from multismolvla_eval.environments import Batch, EnvironmentSource
from multismolvla_eval.policies.announcing import MASK_READERS
from multismolvla_eval.policies.checkpoints import EXPERT, NO_VISION, builtin_identity
from multismolvla_eval.policies.interface import Look, Policy
from multismolvla_eval.records.schema import PolicyFacts

#: What a picture shows when there is nothing to see. Depth and segmentation have a value that says so.
MID_GREY = 0.5
_EMPTY: dict[str, float] = {Modality.DEPTH: 0.0, Modality.SEG: 0.0}
#: In plain words, for manifest and reports.
EXPERT_DESCRIPTION = (
    "privileged oracle: reads the simulator's state and, before it acts, tries variants of its motions in "
    "the episode's own simulator, which it then puts back (retries); an upper bound on what the tasks allow, "
    "no policy"
)


class NoVisionPolicy:
    """A policy whose pictures are all taken away, announced by padding masks: what is solved without looking?

    Every picture becomes mid-grey (depth: invalid, segmentation: unknown) and every mask says absent.
    Policies that read masks drop the pictures; others get the grey ones. Language and state stay.

    Args:
        policy: the policy.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def config(self) -> Any:
        """LeRobot's configuration of the policy."""
        return self._policy.config

    def reset(self) -> None:
        """Forget the last episode."""
        self._policy.reset()

    def watch(self, env: gym.Env) -> None:
        """See `Policy`."""
        self._policy.watch(env)

    def act(self, batch: Batch) -> Tensor:
        """The policy's actions."""
        return self._policy.act(batch)

    def last_look(self) -> Look:
        """What the policy saw."""
        return self._policy.last_look()

    def facts(self) -> PolicyFacts:
        """The policy's facts; it reads no picture."""
        facts = self._policy.facts()
        masked = facts.type in MASK_READERS
        return replace(
            facts,
            path=NO_VISION + facts.path,
            checkpoint=NO_VISION + facts.checkpoint,
            reads=[k for k in facts.reads if not k.startswith(OBS_IMAGES)],
            modalities=[],
            views=[],
            mask_reaches_policy=False,
            attacks=[],
            no_vision="pictures announced as absent" if masked else "pictures replaced by mid-grey ones",
        )

    def prepare(self, batch: Batch) -> Batch:
        """The policy's pre-processor on a batch without pictures."""
        return self._policy.prepare(without_pictures(batch))


def without_pictures(batch: Batch) -> Batch:
    """A batch whose pictures show nothing and are announced as absent.

    Args:
        batch: as the environment's processor gives it; ``observation.images.*`` float (B, C, H, W).
    """
    changed = dict(batch)
    for key, picture in batch.items():
        if key.startswith(f"{OBS_IMAGES}.") and isinstance(picture, Tensor) and picture.ndim >= 4:
            value = _EMPTY.get(modality_of_key(key), MID_GREY)
            changed[key] = torch.full_like(picture, value)
            absent = torch.zeros(len(picture), dtype=torch.bool, device=picture.device)
            changed[padding_mask_key(key)] = absent
    return changed


class WithoutWeights:
    """What built-in policies have in common: they look at no picture and keep nothing between episodes."""

    config = None

    def reset(self) -> None:
        """Nothing to forget."""

    def watch(self, env: gym.Env) -> None:
        """Nothing to look at."""

    def prepare(self, batch: Batch) -> Batch:
        """The batch as it is."""
        return batch

    def last_look(self) -> Look:
        """Nothing was seen."""
        return Look()


class BuiltinPolicy(WithoutWeights):
    """A policy without weights: ``zero`` stands still, ``random`` draws uniformly from [-1, 1]."""

    def __init__(self, kind: str, action_dim: int) -> None:
        self.kind, self.action_dim = kind, action_dim

    def facts(self) -> PolicyFacts:
        """See `Policy`."""
        name = f"builtin:{self.kind}"
        return PolicyFacts(path=name, type=name, checkpoint=name)

    def act(self, batch: Batch) -> Tensor:
        """One action; the random one uses the global generator, as stochastic policies do."""
        if self.kind == "zero":
            return torch.zeros(1, self.action_dim)
        return torch.rand(1, self.action_dim) * 2 - 1


class _Expert(Protocol):
    """Scripted expert of one suite, as the environment package provides them."""

    def reset(self, env: Any, state: int | None = None) -> Any:
        """Look at an environment that has just been reset."""

    def act(self, env: Any) -> np.ndarray:
        """Action (7,) for the present state."""


class _MiniExpert:
    """The mini suite's expert with the interface of LIBERO's."""

    def __init__(self) -> None:
        self._expert: Any = None

    def reset(self, env: Any, state: int | None = None) -> None:
        from lerobot_env_multismolvla.mini.expert import MiniExpert

        self._expert = MiniExpert(env.unwrapped.task_id)

    def act(self, env: Any) -> np.ndarray:
        from lerobot_env_multismolvla.mini.expert import snapshot

        bare = env.unwrapped
        return self._expert.action(snapshot(bare.simulation, bare.task_id))


class ExpertPolicy(WithoutWeights):
    """``builtin:expert``: the suites' scripted experts, a privileged oracle and no policy.

    They read poses and contacts from the simulator. LIBERO's expert also tries variants of its motions before
    it acts, in the episode's own simulator, whose state it notes before and puts back after: it acts only
    what it has seen succeed (at most 24 attempts at single skills). Its row is an upper bound on what the
    tasks allow within their step limits and cannot be compared with a policy's single try. It looks at no
    picture, so no fault can touch it, and no robustness follows from its row.

    Args:
        source: the environment.

    Raises:
        ValueError: there is no expert for this environment.
    """

    def __init__(self, source: EnvironmentSource) -> None:
        kind = getattr(source.config, "type", None)
        if kind != "multismolvla_libero":
            raise ValueError(
                f"{EXPERT} has no expert for the environment type {kind!r}; it knows the suites of "
                "--env.type=multismolvla_libero."
            )
        self._experts: dict[bool, _Expert] = {}
        self._expert: _Expert | None = None
        self._env: gym.Env | None = None

    def facts(self) -> PolicyFacts:
        """See `Policy`."""
        return PolicyFacts(
            path=EXPERT,
            type=EXPERT,
            checkpoint=builtin_identity(EXPERT),
            privileged=True,
            description=EXPERT_DESCRIPTION,
        )

    def watch(self, env: gym.Env) -> None:
        """Look at the simulator of the episode that begins."""
        bare: Any = env.unwrapped
        mini = bare.suite == "multismolvla_mini"
        if mini not in self._experts:
            self._experts[mini] = _MiniExpert() if mini else _libero_expert()
        self._expert, self._env = self._experts[mini], env
        # lerobot 0.6.1 counts on to the next state while it resets
        self._expert.reset(env, bare.init_state_id - bare._reset_stride)

    def act(self, batch: Batch) -> Tensor:
        """The expert's action (1, 7) for the simulator's present state."""
        assert self._expert is not None, "watch(env) comes first"
        return torch.from_numpy(np.asarray(self._expert.act(self._env), np.float32))[None]


def _libero_expert() -> _Expert:
    from lerobot_env_multismolvla.libero_expert.search import LiberoExpert

    return LiberoExpert()

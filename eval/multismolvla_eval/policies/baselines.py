"""Policies that say what a score means: the scripted expert bounds it from above, a policy without eyes from below."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from lerobot.utils.constants import OBS_IMAGES
from torch import Tensor

from multismolvla.modalities import padding_mask_key
from multismolvla_eval.environments import Batch, EnvironmentSource
from multismolvla_eval.policies.identity import EXPERT, EXPERT_DESCRIPTION, builtin_identity
from multismolvla_eval.policies.interface import BLIND, Policy

#: What a picture shows when there is nothing to see. Depth and segmentation have a value that says so.
MID_GREY = 0.5
_EMPTY = {"_depth": 0.0, "_seg": 0.0}
#: Policies that read the padding masks and so know that there is no picture; all others see a grey one.
_READS_MASKS = ("multismolvla", "smolvla")


class BlindPolicy:
    """A policy whose pictures are all taken away, announced by the padding masks: what is solved without looking?

    Every picture becomes mid-grey (depth: invalid, segmentation: unknown) and every mask says absent. Policies that read
    masks drop the pictures; others get the grey ones. Language and state stay.

    Args:
        policy: the policy; everything that is not about its input is its own.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.checkpoint = f"blind:{policy.checkpoint}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def describe(self) -> dict[str, Any]:
        """The policy's facts; it reads no picture."""
        facts = self._policy.describe()
        masked = facts.get("type") in _READS_MASKS
        return {
            **facts,
            "path": f"blind:{facts.get('path')}",
            **BLIND,
            "reads": [k for k in facts.get("reads", []) if not k.startswith(OBS_IMAGES)],
            "blind": "pictures announced as absent" if masked else "pictures replaced by mid-grey ones",
        }

    def prepare(self, batch: Batch) -> Batch:
        """The policy's pre-processor on a batch without pictures."""
        return self._policy.prepare(without_pictures(batch))


def without_pictures(batch: Batch) -> Batch:
    """A batch whose pictures show nothing and are announced as absent.

    Args:
        batch: as the environment's processor gives it; ``observation.images.*`` float (B, C, H, W).
    """
    blind = dict(batch)
    for key, picture in batch.items():
        if key.startswith(f"{OBS_IMAGES}.") and isinstance(picture, Tensor) and picture.ndim >= 4:
            value = next((v for suffix, v in _EMPTY.items() if key.endswith(suffix)), MID_GREY)
            blind[key] = torch.full_like(picture, value)
            blind[padding_mask_key(key)] = torch.zeros(len(picture), dtype=torch.bool, device=picture.device)
    return blind


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
        """Begin an episode."""
        from lerobot_env_multismolvla.mini.expert import MiniExpert

        self._expert = MiniExpert(env.unwrapped.task_id)

    def act(self, env: Any) -> np.ndarray:
        """The clean action for the present state."""
        from lerobot_env_multismolvla.mini.expert import snapshot

        bare = env.unwrapped
        return self._expert.action(snapshot(bare.simulation, bare.task_id))


class ExpertPolicy:
    """``builtin:expert``: the suites' scripted experts, a privileged oracle and no policy.

    They read poses and contacts from the simulator. LIBERO's expert also tries variants of its motions before it acts: in
    the episode's own simulator, whose state it notes before and puts back after, so it acts only what it has seen succeed
    (at most 24 attempts at single skills). Its row is an upper bound on what the tasks allow within their step limits and
    cannot be compared with a policy's single try. It looks at no picture, so no fault can touch it, and no robustness
    follows from its row.

    Args:
        source: the environment.

    Raises:
        ValueError: there is no expert for this environment.
    """

    config = None
    privileged = True

    def __init__(self, source: EnvironmentSource) -> None:
        kind = getattr(source.config, "type", None)
        if kind != "multismolvla_libero":
            raise ValueError(
                f"{EXPERT} has no expert for the environment type {kind!r}; it knows the suites of "
                "--env.type=multismolvla_libero."
            )
        self.checkpoint = builtin_identity(EXPERT)
        self._experts: dict[bool, _Expert] = {}
        self._expert: _Expert | None = None
        self._env: gym.Env | None = None

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest."""
        return {
            "path": EXPERT,
            "type": EXPERT,
            **BLIND,
            "privileged": True,
            "description": EXPERT_DESCRIPTION,
        }

    def reset(self) -> None:
        """Forget the last episode."""
        self._expert = self._env = None

    def watch(self, env: gym.Env) -> None:
        """Look at the simulator of the episode that begins."""
        bare: Any = env.unwrapped
        mini = bare.suite == "multismolvla_mini"
        if mini not in self._experts:
            self._experts[mini] = _MiniExpert() if mini else _libero_expert()
        self._expert, self._env = self._experts[mini], env
        # lerobot 0.6.1 counts on to the next state while it resets
        self._expert.reset(env, bare.init_state_id - bare._reset_stride)

    def prepare(self, batch: Batch) -> Batch:
        """Nothing to prepare."""
        return batch

    def act(self, batch: Batch) -> Tensor:
        """The expert's action (1, 7) for the simulator's present state.

        Raises:
            RuntimeError: no episode has begun.
        """
        if self._expert is None:
            raise RuntimeError("ExpertPolicy.act() before watch(env): an expert needs the simulator.")
        return torch.from_numpy(np.asarray(self._expert.act(self._env), np.float32))[None]

    def at_the_door(self) -> None:
        """It has no encoder."""
        return

    def trust(self) -> dict[str, float]:
        """It weighs no sensors."""
        return {}


def _libero_expert() -> _Expert:
    from lerobot_env_multismolvla.libero_expert.search import LiberoExpert

    return LiberoExpert()


class BuiltinPolicy:
    """A policy without weights: ``zero`` stands still, ``random`` draws uniformly from [-1, 1]."""

    config = None
    privileged = False

    def __init__(self, kind: str, action_dim: int) -> None:
        self.kind, self.action_dim = kind, action_dim
        self.checkpoint = f"builtin:{kind}"

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest."""
        return {"path": self.checkpoint, "type": self.checkpoint, **BLIND}

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

    def trust(self) -> dict[str, float]:
        """It weighs nothing."""
        return {}

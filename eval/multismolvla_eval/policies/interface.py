"""What the roll-out needs of a policy, and what it asks of a policy server."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from torch import Tensor

from multismolvla_eval.environments import Batch
from multismolvla_eval.records.schema import PolicyFacts


@dataclass(frozen=True)
class StreamHealth:
    """What a policy thought of one stream at one look.

    Attributes:
        cause: why it counted as absent; ``None`` = it was used.
        score: how unlike a usable stream, see `multismolvla.health.Verdict`.
    """

    cause: str | None
    score: float


@dataclass(frozen=True)
class Look:
    """What a policy saw of one episode when it last looked, small enough to be sent to another process.

    Attributes:
        encoder_inputs: per modality present, the hash of all that a multimodal encoder was given of it;
            ``None`` for policies that do not show it, and for all but an episode's first look, because
            hashing takes time.
        tokens: token ids (h, w) per (camera, modality), for the modalities that are tokenized; of the same
            look.
        modality_weight: how much each modality counted beside the others, 0 to 1; empty without such weights.
        health: what the policy thought of each stream (``view.modality``); empty if it does not judge them.
        memory: what it wants to be given with the next look, key -> (1, ...).
    """

    encoder_inputs: dict[str, str] | None = None
    tokens: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    modality_weight: dict[str, float] = field(default_factory=dict)
    health: dict[str, StreamHealth] = field(default_factory=dict)
    memory: Mapping[str, np.ndarray] = field(default_factory=dict)


class Policy(Protocol):
    """What the roll-out needs of a policy."""

    @property
    def config(self) -> Any:
        """LeRobot's configuration; ``None`` for built-in policies, which look at one observation only."""

    def facts(self) -> PolicyFacts:
        """What it tells of itself, for rows and manifest."""

    def reset(self) -> None:
        """Forget the last episode."""

    def watch(self, env: gym.Env) -> None:
        """The raw environment of the episode, just reset; only privileged policies look at it."""

    def prepare(self, batch: Batch) -> Batch:
        """The policy's own pre-processor: what comes out enters the policy."""

    def act(self, batch: Batch) -> Tensor:
        """The next actions, float (n, A), from a prepared batch; it looks again after all n of them."""

    def last_look(self) -> Look:
        """What it saw in the last ``act``."""


@dataclass(frozen=True)
class Request:
    """One episode asks for its next actions.

    Attributes:
        policy: path of the checkpoint.
        arrays: the prepared batch's tensors, (1, ...).
        noise: sampling noise (1, chunk, width), drawn by the episode's own generator; empty if the policy
            takes none.
        first: whether it is the episode's first look, of which the encoder's inputs are asked for, too.
    """

    policy: str
    arrays: dict[str, np.ndarray]
    noise: dict[str, np.ndarray]
    first: bool = False

    def kind(self) -> Hashable:
        """Requests of the same kind, that is of equal shapes, may share a batch."""
        return (self.policy, *((k, a.shape, a.dtype.str) for k, a in sorted(self.arrays.items())))


@dataclass(frozen=True)
class Reply:
    """What comes back.

    Attributes:
        actions: float (n, A), before the post-processor.
        look: what the policy saw.
    """

    actions: np.ndarray
    look: Look


class PolicyServer(Protocol):
    """Has the weights of policies and computes actions, see `multismolvla_eval.rollout.server`."""

    def facts(self, policy: str) -> PolicyFacts:
        """What a policy tells of itself."""

    def answer(self, request: Request) -> Reply:
        """The policy's actions for a request."""

    def failure(self) -> str:
        """Why it cannot load policies or compute actions; empty if it can."""


def as_request(policy: str, batch: Batch, noise: Mapping[str, Tensor], first: bool) -> Request:
    """A request from a prepared batch of one row; only tensors travel, in the types that NumPy has.

    Raises:
        TypeError: a tensor in half precision, which a pre-processor on a CPU has no reason to make.
    """
    arrays = {k: v.detach().cpu().numpy() for k, v in batch.items() if isinstance(v, Tensor)}
    return Request(policy, arrays, {k: v.numpy() for k, v in noise.items()}, first)

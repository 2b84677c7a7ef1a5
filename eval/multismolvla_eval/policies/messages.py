"""What a simulator asks of a policy server, and what it is answered."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from multismolvla_eval.environments import Batch
from multismolvla_eval.policies.interface import Look
from multismolvla_eval.records.schema import PolicyFacts


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


def as_request(policy: str, batch: Batch, noise: Mapping[str, Tensor], first: bool) -> Request:
    """A request from a prepared batch of one row; only tensors travel, in the types that NumPy has.

    Raises:
        TypeError: a tensor in half precision, which a pre-processor on a CPU has no reason to make.
    """
    arrays = {k: v.detach().cpu().numpy() for k, v in batch.items() if isinstance(v, Tensor)}
    return Request(policy, arrays, {k: v.numpy() for k, v in noise.items()}, first)

"""What the roll-out needs of a policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from torch import Tensor

from multismolvla_eval.environments import Batch

#: Facts about a policy that looks at nothing.
BLIND: dict[str, Any] = {"reads": [], "modalities": [], "views": [], "reads_masks": False}


class Policy(Protocol):
    """What the roll-out needs of a policy.

    Attributes:
        config: LeRobot's configuration, ``None`` for built-in policies, which look at no observation but the first.
        checkpoint: hash of weights and configuration.
        privileged: whether it reads the simulator's state; such a policy bounds the others from above.
    """

    config: Any
    checkpoint: str
    privileged: bool

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest.

        ``reads``, ``modalities``, ``views``, ``provenance``: see :func:`multismolvla_eval.policies.features.describe_input`.
        ``reads_masks``: see :mod:`multismolvla_eval.policies.announcing`.
        """

    def reset(self) -> None:
        """Forget the last episode."""

    def watch(self, env: gym.Env) -> None:
        """The raw environment of the episode, just reset; only privileged policies look at it."""

    def prepare(self, batch: Batch) -> Batch:
        """The policy's own pre-processor: what comes out stands at the encoder's door."""

    def act(self, batch: Batch) -> Tensor:
        """The next actions for the environment, float (n, A), from a prepared batch; it looks again after all n of them."""

    def at_the_door(self) -> EncoderDoor | None:
        """What the last ``act`` gave to the encoder; ``None`` for policies that do not show it."""

    def trust(self) -> dict[str, float]:
        """How much each modality counted beside the others in the last ``act``, 0 to 1; empty without such weights."""


@dataclass(frozen=True)
class EncoderDoor:
    """What a multimodal encoder was given.

    Attributes:
        hashes: per modality present, the hash of everything the encoder sees of it.
        tokens: token ids (h, w) per (camera, modality), for those that are tokenized.
    """

    hashes: dict[str, str]
    tokens: dict[tuple[str, str], np.ndarray]

"""How a policy shows what it last saw: the inputs of its encoder, and how much each modality counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from multismolvla.health import Verdict
from multismolvla.tower import EncoderInputs


@dataclass(frozen=True)
class LastLook:
    """What a policy saw in its last forward pass, R = B * V with view fastest.

    Attributes:
        inputs: what entered the encoder.
        seen: bool (B, V + G * V), which entries of the prefix show anything: the views, by what has a grid,
            then one per view of each of the G gridless domains.
        modality_weights: modality -> float (R,), see :func:`multismolvla.fusion.modality_weight`; empty where
            nothing was fused.
        health: what was judged of every stream, (B, V * M), M = all of `multismolvla.modalities.MODALITIES`;
            ``None`` where nothing was.
        derived: what must be remembered of streams that are not estimated at every look: key -> (B, ...).
    """

    inputs: EncoderInputs
    seen: Tensor
    modality_weights: dict[str, Tensor]
    health: Verdict | None = None
    derived: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class ShowsLastLook(Protocol):
    """A policy that can show its last look."""

    def last_look(self) -> LastLook | None:
        """The last look; ``None`` before the first one."""


def find_last_look(policy: nn.Module) -> ShowsLastLook | None:
    """The policy, or the one inside PEFT's wrapper, if it shows its last look; ``None`` for any other."""
    return next((module for module in policy.modules() if isinstance(module, ShowsLastLook)), None)

"""Which objectives there are; what of each is trained, saved, loaded and exported follows from its entry."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from multismolvla.objectives.alignment import Consistency
from multismolvla.objectives.interface import ObjectiveModule
from multismolvla.objectives.options import ObjectivesOptions
from multismolvla.objectives.rlbind import Rlbind
from multismolvla.objectives.robult import Robult


class Parts(NamedTuple):
    """What an objective is built for.

    Attributes:
        bridge: from the encoder to the language model.
        connector_width: of its tokens.
        encoder_width: of the encoder's tokens.
        modalities: that may be shown alone.
        tasks: number of instructions.
    """

    bridge: nn.Module
    connector_width: int
    encoder_width: int
    modalities: tuple[str, ...]
    tasks: int


@dataclass(frozen=True)
class Objective:
    """One entry.

    Attributes:
        name: in options, logs and weights.
        option: its weight, as typed after ``--policy.``.
        build: makes its module.
        stages: of training that it may join.
        towers: with which it is defined.
        trains: whether its module has weights or buffers of its own: they are trained in full beside
            adapters, saved, loaded strictly, and left out of exports. They are related to the instructions of
            the training data and rise over the stage, so that both must be known.
        needs_trained_connector: whether it can only follow upon a trained connector.
    """

    name: str
    option: str
    build: Callable[[ObjectivesOptions, Parts], ObjectiveModule]
    stages: tuple[str, ...] = ("connector", "robust")
    towers: tuple[str, ...] = ("fourm",)
    trains: bool = True
    needs_trained_connector: bool = False


def _robult(options: ObjectivesOptions, parts: Parts) -> ObjectiveModule:
    sizes = (parts.connector_width, parts.encoder_width)
    return Robult(options.robult, *sizes, parts.modalities, parts.tasks)


def _rlbind(options: ObjectivesOptions, parts: Parts) -> ObjectiveModule:
    return Rlbind(options.rlbind, parts.bridge, parts.connector_width, parts.tasks)


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective(
            "consistency",
            "consistency_weight",
            lambda _options, _parts: Consistency(),
            stages=("robust",),
            towers=("fourm", "siglip+fourm"),
            trains=False,
        ),
        Objective("robult", "objectives.robult.weight", _robult),
        Objective("rlbind", "objectives.rlbind.weight", _rlbind, needs_trained_connector=True),
    )
}

#: Where a policy keeps the modules, in keys of its weights.
PREFIX = "model.objectives."


def objective_of(key: str) -> str | None:
    """Name of the objective to which a weight belongs; ``None`` for all other weights."""
    return key.removeprefix(PREFIX).partition(".")[0] if key.startswith(PREFIX) else None


def modules_to_save(names: Collection[str]) -> list[str]:
    """Modules that PEFT must train in full and save, for these objectives."""
    return [f"objectives.{name}" for name in names if OBJECTIVES[name].trains]

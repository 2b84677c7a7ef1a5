"""Which action moves nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from lerobot.processor import NormalizerProcessorStep, TransitionKey, create_transition
from numpy.typing import ArrayLike
from torch import Tensor

from multismolvla.modalities import Feature

if TYPE_CHECKING:
    from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig

#: LeRobot's statistics of a data set: key -> name of the statistic -> numbers.
Statistics = Mapping[str, Mapping[str, ArrayLike | Tensor]]


def stopped_numbers(kind: str, names: Sequence[str]) -> list[int]:
    """Numbers of an action that must be 0 for the robot to stand still; of the others the last one does it.

    Args:
        kind: ``absolute``: velocities (``x.vel``) among the goals; ``delta``: all but the gripper, which is
            the one whose name says so, else the last.
        names: of the action's numbers, as the data set tells them.
    """
    if kind == "absolute":
        return [n for n, name in enumerate(names) if name.endswith(".vel")]
    grippers = [n for n, name in enumerate(names) if "gripper" in name.lower()] or [len(names) - 1]
    return [n for n in range(len(names)) if n not in grippers]


def standstill(
    config: MultiSmolVLAConfig, stats: Statistics, action: Feature | None = None
) -> list[float | None]:
    """The normalised action that moves nothing; ``None`` where the last one does it.

    Args:
        config: of the policy, with its features.
        stats: of the training data.
        action: the data set's description of its actions; without it the last number is the gripper's.
    """
    number = config.action_feature.shape[0]
    names: object = action["names"] if action else None
    if isinstance(names, Mapping):  # {"motors": [...]}, of older data sets
        names = next(iter(names.values()), None)
    names = list(map(str, names)) if isinstance(names, Sequence) else []
    stopped = stopped_numbers(config.action_kind, names if len(names) == number else [""] * number)
    normalize = NormalizerProcessorStep(config.output_features, config.normalization_mapping, stats)
    still = normalize(create_transition(action=torch.zeros(1, number)))[TransitionKey.ACTION][0].tolist()
    return [value if n in stopped else None for n, value in enumerate(still)]

"""Which action moves nothing, and a policy that commands it while it sees nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from lerobot.processor import NormalizerProcessorStep, TransitionKey, create_transition
from numpy.typing import ArrayLike
from torch import Tensor

from lerobot_policy_multismolvla.safety.stopping import PolicyStopError
from lerobot_policy_multismolvla.training_data import names_of
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
    names = names_of(action)
    stopped = stopped_numbers(config.action_kind, names if len(names) == number else [""] * number)
    normalize = NormalizerProcessorStep(config.output_features, config.normalization_mapping, stats)
    still = normalize(create_transition(action=torch.zeros(1, number)))[TransitionKey.ACTION][0].tolist()
    return [value if n in stopped else None for n, value in enumerate(still)]


class Guard(Protocol):
    """What replaces unsafe actions on their way to the robot."""

    def safe_rows(self, plan: Tensor) -> Sequence[int]:
        """Which rows of a normalised plan (B, T, A) reach the robot as they are."""


class Hold:
    """What a policy commands while nothing is left for it to see (``policy.on_blind``)."""

    def __init__(self) -> None:
        self.guard: Guard | None = None  # that stands behind the policy
        self._goal: Tensor | None = None  # (B, A): where the last commands lead

    def forget(self) -> None:
        """A new episode begins."""
        self._goal = None

    def follow(self, action: Tensor) -> None:
        """A normalised action (B, A) is commanded, after the one before."""
        goal = self._goal
        rows = [action] if goal is None or goal.shape != action.shape else [goal, action]
        self.remember(torch.stack(rows, 1), len(rows) - 1)

    def remember(self, plan: Tensor, due: int) -> None:
        """A normalised plan (B, T, A) is carried out up to row ``due``, the last row at most.

        As the guard does it, the last safe row before an unsafe one counts; before any safe one, the first.
        """
        safe = range(plan.shape[1]) if self.guard is None else self.guard.safe_rows(plan)
        row = min(safe, key=lambda n: (n > due, abs(n - due)), default=None)
        self._goal = self._goal if row is None else plan[:, row]

    def chunk(self, config: MultiSmolVLAConfig, rows: int, left: Tensor | None = None) -> Tensor:
        """A plan (B, chunk_size, A) that stays where the arm is going, and keeps its grip.

        Args:
            config: the policy's.
            rows: B.
            left: (T, A) or (B, T, A), under RTC: what is left of the plan before. This one takes a period at
                most, in which its first row is executed, so the second one is due.

        Raises:
            PolicyStopError: ``policy.on_blind=stop``, nothing was commanded yet, or nobody knows what stands
                still.
        """
        if left is not None:
            self.remember(left.reshape(-1, *left.shape[-2:]).expand(rows, -1, -1), due=1)
        goal = self._goal
        if goal is None or len(goal) != rows:
            raise PolicyStopError(
                "The policy sees nothing, and has commanded nothing yet: no declared stream is there and fit "
                f"to be used. Expected at least one of {sorted(config.stream_keys())}; compare the robot's "
                "cameras with --policy.views. To act without any picture: --policy.on_blind=act."
            )
        if config.on_blind == "stop":
            raise PolicyStopError("No sensor is left, and --policy.on_blind=stop.")
        if config.action_kind == "delta" and not config.stopped:
            raise PolicyStopError(
                "No sensor is left, and the checkpoint does not say which delta action stands still. Add it "
                "with multismolvla-export --action_kind=delta, or choose --policy.on_blind=stop or act."
            )
        held = goal.clone()
        for number in config.stopped:
            held[:, number] = float(config.standstill[number] or 0.0)
        return held[:, None].repeat(1, config.chunk_size, 1)

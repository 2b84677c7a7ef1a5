"""No action leaves the policy that is not finite, far outside the training data, or a leap.

The step stands behind the unnormalisation, so it sees what the robot would get, in the data set's units.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from lerobot.configs.types import PipelineFeatureType, PolicyFeature
from lerobot.processor import (
    PolicyAction,
    PolicyActionProcessorStep,
    PolicyProcessorPipeline,
    ProcessorStepRegistry,
    UnnormalizerProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.constants import ACTION, POLICY_POSTPROCESSOR_DEFAULT_NAME
from torch import Tensor

from lerobot_policy_multismolvla.safety.holding import Statistics
from lerobot_policy_multismolvla.safety.stopping import PolicyStopError

logger = logging.getLogger(__name__)

#: Replaced actions in a row that are borne: as many as a usual plan has, so that a new one may be better.
PATIENCE = 10
#: How far beyond the training range an action may go, in parts of that range. Policies overshoot a little
#: where the data have their extremes; what this is for are leaps and explosions.
MARGIN = 0.25
#: A goal may move so many times farther in one step than in any training episode, and by that part of the
#: range in any case: where one plan follows another, it moves farther than a demonstrator's.
STEP_FACTOR, LEAST_STEP = 1.5, 0.1
_RANGE, _STEP, _START = "range", "step", "start"


@ProcessorStepRegistry.register("multismolvla_guard")
@dataclass
class GuardStep(PolicyActionProcessorStep):
    """Replaces unsafe actions by the last safe one; more than `PATIENCE` in a row end the roll-out.

    An action is unsafe if it is not finite, lies outside the range of the training data and a margin, or is
    farther from the one before than any in the training data and a margin. After a replaced one a delta
    action may also begin as the training's episodes do, from rest. Of a chunk the rows are judged in their
    order; before its first safe row stands that one. The first row of a chunk is not compared with the chunk
    before, of which nobody knows how much was executed.

    Attributes:
        stopped: numbers of an action that are 0 in its replacement, since the last one again would be another
            motion: all of a delta action but the gripper. The others stay as they were.
    """

    stopped: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.range: Tensor | None = None  # (2, A): least and greatest of the training data
        self.step: Tensor | None = None  # (A,): the farthest from one frame to the next
        self.start: Tensor | None = None  # (A,): the greatest with which an episode begins
        self.reset()

    def reset(self) -> None:
        """A new episode begins."""
        self._last: Tensor | None = None  # (B, A): the last safe action
        self._replaced = 0  # in a row

    def learn(
        self, low: Tensor, high: Tensor, step: Tensor | None = None, start: Tensor | None = None
    ) -> None:
        """Take over the range of the training actions and, where known, their greatest steps and first sizes.

        Args:
            low: (A,).
            high: (A,).
            step: (A,), from one frame to the next.
            start: (A,), of an episode's first action.

        Raises:
            ValueError: a number is not finite, or ``low`` is above ``high``.
        """
        limits = torch.stack([low, high]).float().cpu()
        step, start = (None if x is None else x.float().cpu() for x in (step, start))
        known = [limits, *(x for x in (step, start) if x is not None)]
        if not all(numbers.isfinite().all() for numbers in known) or (limits[0] > limits[1]).any():
            raise ValueError(
                f"The actions' training range is {limits.tolist()}, its steps {step}: expected finite "
                "numbers, the least first. Compute the data set's statistics anew, then multismolvla-health "
                "fit."
            )
        self.range, self.step, self.start = limits, step, start

    # -- judging --------------------------------------------------------------------------------------------

    def action(self, action: PolicyAction) -> PolicyAction:
        """Judge an action (B, A) or a chunk (B, T, A), and return what may be done.

        Raises:
            PolicyStopError: more than `PATIENCE` were unsafe in a row, or none was safe yet.
        """
        single = action.ndim == 2
        rows = action[:, None] if single else action
        if self._last is not None and self._last.shape != rows[:, 0].shape:
            self._last = None  # other episodes than before
        if self._wrong(rows, self._last if single else None, replaced=self._replaced > 0) is None:
            if self._replaced:
                logger.warning("Actions are safe again, after %d that were replaced.", self._replaced)
            self._last, self._replaced = rows[:, -1].clone(), 0
            return action
        safe = self._replace(rows, self._last if single else None)
        return safe[:, 0] if single else safe

    def safe_rows(self, rows: Tensor) -> Sequence[int]:
        """Which of a chunk's rows (B, T, A) would not be replaced; nothing is said, or remembered."""
        judged = self._judged(rows, None, replaced=False)
        return [number for number, wrong in enumerate(judged) if wrong is None]

    def _judged(self, rows: Tensor, last: Tensor | None, *, replaced: bool) -> Iterator[str | None]:
        """What is unsafe about each of the rows (B, T, A), in words, one after the other; ``None`` = nothing.

        Args:
            rows: to be judged.
            last: the safe action (B, A) before them, if they follow it.
            replaced: whether another one has stood for the action since then.
        """
        for row in rows.unbind(1):
            wrong = self._wrong(row[:, None], last, replaced=replaced)
            replaced = wrong is not None
            last = last if replaced else row
            yield wrong

    def _wrong(self, rows: Tensor, last: Tensor | None, *, replaced: bool) -> str | None:
        """What is unsafe about the first unsafe number of rows (B, T, A), in words; ``None`` = nothing.

        Args:
            rows: to be judged.
            last: the safe action (B, A) before them, if they follow it.
            replaced: whether another one has stood for the action since then. A delta action's is rest: a
                policy that braked too hard stays there, one whose motion was interrupted takes it up, and
                one that was held from its first motion on begins as it would have.
        """
        finite = rows.isfinite()
        if not finite.all():
            return _say(rows, ~finite, "expected a finite number")
        if self.range is None:
            return None
        low, high = self._bounds(rows)
        outside = (rows < low) | (rows > high)
        if outside.any():
            number = int(outside.nonzero()[0, 2])
            allowed = f"expected {low[number].item():.4g} to {high[number].item():.4g}"
            return _say(rows, outside, f"{allowed}, the training range and a quarter of it")
        steps = self._steps(rows)
        if steps is None:
            return None
        far = torch.cat([torch.zeros_like(rows[:, :1]), rows.diff(dim=1).abs()], 1) > steps
        if last is not None:
            far[:, 0] = (rows[:, 0] - last).abs() > steps
            if replaced:
                begins = rows[:, 0, self.stopped].abs() <= self._starts(steps)[self.stopped]
                far[:, 0, self.stopped] &= ~begins
        if far.any():
            number = int(far.nonzero()[0, 2])
            return _say(rows, far, f"a step of more than {steps[number].item():.4g}")
        return None

    def _replace(self, rows: Tensor, last: Tensor | None) -> Tensor:
        """The rows (B, T, A) with the unsafe ones replaced; the rows of a batch stand and fall together.

        Args:
            rows: to be judged.
            last: the safe action (B, A) before them, if they follow it.
        """
        safe: list[Tensor] = []
        waiting = 0  # unsafe rows at the beginning, for which the first safe one is taken
        judged = self._judged(rows, last, replaced=self._replaced > 0)
        for row, wrong in zip(rows.unbind(1), judged, strict=True):
            if wrong is None:
                self._replaced, last = 0, row
                safe += [self._held(row)] * waiting + [row]
                waiting = 0
                continue
            self._replaced += 1
            if self._replaced == 1:
                logger.warning("Unsafe action: %s. The last safe one stays.", wrong)
            if self._replaced > PATIENCE:
                raise PolicyStopError(
                    f"{self._replaced} unsafe actions in a row, the last one: {wrong}. If robot or data are "
                    "others than those of the training, the policy cannot act here; if it was trained "
                    "further on other data, its range is out of date: multismolvla-health fit."
                )
            if last is None:
                waiting += 1
            else:
                safe.append(self._held(last))
        if waiting:
            if self._last is None:
                raise PolicyStopError(f"The first actions are unsafe: {wrong}. The robot has not moved.")
            last = self._last
            safe += [self._held(last)] * waiting
        assert last is not None  # a safe row, or the one before
        self._last = last.clone()
        return torch.stack(safe, 1)

    def _held(self, action: Tensor) -> Tensor:
        """The action (B, A) that stays where ``action`` has led."""
        held = action.clone()
        held[:, self.stopped] = 0
        return held

    def _bounds(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        assert self.range is not None
        low, high = self.range.to(rows)
        # a number that never changed comes out of the normalisation with a rounding error
        margin = torch.maximum(MARGIN * (high - low), 1e-4 * (1 + high.abs()))
        return low - margin, high + margin

    def _steps(self, rows: Tensor) -> Tensor | None:
        if self.range is None or self.step is None:
            return None
        low, high = self.range.to(rows)
        return torch.maximum(STEP_FACTOR * self.step.to(rows), LEAST_STEP * (high - low) + 1e-4)

    def _starts(self, steps: Tensor) -> Tensor:
        return steps if self.start is None else torch.maximum(steps, STEP_FACTOR * self.start.to(steps))

    # -- saving ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """The training range, steps and starts."""
        known = {_RANGE: self.range, _STEP: self.step, _START: self.start}
        return {name: numbers for name, numbers in known.items() if numbers is not None}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Read them.

        Raises:
            ValueError: they are damaged.
        """
        if _RANGE in state:
            low, high = state[_RANGE]
            self.learn(low, high, state.get(_STEP), state.get(_START))

    def get_config(self) -> dict[str, list[int]]:
        """What is written to ``policy_postprocessor.json``."""
        return {"stopped": self.stopped}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Actions keep their shape."""
        return features


def _say(rows: Tensor, where: Tensor, expected: str) -> str:
    row, step, number = where.nonzero()[0].tolist()
    return f"number {number} is {rows[row, step, number].item():.4g}, {expected}"


def guard_of(post: PolicyProcessorPipeline[PolicyAction, PolicyAction]) -> GuardStep | None:
    """The guard of a post-processor, if it has one."""
    return next((step for step in post.steps if isinstance(step, GuardStep)), None)


class StoredGuard(NamedTuple):
    """The guard of a checkpoint, for those who must know beforehand what it lets out.

    LeRobot calls policy and post-processor one after the other, and neither knows the other.

    Attributes:
        before: the steps of the post-processor before it.
        guard: its double.
    """

    before: PolicyProcessorPipeline[PolicyAction, PolicyAction]
    guard: GuardStep

    @classmethod
    def beside(cls, checkpoint: str | Path | None, revision: str | None = None) -> StoredGuard | None:
        """Read it.

        Args:
            checkpoint: folder or hub id; ``None`` for a policy that was not loaded.
            revision: on the hub.

        Returns:
            ``None`` where there is no post-processor, or none with a guard.
        """
        file = f"{POLICY_POSTPROCESSOR_DEFAULT_NAME}.json"
        if checkpoint is None or (Path(checkpoint).is_dir() and not (Path(checkpoint) / file).is_file()):
            return None
        post = PolicyProcessorPipeline[PolicyAction, PolicyAction].from_pretrained(
            checkpoint, file, revision=revision,
            to_transition=policy_action_to_transition, to_output=transition_to_policy_action,
        )  # fmt: skip
        guard = guard_of(post)
        post.steps = [step for step in post.steps if step is not guard]
        return None if guard is None else cls(post, guard)

    def safe_rows(self, plan: Tensor) -> Sequence[int]:
        """Which rows of a normalised plan (B, T, A) reach the robot as they are."""
        return self.guard.safe_rows(self.before(plan.cpu()))


def put_guard(
    post: PolicyProcessorPipeline[PolicyAction, PolicyAction],
    stopped: Collection[int],
    step: Tensor | None = None,
    start: Tensor | None = None,
) -> GuardStep:
    """Give a post-processor a guard for the statistics by which it unnormalises, in place of one it has.

    LeRobot replaces the statistics of its own steps when a checkpoint is trained on other data, and knows
    nothing of ours: what was true of the checkpoint before must not stay.

    Args:
        post: ends with LeRobot's unnormalisation.
        stopped: see `GuardStep`.
        step: (A,), the greatest steps of the training data; ``None`` = unknown, not looked at.
        start: (A,), the greatest with which its episodes begin; ``None`` = unknown, none beyond a step.
    """
    guard, stats = GuardStep(stopped=sorted(stopped)), statistics_of(post).get(ACTION, {})
    if {"min", "max"} <= stats.keys():
        guard.learn(torch.as_tensor(stats["min"]), torch.as_tensor(stats["max"]), step, start)
    post.steps = [*(s for s in post.steps if not isinstance(s, GuardStep)), guard]
    return guard


def statistics_of(post: PolicyProcessorPipeline[PolicyAction, PolicyAction]) -> Statistics:
    """The data set's statistics by which a post-processor unnormalises; empty if it has none."""
    known = (step.stats for step in post.steps if isinstance(step, UnnormalizerProcessorStep))
    return next(known, None) or {}

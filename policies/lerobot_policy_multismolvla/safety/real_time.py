"""What LeRobot 0.6.1's real-time chunking hands to a policy, put right as far as a policy can.

``lerobot-rollout --inference.type=rtc`` plans in a thread, while the arm carries out the plan before. It
calls ``predict_action_chunk`` with what is left of that one, and with the periods that planning takes.

- What is left is filled up with zeros to ``execution_horizon`` rows (rollout/inference/rtc.py), and
  normalised zeros are the mean action: where planning is late, the guidance pulls the arm there. The filling
  is dropped.
- The periods are those of the slowest plan ever (policies/rtc/latency_tracker.py), so one outlier makes all
  later plans follow the old one for longer. Here they are those of the slowest of the last plans.
- A plan that takes as long as it is long is thrown away whole when it arrives (policies/rtc/action_queue.py),
  and the arm never moves. Here that ends the roll-out, with figures.

How many rows are thrown away when a plan arrives, and when the next one is begun, the engine alone decides.
"""

from __future__ import annotations

import math
from collections import deque

from torch import Tensor

from lerobot_policy_multismolvla.safety.stopping import PolicyStopError

#: Plans whose duration counts, and how many of them must be too slow before planning is given up.
RECENT, TOO_SLOW = 10, 3


def without_padding(left: Tensor | None) -> Tensor | None:
    """Rows (T, A) or (B, T, A) that are left, without zero rows at the end; ``None`` if none is."""
    if left is None:
        return None
    real = (left != 0).any(-1)
    real = real if real.ndim == 1 else real.any(0)
    count = int(real.nonzero().max()) + 1 if real.any() else 0
    return left[..., :count, :] if count else None


def row_that_is_due(left: Tensor | None) -> Tensor | None:
    """The row (B, A) of what is left (T, A) or (B, T, A) that comes when a plan without any planning arrives.

    That takes a period at most, in which one row is executed.
    """
    return None if left is None else left.reshape(-1, *left.shape[-2:])[:, min(1, left.shape[-2] - 1)]


class PlanningTime:
    """How long planning takes, in periods of the control loop.

    The policy does not know the loop's rate; but LeRobot's figure for the slowest plan, and what the policy
    needed for it and for the last ones, say it.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._longest = 0.0

    def took(self, seconds: float) -> None:
        """The policy has planned for so long."""
        self._recent.append(seconds)
        self._longest = max(self._longest, seconds)

    def periods(self, slowest: int | None, chunk: int) -> int | None:
        """Periods for which the old plan is still carried out.

        Args:
            slowest: LeRobot's figure, of the slowest plan ever; 0 while it knows none, also after a warm-up.
            chunk: rows of a plan.

        Raises:
            PolicyStopError: none of the last plans was ready before it was over.
        """
        if not slowest or not self._recent:
            self._recent.clear()
            self._longest = 0.0
            return slowest
        last = list(self._recent)
        least = self._scaled(slowest, min(last[-TOO_SLOW:]))
        if len(last) >= TOO_SLOW and least >= chunk:
            raise PolicyStopError(
                f"A plan takes {least} periods of the control loop ({min(last[-TOO_SLOW:]):.2f} s of it "
                f"inside the policy) and is {chunk} periods long: it is over when it is ready, and the arm "
                "would never move. Lower --fps or --policy.num_steps, use a faster device, or "
                "--inference.type=sync."
            )
        return self._scaled(slowest, max(last))

    def _scaled(self, slowest: int, seconds: float) -> int:
        return max(1, min(slowest, math.ceil(slowest * seconds / self._longest)))

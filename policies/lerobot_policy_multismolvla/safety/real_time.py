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
- At the end the engine waits three seconds for its thread. A plan that takes longer is in PyTorch's C++ when
  the interpreter goes, and the process aborts (exit code -6). Here the process ends after the plan.

How many rows are thrown away when a plan arrives, and when the next one is begun, the engine alone decides.
"""

from __future__ import annotations

import atexit
import logging
import math
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from lerobot_policy_multismolvla.safety.stopping import PolicyStopError

#: Plans whose duration counts, and how many of them must be too slow before planning is given up.
RECENT, TOO_SLOW = 10, 3

logger = logging.getLogger(__name__)

_one_plan = threading.RLock()
_planner: threading.Thread | None = None


@contextmanager
def planning() -> Iterator[None]:
    """A plan is made inside it, one at a time in a process, which does not end meanwhile."""
    global _planner
    with _one_plan:
        _planner = threading.current_thread()
        yield


@atexit.register
def _finish_plan() -> None:
    if not _one_plan.acquire(blocking=False):
        logger.info("The process ends when the plan in progress is finished.")
        _one_plan.acquire()
    # It is kept: a thread that was not told to stop begins no other plan. One that was told ends by itself.
    if _planner is not None and _planner is not threading.current_thread():
        _planner.join(timeout=1)


def without_padding(left: Tensor | None) -> Tensor | None:
    """Rows (T, A) or (B, T, A) that are left, without zero rows at the end; ``None`` if none is."""
    if left is None:
        return None
    real = (left != 0).any(-1)
    real = real if real.ndim == 1 else real.any(0)
    count = int(real.nonzero().max()) + 1 if real.any() else 0
    return left[..., :count, :] if count else None


class PlanningTime:
    """How long planning takes, in periods of the control loop.

    The policy does not know the loop's rate; but LeRobot's figure for the slowest plan, and what the policy
    needed for it and for the last ones, say it. The figure holds pre- and post-processing, too: it grows for
    ever where something stalls there, so what counts is the least that it ever was to the policy's own time.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._forget()

    def _forget(self) -> None:
        self._recent.clear()
        self._longest = 0.0
        self._figure: tuple[int, float] | None = None  # LeRobot's, and the policy's seconds
        self._late = 0  # plans in a row

    def took(self, seconds: float) -> None:
        """The policy has planned for so long."""
        self._recent.append(seconds)
        self._longest = max(self._longest, seconds)

    def periods(self, slowest: int | None, chunk: int, *, late: bool = True) -> int | None:
        """Periods for which the old plan is still carried out.

        Args:
            slowest: LeRobot's figure, of the slowest plan ever; 0 while it knows none, also after a warm-up.
            chunk: rows of a plan.
            late: whether the plan before was over when it was ready: nothing of it is left.

        Raises:
            PolicyStopError: none of the last plans was ready before it was over.
        """
        if not slowest or not self._recent:
            self._forget()
            return slowest
        if self._figure is None or slowest * self._figure[1] < self._figure[0] * self._longest:
            self._figure = slowest, self._longest
        self._late = self._late + 1 if late else 0
        last = list(self._recent)
        least = self._scaled(slowest, min(last[-TOO_SLOW:]))
        if min(self._late, len(last)) >= TOO_SLOW and least >= chunk:
            raise PolicyStopError(
                f"A plan takes {least} periods of the control loop ({min(last[-TOO_SLOW:]):.2f} s of it "
                f"inside the policy) and is {chunk} periods long: it is over when it is ready, and the arm "
                "would never move. Lower --fps or --policy.num_steps, use a faster device, or "
                "--inference.type=sync."
            )
        return self._scaled(slowest, max(last))

    def _scaled(self, slowest: int, seconds: float) -> int:
        assert self._figure is not None
        periods, longest = self._figure
        return max(1, min(slowest, math.ceil(periods * seconds / longest)))

"""How a policy ends a roll-out.

LeRobot 0.6.1's ``lerobot-rollout`` runs its loop inside ``try: ... finally: strategy.teardown()``: whatever
is raised ends the loop, saves the episode that is being recorded, drives the arm home through its cameras
(which must not raise: guard them) and disconnects it. Then

- under sync the exception goes on, and the exit code is 1;
- under RTC the inference thread tries again, ten times every half a second, while the arm finishes what is
  queued and then stays; after that it sets the roll-out's shutdown event, and the exit code is 0.

``KeyboardInterrupt`` would be swallowed, and a signal to the own process kills whoever is not a roll-out.
"""

from __future__ import annotations


class PolicyStopError(RuntimeError):
    """The policy refuses to act any longer; the message says why and what to do."""

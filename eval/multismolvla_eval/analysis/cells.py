"""Arms of a run with their starts: which episodes are independent of one another.

A *start* is an initial state of a task. The clean condition repeats each start with other policy noise, and a run of more
episodes than a suite has initial states repeats some, too. Repetitions are no independent episodes, so rates get intervals
for clusters, and two arms are compared start by start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from multismolvla_eval.analysis.bootstrap import Pairs
from multismolvla_eval.analysis.statistics import Rate, clustered_rate
from multismolvla_eval.analysis.table import Cells, Episodes


class Arms(Cells):
    """The episodes of every arm with their starts.

    Args:
        episodes: the columns.
        suites: the manifest's entries, by name; ``init_states`` is the number of initial states of each of its tasks.

    Attributes:
        start: number per episode that is equal for episodes of one start, int64 (n,); ascends by suite and task.
    """

    def __init__(self, episodes: Episodes, suites: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(episodes)
        state = episodes.numbers["init_state"].astype(np.int64)
        for name, facts in suites.items():
            known = facts.get("init_states")
            if known:  # the environment counts on beyond its last state and begins again with the first
                state = np.where(
                    episodes.codes["suite"] == episodes.code("suite", name), state % known, state
                )
        self.start = self.task * (int(state.max()) + 1) + state

    def fewest_starts(self) -> int:
        """Number of different starts in the smallest cell: an arm in one suite."""
        suites = self.episodes.names["suite"]
        cells = (self.rows(*arm, suite) for arm in self.names() for suite in suites)
        return min(len(np.unique(self.start[rows])) for rows in cells if len(rows))

    def names(self) -> list[tuple[str, str]]:
        """Policy and condition of every arm."""
        names = self.episodes.names
        return [(p, c) for p in names["policy"] for c in names["condition"] if (p, c) in self]

    def rate(self, rows: np.ndarray) -> Rate:
        """Success rate of some episodes.

        Raises:
            ValueError: no episodes.
        """
        return clustered_rate(self.episodes.success[rows], self.start[rows])

    def rate_entry(self, rows: np.ndarray) -> dict[str, Any] | None:
        """The same as JSON-ready data; ``None`` without episodes."""
        return asdict(self.rate(rows)) if len(rows) else None

    def by_start(self, arms: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Share of successes per start.

        Args:
            arms: rows of each arm, the same episodes in the same order in all, as :meth:`shared` gives them.

        Returns:
            float (arms, starts) in [0, 1] and the task of each start, int64 (starts,), ascending.
        """
        shares, first = shares_per_start(self.start[arms[0]], [self.episodes.success[rows] for rows in arms])
        return shares, self.task[arms[0]][first]

    def pairs(self, first: np.ndarray, second: np.ndarray) -> Pairs | None:
        """What two arms have both run, start by start; ``None`` if that is nothing.

        Args:
            first: rows of the first arm.
            second: rows of the second arm.
        """
        shared = self.shared([first, second])
        if not len(shared[0]):
            return None
        (before, after), tasks = self.by_start(shared)
        return Pairs(before, after, tasks, len(shared[0]))

    def met(self, rows: np.ndarray) -> list[int] | None:
        """In how many episodes the policy met the fault, and of how many that is known; ``None`` if of none."""
        known = faults_met(self.episodes)[rows]
        known = known[~np.isnan(known)]
        return [int(known.sum()), len(known)] if len(known) else None


def faults_met(episodes: Episodes) -> np.ndarray:
    """Whether each episode met its fault: 1, 0, or NaN where it is unknown; float (n,).

    An episode may end before its fault begins, and a policy that acts in chunks may not look while it lasts: a cell of such
    episodes says less than its n.
    """
    looks, steps = episodes.measures.get("fault_looks"), episodes.measures["fault_steps"]
    count = steps if looks is None else np.where(np.isnan(looks), steps, looks)
    return np.where(np.isnan(count), np.nan, count > 0)


def shares_per_start(starts: np.ndarray, success: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Share of successes per start.

    Args:
        starts: number of each episode's start, int (n,).
        success: of each arm, bool (n,).

    Returns:
        float (arms, starts) in [0, 1], starts ascending, and the place of each start's first episode, int64 (starts,).
    """
    _, first, place, count = np.unique(starts, return_index=True, return_inverse=True, return_counts=True)
    return np.stack([np.bincount(place, won, minlength=len(count)) / count for won in success]), first

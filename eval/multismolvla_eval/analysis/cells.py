"""Cells of a run (policy x condition) and what two of them share.

A *start* is an initial state of a task. The clean condition repeats each start with other policy noise, and a
run of more episodes than a suite has initial states repeats some, too. Repetitions are no independent
episodes, so rates get intervals for clusters, and two cells are compared start by start.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import reduce

import numpy as np
import pandas as pd

from multismolvla_eval.analysis.bootstrap import Pairs
from multismolvla_eval.analysis.statistics import Rate, clustered_rate


class Cells:
    """Episodes by cell.

    Args:
        table: of `multismolvla_eval.analysis.table.episode_table`.

    Attributes:
        table: the same.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table
        self._none = table.iloc[:0]
        self._parts: dict[Hashable, pd.DataFrame] = {}
        for columns in ("policy", ["policy", "condition"], ["policy", "condition", "suite"]):
            sizes = table.groupby(columns, observed=True).size()
            ends = sizes.cumsum()
            for key, size, end in zip(sizes.index, sizes, ends, strict=True):
                self._parts[key] = table.iloc[end - size : end]

    def __contains__(self, cell: tuple[str, str]) -> bool:
        return cell in self._parts

    def of(self, policy: str, condition: str, suite: str | None = None) -> pd.DataFrame:
        """Episodes of a cell, all suites' or one's; empty if it has not run."""
        key = (policy, condition) if suite is None else (policy, condition, suite)
        return self._parts.get(key, self._none)

    def of_policy(self, policy: str) -> pd.DataFrame:
        """Episodes of a policy under all conditions."""
        return self._parts.get(policy, self._none)

    def fewest_starts(self) -> int:
        """Number of different starts in the smallest cell of one suite."""
        return int(
            self.table.groupby(["policy", "condition", "suite"], observed=True)["start"].nunique().min()
        )


def rate_of(cell: pd.DataFrame) -> Rate | None:
    """Success rate of some episodes; ``None`` without any."""
    return clustered_rate(cell["success"].to_numpy(), cell["start"].to_numpy()) if len(cell) else None


def shared(cells: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The episodes of each cell that have a counterpart in all the others, in the same order in all."""
    pairs = [cell["pair"].to_numpy() for cell in cells]
    if all(np.array_equal(pairs[0], other) for other in pairs):
        return list(cells)
    common = reduce(np.intersect1d, pairs)
    return [cell[np.isin(own, common)] for cell, own in zip(cells, pairs, strict=True)]


def shares_per_start(cells: Sequence[pd.DataFrame]) -> tuple[np.ndarray, np.ndarray]:
    """Share of successes per start.

    Args:
        cells: the same episodes in the same order, as `shared` gives them.

    Returns:
        float (cells, starts) in [0, 1] and the task of each start, int64 (starts,), ascending.
    """
    starts, tasks = (cells[0][column].to_numpy() for column in ("start", "task"))
    _, first, place, count = np.unique(starts, return_index=True, return_inverse=True, return_counts=True)
    won = [np.bincount(place, cell["success"].to_numpy(), minlength=len(count)) for cell in cells]
    return np.stack(won) / count, tasks[first]


def pairs_of(first: pd.DataFrame, second: pd.DataFrame) -> Pairs | None:
    """What two cells have both run, start by start; ``None`` if that is nothing."""
    cells = shared([first, second])
    if cells[0].empty:
        return None
    (before, after), tasks = shares_per_start(cells)
    return Pairs(before, after, tasks, len(cells[0]))


def episodes_met(cell: pd.DataFrame) -> tuple[int, int] | None:
    """In how many episodes the policy met the fault, and of how many that is known; ``None`` if of none."""
    known = cell["fault_met"].dropna()
    return (int(known.sum()), len(known)) if len(known) else None

"""Which episodes a run consists of, and in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from multismolvla.corruption import CLEAN, Condition
from multismolvla_eval.results import episode_key


@dataclass(frozen=True)
class Episode:
    """One roll-out to be made.

    Attributes:
        policy: name of the policy.
        suite: suite name.
        task_id: task within the suite.
        condition: canonical text.
        episode: number within the cell; also the number of the initial state in the evaluation split, so that episode
            i starts the same way for every policy and condition.
        clip: whether to keep pictures.
    """

    policy: str
    suite: str
    task_id: int
    condition: str
    episode: int
    clip: bool = False

    @property
    def key(self) -> str:
        """Identity in result files."""
        return episode_key(asdict(self))


def episodes(
    policies: Sequence[str],
    suite: str,
    task_ids: Sequence[int],
    conditions: Sequence[Condition],
    clean_episodes: int,
    condition_episodes: int,
    clips: int = 0,
) -> list[Episode]:
    """All episodes of a run, ordered so that every look at a running evaluation is fair and early.

    Cells advance together in proportion to their length: after a tenth of the time every cell has about a tenth of its
    episodes; C0 leads each round; policies alternate on the same episode, so their comparison is always paired.

    Args:
        policies: names.
        suite: suite name.
        task_ids: tasks.
        conditions: arms, C0 first.
        clean_episodes: episodes per task of C0.
        condition_episodes: episodes per task of the others.
        clips: how many tasks keep a clip of episode 0, per policy and condition.
    """
    counts = [clean_episodes if c == CLEAN else condition_episodes for c in conditions]
    slots = sorted(
        (number / count, cell, number) for cell, count in enumerate(counts) for number in range(count)
    )
    return [
        Episode(policy, suite, task_id, conditions[cell].id, number, number == 0 and position < clips)
        for _, cell, number in slots
        for position, task_id in enumerate(task_ids)
        for policy in policies
    ]


def remaining(plan: Iterable[Episode], done: set[str], shard: int = 0, shards: int = 1) -> list[Episode]:
    """The episodes of this shard that are not done yet, in order.

    An episode's shard follows from its identity, not from its place in the plan: shards that were started with
    different lists of conditions still never run the same episode.
    """

    def home(episode: Episode) -> int:
        return int.from_bytes(hashlib.sha256(episode.key.encode()).digest()[:8], "big") % shards

    return [e for e in plan if e.key not in done and home(e) == shard]

"""Which episodes a run consists of, and in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from multismolvla.corruption import CLEAN, Condition

#: The first episodes of a cell are filmed: one clip in any case, and under a fault the first failure among them. Clean ones
#: are all kept, so that each failure has the clean clip of the same start beside it.
CLIP_CANDIDATES = 3


@dataclass(frozen=True, slots=True)  # the level full makes a million of them
class Episode:
    """One roll-out to be made.

    Attributes:
        policy: name of the policy.
        suite: suite name.
        task_id: task within the suite.
        condition: canonical text.
        episode: number within the cell; also the number of the initial state in the evaluation split, so that episode
            i starts the same way for every policy and condition.
        clip: whether to film it; whether the clip is kept depends on what happens.
        seed: number of the repetition. Only C0 is repeated: environment seed and policy noise differ between
            repetitions, initial states do not. Arms are paired within a seed.
    """

    policy: str
    suite: str
    task_id: int
    condition: str
    episode: int
    clip: bool = False
    seed: int = 0

    @property
    def key(self) -> str:
        """Identity in result files."""
        return "|".join([str(getattr(self, k)) for k in KEY])


@dataclass(frozen=True)
class Counts:
    """Episodes per task.

    Attributes:
        clean_episodes: of C0, per seed; at most so many different initial states are used.
        episodes: of every other condition.
        clean_seeds: repetitions of C0 with different environment and noise seeds.
    """

    clean_episodes: int
    episodes: int
    clean_seeds: int = 1


def episodes(
    policies: Sequence[str],
    tasks: Mapping[str, Sequence[int]],
    conditions: Sequence[Condition],
    counts: Counts,
    clips: int = 0,
    clean_only: Collection[str] = (),
) -> list[Episode]:
    """All episodes of a run, ordered so that every look at a running evaluation is fair and early.

    Cells advance together in proportion to their length: after a tenth of the time every cell has about a tenth of its
    episodes; C0 leads each round and its repetitions end it; a round goes through all suites; policies alternate on
    the same episode, so their comparison is always paired.

    Args:
        policies: names.
        tasks: task ids per suite.
        conditions: arms, C0 first.
        counts: episodes per task.
        clips: how many tasks of each suite keep clips, per policy and condition; see ``CLIP_CANDIDATES``.
        clean_only: policies that run C0 and nothing else.
    """
    cells = [(c, 0, counts.clean_episodes if c == CLEAN else counts.episodes) for c in conditions]
    repetitions = range(1, counts.clean_seeds) if CLEAN in conditions else ()
    cells += [(CLEAN, seed, counts.clean_episodes) for seed in repetitions]
    slots = sorted(
        (number / count, cell, number) for cell, (_, _, count) in enumerate(cells) for number in range(count)
    )
    return [
        Episode(policy, suite, task_id, cells[cell][0].id, number, clip, cells[cell][1])
        for _, cell, number in slots
        for suite, task_ids in tasks.items()
        for position, task_id in enumerate(task_ids)
        for clip in [number < CLIP_CANDIDATES and cells[cell][1] == 0 and position < clips]
        for policy in policies
        if policy not in clean_only or cells[cell][0] == CLEAN
    ]


def remaining(plan: Iterable[Episode], done: set[str], shard: int = 0, shards: int = 1) -> list[Episode]:
    """The episodes of this shard that are not done yet, in order.

    An episode's shard follows from its identity, not from its place in the plan: shards that were started with
    different lists of conditions still never run the same episode.
    """

    def home(episode: Episode) -> int:
        return (
            0
            if shards == 1
            else int.from_bytes(hashlib.sha256(episode.key.encode()).digest()[:8], "big") % shards
        )

    return [e for e in plan if e.key not in done and home(e) == shard]


#: What identifies an episode within a run.
KEY = ("policy", "suite", "task_id", "condition", "episode", "seed")

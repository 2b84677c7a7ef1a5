"""Which episodes a run consists of, and in which order."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from multismolvla.corruption import CLEAN, Condition

#: What identifies an episode within a run.
KEY = ("policy", "suite", "task_id", "condition", "episode", "repeat")
_identity = attrgetter(*KEY)

#: The first episodes of a cell are filmed: one clip in any case, and under a fault the first failure among
#: them. Clean ones are all kept, so that each failure has the clean clip of the same start beside it.
CLIP_CANDIDATES = 3


def episode_key(episode: object) -> str:
    """Identity within a run of an `EpisodeSpec`, or of its row."""
    return "|".join(map(str, _identity(episode)))


@dataclass(frozen=True, slots=True)  # the level full makes a million of them
class EpisodeSpec:
    """One roll-out to be made.

    Attributes:
        policy: name of the policy.
        suite: suite name.
        task_id: task within the suite.
        condition: canonical text.
        episode: number within the cell; also the number of the initial state in the evaluation split, so that
            episode i starts the same way for every policy and condition.
        clip: whether to film it; whether the clip is kept depends on what happens.
        repeat: number of the repetition. Only C0 is repeated: environment seed and policy noise differ
            between repetitions, initial states do not. Cells are paired within a repetition.
    """

    policy: str
    suite: str
    task_id: int
    condition: str
    episode: int
    clip: bool = False
    repeat: int = 0

    @property
    def key(self) -> str:
        """Identity in result files."""
        return episode_key(self)


@dataclass(frozen=True)
class Counts:
    """Episodes per task.

    Attributes:
        clean_episodes: of C0, per repetition; at most so many different initial states are used.
        episodes: of every other condition.
        clean_repeats: repetitions of C0 with different environment and noise seeds.
    """

    clean_episodes: int
    episodes: int
    clean_repeats: int = 1


def episodes(
    policies: Sequence[str],
    tasks: Mapping[str, Sequence[int]],
    conditions: Sequence[Condition],
    counts: Counts,
    clips: int = 0,
    clean_only: Collection[str] = (),
) -> list[EpisodeSpec]:
    """All episodes of a run, ordered so that every look at a running evaluation is fair and early.

    Cells (policy x condition) advance together in proportion to their length: after a tenth of the time every
    cell has about a tenth of its episodes; C0 leads each round and its repetitions end it; a round goes
    through all suites; policies alternate on the same episode, so their comparison is always paired.

    Args:
        policies: names.
        tasks: task ids per suite.
        conditions: C0 first.
        counts: episodes per task.
        clips: how many tasks of each suite keep clips, per policy and condition; see ``CLIP_CANDIDATES``.
        clean_only: policies that run C0 and nothing else.
    """
    columns = [(c, 0, counts.clean_episodes if c == CLEAN else counts.episodes) for c in conditions]
    repeats = range(1, counts.clean_repeats) if CLEAN in conditions else ()
    columns += [(CLEAN, repeat, counts.clean_episodes) for repeat in repeats]
    slots = sorted(
        (number / count, column, number)
        for column, (_, _, count) in enumerate(columns)
        for number in range(count)
    )
    plan = []
    for _, column, number in slots:
        condition, repeat, _ = columns[column]
        running = [p for p in policies if condition == CLEAN or p not in clean_only]
        for suite, task_ids in tasks.items():
            for position, task_id in enumerate(task_ids):
                clip = number < CLIP_CANDIDATES and repeat == 0 and position < clips
                plan += [EpisodeSpec(p, suite, task_id, condition.id, number, clip, repeat) for p in running]
    return plan


def remaining(
    plan: Iterable[EpisodeSpec], done: set[str], shard: int = 0, shards: int = 1
) -> list[EpisodeSpec]:
    """The episodes of this shard that are not done yet, in order.

    An episode's shard follows from its identity, not from its place in the plan: shards that were started
    with different lists of conditions still never run the same episode.
    """

    def shard_of(episode: EpisodeSpec) -> int:
        if shards == 1:
            return 0
        return int.from_bytes(hashlib.sha256(episode.key.encode()).digest()[:8], "big") % shards

    return [e for e in plan if e.key not in done and shard_of(e) == shard]

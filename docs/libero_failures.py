"""What goes wrong in failed LIBERO episodes? ``python docs/libero_failures.py --policy=... --suite=...``.

Repeats an evaluation's clean episodes, with its starts and seeds, and follows the object that the task moves
and the place where it belongs in the simulator, which no policy sees. A line per episode, then the counts.
Tasks that do not move one thing to one place are named and left out.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from lerobot_env_multismolvla.libero_expert.world import World
from multismolvla.system.command import entry_point, parse_options
from multismolvla_eval.config import EvalConfig
from multismolvla_eval.environments import Batch, EnvironmentSource, load_sources
from multismolvla_eval.evaluate import parse
from multismolvla_eval.policies.load import load_policy
from multismolvla_eval.protocol.schedule import EpisodeSpec
from multismolvla_eval.records.schema import EpisodeRow
from multismolvla_eval.rollout.episode import run_episode
from multismolvla_eval.rollout.worker import use_one_thread

#: Height above its start from which an object counts as lifted, and horizontal distance to its place within
#: which it counts as brought there [m]. LIBERO's ``on`` asks for less than 0.03.
LIFTED_M, BROUGHT_M = 0.03, 0.04
OUTCOMES = ("solved", "never lifted", "lifted, not brought to its place", "brought, but not left there")


@dataclass
class FailureOptions:
    """Options of the count."""

    # as multismolvla-eval's --policies: a checkpoint, or builtin:...
    policy: str
    # one of LIBERO's suites
    suite: str = "libero_object"
    # the evaluation that is repeated: pictures, seed, health
    config: Path = Path("configs/eval/libero_tiny.yaml")
    # first initial states of each task
    episodes: int = 2
    # default: all ten
    task_ids: list[int] = field(default_factory=lambda: list(range(10)))


class Track:
    """Where the object and its place are after each step, as a recorder of an episode; metres, (T, 3)."""

    def __init__(self, moved: str, place: str) -> None:
        self._names = moved, place
        self._world: World | None = None
        self._seen: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def wants(self, step: int) -> bool:
        """The first observation: with it the simulator is there."""
        return step == 0

    def frame(self, env: gym.Env, batch: Batch | None, step: int) -> None:
        """Note the beginning, or the end."""
        self._world = World(env.unwrapped.simulation)  # type: ignore[attr-defined]
        self._note()

    def acted(self, action: np.ndarray, step: int) -> None:
        """Note what the step did before."""
        self._note()

    def _note(self) -> None:
        assert self._world is not None
        moved, place = map(self._world.position, self._names)
        self._seen.append((moved, place))

    def outcome(self, row: EpisodeRow) -> tuple[str, str]:
        """One of `OUTCOMES`, and the figures that say so."""
        moved, place = map(np.stack, zip(*self._seen, strict=True))
        height = moved[:, 2] - moved[0, 2]
        distance = np.linalg.norm(moved[:, :2] - place[:, :2], axis=1)
        figures = (
            f"highest {100 * height.max():.0f} cm, nearest to its place {100 * distance.min():.0f} cm, "
            f"at the end {100 * distance[-1]:.0f} cm"
        )
        if row.success:
            return OUTCOMES[0], figures
        if height.max() <= LIFTED_M:
            return OUTCOMES[1], figures
        return OUTCOMES[2 + int(distance.min() < BROUGHT_M)], figures


def movements(
    source: EnvironmentSource, task_ids: Sequence[int]
) -> Iterator[tuple[int, tuple[str, str] | None]]:
    """Task -> names of the object that it moves and of the place; ``None`` for another kind of task."""
    for task in task_ids:
        env = source.make(task)
        env.reset(seed=0, options={"init_state_id": 0})  # the simulator starts with it
        goal = World(env.unwrapped.simulation).goal  # type: ignore[attr-defined]
        moves = len(goal) == 1 and goal[0][0] in ("on", "in")
        yield task, (goal[0][1], goal[0][2]) if moves else None


def evaluation(options: FailureOptions) -> EvalConfig:
    """The evaluation that is repeated, of this policy and suite alone."""
    return parse(
        [
            f"--config_path={options.config}", f"--env.task={options.suite}", "--baseline=policy",
            f"--policies=[policy={options.policy}]", "--clean_only=[]",
        ]
    )  # fmt: skip


@entry_point("error", loads="lerobot")
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parse_options(FailureOptions, argv)
    use_one_thread()
    config = evaluation(options)
    source = load_sources(config.env)[options.suite]
    policy = load_policy(config.policy_paths()["policy"], source, config.device, estimators=config)
    counts: Counter[str] = Counter()
    for task, names in movements(source, options.task_ids):
        if names is None:
            sys.stdout.write(f"task {task}: left out, it does not move one thing to one place\n")
            continue
        for episode in range(options.episodes):
            track = Track(*names)
            spec = EpisodeSpec("policy", options.suite, task, "C0", episode)
            outcome, figures = track.outcome(run_episode(spec, source, policy, config.seed, [track]))
            counts[outcome] += 1
            sys.stdout.write(f"task {task}, state {episode}: {outcome} ({figures})\n")
            sys.stdout.flush()
    summary = "; ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)
    sys.stdout.write(f"{counts.total()} episodes: {summary}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a run consists of and how long it will take, for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from multismolvla.corruption import Condition
from multismolvla_eval.protocol.levels import describe
from multismolvla_eval.protocol.schedule import EpisodeSpec
from multismolvla_eval.records.schema import EpisodeRow, SuiteFacts

#: Seconds of simulation per environment step before anything has been measured, every step rendered in
#: software with all streams: LIBERO's scenes at 256 pixels (0.14 to 0.3 s on two cores; 0.07 s for a policy
#: that looks every 8th step, see benchmarks/README.md), the mini suite at 64. A GPU that renders is several
#: times faster.
NOMINAL_STEP_S = {"multismolvla_mini": 0.04}
NOMINAL_LIBERO_STEP_S = 0.25
#: The same at 128 pixels in fast quality, for a policy that looks every 8th step.
NOMINAL_LIBERO_FAST_STEP_S = 0.05


def seconds_per_episode(
    suites: Mapping[str, SuiteFacts], rows: Sequence[EpisodeRow]
) -> dict[str, tuple[float, bool]]:
    """Per suite the mean time of an episode, and whether it was measured.

    Otherwise it is the simulation of all steps up to the limit, without policy, resets and the expert's
    search.
    """

    def nominal(name: str, suite: SuiteFacts) -> float:
        fast = suite.render_quality == "fast"
        return NOMINAL_STEP_S.get(name, NOMINAL_LIBERO_FAST_STEP_S if fast else NOMINAL_LIBERO_STEP_S)

    times: dict[str, list[float]] = {name: [] for name in suites}
    for row in rows:
        if row.suite in times and row.seconds is not None:
            times[row.suite].append(row.seconds.total)
    return {
        name: (sum(t) / len(t), True)
        if (t := times[name])
        else (nominal(name, suite) * suite.max_steps, False)
        for name, suite in suites.items()
    }


def hours(episodes: Mapping[str, int], seconds: Mapping[str, tuple[float, bool]], workers: int) -> float:
    """Time for so many episodes per suite on so many workers."""
    return sum(number * seconds[suite][0] for suite, number in episodes.items()) / workers / 3600


def summary_lines(
    suites: Mapping[str, SuiteFacts],
    plan: Sequence[EpisodeSpec],
    todo: Sequence[EpisodeSpec],
    rows: Sequence[EpisodeRow],
    workers: int,
) -> list[str]:
    """What is to be done, in a sentence, after warnings.

    Args:
        suites: what the environments tell of themselves.
        plan: all episodes.
        todo: those that this shard has to run.
        rows: finished ones, which tell how long an episode takes.
        workers: simulator processes of this shard.
    """
    seconds = seconds_per_episode(suites, rows)
    basis = ", ".join(
        f"{name} {s:.1f} s {'measured' if measured else 'assumed'}" for name, (s, measured) in seconds.items()
    )
    tasks = sum(len(s.tasks) for s in suites.values())
    time = hours(Counter(e.suite for e in todo), seconds, workers)
    policies, conditions = ({getattr(e, name) for e in plan} for name in ("policy", "condition"))
    line = (
        f"{len(policies)} policies x {tasks} tasks x {len(conditions)} conditions: {len(plan)} episodes, "
        f"{len(todo)} of this shard missing, about {time:.2f} h with {workers} workers "
        f"(per episode: {basis})."
    )
    if not all(measured for _, measured in seconds.values()):
        line += (
            " Assumed is the simulation of all steps up to the limit, every step rendered on the CPU; "
            "policies, resets and the expert's search come on top."
        )
    return [*_state_warnings(suites, plan), line]


def detailed_lines(
    suites: Mapping[str, SuiteFacts],
    conditions: Sequence[Condition],
    plan: Sequence[EpisodeSpec],
    rows: Sequence[EpisodeRow],
    workers: int,
) -> list[str]:
    """One line per condition, and one per suite, for ``--dry_run``; arguments as `summary_lines`."""
    seconds = seconds_per_episode(suites, rows)
    width = max(34, *(len(c.id) for c in conditions))
    by_condition, by_suite = Counter(e.condition for e in plan), Counter(e.suite for e in plan)
    lines = [f"{'condition':{width}} {'episodes':>8}  meaning"]
    lines += [f"{c.id:{width}} {by_condition[c.id]:8d}  {describe(c)}" for c in conditions]
    lines += ["", f"{'suite':{width}} {'episodes':>8} {'tasks':>5} {'steps':>5} {'states':>6} {'hours':>8}"]
    for name, suite in suites.items():
        number, states = by_suite[name], suite.init_states or "?"
        time = hours({name: number}, seconds, workers)
        lines.append(
            f"{name:{width}} {number:8d} {len(suite.tasks):5d} {suite.max_steps:5d} {states:>6} {time:8.2f}"
        )
    return [*lines, ""]


def _state_warnings(suites: Mapping[str, SuiteFacts], plan: Sequence[EpisodeSpec]) -> list[str]:
    """A sentence for every suite that has fewer initial states than the plan has episodes of a cell."""
    most: Counter[str] = Counter()
    for episode in plan:
        most[episode.suite] = max(most[episode.suite], episode.episode + 1)
    lines = []
    for name, suite in suites.items():
        if suite.init_states is not None and most[name] > suite.init_states:
            more = " --env.options='{init_split: all}' takes all, also those that recording uses."
            lines.append(
                f"warning: {name} has {suite.init_states} different initial states per task and the plan "
                f"asks for {most[name]} episodes; the further ones repeat them with other policy noise."
                + (more if suite.init_split == "eval" else "")
            )
    return lines

"""Measure the scripted expert: ``python docs/libero_expert.py --suite=libero_object --states=20-29``.

Physics only. One line of JSON per episode is appended to ``--output``; the same command continues an
interrupted run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from lerobot_env_multismolvla.configuration_multismolvla_libero import (
    LIBERO_SETTLE_STEPS,
    MultiSmolVLALiberoConfig,
)
from lerobot_env_multismolvla.libero.initial_states import state_numbers
from multismolvla.system.command import entry_point, parse_options

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


@dataclass
class MeasureConfig:
    """Options of the measurement.

    Raises:
        ValueError: an option is out of range; the message names it.
    """

    # One of LIBERO's four suites.
    suite: str = "libero_object"
    # Initial states, e.g. "20-29" or "0,3,7".
    states: str = "20-29"
    # Tasks; all ten when not given.
    task_ids: list[int] | None = None
    # Base seed: decides where fixtures stand.
    seed: int = 0
    # No-op steps after a reset; the default is the evaluation's. What still moves then (with mujoco >= 3.4
    # bottles of libero_10's tasks 0, 1 and 7), the expert waits for within the step limit.
    settle_steps: int = LIBERO_SETTLE_STEPS
    # Processes.
    workers: int = 1
    # File of results; default: outputs/expert/<suite>.jsonl.
    output: Path | None = None

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise ValueError(f"--suite={self.suite}: expected one of {SUITES}.")
        state_numbers(self.states)
        self.task_ids = list(range(10)) if self.task_ids is None else sorted(set(self.task_ids))
        if not set(self.task_ids) <= set(range(10)):
            raise ValueError(f"--task_ids={self.task_ids}: the suite has tasks 0 to 9.")
        self.output = self.output or Path("outputs/expert") / f"{self.suite}.jsonl"


class MeasuredState(msgspec.Struct):
    """What the expert did from one initial state: a line of the results.

    Attributes:
        task: number of the task.
        name: name of the task.
        state: number of the initial state.
        solved: whether a way was found.
        variants: number of the variant of each skill.
        steps: control steps to success.
        attempts: attempts at single skills that it took.
        wall_s: seconds of reset and search.
    """

    task: int
    name: str
    state: int
    solved: bool
    variants: list[int]
    steps: int
    attempts: int
    wall_s: float


def physics_env(suite: str, task_id: int, **options: Any) -> Any:
    """Environment of one task that makes no pictures, with soft resets and all 50 initial states.

    Args:
        suite: one of LIBERO's four suites.
        task_id: number of the task.
        **options: of the environment's configuration.
    """
    from lerobot_env_multismolvla.multimodal_env import MultiModalLiberoEnv, get_suite

    class PhysicsOnlyEnv(MultiModalLiberoEnv):
        def _format_raw_obs(self, raw_obs: object) -> dict[str, Any]:
            return {}

    chosen: dict[str, Any] = {"init_split": "all", "hard_reset": False, **options}
    config = MultiSmolVLALiberoConfig(task=suite, **chosen)
    return PhysicsOnlyEnv(get_suite(suite), task_id, suite, **config.suite_kwargs(suite))


def measure_task(config: MeasureConfig, task_id: int, states: Sequence[int]) -> Iterator[MeasuredState]:
    """Measure some states of one task."""
    from lerobot_env_multismolvla.libero_expert.search import LiberoExpert, recording_seed

    env = physics_env(config.suite, task_id, num_steps_wait=config.settle_steps)
    expert = LiberoExpert()
    for state in states:
        begun = time.monotonic()
        env.reset(seed=recording_seed(config.seed, task_id, state), options={"init_state_id": state})
        plan = asdict(expert.reset(env, state))
        wall = round(time.monotonic() - begun, 2)
        yield msgspec.convert(
            {"task": task_id, "name": env.task, "state": state, **plan, "wall_s": wall}, MeasuredState
        )
    env.close()


def _append(config: MeasureConfig, task_id: int, states: Sequence[int]) -> list[MeasuredState]:
    rows = []
    for row in measure_task(config, task_id, states):
        with open(config.output, "ab") as file:  # type: ignore[arg-type]
            file.write(
                msgspec.json.encode(row) + b"\n"
            )  # one short write: lines of several processes do not mix
        rows.append(row)
    return rows


def table(rows: Sequence[MeasuredState]) -> str:
    """Text table of successes per task and over all, with Wilson's 95 % interval."""
    from scipy.stats import binomtest

    lines = [f"{'task':>4}  {'solved':>7}  {'first':>5}  {'steps':>5}  {'wall s':>6}  95 % interval   name"]
    tasks = sorted({row.task for row in rows})
    for group in [*([task] for task in tasks), tasks]:
        chosen = [row for row in rows if row.task in group]
        good = [row for row in chosen if row.solved]
        low, high = binomtest(len(good), len(chosen)).proportion_ci(method="wilson")
        first = sum(not any(row.variants) for row in good)
        steps = sum(row.steps for row in good) / max(1, len(good))
        wall = sum(row.wall_s for row in chosen) / len(chosen)
        label, name = (f"{group[0]:>4}", chosen[0].name) if len(group) == 1 else (" all", "")
        lines.append(
            f"{label}  {len(good):>3}/{len(chosen):<3}  {first:>5}  {steps:>5.0f}  {wall:>6.1f}  "
            f"{low:6.1%} {high:6.1%}   {name}"
        )
        failed = [row.state for row in chosen if not row.solved]
        if failed and len(group) == 1:
            lines.append(f"{'':>6}failed initial states: {failed}")
    return "\n".join(lines)


def measure_missing(config: MeasureConfig) -> list[MeasuredState]:
    """Measure what is not in the output yet; returns all rows that were asked for."""
    assert config.output is not None
    assert config.task_ids is not None
    config.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {"suite": config.suite, "seed": config.seed, "settle_steps": config.settle_steps}
    known: list[MeasuredState] = []
    if config.output.is_file():
        header, *lines = config.output.read_text().splitlines()
        if json.loads(header) != settings:
            raise ValueError(
                f"{config.output} was measured with {header}; choose another --output or delete it."
            )
        known = [msgspec.json.decode(line, type=MeasuredState) for line in lines]
    else:
        config.output.write_text(json.dumps(settings) + "\n")
    states = state_numbers(config.states)
    done = {(row.task, row.state) for row in known}
    left = {t: [s for s in states if (t, s) not in done] for t in config.task_ids}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.workers, mp_context=context) as pool:
        for future in as_completed([pool.submit(_append, config, t, s) for t, s in left.items() if s]):
            known += future.result()
    return [row for row in known if row.task in config.task_ids and row.state in states]


@entry_point("error")
def main() -> int:
    """Entry point; returns the exit code."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    sys.stdout.write(table(measure_missing(parse_options(MeasureConfig))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a run consists of and how long it will take, told without loading a policy or starting a simulator."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla_eval.config import EnvironmentArguments

if TYPE_CHECKING:
    from multismolvla_eval.protocol.levels import Condition
    from multismolvla_eval.protocol.schedule import Episode
    from multismolvla_eval.records.store import Row

#: Seconds of simulation per environment step before anything has been measured, every step rendered in software with all
#: streams: LIBERO's scenes at 256 pixels (0.14 to 0.3 s on two cores; 0.07 s for a policy that looks every 8th step, see
#: benchmarks/README.md), the mini suite at 64. A GPU that renders is several times faster.
NOMINAL_STEP_S = {"multismolvla_mini": 0.04}
NOMINAL_LIBERO_STEP_S = 0.25
#: LeRobot's step limits (lerobot 0.6.1) and cameras; its module of them imports the simulator.
LIBERO_MAX_STEPS = {
    "libero_spatial": 280,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
_LIBERO_TYPES = ("multismolvla_libero", "libero")
_CAMERAS = ["image", "image2"]
#: Stored initial states per task of LIBERO's suites, and those that recording leaves to evaluation.
_LIBERO_STATES = {"all": 50, "eval": 20, "train": 30}


def outline(arguments: EnvironmentArguments) -> dict[str, Any]:
    """Suites with tasks and step limits, and the cameras, as a worker describes them but without its detail.

    LIBERO's own suites are read from the tables of the installed package, which takes milliseconds; other environments
    are made (not started), which takes the seconds that LeRobot takes to import.

    Raises:
        ValueError: unknown suite, type, option or task id.
    """
    options = arguments.options
    plain = set(arguments.suites()) <= LIBERO_MAX_STEPS.keys() and arguments.type in _LIBERO_TYPES
    if not plain or "camera_name" in options:
        from multismolvla_eval.environments import load_sources

        sources = load_sources(arguments)
        suites = {
            n: {"tasks": {str(i): t for i, t in s.tasks.items()}, **s.describe()} for n, s in sources.items()
        }
        return {"suites": suites, "cameras": list(next(iter(sources.values())).cameras)}
    table = _libero_tasks()
    _refuse_unknown_options(arguments)
    split = options.get("init_split", "eval") if arguments.type == "multismolvla_libero" else "all"
    suites = {}
    for name in arguments.suites():
        wanted = range(len(table[name])) if arguments.task_ids is None else arguments.task_ids
        unknown = [i for i in wanted if not 0 <= i < len(table[name])]
        if unknown:
            raise ValueError(
                f"--env.task_ids names task {unknown[0]}; the suite {name!r} has tasks 0 to {len(table[name]) - 1}."
            )
        suites[name] = {
            "tasks": {str(i): table[name][i].replace("_", " ") for i in wanted},
            "max_steps": options.get("episode_length") or LIBERO_MAX_STEPS[name],
            "init_states": _LIBERO_STATES.get(split),
            "init_split": split,
            "faultable": arguments.type == "multismolvla_libero",
        }
    return {"suites": suites, "cameras": _CAMERAS}


def _refuse_unknown_options(arguments: EnvironmentArguments) -> None:
    """Options of LIBERO's types that the run itself would refuse; one that is mistyped would change the forecast, too.

    Raises:
        ValueError: the environment's configuration has no such field, or no such set of initial states.
    """
    lerobot = _package("lerobot") / "envs" / "configs.py"
    known = _fields(lerobot, "EnvConfig")
    if arguments.type == "multismolvla_libero":
        ours = _package("lerobot_env_multismolvla") / "configuration_multismolvla_libero.py"
        known |= _fields(ours, "MultiSmolVLALiberoConfig")
    else:
        known |= _fields(lerobot, "LiberoEnv")
    unknown = sorted(arguments.options.keys() - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known)
        raise ValueError(
            f"--env.options do not fit the environment type {arguments.type!r}: there is no {unknown[0]!r}. "
            + (f"Did you mean {near[0]!r}?" if near else f"Known: {sorted(known)}.")
        )
    split = arguments.options.get("init_split", "eval")
    if split not in sorted(_LIBERO_STATES):
        raise ValueError(f"--env.init_split is {split!r}; expected one of {sorted(_LIBERO_STATES)}.")


def _package(name: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"The package {name} is not installed. Install this project again.")
    return Path(spec.submodule_search_locations[0])


def _fields(file: Path, name: str) -> set[str]:
    """Names of the fields that a dataclass declares in its source."""
    classes = [n for n in ast.parse(file.read_text()).body if isinstance(n, ast.ClassDef) and n.name == name]
    statements = [s for c in classes for s in c.body if isinstance(s, ast.AnnAssign)]
    return {s.target.id for s in statements if isinstance(s.target, ast.Name)}


def _libero_tasks() -> dict[str, list[str]]:
    """Task names per suite from hf-libero's table, without importing the package: that starts the simulator.

    Raises:
        ValueError: hf-libero is not installed or has no such table.
    """
    spec = importlib.util.find_spec("libero")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "libero" / "benchmark" / "libero_suite_task_map.py"
        if not path.is_file():
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "libero_task_map":
                return ast.literal_eval(node.value)
    raise ValueError(
        "LIBERO's table of tasks was not found: the distribution hf-libero (0.1.4) is not installed. Install it with "
        "pip install 'lerobot[libero]'."
    )


def seconds_per_episode(suites: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, tuple[float, bool]]:
    """Per suite the mean time of an episode, and whether it was measured.

    Otherwise it is the simulation of all steps up to the limit, without policy, resets and the expert's search.
    """
    times: dict[str, list[float]] = {name: [] for name in suites}
    for row in rows:
        if row["suite"] in times and "seconds" in row:
            times[row["suite"]].append(row["seconds"]["total"])
    return {
        name: (sum(t) / len(t), True)
        if (t := times[name])
        else (NOMINAL_STEP_S.get(name, NOMINAL_LIBERO_STEP_S) * suite["max_steps"], False)
        for name, suite in suites.items()
    }


def hours(episodes: Mapping[str, int], seconds: Mapping[str, tuple[float, bool]], workers: int) -> float:
    """Time for so many episodes per suite on so many workers."""
    return sum(number * seconds[suite][0] for suite, number in episodes.items()) / workers / 3600


def describe_run(
    facts: dict[str, Any],
    policies: Sequence[str],
    conditions: Sequence[Condition],
    plan: Sequence[Episode],
    todo: Sequence[Episode],
    rows: Sequence[Row],
    workers: int,
    detailed: bool,
) -> list[str]:
    """Lines for the terminal.

    Args:
        facts: suites, cameras.
        policies: names.
        conditions: arms.
        plan: all episodes.
        todo: those that this shard has to run.
        rows: finished ones, which tell how long an episode takes.
        workers: simulator processes of this shard.
        detailed: one line per condition and suite, for ``--dry-run``.
    """
    from multismolvla_eval.protocol.levels import describe

    suites = facts["suites"]
    seconds = seconds_per_episode(suites, rows)
    lines = []
    if detailed:
        width = max(34, *(len(c.id) for c in conditions))
        lines.append(f"{'condition':{width}} {'episodes':>8}  meaning")
        numbers = Counter(e.condition for e in plan)
        lines += [f"{c.id:{width}} {numbers[c.id]:8d}  {describe(c)}" for c in conditions]
        lines += [
            "",
            f"{'suite':{width}} {'episodes':>8} {'tasks':>5} {'steps':>5} {'states':>6} {'hours':>8}",
        ]
        parts = Counter(e.suite for e in plan)
        for name, suite in suites.items():
            lines.append(
                f"{name:{width}} {parts[name]:8d} {len(suite['tasks']):5d} {suite['max_steps']:5d} "
                f"{suite.get('init_states') or '?':>6} {hours({name: parts[name]}, seconds, workers):8.2f}"
            )
        lines.append("")
    lines += state_warnings(suites, plan)
    tasks = sum(len(s["tasks"]) for s in suites.values())
    basis = ", ".join(
        f"{name} {s:.1f} s {'measured' if m else 'assumed'}" for name, (s, m) in seconds.items()
    )
    time = hours(Counter(e.suite for e in todo), seconds, workers)
    left_out = (
        ""
        if all(measured for _, measured in seconds.values())
        else " Assumed is the simulation of all steps up to the limit, every step rendered on the CPU; policies, resets and the "
        "expert's search come on top."
    )
    lines.append(
        f"{len(policies)} policies x {tasks} tasks x {len(conditions)} conditions: {len(plan)} episodes, {len(todo)} of this "
        f"shard missing, about {time:.2f} h with {workers} workers (per episode: {basis}).{left_out}"
    )
    return lines


def state_warnings(suites: Mapping[str, Any], plan: Sequence[Episode]) -> list[str]:
    """A sentence for every suite that has fewer initial states than the plan has episodes of a cell."""
    lines = []
    most: Counter[str] = Counter()
    for episode in plan:
        most[episode.suite] = max(most[episode.suite], episode.episode + 1)
    for name, suite in suites.items():
        states, needed = suite.get("init_states"), most[name]
        if states is not None and needed > states:
            remedy = (
                " --env.options='{init_split: all}' takes all that are stored, also those that recording uses."
                if suite.get("init_split") == "eval" and name in LIBERO_MAX_STEPS
                else ""
            )
            lines.append(
                f"warning: {name} has {states} different initial states per task and the plan asks for {needed} episodes; "
                f"the further ones repeat them with other policy noise.{remedy}"
            )
    return lines

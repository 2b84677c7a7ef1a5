"""``multismolvla-eval``: paired evaluation of LeRobot policies under failing sensors.

Every policy meets the same initial states, environment seeds, noise and faults. Results are appended per episode; the
same command continues an interrupted run and repeats nothing. ``multismolvla-report`` turns the folder into tables.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from multismolvla_eval.config import EvalConfig

if TYPE_CHECKING:
    from multismolvla_eval.conditions import Condition
    from multismolvla_eval.plan import Episode
    from multismolvla_eval.results import Row

logger = logging.getLogger(__name__)

#: For the estimate before anything has been measured [s per environment step].
NOMINAL_STEP_S = 0.04


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry.

    Returns:
        0 when all episodes are done, 2 on an error, 130 after Ctrl-C.
    """
    import draccus

    given = list(sys.argv[1:] if arguments is None else arguments)
    given = ["--dry_run=true" if a == "--dry-run" else a for a in given]
    config = draccus.parse(EvalConfig, args=given)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        config.check()
        evaluate(config, given)
    except KeyboardInterrupt:
        _say("\nInterrupted. Finished episodes are kept; the same command continues.")
        return 130
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def evaluate(config: EvalConfig, command: Sequence[str] = ()) -> None:
    """Run what is missing of an evaluation.

    Args:
        config: checked options.
        command: the command line, recorded in the manifest.

    Raises:
        ResultsError: the output folder holds something else.
        WorkerError: environment or policies cannot be loaded.
        ValueError: unknown condition, level, task or camera.
    """
    from multismolvla.corruption import parse_condition
    from multismolvla_eval.checkpoints import resolve_checkpoint
    from multismolvla_eval.conditions import level_conditions, resolve
    from multismolvla_eval.manifest import build_manifest
    from multismolvla_eval.plan import episodes, remaining
    from multismolvla_eval.pool import WorkerPool
    from multismolvla_eval.results import MANIFEST, ShardWriter, completed, read_rows, run_lock, write_json

    level = level_conditions(config.level)
    texts = level.conditions if config.conditions is None else tuple(config.conditions)
    for text in texts:
        parse_condition(text)  # what can be known before the simulator is started is said before
    for path in config.policy_paths().values():
        if not path.startswith("builtin:"):
            resolve_checkpoint(path)
    shard, shards = config.shard_numbers()
    output = config.output
    _prepare_process_environment()
    with run_lock(output / f"episodes-{shard}of{shards}.lock"):
        pool = WorkerPool(_worker_arguments(config), config.episode_timeout)
        try:
            _say(f"Loading {len(config.policies)} policies and the environment {config.env.task} ...")
            facts = pool.describe()
            conditions = resolve(texts, facts["cameras"])
            clean = config.clean_episodes or (config.episodes if config.episodes else level.clean_episodes)
            count = config.episodes or level.episodes
            if config.env.task_ids is None and level.tasks is not None:
                facts["tasks"] = dict(sorted(facts["tasks"].items(), key=lambda t: int(t[0]))[: level.tasks])
            plan = episodes(
                list(config.policy_paths()), facts["suite"], sorted(map(int, facts["tasks"])), conditions,
                clean, count, config.clips,
            )  # fmt: skip
            manifest = build_manifest(config, facts, conditions, clean, count, command)
            rows = read_rows(output, manifest["fingerprint"])
            todo = remaining(plan, completed(rows), shard, shards)
            _announce(config, plan, todo, rows, facts, conditions)
            if config.dry_run:
                return
            if not todo:
                _say(f"Nothing is missing. Next: multismolvla-report {output}")
                return
            write_json(output / MANIFEST, manifest)
            writer = ShardWriter(output / f"episodes-{shard}of{shards}.jsonl")
            try:
                _run(pool, plan, todo, rows, writer, manifest)
            finally:
                writer.close()
            _say(f"All {len(todo)} missing episodes are done. Next: multismolvla-report {output}")
        finally:
            pool.close()


def _run(
    pool: Any,
    plan: Sequence[Episode],
    todo: Sequence[Episode],
    rows: list[Row],
    writer: Any,
    manifest: dict[str, Any],
) -> None:
    from tqdm import tqdm

    totals = {name: [0, 0] for name in manifest["policies"]}

    def count(row: Row) -> None:
        if row["condition"] == "C0" and row["policy"] in totals:
            totals[row["policy"]][0] += row["success"]
            totals[row["policy"]][1] += 1

    for row in rows:
        count(row)
    shard_total = len(todo)
    with tqdm(total=shard_total, unit="ep", dynamic_ncols=True, smoothing=0.1) as bar:

        def finish(row: Row) -> None:
            stamp = datetime.now(UTC).isoformat(timespec="seconds")
            writer.append({"run": manifest["fingerprint"], **row, "time": stamp})
            count(row)
            clean = ", ".join(f"{n} {k}/{of}" for n, (k, of) in totals.items())
            bar.set_postfix_str(f"clean: {clean}", refresh=False)
            bar.update()

        def crash(episode: Episode, cause: str) -> None:
            bar.write(f"failed: {episode.key}: {cause}")
            finish(_crash_row(episode, cause, manifest["policies"][episode.policy]["checkpoint"]))

        pool.run(todo, finish, crash)


def _crash_row(episode: Episode, cause: str, checkpoint: str) -> Row:
    fields = asdict(episode)
    fields.pop("clip")
    return {
        **fields,
        "checkpoint": checkpoint,
        "init_state": episode.episode,
        "success": False,
        "cause": cause,
        "steps": 0,
        "steps_to_success": None,
        "clip": None,
    }


def _worker_arguments(config: EvalConfig) -> list[Any]:
    from multismolvla_eval.worker import WorkerArguments

    return [
        WorkerArguments(
            number, config.env, config.policy_paths(), config.device, config.seed, config.output.absolute(),
            tuple(config.plugins), dict(config.rename_map),
        )
        for number in range(config.workers)
    ]  # fmt: skip


def _prepare_process_environment() -> None:
    """Thread counts must be set before a library starts, hence in the environment that the workers inherit."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _announce(
    config: EvalConfig,
    plan: Sequence[Episode],
    todo: Sequence[Episode],
    rows: Sequence[Row],
    facts: dict[str, Any],
    conditions: Sequence[Condition],
) -> None:
    from multismolvla_eval.conditions import describe

    if config.dry_run:
        _say(f"{'condition':34} {'episodes':>8}  meaning")
        for condition in conditions:
            number = sum(e.condition == condition.id for e in plan)
            _say(f"{condition.id:34} {number:8d}  {describe(condition)}")
    states = facts["env"].get("init_states")
    if states is not None and max(e.episode for e in plan) >= states:
        _say(
            f"warning: there are {states} different initial states; further episodes repeat them with other policy noise."
        )
    measured = [r["seconds"]["total"] for r in rows if "seconds" in r]
    seconds = sum(measured) / len(measured) if measured else NOMINAL_STEP_S * facts["env"]["max_steps"]
    hours = seconds * len(todo) / config.workers / 3600
    basis = f"measured {seconds:.1f} s" if measured else f"assumed {seconds:.1f} s"
    _say(
        f"{len(config.policies)} policies x {len(facts['tasks'])} tasks x {len(conditions)} conditions: {len(plan)} "
        f"episodes, {len(todo)} of this shard missing, about {hours:.2f} h ({basis} per episode, {config.workers} workers)."
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

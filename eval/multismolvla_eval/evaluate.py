"""``multismolvla-eval``: paired evaluation of LeRobot policies under failing sensors.

Every policy meets the same initial states, environment seeds, noise and faults. Results are appended per episode; the
same command continues an interrupted run and repeats nothing. ``multismolvla-report`` turns the folder into tables.

A matrix of policies, conditions and suites can stand in a YAML file with the options' names; options on the command line
override it: ``multismolvla-eval --config_path=configs/eval/standard.yaml --workers=8``. To use several machines or GPUs,
start the command once per part with ``--shard=i/n`` and a shared ``--output`` (in a job array
``--shard=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT``), or let a launcher start the processes:
``accelerate launch --multi_gpu --num_processes=4 -m multismolvla_eval.evaluate --config_path=...``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from multismolvla.system.command import entry_point
from multismolvla.system.files import write_json
from multismolvla_eval.config import EvalConfig

if TYPE_CHECKING:
    from multismolvla_eval.protocol.schedule import Counts, Episode
    from multismolvla_eval.records.store import Row

logger = logging.getLogger(__name__)


@entry_point(
    "error", errors=(ValueError, OSError, RuntimeError, ModuleNotFoundError), failure=2, loads="lerobot"
)
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry.

    Returns:
        0 when all episodes are done, 2 on an error, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        config = parse(given)
        config.check()
        evaluate(config, given)
    except KeyboardInterrupt:
        _say("\nInterrupted. Finished episodes are kept; the same command continues.")
        return 130
    return 0


def parse(arguments: Sequence[str]) -> EvalConfig:
    """Options from the command line and, with ``--config_path``, from a YAML file below it.

    Raises:
        ValueError: the file cannot be read, or holds an option that does not exist; the message names both.
    """
    import draccus
    import yaml

    bare = {"--dry-run": "--dry_run=true"}
    if not any(a == "--view" and not b.startswith("-") for a, b in pairwise(arguments)):
        bare["--view"] = "--view=viewer"
    given = [bare.get(a, a) for a in arguments]
    path = next((a.partition("=")[2] for a in given if a.startswith("--config_path=")), "the command line")
    try:
        return draccus.parse(EvalConfig, args=given)
    except (draccus.utils.DraccusException, yaml.YAMLError) as error:
        raise ValueError(
            f"{path} cannot be read: {error}. Its entries are the options of multismolvla-eval --help."
        ) from error


@dataclass(frozen=True)
class _Level:
    """What a level means together with the options that override it."""

    conditions: tuple[str, ...]
    counts: Counts
    tasks: int | None


def _settle(config: EvalConfig) -> _Level:
    """Look up the level and check what can be known before anything is loaded."""
    from multismolvla.corruption import parse_condition
    from multismolvla_eval.policies.checkpoints import checkpoint_path, resolve_checkpoint
    from multismolvla_eval.protocol.levels import level_conditions
    from multismolvla_eval.protocol.schedule import Counts

    level = level_conditions(config.level)
    texts = level.conditions if config.conditions is None else tuple(config.conditions)
    for text in texts:
        parse_condition(text)
    for checkpoint in dict.fromkeys(checkpoint_path(path) for path in config.policy_paths().values()):
        try:
            found = None if checkpoint is None else resolve_checkpoint(checkpoint)
            if config.dry_run and found is not None and not os.path.isdir(found):
                _say(f"{checkpoint} is no folder here and is taken for a hub id.")
        except FileNotFoundError:
            if not config.dry_run:  # which is asked before training, too
                raise
            _say(f"warning: there is no policy under {checkpoint} yet.")
    counts = Counts(
        config.clean_episodes or config.episodes or level.clean_episodes,
        config.episodes or level.episodes,
        config.clean_seeds or level.clean_seeds,
    )
    return _Level(texts, counts, level.tasks if config.env.task_ids is None else None)


def evaluate(config: EvalConfig, command: Sequence[str] = ()) -> None:
    """Run what is missing of an evaluation.

    Args:
        config: checked options.
        command: the command line, recorded in the manifest.

    Raises:
        ResultsError: the output folder holds something else, or another process works on it in the same or in another
            number of parts.
        WorkerError: environment or policies cannot be loaded, or stop working in the middle.
        ValueError: unknown condition, level, suite, task or camera.
    """
    from multismolvla_eval.offline.diagnose import diagnose_first
    from multismolvla_eval.records.shards import locate_shard, refuse_other_divisions, shard_name, share_gpus
    from multismolvla_eval.records.store import run_lock
    from multismolvla_eval.rollout.pool import WorkerPool

    shard, shards = locate_shard(config.shard, os.environ)
    level = _settle(config)
    if config.dry_run:
        _forecast(config, level, shard, shards)
        return
    _prepare_process_environment()
    share_gpus(os.environ)
    with run_lock(config.output / f"{shard_name(shard, shards)}.lock"):
        refuse_other_divisions(config.output, shards)
        if config.diagnose is not None and shard == 0:
            diagnose_first(config)
        pool = WorkerPool(_worker_arguments(config, shard), config.episode_timeout, config.load_timeout)
        try:
            _say(f"Loading {len(config.policies)} policies and the environment {config.env.task} ...")
            _evaluate(config, level, command, pool, shard, shards)
        finally:
            pool.close()


def _evaluate(
    config: EvalConfig, level: _Level, command: Sequence[str], pool: Any, shard: int, shards: int
) -> None:
    from multismolvla_eval.forecast import describe_run
    from multismolvla_eval.protocol.levels import refuse_unfaultable, resolve
    from multismolvla_eval.protocol.schedule import remaining
    from multismolvla_eval.records.manifest import build_manifest
    from multismolvla_eval.records.shards import shard_name
    from multismolvla_eval.records.store import (
        MANIFEST,
        ShardWriter,
        completed,
        crashed,
        manifest_lock,
        read_rows,
    )

    facts = _first_tasks(pool.describe(), level.tasks)
    conditions = resolve(level.conditions, facts["cameras"])
    refuse_unfaultable(conditions, facts["suites"])
    plan = _plan(config, level, facts, conditions)
    with manifest_lock(config.output):
        manifest = build_manifest(config, facts, conditions, level.counts, command)
        rows = read_rows(config.output, manifest["fingerprint"], manifest)
        todo = remaining(plan, completed(rows), shard, shards)
        if todo:
            write_json(config.output / MANIFEST, manifest)
    names = list(config.policy_paths())
    for line in describe_run(facts, names, conditions, plan, todo, rows, config.workers, detailed=False):
        _say(line)
    if not todo:
        _say(f"Nothing is missing. Next: multismolvla-report {config.output}")
        return
    writer = ShardWriter(config.output / f"{shard_name(shard, shards)}.jsonl")
    finished = completed(r for r in rows if not crashed(r))
    proven = next((e for e in plan if e.key in finished), None)
    try:
        _run(pool, todo, proven, rows, writer, manifest)
    finally:
        writer.close()
    _say(f"All {len(todo)} missing episodes are done. Next: multismolvla-report {config.output}")


def _forecast(config: EvalConfig, level: _Level, shard: int, shards: int) -> None:
    """``--dry-run``: cells, episodes and hours, from tables and from what the output folder already holds."""
    from multismolvla_eval.forecast import describe_run, outline
    from multismolvla_eval.protocol.levels import refuse_unfaultable, resolve
    from multismolvla_eval.protocol.schedule import remaining
    from multismolvla_eval.records.store import completed

    facts = _first_tasks(outline(config.env), level.tasks)
    rows = _earlier_rows(config, facts)
    conditions = resolve(level.conditions, facts["cameras"])
    refuse_unfaultable(conditions, facts["suites"])
    plan = _plan(config, level, facts, conditions)
    todo = remaining(plan, completed(rows), shard, shards)
    names = list(config.policy_paths())
    for line in describe_run(facts, names, conditions, plan, todo, rows, config.workers, detailed=True):
        _say(line)


def _earlier_rows(config: EvalConfig, facts: dict[str, Any]) -> list[Row]:
    """What the output folder holds of this run, and a line that says whether the run would be continued.

    Raises:
        ResultsError: the folder holds something else, for the reasons for which the run itself would refuse it.
    """
    from multismolvla_eval.policies.checkpoints import policy_hash
    from multismolvla_eval.records.manifest import comparable, earlier_manifest, refuse_another_run
    from multismolvla_eval.records.store import read_run

    old = earlier_manifest(config.output)
    if old is None:
        _say(f"{config.output} holds no run yet: a new one would begin there.")
        return []
    hashes = {}
    for name in old["policies"].keys() & config.policy_paths().keys():
        try:
            hashes[name] = {"checkpoint": policy_hash(config.policy_paths()[name])}
        except FileNotFoundError:
            continue  # _settle() has said so, or it is on the hub and not here
    new = {"comparable": comparable(config), "policies": hashes, "suites": facts["suites"]}
    refuse_another_run(config.output, old, new)
    rows = read_run(config.output)[1]
    _say(
        f"{config.output} holds this run ({old['fingerprint']}) with {len(rows)} episodes: it would be continued."
    )
    return rows


def _first_tasks(facts: dict[str, Any], number: int | None) -> dict[str, Any]:
    """The facts with only the first so many tasks of each suite; all of them for ``None``."""
    suites = {}
    for name, suite in facts["suites"].items():
        tasks = sorted(suite["tasks"].items(), key=lambda t: int(t[0]))
        suites[name] = {**suite, "tasks": dict(tasks[:number])}
    return {**facts, "suites": suites}


def _plan(config: EvalConfig, level: _Level, facts: dict[str, Any], conditions: Any) -> list[Episode]:
    from multismolvla_eval.protocol.schedule import episodes

    tasks = {name: [int(i) for i in suite["tasks"]] for name, suite in facts["suites"].items()}
    return episodes(
        list(config.policy_paths()), tasks, conditions, level.counts, config.clips, config.clean_only
    )


def _run(
    pool: Any,
    todo: Sequence[Episode],
    proven: Episode | None,
    rows: list[Row],
    writer: Any,
    manifest: dict[str, Any],
) -> None:
    from tqdm import tqdm

    from multismolvla_eval.records.shards import speaks
    from multismolvla_eval.records.store import worlds

    totals = {name: [0, 0] for name in manifest["policies"]}
    world = worlds(manifest)

    def count(row: Row) -> None:
        if row["condition"] == "C0" and row["policy"] in totals:
            totals[row["policy"]][0] += row["success"]
            totals[row["policy"]][1] += 1

    for row in rows:
        count(row)
    silent = not speaks(os.environ)
    with tqdm(total=len(todo), unit="ep", dynamic_ncols=True, smoothing=0.1, disable=silent) as bar:

        def finish(row: Row) -> None:
            stamp = datetime.now(UTC).isoformat(timespec="seconds")
            writer.append(
                {"run": manifest["fingerprint"], "world": world[row["suite"]], **row, "time": stamp}
            )
            count(row)
            clean = ", ".join(f"{n} {k}/{of}" for n, (k, of) in totals.items())
            bar.set_postfix_str(f"clean: {clean}", refresh=False)
            bar.update()

        def crash(episode: Episode, cause: str) -> None:
            bar.write(f"failed: {episode.key}: {cause}")
            finish(_crash_row(episode, cause, manifest["policies"][episode.policy]["checkpoint"]))

        pool.run(todo, finish, crash, proven)


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
        "fault_steps": None,
        "first_fault_step": None,
        "actions": None,
        "clip": None,
    }


def _worker_arguments(config: EvalConfig, shard: int) -> list[Any]:
    from multismolvla_eval.policies.messages import WorkerArguments

    first = shard * config.workers  # numbers name the logs, and shards may share the folder
    return [
        WorkerArguments(
            number, config.env, config.policy_paths(), config.device, config.seed, config.output.absolute(),
            tuple(config.plugins), {name: config.rename_map_of(name) for name in config.policy_paths()},
            config.batch_size, view=config.view if number == first else None,
        )
        for number in range(first, first + config.workers)
    ]  # fmt: skip


def _prepare_process_environment() -> None:
    """Thread counts must be set before a library starts, hence in the environment that the workers inherit."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _say(text: str) -> None:
    from multismolvla_eval.records.shards import speaks

    if speaks(os.environ):
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

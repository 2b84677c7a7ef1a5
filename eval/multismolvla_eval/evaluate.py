"""``multismolvla-eval``: paired evaluation of LeRobot policies under failing sensors.

Every policy meets the same initial states, environment seeds, noise and faults. Results are appended per
episode; the same command continues an interrupted run and repeats nothing. ``multismolvla-report`` turns the
folder into tables.

A matrix of policies, conditions and suites can stand in a YAML file with the options' names; options on the
command line override it: ``multismolvla-eval --config_path=configs/eval/standard.yaml --workers=8``. To use
several machines or GPUs, start the command once per part with ``--shard=i/n`` and a shared ``--output`` (in a
job array ``--shard=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT``), or let a launcher start the processes:
``accelerate launch --multi_gpu --num_processes=4 -m multismolvla_eval.evaluate --config_path=...``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING

from filelock import FileLock
from msgspec.structs import replace as replace_fields

from multismolvla.corruption import Condition, parse_condition
from multismolvla.system.command import entry_point, parse_options
from multismolvla_eval.config import VIEWER, EvalConfig
from multismolvla_eval.forecast import detailed_lines, summary_lines
from multismolvla_eval.policies.checkpoints import (
    builtin_identity,
    checkpoint_path,
    policy_hash,
    resolve_checkpoint,
)
from multismolvla_eval.protocol.levels import Level, level_conditions, refuse_unfaultable, resolve
from multismolvla_eval.protocol.schedule import EpisodeSpec, episodes, remaining
from multismolvla_eval.records.manifest import (
    build_manifest,
    comparable,
    earlier_manifest,
    refuse_another_run,
)
from multismolvla_eval.records.reach import can_meet
from multismolvla_eval.records.schema import EpisodeRow, PolicyFacts, RunManifest, SuiteFacts
from multismolvla_eval.records.shards import (
    locate_shard,
    refuse_other_divisions,
    shard_name,
    share_gpus,
    speaks,
)
from multismolvla_eval.records.store import (
    ShardWriter,
    completed,
    iterate_rows,
    run_lock,
    write_manifest,
)

if TYPE_CHECKING:
    from multismolvla_eval.rollout.pool import WorkerPool


@entry_point(
    "error",
    errors=(ValueError, OSError, RuntimeError, ModuleNotFoundError),
    failure=2,
    interrupted="Interrupted. Finished episodes are kept; the same command continues.",
    loads="lerobot",
)
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry.

    Returns:
        0 when all episodes are done, 2 on an error, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    config = parse(given)
    config.check()
    evaluate(config, given)
    return 0


def parse(arguments: Sequence[str]) -> EvalConfig:
    """Options from the command line and, with ``--config_path``, from a YAML file below it.

    Raises:
        ValueError: the file cannot be read, or an option does not exist or has a wrong value.
    """
    words = list(arguments)
    for place, (word, following) in enumerate(zip(arguments, [*arguments[1:], "--"], strict=False)):
        if word == "--view" and following.startswith("-"):
            words[place] = f"--view={VIEWER}"
    return parse_options(EvalConfig, words)


def evaluate(config: EvalConfig, command: Sequence[str] = ()) -> None:
    """Run what is missing of an evaluation.

    Args:
        config: checked options.
        command: the command line, recorded in the manifest.

    Raises:
        ResultsError: the output folder holds something else, or another process works on it in the same or in
            another number of parts.
        WorkerError: environment or policies cannot be loaded, or episodes crash one after the other.
        ValueError: unknown condition, level, suite, task or camera.
    """
    shard, shards = locate_shard(config.shard, os.environ)
    level = _settle(config)
    _prepare_process_environment()
    if config.dry_run:
        _forecast(config, level, shard, shards)
        return
    share_gpus(os.environ)
    with run_lock(config.output / f"{shard_name(shard, shards)}.lock"):
        refuse_other_divisions(config.output, shards)
        if config.diagnose is not None and shard == 0:
            from multismolvla_eval.offline.sensor_use_check import check_first

            check_first(config)
        _say(f"Loading {len(config.policies)} policies and the environment {config.env.task} ...")
        from multismolvla_eval.rollout.pool import WorkerPool

        pool = WorkerPool(config, shard)
        try:
            _evaluate(config, level, command, pool, shard, shards)
        finally:
            pool.close()


def _settle(config: EvalConfig) -> Level:
    """The level with the options that override it; checks what can be known before anything is loaded."""
    level = level_conditions(config.level)
    conditions = level.conditions if config.conditions is None else tuple(config.conditions)
    attacks = [text for text in conditions if parse_condition(text).attack]
    if attacks and config.batch_size > 1:
        raise ValueError(
            f"{attacks[0]} asks the policy itself before each look, and with "
            f"--batch_size={config.batch_size} the simulators have no weights. Run attacks and random signs "
            "(C6) with --batch_size=1, the other conditions in a run of their own."
        )
    for path in dict.fromkeys(checkpoint_path(path) or path for path in config.policy_paths().values()):
        try:
            if path.startswith("builtin:"):
                builtin_identity(path)  # a replay needs its recording
            elif not os.path.isdir(resolve_checkpoint(path)) and config.dry_run:
                _say(f"{path} is no folder here and is taken for a hub id.")
        except FileNotFoundError:
            if not config.dry_run:  # which is asked before training, too
                raise
            _say(f"warning: there is no policy under {path} yet.")
    return replace(
        level,
        conditions=conditions,
        clean_episodes=config.clean_episodes or config.episodes or level.clean_episodes,
        episodes=config.episodes or level.episodes,
        clean_repeats=config.clean_repeats or level.clean_repeats,
        tasks=level.tasks if config.env.task_ids is None else None,
    )


def _evaluate(
    config: EvalConfig, level: Level, command: Sequence[str], pool: WorkerPool, shard: int, shards: int
) -> None:
    facts = pool.load()
    facts.suites = _first_tasks(facts.suites, level.tasks)
    conditions, plan = _plan(config, level, facts.suites, facts.cameras, facts.policies)
    with FileLock(config.output / "run.lock"):  # shards that start together must not lose each other's part
        manifest = build_manifest(config, facts, conditions, level.counts, command)
        rows = list(iterate_rows(config.output, manifest))
        todo = remaining(plan, completed(rows), shard, shards)
        if todo:
            write_manifest(config.output, manifest)
    _say(*summary_lines(facts.suites, plan, todo, rows, config.workers))
    if not todo:
        _say(f"Nothing is missing. Next: multismolvla-report {config.output}")
        return
    writer = ShardWriter(config.output / f"{shard_name(shard, shards)}.jsonl")
    try:
        _run(pool, plan, todo, rows, writer, manifest)
    finally:
        writer.close()
    _say(f"All {len(todo)} missing episodes are done. Next: multismolvla-report {config.output}")


def _forecast(config: EvalConfig, level: Level, shard: int, shards: int) -> None:
    """``--dry_run``: cells, episodes and hours; loads the environment, no policy, and starts no simulator."""
    _say(f"Loading the environment {config.env.task} ...")
    for module in config.plugins:
        import_module(module)
    from multismolvla_eval.environments import load_sources

    with contextlib.redirect_stdout(sys.stderr):  # LIBERO prints
        sources = load_sources(config.env, to_run=False)
    suites = _first_tasks({name: source.facts() for name, source in sources.items()}, level.tasks)
    rows = _earlier_rows(config, suites)
    conditions, plan = _plan(config, level, suites, next(iter(sources.values())).cameras)
    todo = remaining(plan, completed(rows), shard, shards)
    _say(*detailed_lines(suites, conditions, plan, rows, config.workers))
    _say(*summary_lines(suites, plan, todo, rows, config.workers))


def _earlier_rows(config: EvalConfig, suites: Mapping[str, SuiteFacts]) -> list[EpisodeRow]:
    """What the output folder holds of this run, and a line that says whether the run would be continued."""
    old = earlier_manifest(config.output)
    if old is None:
        _say(f"{config.output} holds no run yet: a new one would begin there.")
        return []
    checkpoints = {}
    for name, path in config.policy_paths().items():
        # _settle() has said that it is missing, or it is on the hub and not here
        with contextlib.suppress(FileNotFoundError):
            checkpoints[name] = policy_hash(path)
    known = {name: suite for name, suite in suites.items() if name in old.suites}
    # on a machine without LIBERO's assets the run would be refused anyway
    known = {k: replace_fields(s, assets=s.assets or old.suites[k].assets) for k, s in known.items()}
    refuse_another_run(config.output, old, comparable(config), checkpoints, known)
    rows = list(iterate_rows(config.output, old))
    found = f"holds this run ({old.fingerprint}) with {len(rows)} episodes"
    _say(f"{config.output} {found}: it would be continued.")
    return rows


def _first_tasks(suites: Mapping[str, SuiteFacts], number: int | None) -> dict[str, SuiteFacts]:
    """The suites with only their first so many tasks; with all of them for ``None``."""
    return {
        name: replace_fields(suite, tasks=dict(sorted(suite.tasks.items())[:number]))
        for name, suite in suites.items()
    }


def _plan(
    config: EvalConfig,
    level: Level,
    suites: Mapping[str, SuiteFacts],
    cameras: Sequence[str],
    loaded: Mapping[str, PolicyFacts] | None = None,
) -> tuple[Sequence[Condition], list[EpisodeSpec]]:
    """Conditions and all episodes; once the policies are ``loaded``, without those that they cannot meet.

    Raises:
        ValueError: a condition does not fit the cameras, a suite cannot be seen through its faults, or a
            condition that was asked for by name would change nothing in it.
    """
    conditions = resolve(level.conditions, cameras)
    refuse_unfaultable(conditions, [name for name, suite in suites.items() if not suite.faultable])
    for streams in (suite.streams for suite in suites.values()):
        if config.conditions is None:  # a level's are the same for all environments
            idle = [c for c in conditions if c.undelivered(streams)]
            conditions = tuple(c for c in conditions if c not in idle)
            if idle:
                texts = ", ".join(c.id for c in idle)
                _say(f"Left out, as the environment delivers {', '.join(streams)} alone: {texts}.")
        for condition in conditions:
            condition.check_delivered(streams)
    tasks = {name: list(suite.tasks) for name, suite in suites.items()}
    policies = list(config.policy_paths())
    plan = episodes(policies, tasks, conditions, level.counts, config.clips, config.clean_only)
    known = (loaded or {}).items()
    left_out = {(name, c.id) for name, facts in known for c in conditions if not can_meet(facts, c.id)}
    for name in [name for name in policies if name not in config.clean_only]:
        texts = ", ".join(c.id for c in conditions if (name, c.id) in left_out)
        if texts:
            _say(f"{name} is left out of {texts}: no such attack on it is possible.")
    return conditions, [e for e in plan if (e.policy, e.condition) not in left_out]


def _run(
    pool: WorkerPool,
    plan: Sequence[EpisodeSpec],
    todo: Sequence[EpisodeSpec],
    rows: Sequence[EpisodeRow],
    writer: ShardWriter,
    manifest: RunManifest,
) -> None:
    """Run episodes, write their rows and show the progress."""
    from tqdm import tqdm

    clean: dict[str, list[bool]] = {name: [] for name in manifest.policies}
    for row in rows:
        if row.condition == "C0":
            clean[row.policy].append(row.success)
    finished = {row.key for row in rows if not row.crashed}
    proven = next((episode for episode in plan if episode.key in finished), None)
    silent = not speaks(os.environ)
    with tqdm(total=len(todo), unit="ep", dynamic_ncols=True, smoothing=0.1, disable=silent) as bar:
        for row in pool.run(todo, proven):
            row.run, row.suite_hash = manifest.fingerprint, manifest.suites[row.suite].suite_hash
            row.time = datetime.now(UTC).isoformat(timespec="seconds")
            writer.append(row)
            if row.crashed:
                bar.write(f"failed: {row.key}: {row.cause}")
            if row.condition == "C0":
                clean[row.policy].append(row.success)
            scores = ", ".join(f"{name} {sum(solved)}/{len(solved)}" for name, solved in clean.items())
            bar.set_postfix_str(f"clean: {scores}", refresh=False)
            bar.update()


def _prepare_process_environment() -> None:
    """Thread counts must be set before a library starts: in the environment that the workers inherit."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _say(*lines: str) -> None:
    if speaks(os.environ):
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

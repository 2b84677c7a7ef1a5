"""The manifest of a run: what makes its episodes comparable, and what they were made with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from msgspec import UNSET
from msgspec.structs import asdict, replace

from multismolvla.corruption import CORRUPTION_VERSION, Condition
from multismolvla.system.versions import package_versions
from multismolvla_eval.config import EvalConfig
from multismolvla_eval.protocol.levels import LEVELS
from multismolvla_eval.protocol.schedule import Counts
from multismolvla_eval.records.schema import (
    SCHEMA,
    Comparable,
    MadeWith,
    RunFacts,
    RunManifest,
    SuiteFacts,
    SuiteRecord,
)
from multismolvla_eval.records.store import (
    MANIFEST,
    SHARD_PATTERN,
    ResultsError,
    comparable_hash,
    read_manifest,
)
from multismolvla_eval.records.system_info import hardware, source_commit

#: What two episodes of a suite must share to be compared. All else that an environment tells is for the
#: reader.
COMPARED = (
    "type", "max_steps", "assets", "labels", "init_split", "render_quality", "num_steps_wait", "mini_version",
)  # fmt: skip


def build_manifest(
    config: EvalConfig,
    facts: RunFacts,
    conditions: Sequence[Condition],
    counts: Counts,
    command: Sequence[str],
) -> RunManifest:
    """The manifest of a new run, or of the one in the output folder, extended by what this call adds.

    Args:
        config: options.
        facts: what environments and policies tell of themselves.
        conditions: of this call.
        counts: episodes per task.
        command: the command line.

    Raises:
        ResultsError: the folder holds another run, a suite of that name with other assets or limits, or a
            policy of that name with another checkpoint.
    """
    parts = comparable(config)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    complete = config.env.task_ids is None and LEVELS[config.level].tasks is None
    manifest = RunManifest(
        schema=SCHEMA,
        fingerprint=comparable_hash(parts),
        comparable=parts,
        created=now,
        level=config.level if config.conditions is None else "custom",
        suites={
            name: SuiteRecord(**asdict(suite), suite_hash=suite_hash(suite), complete=complete)
            for name, suite in facts.suites.items()
        },
        cameras=facts.cameras,
        policies=facts.policies,
        baseline=config.baseline_name(),
        conditions=[c.id for c in conditions],
        clean_only=config.clean_only,
        clean_episodes=counts.clean_episodes,
        episodes=counts.episodes,
        clean_repeats=counts.clean_repeats,
        workers=config.workers,
        calls=[MadeWith(now, package_versions(), source_commit(), hardware())],
        commands=[list(command)],
        remarks=config.note,
        rename_map=config.rename_map,
        plugins=config.plugins,
        device=config.device,
        estimator_sources=config.estimator_sources,
        episode_timeout=config.episode_timeout,
    )
    old = earlier_manifest(config.output)
    if old is None:
        return manifest
    checkpoints = {name: policy.checkpoint for name, policy in facts.policies.items()}
    refuse_another_run(config.output, old, parts, checkpoints, facts.suites)
    return _continue(old, manifest)


def comparable(config: EvalConfig) -> Comparable:
    """What all episodes of a run share; two calls that differ in it are two runs."""
    return Comparable(
        SCHEMA,
        config.env.type,
        config.env.options,
        config.seed,
        CORRUPTION_VERSION,
        config.batch_size,
        config.missing_estimator or UNSET,
    )


def earlier_manifest(folder: Path) -> RunManifest | None:
    """The manifest in an output folder, ``None`` in a new one.

    Raises:
        ResultsError: it is damaged, or there are results without one.
    """
    if (folder / MANIFEST).exists():
        return read_manifest(folder)
    if any(folder.glob(SHARD_PATTERN)):
        raise ResultsError(f"{folder} has result files but no {MANIFEST}. Choose another --output.")
    return None


def suite_hash(suite: SuiteFacts) -> str:
    """Hash of what makes a suite's episodes comparable; every row carries it."""
    return comparable_hash({k: getattr(suite, k) for k in COMPARED})


def refuse_another_run(
    folder: Path,
    old: RunManifest,
    parts: Comparable,
    checkpoints: Mapping[str, str],
    suites: Mapping[str, SuiteFacts],
) -> None:
    """See that a call continues the run in its output folder and does not mix two.

    Args:
        folder: for messages.
        old: the manifest there.
        parts: what the call's episodes would share.
        checkpoints: of the call's policies, by name, as far as they are known.
        suites: of the call, by name.

    Raises:
        ResultsError: it is another run, or a policy or a suite of it has changed.
    """
    if old.fingerprint != comparable_hash(parts):
        differing = _differing(old.comparable, parts, Comparable.__struct_fields__)
        raise ResultsError(
            f"{folder} holds another run ({old.fingerprint}, now {comparable_hash(parts)}): {differing}. "
            "Choose another --output, or the old options to continue it."
        )
    for name, policy in old.policies.items():
        if checkpoints.get(name, policy.checkpoint) != policy.checkpoint:
            raise ResultsError(
                f"Policy {name!r} has changed since this run began (checkpoint {policy.checkpoint}, now "
                f"{checkpoints[name]}). Give it another name or choose another --output."
            )
    for name in old.suites.keys() & suites.keys():
        if differing := _differing(old.suites[name], suites[name], COMPARED):
            raise ResultsError(
                f"The suite {name!r} has changed since this run began: {differing}. Choose another --output, "
                "or bring back what it was."
            )


def _differing(old: object, new: object, names: Iterable[str]) -> str:
    """What differs, with both values; empty if nothing does."""
    values = [(k, getattr(old, k), getattr(new, k)) for k in names]
    return "; ".join(f"{k} {before!r}, now {now!r}" for k, before, now in values if before != now)[:300]


def _continue(old: RunManifest, new: RunManifest) -> RunManifest:
    """``new`` with what ``old`` had; suites, tasks, conditions, policies and episodes may be added to a run.

    A call with fewer episodes takes none away, and one from another machine or commit does not hide earlier
    ones.
    """

    def union(name: str) -> list[str]:
        return list(dict.fromkeys((*getattr(old, name), *getattr(new, name))))

    stay_clean = [
        name
        for name in union("clean_only")
        if all(name in m.clean_only for m in (old, new) if name in m.policies)
    ]
    return replace(
        new,
        created=old.created,
        suites=old.suites | {name: _with_tasks(old.suites.get(name), s) for name, s in new.suites.items()},
        policies=old.policies | new.policies,
        conditions=union("conditions"),
        clean_only=stay_clean,
        clean_episodes=max(old.clean_episodes, new.clean_episodes),
        episodes=max(old.episodes, new.episodes),
        clean_repeats=max(old.clean_repeats, new.clean_repeats),
        calls=old.calls + new.calls,
        commands=old.commands + [c for c in new.commands if c not in old.commands],
        remarks=union("remarks"),
        rename_map=old.rename_map | new.rename_map,
        estimator_sources=old.estimator_sources | new.estimator_sources,
        plugins=union("plugins"),
    )


def _with_tasks(old: SuiteRecord | None, new: SuiteRecord) -> SuiteRecord:
    """A suite with the tasks that earlier calls ran; complete if any call ran all of them."""
    if old is None:
        return new
    return replace(new, tasks=old.tasks | new.tasks, complete=old.complete or new.complete)

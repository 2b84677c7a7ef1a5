"""The manifest of a run: what makes its episodes comparable, and what they were made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from multismolvla.corruption import CORRUPTION_VERSION, Condition
from multismolvla_eval.config import EvalConfig
from multismolvla_eval.protocol.levels import LEVELS
from multismolvla_eval.protocol.schedule import Counts
from multismolvla_eval.records.store import (
    MANIFEST,
    SCHEMA,
    SHARD_PATTERN,
    ResultsError,
    fingerprint,
    read_manifest,
)
from multismolvla_eval.records.system_info import hardware, package_versions, source_commit

#: What two episodes of a suite must share to be compared. Everything else that a source says is for the reader.
WORLD = (
    "type",
    "max_steps",
    "assets",
    "labels",
    "init_split",
    "render_quality",
    "num_steps_wait",
    "mini_version",
)
#: What all suites of a run have in common, said once.
SHARED = ("type", "fps", "streams", "provenance")


def build_manifest(
    config: EvalConfig,
    facts: dict[str, Any],
    conditions: Sequence[Condition],
    counts: Counts,
    command: Sequence[str],
) -> dict[str, Any]:
    """The manifest of a new run, or of the one in the output folder, extended by what this call adds.

    Args:
        config: options.
        facts: a worker's description of suites and policies.
        conditions: of this call.
        counts: episodes per task.
        command: the command line.

    Raises:
        ResultsError: the folder holds another run, a suite of that name with other assets or limits, or a policy of
            that name with another checkpoint.
    """
    parts = comparable(config)
    complete = config.env.task_ids is None and LEVELS[config.level].tasks is None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    made_with = {"versions": package_versions(), "commit": source_commit(), "hardware": hardware()}
    manifest = {
        "schema": SCHEMA,
        "fingerprint": fingerprint(parts),
        "comparable": parts,
        "created": now,
        "level": config.level if config.conditions is None else "custom",
        "suites": {
            name: {**suite, "world": world(suite), "complete": complete}
            for name, suite in facts["suites"].items()
        },
        "cameras": facts["cameras"],
        "env": {k: v for k, v in next(iter(facts["suites"].values())).items() if k in SHARED},
        "policies": facts["policies"],
        "baseline": config.baseline_name(),
        "conditions": [c.id for c in conditions],
        "clean_only": [*config.clean_only],
        **asdict(counts),
        "seed": config.seed,
        "workers": config.workers,
        **made_with,
        "provenance": [{"time": now, **made_with}],
        "commands": [list(command)],
        "remarks": list(config.note),
        "rename_map": config.rename_map,
        "plugins": list(config.plugins),
        "device": config.device,
        "episode_timeout": config.episode_timeout,
    }
    old = earlier_manifest(config.output)
    if old is None:
        return manifest
    refuse_another_run(config.output, old, manifest)
    return _continue(old, manifest)


def comparable(config: EvalConfig) -> dict[str, Any]:
    """What all episodes of a run have in common; two calls that differ in it are two runs.

    The batch size belongs to it: matrix products round differently in batches of another size, so an episode would depend
    on the call in which it was made. It is left out where it is 1, so that runs from before there were batches can be
    continued.
    """
    return {
        "schema": SCHEMA,
        "env": {"type": config.env.type, "options": config.env.options},
        "seed": config.seed,
        "corruption_version": CORRUPTION_VERSION,
        **({"batch_size": config.batch_size} if config.batch_size > 1 else {}),
    }


def earlier_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest in an output folder, ``None`` in a new one.

    Raises:
        ResultsError: it is damaged, or there are results without one.
    """
    if (folder / MANIFEST).exists():
        return read_manifest(folder)
    if any(folder.glob(SHARD_PATTERN)):
        raise ResultsError(f"{folder} has result files but no {MANIFEST}. Choose another --output.")
    return None


def world(suite: dict[str, Any]) -> str:
    """Hash of what makes a suite's episodes comparable; every row carries it."""
    return fingerprint({k: suite.get(k) for k in WORLD})


def refuse_another_run(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """See that a call continues the run in its output folder and does not mix two.

    Args:
        folder: for messages.
        old: the manifest there.
        new: this call's, or as much as is known of it: ``comparable``, ``policies`` with their checkpoints, ``suites``.

    Raises:
        ResultsError: it is another run, or a policy or a suite of it has changed.
    """
    before, parts = old.get("comparable", {}), new["comparable"]
    if old["fingerprint"] != fingerprint(parts):
        differing = [k for k in dict.fromkeys((*parts, *before)) if before.get(k) != parts.get(k)]
        raise ResultsError(
            f"{folder} holds another run ({old['fingerprint']}, now {fingerprint(parts)}): {differing} differ. "
            "Choose another --output, or the old options to continue it."
        )
    for name, policy in old["policies"].items():
        now = new["policies"].get(name, policy)
        if now["checkpoint"] != policy["checkpoint"]:
            raise ResultsError(
                f"Policy {name!r} has changed since this run began (checkpoint {policy['checkpoint']}, now "
                f"{now['checkpoint']}). Give it another name or choose another --output."
            )
    for name, suite in old["suites"].items():
        told = new["suites"].get(name, {})
        known = [k for k in WORLD if k in told or "world" in told]
        differing = [
            f"{k} {suite.get(k)!r}, now {told.get(k)!r}" for k in known if suite.get(k) != told.get(k)
        ]
        if differing:
            raise ResultsError(
                f"The suite {name!r} has changed since this run began: {'; '.join(differing)[:300]}. Choose another "
                "--output, or bring back what it was."
            )


def _continue(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """``new`` with what ``old`` already had; suites, tasks, conditions, policies and episodes may be added to a run.

    A call with fewer episodes takes none away, and one from another machine or commit does not hide the earlier ones.
    """
    made_with = {k: old.get(k) for k in ("versions", "commit", "hardware")}
    return {
        **new,
        "created": old["created"],
        **{k: max(old[k], new[k]) for k in ("clean_episodes", "episodes", "clean_seeds")},
        "provenance": [*old.get("provenance", [{"time": old["created"], **made_with}]), *new["provenance"]],
        "remarks": list(dict.fromkeys((*old.get("remarks", []), *new["remarks"]))),
        "policies": {**old["policies"], **new["policies"]},
        "rename_map": {**old.get("rename_map", {}), **new["rename_map"]},
        "plugins": list(dict.fromkeys((*old.get("plugins", []), *new["plugins"]))),
        "conditions": list(dict.fromkeys((*old["conditions"], *new["conditions"]))),
        "clean_only": [
            n for n in dict.fromkeys((*old["clean_only"], *new["clean_only"])) if _stays_clean(n, old, new)
        ],
        "suites": {**old["suites"], **{n: _with_tasks(old, n, s) for n, s in new["suites"].items()}},
        "commands": [*old["commands"], *(c for c in new["commands"] if c not in old["commands"])],
    }


def _with_tasks(old: dict[str, Any], name: str, suite: dict[str, Any]) -> dict[str, Any]:
    """A suite with the tasks that earlier calls ran; complete if any call ran all of them."""
    earlier = old["suites"].get(name, {})
    complete = suite["complete"] or bool(earlier.get("complete"))
    return {**suite, "tasks": {**earlier.get("tasks", {}), **suite["tasks"]}, "complete": complete}


def _stays_clean(policy: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether no call has run, or was about to run, a fault with this policy."""
    return all(policy in m["clean_only"] for m in (old, new) if policy in m["policies"])

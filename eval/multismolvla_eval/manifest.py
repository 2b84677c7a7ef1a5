"""The manifest of a run: what makes its episodes comparable, and what they were made with."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from multismolvla.corruption import CORRUPTION_VERSION, Condition
from multismolvla_eval.config import EvalConfig
from multismolvla_eval.provenance import hardware, package_versions, source_commit
from multismolvla_eval.results import MANIFEST, SCHEMA, ResultsError, fingerprint, read_manifest


def build_manifest(
    config: EvalConfig,
    facts: dict[str, Any],
    conditions: Sequence[Condition],
    clean_episodes: int,
    condition_episodes: int,
    command: Sequence[str],
) -> dict[str, Any]:
    """The manifest of a new run, or of the one in the output folder, extended by what this call adds.

    Args:
        config: options.
        facts: a worker's description of environment and policies.
        conditions: of this call.
        clean_episodes: episodes per task of C0.
        condition_episodes: episodes per task of the others.
        command: the command line.

    Raises:
        ResultsError: the folder holds another run, or a policy of that name with another checkpoint.
    """
    comparable = {
        "schema": SCHEMA,
        "env": {"type": config.env.type, "task": config.env.task, "options": config.env.options},
        "facts": {k: facts["env"].get(k) for k in ("max_steps", "assets", "labels")},
        "seed": config.seed,
        "corruption_version": CORRUPTION_VERSION,
    }
    now = datetime.now(UTC).isoformat(timespec="seconds")
    made_with = {"versions": package_versions(), "commit": source_commit(), "hardware": hardware()}
    manifest = {
        "schema": SCHEMA,
        "fingerprint": fingerprint(comparable),
        "comparable": comparable,
        "created": now,
        "level": config.level if config.conditions is None else "custom",
        "suite": facts["suite"],
        "tasks": facts["tasks"],
        "cameras": facts["cameras"],
        "env": facts["env"],
        "policies": facts["policies"],
        "baseline": config.baseline_name(),
        "conditions": [c.id for c in conditions],
        "clean_episodes": clean_episodes,
        "episodes": condition_episodes,
        "seed": config.seed,
        "workers": config.workers,
        **made_with,
        "provenance": [{"time": now, **made_with}],
        "commands": [list(command)],
        "remarks": list(config.note),
    }
    if (config.output / MANIFEST).exists():
        return _continue(read_manifest(config.output), manifest, config)
    if any(config.output.glob("episodes-*.jsonl")):
        raise ResultsError(f"{config.output} has result files but no {MANIFEST}. Choose another --output.")
    return manifest


def _continue(old: dict[str, Any], new: dict[str, Any], config: EvalConfig) -> dict[str, Any]:
    """``new`` with what ``old`` already had; conditions, policies, tasks and episodes may be added to a run.

    A call with fewer episodes takes none away, and one from another machine or commit does not hide the earlier ones.
    """
    if old["fingerprint"] != new["fingerprint"]:
        comparable = new["comparable"]
        differing = [k for k in comparable if old.get("comparable", {}).get(k) != comparable[k]]
        raise ResultsError(
            f"{config.output} holds another run ({old['fingerprint']}, now {new['fingerprint']}): {differing} differ. "
            "Choose another --output, or the old options to continue it."
        )
    for name, policy in old["policies"].items():
        known = new["policies"].get(name)
        if known is not None and known["checkpoint"] != policy["checkpoint"]:
            raise ResultsError(
                f"Policy {name!r} has changed since this run began (checkpoint {policy['checkpoint']}, now "
                f"{known['checkpoint']}). Give it another name or choose another --output."
            )
    made_with = {k: old.get(k) for k in ("versions", "commit", "hardware")}
    return {
        **new,
        "created": old["created"],
        "clean_episodes": max(old["clean_episodes"], new["clean_episodes"]),
        "episodes": max(old["episodes"], new["episodes"]),
        "provenance": [*old.get("provenance", [{"time": old["created"], **made_with}]), *new["provenance"]],
        "remarks": list(dict.fromkeys((*old.get("remarks", []), *new["remarks"]))),
        "policies": {**old["policies"], **new["policies"]},
        "conditions": list(dict.fromkeys((*old["conditions"], *new["conditions"]))),
        "tasks": {**old["tasks"], **new["tasks"]},
        "commands": [*old["commands"], *(c for c in new["commands"] if c not in old["commands"])],
    }

"""The command line that repeats a condition, fit to be copied into a shell."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Sequence

from multismolvla_eval.records.schema import RunManifest


def repeat_command(condition_id: str, manifest: RunManifest) -> str:
    """What repeats a condition for all policies and suites, with the same seeds and starts.

    Suites that ran different tasks take a call each, all into one folder.
    """
    suites: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, suite in manifest.suites.items():
        suites[() if suite.complete else tuple(sorted(suite.tasks))].append(name)
    return " && ".join(_call(condition_id, names, tasks, manifest) for tasks, names in suites.items())


def _call(condition_id: str, suites: Sequence[str], tasks: Sequence[int], manifest: RunManifest) -> str:
    policies = ", ".join(f"{name}={policy.path}" for name, policy in manifest.policies.items())
    shared = manifest.comparable
    if_said = {
        "env.options": json.dumps(shared.env_options) if shared.env_options else "",
        "env.task_ids": list(tasks),
        "rename_map": json.dumps(manifest.rename_map) if manifest.rename_map else "",
        "plugins": _listed(manifest.plugins),
        "estimator_sources": json.dumps(manifest.estimator_sources) if manifest.estimator_sources else "",
        "missing_estimator": shared.missing_estimator or "",
        "device": manifest.device,
        "episode_timeout": manifest.episode_timeout,
        "batch_size": shared.batch_size if shared.batch_size > 1 else "",
        "clean_only": _listed(manifest.clean_only),
    }
    parts = [
        f"--policies=[{policies}]",
        f"--baseline={manifest.baseline}",
        f"--env.type={shared.env_type}",
        f"--env.task={','.join(suites)}",
        *(f"--{option}={value}" for option, value in if_said.items() if value),
        f"--conditions=[{'' if condition_id == 'C0' else condition_id}]",
        f"--clean_episodes={manifest.clean_episodes}",
        f"--clean_repeats={manifest.clean_repeats}",
        f"--episodes={manifest.episodes}",
        f"--seed={shared.seed}",
        "--output=outputs/recheck",
    ]
    return "multismolvla-eval " + shlex.join(parts)


def _listed(names: Sequence[str]) -> str:
    return f"[{', '.join(names)}]" if names else ""

"""Command lines of a report, fit to be copied into a shell: those of the run, and one that repeats a cell."""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any


def typed(commands: Sequence[Sequence[str]]) -> list[list[str]]:
    """Command lines with their words quoted as they are typed."""
    return [[shlex.quote(word) for word in command] for command in commands]


def repeat_command(condition_id: str, manifest: Mapping[str, Any]) -> str:
    """What repeats a condition for all policies and suites, with the same seeds and starts.

    Suites that ran different tasks take a call each, all into one folder.

    Args:
        condition_id: canonical text.
        manifest: of the run.
    """
    suites: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, suite in manifest["suites"].items():
        suites[() if suite.get("complete") else tuple(sorted(map(int, suite["tasks"])))].append(name)
    return " && ".join(_call(condition_id, names, tasks, manifest) for tasks, names in suites.items())


def _call(condition_id: str, suites: Sequence[str], tasks: Sequence[int], manifest: Mapping[str, Any]) -> str:
    # Runs from before built-in policies had a path have it as their type.
    policies = ", ".join(f"{n}={p.get('path') or p['type']}" for n, p in manifest["policies"].items())
    env, batch_size = manifest["comparable"]["env"], manifest["comparable"].get("batch_size", 1)
    if_said = {
        "env.options": json.dumps(env["options"]) if env.get("options") else "",
        "env.task_ids": list(tasks) or "",
        "rename_map": json.dumps(manifest["rename_map"]) if manifest.get("rename_map") else "",
        "plugins": _listed(manifest.get("plugins")),
        "device": manifest.get("device"),
        "episode_timeout": manifest.get("episode_timeout"),
        "batch_size": batch_size if batch_size > 1 else "",
        "clean_only": _listed(manifest.get("clean_only")),
    }
    parts = [
        f"--policies=[{policies}]",
        f"--baseline={manifest['baseline']}",
        f"--env.type={env['type']}",
        f"--env.task={','.join(suites)}",
        *(f"--{option}={value}" for option, value in if_said.items() if value),
        f"--conditions=[{'' if condition_id == 'C0' else condition_id}]",
        f"--clean_episodes={manifest['clean_episodes']}",
        f"--clean_seeds={manifest['clean_seeds']}",
        f"--episodes={manifest['episodes']}",
        f"--seed={manifest['seed']}",
        "--output=outputs/recheck",
    ]
    return "multismolvla-eval " + shlex.join(parts)


def _listed(names: Sequence[str] | None) -> str:
    return f"[{', '.join(names)}]" if names else ""

"""From episodes to figures: everything a report states, computed from the rows and the manifest alone.

The result is plain data (it is written as ``results.json``); tables, plots and pages only format it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from multismolvla.corruption import parse_condition
from multismolvla_eval.analysis.aggregates import aggregates
from multismolvla_eval.analysis.assets import assets_facts
from multismolvla_eval.analysis.bootstrap import Pairs, paired_differences
from multismolvla_eval.analysis.cells import Arms
from multismolvla_eval.analysis.commands import repeat_command, typed
from multismolvla_eval.analysis.fairness import fairness_checks
from multismolvla_eval.analysis.families import GROUPS, family, reads_condition, seen, told
from multismolvla_eval.analysis.notes import reader_notes
from multismolvla_eval.analysis.provenance import provenance_conflicts
from multismolvla_eval.analysis.statistics import holm
from multismolvla_eval.analysis.table import Cells, Episodes
from multismolvla_eval.offline.stored import errors_by_condition
from multismolvla_eval.protocol.levels import describe
from multismolvla_eval.records.system_info import distinct_calls

#: A policy must reach this share of the baseline's clean success before its robustness is reported.
GATE_SHARE = 0.5
COMPARISONS = ("versus_clean", "versus_baseline")
#: What a policy makes of its sensors, beside the keys that it reads.
_READING = ("modalities", "views", "reads_masks", "needs_a_picture", "description")


def summarise(
    episodes: Episodes, manifest: dict[str, Any], diagnosis: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Compute a run's figures.

    Args:
        episodes: from :func:`multismolvla_eval.analysis.table.collect`.
        manifest: from :func:`multismolvla_eval.records.store.read_manifest`.
        diagnosis: from :func:`multismolvla_eval.offline.stored.read_diagnosis`.

    Returns:
        JSON-ready data: ``run``, ``policies``, ``cells``, ``aggregates``, ``tasks``, ``diagnostics``,
        ``diagnosis``, ``clips``, ``checks``, ``notes``. With several suites, policies, results and aggregates have a part ``suites`` of the same
        figures for each.
    """
    cells = Arms(episodes, manifest["suites"])
    names = [n for n in manifest["policies"] if episodes.code("policy", n) >= 0]
    conditions = [c for c in manifest["conditions"] if any((n, c) in cells for n in names)]
    suites = [s for s in manifest["suites"] if episodes.code("suite", s) >= 0]
    policies = [_policy(n, cells, suites, manifest) for n in names]
    by_name = {p["name"]: p for p in policies}
    comparisons = _Comparisons(cells)
    offline = errors_by_condition(diagnosis)
    table = [_cell(c, by_name, cells, suites, comparisons, manifest, offline) for c in conditions]
    comparisons.settle()
    checks = fairness_checks(names, conditions, cells, manifest)
    reported = [n for n in names if by_name[n]["gate"]["passed"]]
    return {
        "run": _run_facts(manifest, cells),
        "policies": policies,
        "cells": table,
        "aggregates": {n: _aggregates(by_name[n], cells, conditions, manifest) for n in reported},
        "tasks": _tasks(names, conditions, cells, manifest),
        "diagnostics": [d for n in names for d in _diagnostics(n, cells, conditions)],
        "diagnosis": diagnosis,
        "clips": _clips(episodes),
        "checks": checks,
        "notes": reader_notes(manifest, cells, policies, checks),
    }


def _policy(name: str, cells: Arms, suites: Sequence[str], manifest: dict[str, Any]) -> dict[str, Any]:
    facts, baseline = manifest["policies"][name], manifest["baseline"]
    episodes, rows = cells.episodes, cells.all_rows(name)
    steps, seconds = int(episodes.numbers["steps"][rows].sum()), episodes.measures["policy_seconds"][rows]
    privileged = bool(facts.get("privileged", False))

    def clean_and_gate(suite: str | None) -> dict[str, Any]:
        clean = cells.rows(name, "C0", suite)
        seeds = episodes.numbers["seed"][clean]
        return {
            "clean": cells.rate_entry(clean),
            "clean_seeds": [cells.rate_entry(clean[seeds == s]) for s in np.unique(seeds)],
            "gate": gate_of(name, baseline, cells, privileged, suite),
        }

    return {
        "name": name,
        "baseline": name == baseline,
        "privileged": privileged,
        "blind": bool(facts.get("blind", False)),
        **{
            k: facts.get(k)
            for k in (
                "path",
                "type",
                "checkpoint",
                "parameters",
                "n_action_steps",
                "vision_tower",
                "peft",
                *_READING,
            )
        },
        "reads": facts.get("reads", []),
        "provenance": _provenance(facts.get("provenance") or {}, manifest["env"].get("provenance") or {}),
        **clean_and_gate(None),
        "suites": {s: clean_and_gate(s) for s in suites} if len(suites) > 1 else {},
        "policy_ms_per_step": round(1000 * float(np.nansum(seconds)) / steps, 2) if steps else None,
        "peak_memory_mb": _mean(episodes.measures["peak_memory_mb"][rows], np.max),
        "gripper_closed": _mean(episodes.measures["gripper_closed"][rows]),
        "gripper_switches": _mean(episodes.measures["gripper_switches"][rows]),
        "steps_to_success": _mean(episodes.measures["steps_to_success"][rows]),
    }


def _provenance(own: dict[str, str], environment: dict[str, str]) -> dict[str, str]:
    """Where each modality comes from, ``sensor`` or ``derived``; a policy may derive what the environment measures."""
    conflicts = provenance_conflicts(own, environment)
    said = {**{m: o for m, o in environment.items() if m not in own}, **own}
    return {s: f"{o} (environment: {conflicts[s][1]})" if s in conflicts else o for s, o in said.items()}


def gate_of(
    name: str, baseline: str, cells: Arms, privileged: bool, suite: str | None = None
) -> dict[str, Any]:
    """Whether a policy's robustness may be reported, over all suites or in one, and if not, why."""
    clean, reference = (cells.rate_entry(cells.rows(n, "C0", suite)) for n in (name, baseline))
    if privileged:
        reason = "it reads the simulator's state, which no sensor fault reaches"
    elif clean is None:
        reason = "it has no clean episodes yet"
    elif clean["successes"] == 0:
        reason = f"it never succeeds on clean input (0 of {clean['n']})"
    elif reference is None:
        reason = "the baseline, by whose clean success it is judged, has no clean episodes yet"
    elif reference["successes"] == 0:
        reason = f"the baseline, by whose clean success it is judged, never succeeds on clean input (0 of {reference['n']})"
    elif clean["rate"] < GATE_SHARE * reference["rate"]:
        reason = f"its clean success of {clean['rate']:.0%} is below half of the baseline's {reference['rate']:.0%}"
    else:
        reason = ""
    return {"passed": not reason, "reason": reason}


class _Comparisons:
    """Collects paired comparisons, to compute their intervals together and to adjust their p-values per family."""

    def __init__(self, cells: Arms) -> None:
        self._cells = cells
        self._waiting: list[tuple[dict[str, Any], Pairs]] = []
        self._families: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)

    def add(self, first: np.ndarray, second: np.ndarray, family: tuple[str, ...]) -> dict[str, Any] | None:
        """An entry that :meth:`settle` fills; ``None`` if the arms share no episode.

        Args:
            first: rows of the first arm.
            second: rows of the second arm.
            family: what the p-value is adjusted with; the last part is the name for readers.
        """
        pairs = self._cells.pairs(first, second)
        if pairs is None:
            return None
        entry: dict[str, Any] = {"family": family[-1]}
        self._waiting.append((entry, pairs))
        self._families[family].append(entry)
        return entry

    def settle(self) -> None:
        """Fill all entries."""
        results = paired_differences([pairs for _, pairs in self._waiting])
        for (entry, _), result in zip(self._waiting, results, strict=True):
            entry.update(asdict(result))
        for members in self._families.values():
            for entry, p_value in zip(members, holm([m["p_value"] for m in members]), strict=True):
                entry.update(p_holm=p_value, family_size=len(members))


def _cell(
    condition_id: str,
    policies: dict[str, dict[str, Any]],
    cells: Arms,
    suites: Sequence[str],
    comparisons: _Comparisons,
    manifest: dict[str, Any],
    offline: dict[str, Any],
) -> dict[str, Any]:
    condition = parse_condition(condition_id)
    results: dict[str, Any] = {}
    for name, policy in policies.items():
        if (name, condition_id) not in cells:
            continue

        def part(suite: str | None, policy: dict[str, Any] = policy) -> dict[str, Any] | None:
            return _result(policy, condition_id, suite, cells, comparisons, manifest["baseline"])

        whole = part(None)
        assert whole is not None
        by_suite = {s: p for s in suites if (p := part(s))} if len(suites) > 1 else {}
        results[name] = {
            **whole,
            "reads_fault": reads_condition(manifest["policies"][name], condition_id, manifest),
            "told": told(manifest["policies"][name], condition_id, manifest),
            "offline": offline.get(name, {}).get(condition_id),
            "suites": by_suite,
        }
    return {
        "condition": condition_id,
        "group": condition.group,
        "family": family(condition_id),
        "seen": seen(condition_id),
        "description": describe(condition),
        "results": results,
        "command": repeat_command(condition_id, manifest),
    }


def _result(
    policy: dict[str, Any],
    condition_id: str,
    suite: str | None,
    cells: Arms,
    comparisons: _Comparisons,
    baseline: str,
) -> dict[str, Any] | None:
    """Figures of one policy under one condition, in all suites or in one; ``None`` without episodes."""
    name = policy["name"]
    rows = cells.rows(name, condition_id, suite)
    rate = cells.rate_entry(rows)
    if rate is None:
        return None
    gate = policy["suites"][suite]["gate"] if suite else policy["gate"]
    clean, reported = condition_id == "C0", gate["passed"] and policy["gate"]["passed"]
    scope = (name, suite or "", family(condition_id))
    against_clean = against_baseline = None
    if parse_condition(condition_id).faults and reported:
        against_clean = comparisons.add(cells.rows(name, "C0", suite), rows, (COMPARISONS[0], *scope))
    # The clean difference to the baseline is no robustness figure, so it needs no gate.
    if name != baseline and (clean or reported):
        other = cells.rows(baseline, condition_id, suite)
        against_baseline = comparisons.add(other, rows, (COMPARISONS[1], *scope))
    causes = cells.episodes.codes["cause"][rows]
    return {
        **rate,
        "versus_clean": against_clean,
        "versus_baseline": against_baseline,
        "steps_to_success": _mean(cells.episodes.measures["steps_to_success"][rows], digits=1),
        "met": None if clean else cells.met(rows),
        "time_outs": int((causes == cells.episodes.code("cause", "time_out")).sum()),
    }


def _aggregates(
    policy: dict[str, Any], cells: Arms, conditions: Sequence[str], manifest: dict[str, Any]
) -> dict[str, Any]:
    """Figures over all suites, whose ``gate_fails_in`` names those that have none of their own, and per suite."""
    name = policy["name"]
    passed = {s: part["gate"]["passed"] for s, part in policy["suites"].items()}
    return {
        **aggregates(name, cells, conditions, manifest),
        "gate_fails_in": [s for s, fine in passed.items() if not fine],
        "suites": {s: aggregates(name, cells, conditions, manifest, s) for s, fine in passed.items() if fine},
    }


def _tasks(
    names: Sequence[str], conditions: Sequence[str], cells: Cells, manifest: dict[str, Any]
) -> list[dict[str, Any]]:
    """Successes and episodes per task, policy and condition."""
    episodes = cells.episodes
    counts: dict[tuple[str, int], dict[str, list[int]]] = defaultdict(dict)
    for name in names:
        for condition in conditions:
            rows = cells.rows(name, condition)
            tasks, first, place = np.unique(cells.task[rows], return_index=True, return_inverse=True)
            won = np.bincount(place, episodes.success[rows], minlength=len(tasks))
            for row, k, n in zip(rows[first], won, np.bincount(place), strict=True):
                suite = episodes.names["suite"][episodes.codes["suite"][row]]
                task = suite, int(episodes.numbers["task_id"][row])
                counts[task][f"{name}|{condition}"] = [int(k), int(n)]
    return [
        {"suite": suite, "task_id": task, "task": text, "cells": counts[suite, task]}
        for suite, facts in manifest["suites"].items()
        for task, text in sorted((int(i), t) for i, t in facts["tasks"].items())
    ]


def _diagnostics(name: str, cells: Cells, conditions: Sequence[str]) -> list[dict[str, Any]]:
    """Per group of conditions: how episodes ended, how long they took, and what the gripper did."""
    episodes, found = cells.episodes, []
    for group in GROUPS:
        arms = [cells.rows(name, c) for c in conditions if c.partition(":")[0] == group]
        rows = np.concatenate([np.zeros(0, np.int64), *arms])
        if not len(rows):
            continue
        failed = episodes.codes["cause"][rows[~episodes.success[rows]]]
        causes = {
            episodes.names["cause"][c]: int(k)
            for c, k in zip(*np.unique(failed, return_counts=True), strict=True)
        }
        found.append(
            {
                "policy": name,
                "group": group,
                "episodes": len(rows),
                "successes": int(episodes.success[rows].sum()),
                "causes": dict(sorted(causes.items(), key=lambda c: -c[1])),
                **{k: _mean(episodes.measures[k][rows]) for k in ("steps_to_success", "gripper_closed", "gripper_switches")},
                "seconds": _mean(episodes.measures["seconds"][rows]),
            }
        )  # fmt: skip
    return found


def _clips(episodes: Episodes) -> list[dict[str, Any]]:
    return [
        {
            **{
                k: episodes.names[k][episodes.codes[k][row]]
                for k in ("policy", "suite", "condition", "cause")
            },
            **{k: int(episodes.numbers[k][row]) for k in ("task_id", "episode", "seed")},
            "success": bool(episodes.success[row]),
            "path": path,
        }
        for row, path in episodes.clips.items()
    ]


def _run_facts(manifest: dict[str, Any], cells: Cells) -> dict[str, Any]:
    clean = manifest["clean_episodes"] * manifest["clean_seeds"]
    faulted = manifest["episodes"] * sum(c != "C0" for c in manifest["conditions"])
    tasks = sum(len(suite["tasks"]) for suite in manifest["suites"].values())
    clean_only = manifest.get("clean_only", [])
    planned = tasks * sum(clean + faulted * (n not in clean_only) for n in manifest["policies"])
    seconds = cells.episodes.measures["seconds"]
    kept = ("fingerprint", "created", "level", "cameras", "env", "baseline", "clean_episodes", "clean_seeds",
            "episodes", "seed", "workers", "versions", "commit", "hardware", "comparable")  # fmt: skip
    return {
        **{k: manifest.get(k) for k in kept},
        "commands": typed(manifest["commands"]),
        "suites": manifest["suites"],
        "tasks": tasks,
        "assets": assets_facts(manifest["suites"]),
        "made_with": distinct_calls(manifest),
        "remarks": manifest.get("remarks", []),
        "corruption_version": manifest["comparable"]["corruption_version"],
        "finished": len(cells.episodes),
        "planned": max(planned, len(cells.episodes)),
        "last": cells.episodes.last,
        "simulator_hours": round(float(np.nansum(seconds)) / 3600, 3),
        "seconds_per_episode": _mean(seconds),
        "synthetic": bool(manifest.get("synthetic", False)),
    }


def _mean(values: np.ndarray, reduce: Any = np.mean, digits: int = 3) -> float | None:
    """Of the known values; ``None`` without any."""
    known = values[~np.isnan(values)].astype(np.float64)
    return round(float(reduce(known)), digits) if len(known) else None

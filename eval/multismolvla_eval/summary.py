"""From episodes to figures: everything a report states, computed from the rows and the manifest alone.

The result is plain data (it is written as ``results.json``); tables, plots and pages only format it.
"""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from multismolvla.corruption import SEVERITIES, parse_condition
from multismolvla_eval.checks import Index, Place, fairness_checks, reads_fault
from multismolvla_eval.conditions import describe
from multismolvla_eval.notes import reader_notes
from multismolvla_eval.provenance import distinct_provenance
from multismolvla_eval.results import ResultsError, Row, cause_of
from multismolvla_eval.statistics import (
    holm,
    mean_corruption_error,
    paired_difference,
    relative_robustness,
    severity_area,
    subset_profile,
    wilson,
)

#: A policy must reach this share of the baseline's clean success before its robustness is reported.
GATE_SHARE = 0.5


def summarise(rows: Sequence[Row], manifest: dict[str, Any]) -> dict[str, Any]:
    """Compute a run's figures.

    Args:
        rows: from :func:`multismolvla_eval.results.read_rows`.
        manifest: from :func:`multismolvla_eval.results.read_manifest`.

    Returns:
        JSON-ready data: ``run``, ``policies``, ``cells``, ``aggregates``, ``checks``, ``causes``, ``notes``.

    Raises:
        ResultsError: no rows, or rows of a policy or checkpoint that the manifest does not know.
    """
    if not rows:
        raise ResultsError(
            "There are no finished episodes yet. Run multismolvla-eval first, or wait for its first episodes."
        )
    index = _index(rows, manifest)
    names = [n for n in manifest["policies"] if any(p == n for p, _ in index)]
    baseline = manifest["baseline"]
    conditions = [c for c in manifest["conditions"] if any((n, c) in index for n in names)]
    policies = [_policy(n, manifest["policies"][n], baseline, index, manifest) for n in names]
    reported = {p["name"]: p["gate"]["passed"] for p in policies}
    cells = [_cell(c, names, baseline, index, manifest, reported) for c in conditions]
    _adjust(cells, names)
    checks = fairness_checks(names, conditions, index, manifest)
    return {
        "run": _run_facts(manifest, rows),
        "policies": policies,
        "cells": cells,
        "aggregates": {n: _aggregates(n, baseline, index, conditions) for n in names if reported[n]},
        "tasks": _tasks(names, conditions, index, manifest),
        "checks": checks,
        "causes": {
            n: dict(Counter(cause_of(r) for r in rows if r["policy"] == n and not r["success"]))
            for n in names
        },
        "notes": reader_notes(manifest, rows, policies, checks),
    }


def _index(rows: Iterable[Row], manifest: dict[str, Any]) -> Index:
    index: Index = defaultdict(dict)
    for row in rows:
        policy = manifest["policies"].get(row["policy"])
        if policy is None or policy["checkpoint"] != row["checkpoint"]:
            raise ResultsError(
                f"A row is of policy {row['policy']!r} with checkpoint {row['checkpoint']}, which the manifest does not "
                "know: the file belongs to another run. Move it to its own folder."
            )
        index[row["policy"], row["condition"]][
            (row["suite"], row["task_id"]), (row["seed"], row["episode"])
        ] = row
    return dict(index)


def _rate(rows: Iterable[Row]) -> dict[str, Any] | None:
    outcomes = [r["success"] for r in rows]
    return asdict(wilson(sum(outcomes), len(outcomes))) if outcomes else None


def _pairs(
    first: dict[Place, Row], second: dict[Place, Row]
) -> dict[tuple[str, int], list[tuple[bool, bool]]]:
    pairs: dict[tuple[str, int], list[tuple[bool, bool]]] = defaultdict(list)
    for key in sorted(first.keys() & second.keys()):
        pairs[key[0]].append((first[key]["success"], second[key]["success"]))
    return pairs


def _difference(first: dict[Place, Row], second: dict[Place, Row]) -> dict[str, Any] | None:
    pairs = _pairs(first, second)
    return asdict(paired_difference(pairs)) if pairs else None


def _policy(
    name: str, facts: dict[str, Any], baseline: str, index: Index, manifest: dict[str, Any]
) -> dict[str, Any]:
    rows = [r for (p, _), cell in index.items() if p == name for r in cell.values()]
    clean = _rate(index.get((name, "C0"), {}).values())
    steps = sum(r["steps"] for r in rows)
    seconds = sum(r.get("seconds", {}).get("policy", 0.0) for r in rows)
    return {
        "name": name,
        "baseline": name == baseline,
        **{
            k: facts.get(k)
            for k in ("path", "type", "checkpoint", "parameters", "n_action_steps", "vision_tower", "peft")
        },
        "reads": facts.get("reads", []),
        "origins": facts.get("origins") or manifest["env"].get("origins") or {},
        "clean": clean,
        "gate": _gate(name, clean, baseline, index),
        "policy_ms_per_step": round(1000 * seconds / steps, 2) if steps else None,
        "gripper_closed": _mean(r.get("gripper", {}).get("closed") for r in rows),
        "gripper_switches": _mean(r.get("gripper", {}).get("switches") for r in rows),
        "steps_to_success": _mean(r.get("steps_to_success") for r in rows),
    }


def _gate(name: str, clean: dict[str, Any] | None, baseline: str, index: Index) -> dict[str, Any]:
    if clean is None:
        return {"passed": False, "reason": "it has no clean episodes yet"}
    if clean["successes"] == 0:
        return {"passed": False, "reason": f"it never succeeds on clean input (0 of {clean['n']})"}
    reference = _rate(index.get((baseline, "C0"), {}).values())
    if name == baseline or reference is None:
        return {"passed": True, "reason": ""}
    if clean["rate"] < GATE_SHARE * reference["rate"]:
        return {
            "passed": False,
            "reason": f"its clean success of {clean['rate']:.0%} is below half of the baseline's {reference['rate']:.0%}",
        }
    return {"passed": True, "reason": ""}


def _cell(
    condition_id: str,
    names: Sequence[str],
    baseline: str,
    index: Index,
    manifest: dict[str, Any],
    reported: dict[str, bool],
) -> dict[str, Any]:
    condition = parse_condition(condition_id)
    results: dict[str, Any] = {}
    for name in names:
        rows = index.get((name, condition_id), {})
        if not rows:
            continue
        clean, other = index.get((name, "C0"), {}), index.get((baseline, condition_id), {})
        rate = _rate(rows.values())
        against_clean = _difference(clean, rows) if condition.faults and reported[name] else None
        against_baseline = _difference(other, rows) if name != baseline and reported[name] else None
        # On the same episodes: the clean cell may have more of them, and harder ones.
        shared = _rate(clean[k] for k in rows if k in clean)
        assert rate is not None
        results[name] = {
            **rate,
            "versus_clean": against_clean,
            "versus_baseline": against_baseline,
            "relative": relative_robustness(rate["rate"], shared["rate"])
            if shared and against_clean is not None
            else None,
            "steps_to_success": _mean(r["steps_to_success"] for r in rows.values()),
            "time_outs": sum(cause_of(r) == "time_out" for r in rows.values()),
            "clip": next((r["clip"] for r in rows.values() if r.get("clip")), None),
            "reads_fault": reads_fault(manifest["policies"][name].get("reads", []), condition_id, manifest),
        }
    return {
        "condition": condition_id,
        "group": condition.group,
        "description": describe(condition),
        "results": results,
        "command": _command(condition_id, manifest),
    }


def _adjust(cells: list[dict[str, Any]], names: Sequence[str]) -> None:
    """Add Holm's adjusted p-values, one family per policy and comparison."""
    for name in names:
        for comparison in ("versus_clean", "versus_baseline"):
            family = [
                c["results"][name][comparison] for c in cells if c["results"].get(name, {}).get(comparison)
            ]
            for entry, p_value in zip(family, holm([e["p_value"] for e in family]), strict=True):
                entry["p_holm"] = p_value


def _aggregates(name: str, baseline: str, index: Index, conditions: Sequence[str]) -> dict[str, Any]:
    def rate(policy: str, condition: str) -> float | None:
        rows = index.get((policy, condition), {})
        return sum(r["success"] for r in rows.values()) / len(rows) if rows else None

    subsets: dict[tuple[str, ...], float] = {}
    for condition in conditions:
        value = rate(name, condition)
        if condition.startswith("C1:") and "camera=" not in condition and value is not None:
            subsets[tuple(condition[3:].split("+"))] = value
    profile = subset_profile(subsets)
    areas: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    reference: dict[str, list[float]] = {}
    for type_, per_severity in soft_types(conditions).items():
        values = [rate(name, c) for c in per_severity.values()]
        others = [rate(baseline, c) for c in per_severity.values()]
        if any(v is None for v in values):
            continue
        curves[type_] = [v for v in values if v is not None]
        reference[type_] = [v for v in others if v is not None]
        if set(per_severity) == set(SEVERITIES):
            area = _shared_area([index.get((name, c), {}) for c in ("C0", *per_severity.values())])
            if area is not None:
                areas[type_] = area
    mce, left_out = mean_corruption_error(curves, reference) if name != baseline else (None, ())
    return {
        "subset_profile": asdict(profile) if profile else None,
        "severity_area": {"mean": float(np.mean(list(areas.values()))), "types": areas} if areas else None,
        "mce": None if mce is None else {"value": mce, "types": sorted(set(curves) - set(left_out))},
        "mce_left_out": list(left_out),
    }


def _shared_area(cells: Sequence[Mapping[tuple[int, int], Row]]) -> float | None:
    """Severity area over the episodes that all six cells share: the clean one may have more of them, and harder ones."""
    shared = set(cells[0]).intersection(*cells[1:])
    if not shared:
        return None
    return severity_area([sum(cell[k]["success"] for k in shared) / len(shared) for cell in cells])


def soft_types(conditions: Sequence[str]) -> dict[str, dict[int, str]]:
    """Soft corruption types among conditions: ``{"rgb=noise": {severity: condition id}}``, severities ascending."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for condition in conditions:
        if condition.startswith("C3:") and "+" not in condition:
            name, _, severity = condition[3:].rpartition("@")
            found[name][int(severity)] = condition
    return {k: dict(sorted(v.items())) for k, v in found.items()}


def _tasks(
    names: Sequence[str], conditions: Sequence[str], index: Index, manifest: dict[str, Any]
) -> list[dict[str, Any]]:
    table = []
    tasks = [(s, int(i), t) for s, suite in manifest["suites"].items() for i, t in suite["tasks"].items()]
    for suite, task, text in sorted(tasks):
        cells = {}
        for name in names:
            for condition in conditions:
                rows = [r for (t, _), r in index.get((name, condition), {}).items() if t == (suite, task)]
                if rows:
                    cells[f"{name}|{condition}"] = [sum(r["success"] for r in rows), len(rows)]
        table.append({"suite": suite, "task_id": task, "task": text, "cells": cells})
    return table


def _command(condition_id: str, manifest: dict[str, Any]) -> str:
    policies = ", ".join(f"{n}={p.get('path') or p['checkpoint']}" for n, p in manifest["policies"].items())
    env = manifest["comparable"]["env"]
    parts = [
        f"--policies=[{policies}]",
        f"--baseline={manifest['baseline']}",
        f"--env.type={env['type']}",
        f"--env.task={','.join(manifest['suites'])}",
        *([f"--env.options={env['options']}"] if env.get("options") else []),
        f"--conditions=[{'' if condition_id == 'C0' else condition_id}]",
        f"--clean_episodes={manifest['clean_episodes']}",
        f"--clean_seeds={manifest['clean_seeds']}",
        f"--episodes={manifest['episodes']}",
        f"--seed={manifest['seed']}",
        "--output=outputs/recheck",
    ]
    return "multismolvla-eval " + " ".join(shlex.quote(p) for p in parts)


def _run_facts(manifest: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    counts = {
        c: manifest["clean_episodes"] * manifest["clean_seeds"] if c == "C0" else manifest["episodes"]
        for c in manifest["conditions"]
    }
    tasks = {f"{s}/{i}": t for s, suite in manifest["suites"].items() for i, t in suite["tasks"].items()}
    planned = sum(counts.values()) * len(manifest["policies"]) * len(tasks)
    seconds = [r["seconds"]["total"] for r in rows if "seconds" in r]
    kept = ("fingerprint", "created", "level", "cameras", "env", "baseline", "clean_episodes",
            "episodes", "seed", "workers", "versions", "commit", "hardware", "commands")  # fmt: skip
    return {
        **{k: manifest.get(k) for k in kept},
        "suite": ", ".join(manifest["suites"]),
        "tasks": tasks,
        "made_with": distinct_provenance(manifest),
        "remarks": manifest.get("remarks", []),
        "corruption_version": manifest["comparable"]["corruption_version"],
        "finished": len(rows),
        "planned": max(planned, len(rows)),
        "last": max((r.get("time", "") for r in rows), default=""),
        "simulator_hours": round(sum(seconds) / 3600, 3),
        "seconds_per_episode": _mean(seconds),
        "synthetic": bool(manifest.get("synthetic", False)),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return round(float(np.mean(known)), 3) if known else None

"""What a reader must know before quoting a figure of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from multismolvla.corruption import parse_condition
from multismolvla_eval.analysis.assets import assets_facts
from multismolvla_eval.analysis.cells import Arms
from multismolvla_eval.analysis.families import told
from multismolvla_eval.analysis.initial_states import recorded_state_notes
from multismolvla_eval.analysis.provenance import provenance_notes
from multismolvla_eval.analysis.statistics import detectable_difference, detectable_unpaired
from multismolvla_eval.analysis.table import Cells
from multismolvla_eval.protocol.levels import LEVELS
from multismolvla_eval.records.system_info import distinct_calls

#: Switches of the gripper command per episode below which it counts as frozen.
FROZEN_GRIPPER = 0.1


def reader_notes(
    manifest: dict[str, Any], cells: Arms, policies: Sequence[dict[str, Any]], checks: dict[str, Any]
) -> list[str]:
    """Sentences for the page, the Markdown file and the terminal.

    Args:
        manifest: of the run.
        cells: all episodes.
        policies: the summary's entries.
        checks: from :func:`multismolvla_eval.analysis.fairness.fairness_checks`.
    """
    notes = []
    short = _short_of_quotable(manifest)
    if short:
        notes.append(
            f"These figures give a first look and may not be quoted as a protocol's result (level {manifest.get('level')!r}): "
            f"{'; '.join(short)}."
        )
    if "multismolvla_mini" in manifest["suites"]:
        notes.append(
            "The mini suite is this project's own small test bed on the LIBERO engine: its figures are not comparable with "
            "published LIBERO results."
        )
    notes += [fact["note"] for fact in assets_facts(manifest["suites"]) if fact["note"]]
    episodes = cells.episodes
    smallest = cells.fewest_starts()
    notes.append(
        f"The smallest cell has n = {smallest} start{'s' if smallest > 1 else ''} (of one policy, condition and suite): with "
        f"80 % power it can show {_points(detectable_difference(smallest))} on the same starts (if 15 % of the pairs differ) "
        f"and {_points(detectable_unpaired(smallest))} against other ones (around 80 % success). Read every rate with its "
        "interval."
    )
    for policy in policies:
        facts = manifest["policies"][policy["name"]]
        conditions = [c for c in manifest["conditions"] if (policy["name"], c) in cells]
        untold = any(told(facts, c, manifest) is False for c in conditions)
        notes += _policy_notes(policy, untold)
    causes = [i for i, c in enumerate(episodes.names["cause"]) if c.startswith(("crash", "stuck"))]
    crashes = int((np.isin(episodes.codes["cause"], causes) & ~episodes.success).sum())
    if crashes:
        notes.append(
            f"{crashes} episodes ended in a crash or hung; they count as failures (see the causes below)."
        )
    return (
        notes
        + _repeat_notes(manifest, cells)
        + recorded_state_notes(manifest, cells)
        + provenance_notes(manifest)
        + _provenance_notes(manifest)
        + _start_notes(checks["starts"])
        + _fault_notes(checks["faults"])
    )


def _short_of_quotable(manifest: dict[str, Any]) -> list[str]:
    """What a run lacks of the smallest quotable level, whatever level it was called with; options may lower each part."""
    least = next(level for level in LEVELS.values() if level.quotable)
    counts = (
        ("clean_episodes", "clean episodes per task"),
        ("episodes", "episodes per task of each fault"),
        ("clean_seeds", "repetitions of the clean condition"),
    )
    short = [
        f"{manifest[k]} {words} (level {least.name}: {getattr(least, k)})"
        for k, words in counts
        if manifest[k] < getattr(least, k)
    ]
    missing = {parse_condition(c).id for c in least.conditions} - set(manifest["conditions"])
    if missing:
        short.append(
            f"{len(missing)} of the {len(least.conditions)} conditions of level {least.name} are missing"
        )
    parts = [name for name, suite in manifest["suites"].items() if not suite.get("complete")]
    if parts:
        short.append(f"not all tasks of {', '.join(parts)}, as far as this run has noted")
    return short


def _points(share: float) -> str:
    return f"a difference of {100 * share:.0f} points" if share < 1 else "no difference at all"


def _sizes(*columns: np.ndarray) -> np.ndarray:
    """How often each combination of values occurs."""
    return np.unique(np.stack(columns, 1), axis=0, return_counts=True)[1]


def _policy_notes(policy: dict[str, Any], untold: bool) -> list[str]:
    name, notes = policy["name"], []
    if policy["privileged"]:
        notes.append(
            f"{name} reads the simulator's state: an upper bound, not a policy. No sensor fault reaches it, so it has no "
            "robustness figures" + (f" ({policy['description']})." if policy["description"] else ".")
        )
    elif not policy["gate"]["passed"]:
        notes.append(f"No robustness figures for {name}: {policy['gate']['reason']}.")
    else:
        notes += [
            f"No robustness figures for {name} in {suite}: {part['gate']['reason']}. Its figures over all suites include {suite}."
            for suite, part in policy["suites"].items()
            if not part["gate"]["passed"]
        ]
    if policy["reads_masks"] is False and untold:
        notes.append(
            f"{name} does not read which sensors are announced as absent: cells with an announced loss are marked “not told”, "
            "because for it they are the same as with black pictures."
        )
    if policy["blind"]:
        notes.append(f"{name} is shown no pictures: what it still solves needs no sensors.")
    derived = [m for m, kind in policy["provenance"].items() if kind.startswith("derived")]
    if derived:
        notes.append(f"{name} computes {', '.join(derived)} from RGB: this is no sensor redundancy.")
    switches = policy["gripper_switches"]
    if switches is not None and switches < FROZEN_GRIPPER:
        notes.append(
            f"{name} hardly ever moves its gripper ({switches} switches per episode): look for a frozen gripper before you "
            "read anything into its success rates."
        )
    return notes


def _repeat_notes(manifest: dict[str, Any], cells: Cells) -> list[str]:
    codes, numbers = cells.episodes.codes, cells.episodes.numbers
    notes = []
    for suite, facts in manifest["suites"].items():
        states = facts.get("init_states")
        own = codes["suite"] == cells.episodes.code("suite", suite)
        if states is None or not own.any():
            continue
        columns = (codes["policy"], codes["condition"], numbers["task_id"], numbers["seed"])
        most = int(_sizes(*(c[own] for c in columns)).max())
        if most > states:
            notes.append(
                f"Up to {most} episodes per task of {suite} share {states} different initial states: the further ones repeat "
                "a start with other policy noise. They are no independent episodes; intervals and comparisons allow for it."
            )
    return notes


def _provenance_notes(manifest: dict[str, Any]) -> list[str]:
    calls = distinct_calls(manifest)
    kinds = [k for k in ("commit", "versions", "hardware") if any(c.get(k) != calls[0].get(k) for c in calls)]
    if not kinds:
        return []
    return [
        f"The calls of this run differ in {' and '.join(kinds)} (listed under “Made with”): part of a difference between "
        "cells may come from there."
    ]


def _start_notes(starts: dict[str, int]) -> list[str]:
    differing = starts["episodes"] - starts["equal"]
    if not differing:
        return []
    return [
        f"{differing} of {starts['episodes']} (task, episode) pairs do not start from the same simulator state in all arms: do "
        "not trust paired differences before you have found out why."
    ]


def _fault_notes(faults: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence per policy and kind of doubt, so that a long matrix does not drown the page."""
    doubts = (
        ("reached", "not every faulted stream changed what entered the policy"),
        ("rest_equal", "something besides the faulted streams differs from the clean arm"),
    )
    notes = []
    for name in dict.fromkeys(f["policy"] for f in faults):
        for count, doubt in doubts:
            doubted = [f for f in faults if f["policy"] == name and f[count] < f["episodes"]]
            if doubted:
                where = ", ".join(
                    f"{f['condition']} ({f['episodes'] - f[count]} of {f['episodes']})" for f in doubted
                )
                notes.append(
                    f"{name}: {doubt} in some episodes; find out why before you trust these cells: {where}."
                )
    return notes

"""What a reader must know before quoting a figure of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from multismolvla.corruption import parse_condition
from multismolvla_eval.analysis.cells import Cells
from multismolvla_eval.analysis.fairness import Checks
from multismolvla_eval.analysis.provenance import provenance_notes
from multismolvla_eval.analysis.statistics import detectable_difference, detectable_unpaired
from multismolvla_eval.analysis.summary import PolicySummary
from multismolvla_eval.analysis.table import ATTACK
from multismolvla_eval.protocol.levels import LEVELS
from multismolvla_eval.records.reach import can_meet, mask_reaches_policy
from multismolvla_eval.records.schema import AttackRecord, RunManifest, SuiteRecord
from multismolvla_eval.records.system_info import distinct_calls

#: Switches of the gripper command per episode below which it counts as frozen.
FROZEN_GRIPPER = 0.1
#: The split of initial states that the recorder records from, as environments name it.
RECORDED = "train"


def reader_notes(
    cells: Cells, policies: Sequence[PolicySummary], checks: Checks, manifest: RunManifest
) -> list[str]:
    """Sentences for the page, the Markdown file and the terminal."""
    notes = list(_level_notes(manifest))
    notes += assets_notes(manifest.suites)
    smallest = cells.fewest_starts()
    notes.append(
        f"The smallest cell has n = {smallest} start{'s' if smallest > 1 else ''} (of one policy, condition "
        f"and suite): with 80 % power it can show {_points(detectable_difference(smallest))} on the same "
        f"starts (if 15 % of the pairs differ) and {_points(detectable_unpaired(smallest))} against other "
        "ones (around 80 % success). Read every rate with its interval."
    )
    for policy in policies:
        notes += _policy_notes(policy, cells, manifest)
    notes += _attack_notes([p.name for p in policies], cells, manifest)
    notes += _budget_notes(policies)
    crashes = int(cells.table["cause"].str.startswith("crash", na=False).sum())
    if crashes:
        notes.append(
            f"{crashes} episodes ended in a crash or hung; they count as failures (see the causes below)."
        )
    notes += _initial_state_notes(cells, manifest)
    notes += provenance_notes(manifest)
    calls = distinct_calls(manifest)
    kinds = ("commit", "versions", "hardware")
    differing = [k for k in kinds if any(getattr(c, k) != getattr(calls[0], k) for c in calls)]
    if differing:
        notes.append(
            f"The calls of this run differ in {' and '.join(differing)} (listed under “Made with”): part of "
            "a difference between cells may come from there."
        )
    return notes + list(_fairness_notes(checks))


def assets_notes(suites: Mapping[str, SuiteRecord]) -> Iterator[str]:
    """Why figures of LIBERO's suites may not stand beside published ones; others bring own assets."""
    by_assets: dict[str, list[str]] = {}
    for name, suite in suites.items():
        if name.startswith("libero_"):
            by_assets.setdefault(suite.assets, []).append(name)
    for digest, names in by_assets.items():
        suite, listed = suites[names[0]], ", ".join(names)
        if not digest:
            yield (
                f"{listed}: the assets were not hashed, so nobody can tell whether these figures are "
                "comparable with published ones."
            )
        elif suite.assets_standins:
            yield (
                f"{listed}: some assets are this project's stand-ins (hash {digest}): figures made with "
                "these assets are not comparable with published ones."
            )
        elif suite.assets_standins is None:
            differing = len(suite.assets_differing)
            what = f"{differing} files are missing or changed" if differing else "nobody has looked at them"
            yield (
                f"{listed}: the assets {digest} are not known as LIBERO's published ones ({what}): compare "
                "figures only with reports that name the same hash."
            )


def _level_notes(manifest: RunManifest) -> Iterator[str]:
    """What a run lacks of the smallest quotable level; options may lower each part of its own level."""
    least = next(level for level in LEVELS.values() if level.quotable)
    words = {
        "clean_episodes": "clean episodes per task",
        "episodes": "episodes per task of each fault",
        "clean_repeats": "repetitions of the clean condition",
    }
    short = [
        f"{getattr(manifest, k)} {text} (level {least.name}: {getattr(least, k)})"
        for k, text in words.items()
        if getattr(manifest, k) < getattr(least, k)
    ]
    missing = {parse_condition(c).id for c in least.conditions} - set(manifest.conditions)
    if missing:
        short.append(
            f"{len(missing)} of the {len(least.conditions)} conditions of level {least.name} are missing"
        )
    parts = [name for name, suite in manifest.suites.items() if not suite.complete]
    if parts:
        short.append(f"not all tasks of {', '.join(parts)}, as far as this run has noted")
    if short:
        yield (
            "These figures give a first look and may not be quoted as a protocol's result (level "
            f"{manifest.level!r}): {'; '.join(short)}."
        )
    if "multismolvla_mini" in manifest.suites:
        yield (
            "The mini suite is this project's own small test bed on the LIBERO engine: its figures are not "
            "comparable with published LIBERO results."
        )


def _points(share: float) -> str:
    return f"a difference of {100 * share:.0f} points" if share < 1 else "no difference at all"


def _policy_notes(policy: PolicySummary, cells: Cells, manifest: RunManifest) -> Iterator[str]:
    name, facts = policy.name, policy.facts
    if facts.privileged:
        yield (
            f"{name} reads the simulator's state: an upper bound, not a policy. No sensor fault reaches it, "
            "so it has no "
            "robustness figures" + (f" ({facts.description})." if facts.description else ".")
        )
    elif not policy.reportable:
        yield f"No robustness figures for {name}: {policy.withheld}."
    else:
        for suite, part in policy.suites.items():
            if not part.reportable:
                yield (
                    f"No robustness figures for {name} in {suite}: {part.withheld}. Its figures over all "
                    f"suites include {suite}."
                )
    conditions = [c for c in manifest.conditions if (name, c) in cells]
    if any(mask_reaches_policy(facts, c, manifest) is False for c in conditions):
        yield (
            f"{name} does not read which sensors are announced as absent: cells with an announced loss are "
            "marked “not told”, because for it they are the same as with black pictures."
        )
    if facts.no_vision:
        yield f"{name} is shown no pictures: what it still solves needs no sensors."
    if facts.description and not facts.privileged:
        yield f"{name} {facts.description}."
    derived = [m for m, kind in policy.provenance.items() if kind.startswith("derived")]
    if derived:
        yield f"{name} computes {', '.join(derived)} from RGB: this is no sensor redundancy."
    switches = policy.gripper_switches
    if switches is not None and switches < FROZEN_GRIPPER:
        yield (
            f"{name} hardly ever moves its gripper ({switches} switches per episode): look for a frozen "
            "gripper before you read anything into its success rates."
        )


def _attack_notes(names: Sequence[str], cells: Cells, manifest: RunManifest) -> Iterator[str]:
    """What each attack (C6) did to its objective beside random signs, and who was left out."""
    attacks = [c for c in manifest.conditions if parse_condition(c).attack]
    if attacks:
        yield (
            "Attacks (C6) change RGB alone. Depth, segmentation and temperature become discrete tokens, "
            "through which no gradient goes, and are not attacked: surviving by them is not shown to be "
            "robustness. What a policy computes of RGB is computed from the attacked picture."
        )
    for name in names:
        out = [c for c in attacks if not can_meet(manifest.policies[name], c)]
        if out and name not in manifest.clean_only:
            listed = ", ".join(out)
            yield f"{name} is left out of {listed}: no such attack is possible. That is no robustness."
        for condition in attacks:
            found = _mean_attack(cells.of(name, condition))
            if found is None:
                continue
            doubt = f" At {found.weaker} looks it did no more than they: the search fails there."
            yield (
                f"{name}, {condition}: at {found.looks} looks the attack raised its objective from "
                f"{found.clean:.3g} to {found.reached:.3g}, random signs of the same size to "
                f"{found.control:.3g}; smallest gradient {found.gradient:.2g}.{doubt if found.weaker else ''}"
            )


def _mean_attack(cell: pd.DataFrame) -> AttackRecord | None:
    """Over the episodes of a cell; ``None`` if nothing was searched in them."""
    if ATTACK + "looks" not in cell or not (looks := cell[ATTACK + "looks"].fillna(0)).any():
        return None
    values = [cell[ATTACK + k].fillna(0) for k in ("clean", "control", "reached")]
    clean, control, reached = (float((v * looks).sum() / looks.sum()) for v in values)
    weaker, gradient = cell[ATTACK + "weaker"].sum(), cell[ATTACK + "gradient"].min()
    return AttackRecord(int(looks.sum()), clean, control, reached, int(weaker), float(gradient))


def _budget_notes(policies: Sequence[PolicySummary]) -> Iterator[str]:
    """Whether policies that learned saw as many samples: more training alone may explain a difference."""
    seen = {p.name: p.facts.training_samples for p in policies if p.facts.training_samples is not None}
    if len(seen) < 2:
        return
    listed = ", ".join(f"{name} {samples:,}" for name, samples in seen.items())
    if len(set(seen.values())) == 1:
        yield f"Samples seen in training, alike in all: {next(iter(seen.values())):,}."
    else:
        yield (
            f"Samples seen in training: {listed}. Part of a difference may come from there; `python train.py "
            "mini_baselines` shows how to train a baseline for as many."
        )


def _initial_state_notes(cells: Cells, manifest: RunManifest) -> Iterator[str]:
    """Suites whose initial states are repeated, and those evaluated on states that are recorded from."""
    recorded = []
    for name, suite in manifest.suites.items():
        own = cells.table[cells.table["suite"] == name]
        if own.empty:
            continue
        most = own.groupby(["policy", "condition", "task_id", "repeat"], observed=True).size().max()
        if suite.init_states is not None and most > suite.init_states:
            yield (
                f"Up to {most} episodes per task of {name} share {suite.init_states} different initial "
                "states: the further ones repeat a start with other policy noise. They are no independent "
                "episodes; intervals and comparisons allow for it."
            )
        splits = suite.init_state_splits
        if RECORDED in splits:
            total = sum(last - first + 1 for first, last in splits.values())
            states = own["init_state"] % total  # after the last one the first follows again
            inside = states.between(*splits[RECORDED])
            if inside.any():
                recorded.append(
                    f"{states[inside].nunique()} of the {states.nunique()} initial states per task of {name} "
                    f"in this run ({inside.sum()} of {len(own)} episodes) are of the split that "
                    "multismolvla-record records from: they are no held-out starts for a policy that was "
                    "trained on such a recording. Policies trained on LIBERO's published demonstrations are "
                    "not concerned."
                )
    yield from recorded


def _fairness_notes(checks: Checks) -> Iterator[str]:
    """One sentence per policy and kind of doubt, so that a long matrix does not drown the page."""
    starts = checks.starts
    if starts.equal < starts.episodes:
        yield (
            f"{starts.episodes - starts.equal} of {starts.episodes} (task, episode) pairs do not start from "
            "the same simulator state in all cells: do not trust paired differences before you have found "
            "out why."
        )
    doubts = {
        "reached": "not every faulted stream changed what entered the policy",
        "rest_equal": "something besides the faulted streams differs from the clean cell",
    }
    for name in dict.fromkeys(f.policy for f in checks.faults):
        for count, doubt in doubts.items():
            doubted = [
                f"{f.condition} ({f.episodes - getattr(f, count)} of {f.episodes})"
                for f in checks.faults
                if f.policy == name and getattr(f, count) < f.episodes
            ]
            if doubted:
                yield (
                    f"{name}: {doubt} in some episodes; find out why before you trust these cells: "
                    f"{', '.join(doubted)}."
                )

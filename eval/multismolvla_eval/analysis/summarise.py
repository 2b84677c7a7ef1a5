"""From episodes to figures: everything a report states, computed from the rows and the manifest alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from multismolvla.corruption import parse_condition
from multismolvla_eval.analysis.aggregates import aggregates
from multismolvla_eval.analysis.bootstrap import Pairs
from multismolvla_eval.analysis.cells import Cells, episodes_met, pairs_of, rate_of
from multismolvla_eval.analysis.commands import repeat_command
from multismolvla_eval.analysis.diagnosis import Diagnosis, error_beside
from multismolvla_eval.analysis.fairness import fairness_checks
from multismolvla_eval.analysis.families import (
    Comparison,
    compare_in_families,
    family,
    reads_condition,
    seen,
)
from multismolvla_eval.analysis.notes import reader_notes
from multismolvla_eval.analysis.provenance import provenance_conflicts
from multismolvla_eval.analysis.summary import (
    Cell,
    CellFigures,
    CleanSuccess,
    Clip,
    ConditionSummary,
    GroupDiagnostics,
    PolicyAggregates,
    PolicySummary,
    RunFigures,
    Summary,
    TaskSummary,
)
from multismolvla_eval.protocol.levels import describe
from multismolvla_eval.records.reach import can_meet, mask_reaches_policy
from multismolvla_eval.records.schema import RunManifest
from multismolvla_eval.records.system_info import distinct_calls

#: A policy must reach this share of the baseline's clean success before its robustness is reported.
REPORTABLE_SHARE = 0.5


class _Compared(NamedTuple):
    """What a comparison is of: the baseline, or the clean condition, against a cell."""

    reference: str
    policy: str
    suite: str | None
    condition: str

    @property
    def family(self) -> tuple[str | None, ...]:
        return self.reference, self.policy, self.suite, family(self.condition)


def summarise(table: pd.DataFrame, manifest: RunManifest, diagnosis: Diagnosis | None = None) -> Summary:
    """Compute a run's figures.

    Args:
        table: of `multismolvla_eval.analysis.table.episode_table`.
        manifest: of the run.
        diagnosis: of `multismolvla_eval.analysis.diagnosis.read_diagnosis`.
    """
    cells = Cells(table)
    known = {column: set(table[column].unique()) for column in ("policy", "suite", "condition")}
    names = [n for n in manifest.policies if n in known["policy"]]
    conditions = [c for c in manifest.conditions if c in known["condition"]]
    suites = [s for s in manifest.suites if s in known["suite"]]
    parts = suites if len(suites) > 1 else []
    policies = {n: _policy(n, cells, parts, manifest) for n in names}
    pairs = _pairs(policies, cells, [None, *parts], conditions, manifest.baseline)
    comparisons = compare_in_families(pairs, lambda compared: compared.family)
    checks = fairness_checks(names, conditions, cells, manifest)
    return Summary(
        manifest,
        _run_figures(table, manifest),
        list(policies.values()),
        [_condition(c, names, parts, cells, comparisons, manifest, diagnosis) for c in conditions],
        {n: _aggregates(p, cells, conditions, manifest) for n, p in policies.items() if p.reportable},
        _tasks(table, manifest),
        _diagnostics(table),
        diagnosis,
        _clips(table),
        checks,
        reader_notes(cells, list(policies.values()), checks, manifest),
    )


def why_withheld(name: str, cells: Cells, manifest: RunManifest, suite: str | None = None) -> str:
    """Why a policy's robustness is not reportable, over all suites or in one; empty if it is."""
    clean, reference = (rate_of(cells.of(n, "C0", suite)) for n in (name, manifest.baseline))
    if manifest.policies[name].privileged:
        return "it reads the simulator's state, which no sensor fault reaches"
    if clean is None:
        return "it has no clean episodes yet"
    if clean.successes == 0:
        return f"it never succeeds on clean input (0 of {clean.n})"
    judge = "the baseline, by whose clean success it is judged,"
    if reference is None:
        return f"{judge} has no clean episodes yet"
    if reference.successes == 0:
        return f"{judge} never succeeds on clean input (0 of {reference.n})"
    if clean.rate < REPORTABLE_SHARE * reference.rate:
        return f"its clean success of {clean.rate:.0%} is below half of the baseline's {reference.rate:.0%}"
    return ""


def _clean_success(name: str, cells: Cells, manifest: RunManifest, suite: str | None = None) -> CleanSuccess:
    clean = cells.of(name, "C0", suite)
    repeats = [rate_of(part) for _, part in clean.groupby("repeat")]
    return CleanSuccess(rate_of(clean), [r for r in repeats if r], why_withheld(name, cells, manifest, suite))


def _policy(name: str, cells: Cells, suites: Sequence[str], manifest: RunManifest) -> PolicySummary:
    facts, episodes = manifest.policies[name], cells.of_policy(name)
    steps, seconds = episodes["steps"].sum(), episodes["policy_seconds"].sum()
    own, environment = facts.provenance, manifest.provenance
    conflicts = provenance_conflicts(own, environment)
    said = {**{m: kind for m, kind in environment.items() if m not in own}, **own}
    return PolicySummary(
        **vars(_clean_success(name, cells, manifest)),
        name=name,
        baseline=name == manifest.baseline,
        facts=facts,
        provenance={
            s: f"{kind} (environment: {conflicts[s][1]})" if s in conflicts else kind
            for s, kind in said.items()
        },
        suites={s: _clean_success(name, cells, manifest, s) for s in suites},
        policy_ms_per_step=round(1000 * float(seconds) / int(steps), 2) if steps else None,
        peak_memory_mb=_known(episodes["peak_memory_mb"].max()),
        gripper_closed=_known(episodes["gripper_closed"].mean()),
        gripper_switches=_known(episodes["gripper_switches"].mean()),
        steps_to_success=_known(episodes["steps_to_success"].mean()),
    )


def _pairs(
    policies: Mapping[str, PolicySummary],
    cells: Cells,
    suites: Sequence[str | None],
    conditions: Sequence[str],
    baseline: str,
) -> dict[_Compared, Pairs]:
    """All comparisons that are reported. The clean difference to the baseline is no robustness figure."""
    found = {}
    for condition in conditions:
        for name, policy in policies.items():
            for suite in suites:
                cell, shown = cells.of(name, condition, suite), not policy.withheld_in(suite)
                references = {
                    "clean": (name, "C0") if parse_condition(condition).faults and shown else None,
                    "baseline": (baseline, condition)
                    if name != baseline and (condition == "C0" or shown)
                    else None,
                }
                for reference, other in references.items():
                    if other and (pairs := pairs_of(cells.of(*other, suite), cell)):
                        found[_Compared(reference, name, suite, condition)] = pairs
    return found


def _condition(
    condition_id: str,
    names: Sequence[str],
    suites: Sequence[str],
    cells: Cells,
    comparisons: Mapping[_Compared, Comparison],
    manifest: RunManifest,
    diagnosis: Diagnosis | None,
) -> ConditionSummary:
    condition = parse_condition(condition_id)

    def figures(name: str, suite: str | None = None) -> CellFigures | None:
        cell = cells.of(name, condition_id, suite)
        rate = rate_of(cell)
        if rate is None:
            return None
        return CellFigures(
            rate,
            comparisons.get(_Compared("clean", name, suite, condition_id)),
            comparisons.get(_Compared("baseline", name, suite, condition_id)),
            _known(cell["steps_to_success"].mean(), digits=1),
            None if condition_id == "C0" else episodes_met(cell),
            int((cell["cause"] == "time_out").sum()),
        )

    found = {}
    for name in names:
        whole, policy = figures(name), manifest.policies[name]
        if whole is not None:
            found[name] = Cell(
                **vars(whole),
                reads_fault=reads_condition(policy, condition_id, manifest),
                mask_reaches_policy=mask_reaches_policy(policy, condition_id, manifest),
                offline=error_beside(diagnosis, name, condition_id),
                suites={s: part for s in suites if (part := figures(name, s))},
            )
    return ConditionSummary(
        condition_id,
        condition.group,
        family(condition_id),
        seen(condition_id),
        describe(condition),
        found,
        repeat_command(condition_id, manifest),
    )


def _aggregates(
    policy: PolicySummary, cells: Cells, conditions: Sequence[str], manifest: RunManifest
) -> PolicyAggregates:
    name = policy.name
    return PolicyAggregates(
        **vars(aggregates(name, cells, conditions, manifest)),
        weak_suites=[s for s, part in policy.suites.items() if not part.reportable],
        suites={
            s: aggregates(name, cells, conditions, manifest, s)
            for s, part in policy.suites.items()
            if part.reportable
        },
    )


def _tasks(table: pd.DataFrame, manifest: RunManifest) -> list[TaskSummary]:
    by_cell = table.groupby(["suite", "task_id", "policy", "condition"], observed=True)["success"]
    counts: dict[tuple[str, int], dict[str, tuple[int, int]]] = {}
    for (suite, task, policy, condition), won, n in by_cell.agg(["sum", "size"]).itertuples():
        counts.setdefault((suite, task), {})[f"{policy}|{condition}"] = int(won), int(n)
    return [
        TaskSummary(name, task, text, counts.get((name, task), {}))
        for name, suite in manifest.suites.items()
        for task, text in sorted(suite.tasks.items())
    ]


def _diagnostics(table: pd.DataFrame) -> list[GroupDiagnostics]:
    groups = table["condition"].map(lambda condition: condition.partition(":")[0])
    found = []
    for (name, group), episodes in table.groupby(["policy", groups.astype(str)], observed=True):
        causes = episodes.loc[~episodes["success"], "cause"].value_counts()
        found.append(
            GroupDiagnostics(
                name,
                group,
                len(episodes),
                int(episodes["success"].sum()),
                {str(cause): int(n) for cause, n in causes.items()},
                *(
                    _known(episodes[column].mean())
                    for column in ("steps_to_success", "gripper_closed", "gripper_switches", "seconds")
                ),
            )
        )
    return found


def _clips(table: pd.DataFrame) -> list[Clip]:
    return [
        Clip(
            row.policy, row.suite, row.condition, int(row.task_id), int(row.episode), int(row.repeat),
            bool(row.success), row.cause or "", row.clip,
        )
        for row in table[table["clip"].notna()].itertuples()
    ]  # fmt: skip


def _run_figures(table: pd.DataFrame, manifest: RunManifest) -> RunFigures:
    clean = manifest.clean_episodes * manifest.clean_repeats
    tasks = sum(len(suite.tasks) for suite in manifest.suites.values())
    faulted = {
        name: manifest.episodes * sum(c != "C0" and can_meet(facts, c) for c in manifest.conditions)
        for name, facts in manifest.policies.items()
        if name not in manifest.clean_only
    }
    planned = tasks * (clean * len(manifest.policies) + sum(faulted.values()))
    return RunFigures(
        tasks=tasks,
        finished=len(table),
        planned=max(planned, len(table)),
        last=table["time"].max(),
        simulator_hours=round(float(table["seconds"].sum()) / 3600, 3),
        seconds_per_episode=_known(table["seconds"].mean()),
        made_with=distinct_calls(manifest),
    )


def _known(value: float, digits: int = 3) -> float | None:
    return None if pd.isna(value) else round(float(value), digits)

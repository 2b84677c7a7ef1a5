"""What the policies of an evaluation thought of their streams: did they find the faults, and only those?

An episode's score of a stream is its greatest over all looks (`multismolvla.health.Verdict`), so that one
look suffices. The area under the ROC curve compares faulted with clean episodes of the same policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from scipy.stats import chi2

from multismolvla.corruption import parse_condition
from multismolvla.modalities import default_view_map
from multismolvla_eval.analysis.statistics import auroc
from multismolvla_eval.records.reach import faulted_keys
from multismolvla_eval.records.schema import EpisodeRow, HealthRecord, RunManifest

#: Types of faults that a rule was built for; whatever else is found is found by chance or by statistics.
BUILT_FOR = frozenset({"zero", "grey", "freeze", "frozen", "scale"})
#: One-sided confidence of the bound on false alarms.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class FoundFault:
    """How one fault was noticed by one policy.

    Attributes:
        policy, condition: of the cell.
        n: faulted episodes.
        found: of them, those in which a faulted stream counted as absent at least once.
        area: under the ROC curve of the score, faulted against clean episodes; NaN without clean ones.
        delay: median number of looks from the fault's first one until it was found; NaN if it never was.
        others: faulted episodes in which a healthy stream counted as absent.
        built_for: whether a rule was made for this type of fault.
    """

    policy: str
    condition: str
    n: int
    found: int
    area: float
    delay: float
    others: int
    built_for: bool


@dataclass(frozen=True)
class FalseAlarms:
    """Streams of clean episodes that counted as absent, each episode and stream at most once.

    Attributes:
        policy: its name.
        count: alarms.
        hours: of clean episodes.
    """

    policy: str
    count: int
    hours: float

    @property
    def bound(self) -> float:
        """Upper 95 % bound per hour, exact for a Poisson count."""
        if self.hours == 0:
            return math.inf
        return float(chi2.ppf(CONFIDENCE, 2 * (self.count + 1))) / 2 / self.hours


def detections(manifest: RunManifest, rows: Sequence[EpisodeRow]) -> list[FoundFault]:
    """One entry per policy that judges its streams, and condition with an unannounced fault."""
    streams = {
        key: f"{view}.{m}"
        for view, by_modality in default_view_map(tuple(manifest.cameras)).items()
        for m, key in by_modality.items()
    }
    found = []
    for policy, facts in manifest.policies.items():
        mine = [r for r in rows if r.policy == policy and r.health]
        clean = [r for r in mine if r.condition == "C0"]
        for condition in manifest.conditions:
            faults = parse_condition(condition).faults
            cell = [r for r in mine if r.condition == condition]
            if not cell or not faults or any(f.announced for f in faults):
                continue
            hit = {streams[key] for key in faulted_keys(condition, manifest, facts)}
            found.append(
                FoundFault(
                    policy,
                    condition,
                    len(cell),
                    sum(any(_absent(r, s) for s in hit) for r in cell),
                    auroc([_score(r, hit) for r in cell], [_score(r, hit) for r in clean]),
                    _delay(cell, hit, facts.n_action_steps or 1),
                    sum(any(_absent(r, s) for s in _health(r) if s not in hit) for r in cell),
                    all(f.type in BUILT_FOR for f in faults),
                )
            )
    return found


def false_alarms(manifest: RunManifest, rows: Sequence[EpisodeRow]) -> list[FalseAlarms]:
    """One entry per policy that judges its streams."""
    made = []
    for policy in manifest.policies:
        clean = [r for r in rows if r.policy == policy and r.condition == "C0" and r.health]
        seconds = sum(r.steps / manifest.suites[r.suite].fps for r in clean if manifest.suites[r.suite].fps)
        if clean:
            count = sum(_absent(r, s) for r in clean for s in _health(r))
            made.append(FalseAlarms(policy, count, seconds / 3600))
    return made


def health_text(manifest: RunManifest, rows: Sequence[EpisodeRow]) -> str:
    """For the terminal."""
    found, alarms = detections(manifest, rows), false_alarms(manifest, rows)
    if not alarms and not found:
        return "No policy of this evaluation judges its streams (policy.health=off, or of another kind)."
    width = max([9, *(len(d.condition) for d in found)])
    lines = []
    for alarm in alarms:
        lines += [
            f"{alarm.policy}: {alarm.count} false alarms in {alarm.hours:.2f} hours of clean episodes "
            f"(at most {alarm.bound:.1f} per hour, 95 %)",
            f"  {'condition':{width}}  found    AUROC  delay  others",
        ]
        for d in found:
            if d.policy != alarm.policy:
                continue
            delay = "-" if math.isnan(d.delay) else f"{d.delay:g}"
            lines.append(
                f"  {d.condition:{width}}  {f'{d.found}/{d.n}':7}  {d.area:5.2f}  {delay:>5}  "
                f"{f'{d.others}/{d.n}':>6}{'' if d.built_for else '  no rule was built for it'}"
            )
    lines.append(
        "found: episodes in which a faulted stream counted as absent; delay: looks from the fault's first "
        "one, median; others: episodes in which a healthy stream did."
    )
    return "\n".join(lines)


def _health(row: EpisodeRow) -> dict[str, HealthRecord]:
    return row.health or {}


def _absent(row: EpisodeRow, stream: str) -> bool:
    return stream in _health(row) and _health(row)[stream].absent > 0


def _score(row: EpisodeRow, streams: set[str]) -> float:
    return max((record.score for s, record in _health(row).items() if s in streams), default=0.0)


def _delay(cell: Sequence[EpisodeRow], streams: set[str], steps_per_look: int) -> float:
    delays = []
    for row in cell:
        first = [r.first for s, r in _health(row).items() if s in streams and r.first is not None]
        if first:
            delays.append(min(first) - math.ceil((row.first_fault_step or 0) / steps_per_look))
    return median(delays) if delays else math.nan

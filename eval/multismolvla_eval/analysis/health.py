"""What the policies of an evaluation thought of their streams: did they find the faults, and only those?

An episode's score of a stream is its greatest over all looks (`multismolvla.health.Verdict`), so that one
look suffices. The area under the ROC curve compares faulted with clean episodes of the same policy. Where
those are longer, because they fail, their score is the greatest of more looks: length alone moves the area.

Several runs are pooled by the names of their policies, such as one policy per training seed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median

import numpy as np
from scipy.stats import chi2

from multismolvla.corruption import Fault, parse_condition
from multismolvla.modalities import MODALITIES, default_view_map
from multismolvla_eval.analysis.bootstrap import pooled_auroc, rate_interval
from multismolvla_eval.records.reach import faulted_keys
from multismolvla_eval.records.schema import EpisodeRow, HealthRecord, RunManifest

#: A run: its manifest and its rows.
type Run = tuple[RunManifest, Sequence[EpisodeRow]]

#: Type of fault -> modalities of which a rule was built for it, see `multismolvla.health`; whatever else is
#: found is found by chance or by statistics. Black class ids are known by the black RGB beside them.
BUILT_FOR: dict[str, tuple[str, ...]] = {
    "zero": ("rgb", "depth", "thermal"),
    "burst_silent": ("rgb", "depth", "thermal"),
    "grey": ("rgb", "thermal"),
    "freeze": MODALITIES,
    "noisy_freeze": MODALITIES,
    "frozen": MODALITIES,
    "scale": ("depth",),
}
#: One-sided confidence of the bound on false alarms.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class FoundFault:
    """How one fault was noticed by one policy.

    Attributes:
        policy, condition: of the cell.
        n: episodes that met the fault.
        unmet: episodes that were over, or never looked, before it began; they count nowhere else.
        found: of the n, those in which a faulted stream counted as absent at the fault's first look or later.
        interval: 95 % bounds of their share, see `rate_interval`.
        area: under the ROC curve of the score, on the starts that both cells have, with its 95 % bounds; NaN
            without clean episodes.
        delay: median number of looks from the fault's first one until it was found; NaN if it never was.
        others: of the n, those in which a healthy stream counted as absent.
        built_for: whether a rule was made for the fault, of several for one.
    """

    policy: str
    condition: str
    n: int
    unmet: int
    found: int
    interval: tuple[float, float]
    area: tuple[float, float, float]
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
        alarmed: episodes with an alarm.
        episodes: clean ones.
    """

    policy: str
    count: int
    hours: float
    alarmed: int
    episodes: int

    @property
    def bound(self) -> float:
        """Upper 95 % bound per hour, exact for a Poisson count.

        That is a count of independent alarms. Streams of one episode fail together, and then it is too low.
        """
        if self.hours == 0:
            return math.inf
        return float(chi2.ppf(CONFIDENCE, 2 * (self.count + 1))) / 2 / self.hours


def detections(runs: Sequence[Run]) -> list[FoundFault]:
    """One entry per policy that judges its streams, and condition with an unannounced fault."""
    cells: dict[tuple[str, str], list[_Cell]] = defaultdict(list)
    for manifest, rows in runs:
        judged = defaultdict(list)
        for row in rows:
            if row.health:
                judged[row.policy, row.condition].append(row)
        for policy in manifest.policies:
            for condition in manifest.conditions:
                faults = parse_condition(condition).faults
                if judged[policy, condition] and faults and not any(f.announced for f in faults):
                    clean = [r for r in judged[policy, "C0"] if r.repeat == 0]
                    cell = _cell(manifest, policy, condition, judged[policy, condition], clean)
                    cells[policy, condition].append(cell)
    return [_found(policy, condition, parts) for (policy, condition), parts in cells.items()]


@dataclass(frozen=True)
class _Cell:
    """Episodes of one run, policy and condition.

    Attributes:
        delays: of each that met the fault, looks until it was found; ``None`` if it never was.
        scores: (faulted, clean) of the starts that both cells have, float (n,) each.
        others: episodes in which a healthy stream counted as absent.
        unmet: that did not meet the fault.
    """

    delays: list[int | None]
    scores: tuple[np.ndarray, np.ndarray]
    others: int
    unmet: int


def _cell(
    manifest: RunManifest, policy: str, condition: str, rows: list[EpisodeRow], clean: list[EpisodeRow]
) -> _Cell:
    facts = manifest.policies[policy]
    streams = {
        key: f"{view}.{m}"
        for view, by_modality in default_view_map(tuple(manifest.cameras)).items()
        for m, key in by_modality.items()
    }
    hit = {streams[key] for key in faulted_keys(condition, manifest, facts)}
    met = [row for row in rows if _met(row)]
    sound = {_start(row): _score(row, hit) for row in clean}
    pairs = [(_score(row, hit), sound[_start(row)]) for row in met if _start(row) in sound]
    faulted, negative = np.array(pairs).reshape(-1, 2).T
    return _Cell(
        [_delay(row, hit, facts.n_action_steps or 1) for row in met],
        (faulted, negative),
        sum(any(_alarms(r) for s, r in _health(row).items() if s not in hit) for row in met),
        len(rows) - len(met),
    )


def _found(policy: str, condition: str, cells: Sequence[_Cell]) -> FoundFault:
    met = [np.array([d is not None for d in cell.delays], float) for cell in cells if cell.delays]
    scores = [cell.scores for cell in cells if len(cell.scores[0])]
    delays = [d for cell in cells for d in cell.delays if d is not None]
    return FoundFault(
        policy,
        condition,
        sum(map(len, met)),
        sum(cell.unmet for cell in cells),
        len(delays),
        rate_interval(met) if met else (math.nan, math.nan),
        pooled_auroc(scores) if scores else (math.nan, math.nan, math.nan),
        median(delays) if delays else math.nan,
        sum(cell.others for cell in cells),
        any(built_for(f) for f in parse_condition(condition).faults),
    )


def built_for(fault: Fault) -> bool:
    """Whether a rule was made for this type of fault, of this modality, as strong as it is."""
    if fault.type == "scale" and 0.5 <= (fault.parameter or 1) <= 2:
        return False  # the rule is for another unit, not for a wrong calibration
    return fault.modality in BUILT_FOR.get(fault.type, ())


def false_alarms(runs: Sequence[Run]) -> list[FalseAlarms]:
    """One entry per policy that judges its streams."""
    made = []
    for policy in dict.fromkeys(chain.from_iterable(manifest.policies for manifest, _ in runs)):
        counts, seconds = [], 0.0
        for manifest, rows in runs:
            clean = [r for r in rows if r.policy == policy and r.condition == "C0" and r.health]
            fps = {name: suite.fps for name, suite in manifest.suites.items()}
            seconds += sum(r.steps / fps[r.suite] for r in clean if fps[r.suite])
            counts += [sum(bool(_alarms(record)) for record in _health(r).values()) for r in clean]
        if counts:
            alarmed = sum(count > 0 for count in counts)
            made.append(FalseAlarms(policy, sum(counts), seconds / 3600, alarmed, len(counts)))
    return made


def health_text(runs: Sequence[Run]) -> str:
    """For the terminal."""
    found, alarms = detections(runs), false_alarms(runs)
    if not alarms and not found:
        return "No policy of this evaluation judges its streams (policy.health=off, or of another kind)."
    width = max([9, *(len(d.condition) for d in found)])
    lines = []
    for alarm in alarms:
        lines += [
            f"{alarm.policy}: {alarm.count} false alarms in {alarm.hours:.3f} hours of clean episodes "
            f"(at most {alarm.bound:.1f} per hour, 95 %), in {alarm.alarmed} of {alarm.episodes} episodes",
            f"  {'condition':{width}}  {'found':21}  {'AUROC':16}  delay  others",
        ]
        lines += [f"  {_line(d, width)}" for d in found if d.policy == alarm.policy]
    lines += [
        "",
        "False alarms: streams of clean episodes that counted as absent, each once per episode. The bound is",
        "  exact (Poisson) for alarms that come one by one; where streams fail together it is too low.",
        "found: episodes in which a faulted stream counted as absent, from the fault's first look on.",
        "AUROC: of an episode's greatest score, faulted against clean; more looks make a greater one, too.",
        "delay: looks from the fault's first one until it was found, median.",
        "others: episodes in which a healthy stream counted as absent.",
        "In brackets: 95 % intervals; of several evaluations these are drawn first, then starts.",
    ]
    return "\n".join(lines)


def _line(d: FoundFault, width: int) -> str:
    low, high = (f"{100 * bound:.0f}" for bound in d.interval)
    share = f"{d.found}/{d.n} ({low}–{high} %)" if d.n else "0/0"
    area = "{:.2f} ({:.2f}–{:.2f})".format(*d.area)
    delay = "-" if math.isnan(d.delay) else f"{d.delay:g}"
    remarks = [f"{d.unmet} never met it"] if d.unmet else []
    remarks += [] if d.built_for else ["no rule was built for it"]
    line = f"{d.condition:{width}}  {share:21}  {area:16}  {delay:>5}  {f'{d.others}/{d.n}':>6}"
    return f"{line}  {', '.join(remarks)}".rstrip()


def _health(row: EpisodeRow) -> dict[str, HealthRecord]:
    return row.health or {}


def _start(row: EpisodeRow) -> tuple[str, int, int]:
    return row.suite, row.task_id, row.episode


def _met(row: EpisodeRow) -> bool:
    """Whether the policy looked while the fault was there; also where the environment does not tell."""
    looks = row.fault_steps if row.fault_looks is None else row.fault_looks
    return looks is None or looks > 0


def _alarms(record: HealthRecord) -> list[int]:
    """Numbers of the looks at which a stream counted as absent, of old rows the first of them."""
    return record.absent_at or ([] if record.first is None else [record.first])


def _score(row: EpisodeRow, streams: set[str]) -> float:
    return max((record.score for s, record in _health(row).items() if s in streams), default=0.0)


def _delay(row: EpisodeRow, streams: set[str], steps_per_look: int) -> int | None:
    """Looks from the fault's first one until one of the streams counted as absent."""
    begun = math.ceil((row.first_fault_step or 0) / steps_per_look)
    looks = [look for s, r in _health(row).items() if s in streams for look in _alarms(r) if look >= begun]
    return min(looks) - begun if looks else None

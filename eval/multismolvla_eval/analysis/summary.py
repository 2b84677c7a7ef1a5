"""What a report states, declared once; tables, plots and pages only format it."""

from __future__ import annotations

from dataclasses import dataclass

from multismolvla_eval.analysis.aggregates import Aggregates
from multismolvla_eval.analysis.diagnosis import ControlError, Diagnosis
from multismolvla_eval.analysis.fairness import Checks
from multismolvla_eval.analysis.families import Comparison, label
from multismolvla_eval.analysis.statistics import Rate
from multismolvla_eval.records.schema import MadeWith, PolicyFacts, RunManifest


@dataclass(frozen=True)
class RunFigures:
    """A run as a whole."""

    tasks: int  # in all suites
    finished: int  # episodes
    planned: int
    last: str  # time of the latest episode, ISO 8601
    simulator_hours: float  # of all workers together
    seconds_per_episode: float | None
    made_with: list[MadeWith]  # calls that differ


@dataclass(frozen=True)
class CleanSuccess:
    """A policy's clean success, over all suites or in one, and whether it allows to report robustness."""

    clean: Rate | None
    repeats: list[Rate]  # of each repetition of the clean condition
    withheld: str  # why robustness is not reported; empty if it is

    @property
    def reportable(self) -> bool:
        """Whether robustness is reported."""
        return not self.withheld


@dataclass(frozen=True)
class PolicySummary(CleanSuccess):
    """A policy over all suites."""

    name: str
    baseline: bool
    facts: PolicyFacts
    provenance: dict[str, str]  # modality, or view.modality -> where it comes from, in words
    suites: dict[str, CleanSuccess]  # empty in a run of one suite
    policy_ms_per_step: float | None
    peak_memory_mb: float | None  # of the process that ran its episodes
    gripper_closed: float | None  # share of steps
    gripper_switches: float | None  # per episode
    steps_to_success: float | None

    @property
    def label(self) -> str:
        """Name with what a reader must know beside each figure."""
        return label(self.name, self.facts, self.reportable)

    def withheld_in(self, suite: str | None) -> str:
        """Why robustness is not reported in a suite: it must be reportable over all suites, too."""
        return self.withheld or (self.suites[suite].withheld if suite in self.suites else "")


@dataclass(frozen=True)
class CellFigures:
    """A policy under one condition, over all suites or in one."""

    success: Rate
    versus_clean: Comparison | None  # None for the clean condition, or if withheld
    versus_baseline: Comparison | None  # None for the baseline, or if withheld
    steps_to_success: float | None
    met: tuple[int, int] | None  # episodes in which the policy met the fault, of those of which that is known
    time_outs: int  # episodes that ended at the step limit


@dataclass(frozen=True)
class Cell(CellFigures):
    """A policy under one condition, over all suites."""

    # Whether it reads a stream that fails; None if none fails, or it has no inputs.
    reads_fault: bool | None
    # Whether an announced loss reaches it; None if none of what it reads is announced.
    mask_reaches_policy: bool | None
    offline: ControlError | None  # with such pictures
    suites: dict[str, CellFigures]  # empty in a run of one suite


@dataclass(frozen=True)
class ConditionSummary:
    """A condition and its cells."""

    condition: str
    group: str
    family: str  # over which p-values are adjusted
    seen: bool | None  # whether training may meet its types of fault
    description: str
    cells: dict[str, Cell]  # by policy
    command: str  # that repeats it

    def figures(self, policy: str, suite: str | None = None) -> CellFigures | None:
        """Of a policy, over all suites or in one; ``None`` without episodes."""
        cell = self.cells.get(policy)
        return cell.suites.get(suite) if cell and suite else cell


@dataclass(frozen=True)
class PolicyAggregates(Aggregates):
    """A policy's figures over many conditions and all suites."""

    weak_suites: list[str]  # that are among them, though robustness is not reported there
    suites: dict[str, Aggregates]  # of the other suites


@dataclass(frozen=True)
class TaskSummary:
    """Successes and episodes of a task."""

    suite: str
    task_id: int
    task: str
    counts: dict[str, tuple[int, int]]  # by `policy|condition`


@dataclass(frozen=True)
class GroupDiagnostics:
    """How a policy's episodes under a group of conditions ended, and what the gripper did."""

    policy: str
    group: str
    episodes: int
    successes: int
    causes: dict[str, int]  # of failures, the most frequent first
    steps_to_success: float | None
    gripper_closed: float | None
    gripper_switches: float | None
    seconds: float | None


@dataclass(frozen=True)
class Clip:
    """A film of an episode."""

    policy: str
    suite: str
    condition: str
    task_id: int
    episode: int
    repeat: int
    success: bool
    cause: str
    path: str  # in the run's folder

    @property
    def start(self) -> tuple[str, str, int, int, int]:
        """Equal for clips of one policy that begin the same."""
        return self.policy, self.suite, self.task_id, self.repeat, self.episode


@dataclass(frozen=True)
class Summary:
    """A run's figures."""

    manifest: RunManifest
    run: RunFigures
    policies: list[PolicySummary]  # that have episodes
    conditions: list[ConditionSummary]  # that have episodes
    aggregates: dict[str, PolicyAggregates]  # of policies whose robustness is reported
    tasks: list[TaskSummary]
    diagnostics: list[GroupDiagnostics]
    diagnosis: Diagnosis | None  # sensor use, if it was measured
    clips: list[Clip]
    checks: Checks
    notes: list[str]  # what a reader must know before quoting a figure

    @property
    def suites(self) -> list[str]:
        """Suites that have figures of their own: none in a run of one suite."""
        return list(self.policies[0].suites)

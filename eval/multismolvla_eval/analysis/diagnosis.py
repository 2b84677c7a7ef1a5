"""What the measurement of sensor use found: typed, as text, and as the report reads it from a run's folder.

Imports no torch, because a report would spend most of its time on that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, field

from multismolvla.modalities import MODALITIES
from multismolvla_eval.records.schema import Count, PolicyFacts
from multismolvla_eval.records.store import read_struct

FILE = "sensor_use.json"
REMARK = (
    "Offline action error on recorded frames: it says whether pictures matter to the policy, not whether it "
    "solves the task."
)
#: Conditions under which a policy sees what a control of the measurement shows.
_CONDITIONS = {"true": "C0", "zeroed": "C2:all=zero", **{f"{m} zeroed": f"C2:{m}=zero" for m in MODALITIES}}


class Change(Struct):
    """What a control adds to the action error of the same frames, with its 95 % bootstrap interval."""

    difference: float
    low: float
    high: float
    relative: float  # the difference as a share of the error with the true pictures


class ControlError(Struct, omit_defaults=True):
    """Mean absolute error of the executed actions, with its 95 % bootstrap interval; normalised units."""

    n: Count  # frames
    error: float
    low: float
    high: float
    change: Change | None = None  # against the true pictures; None for these themselves


class SensorUse(Struct, omit_defaults=True):
    """What was measured of one policy, or why nothing was."""

    path: str  # as given
    checkpoint: str = ""  # hash of weights and configuration
    left_out: str = ""  # why it was not measured; empty if it was
    type: str = ""  # LeRobot's policy type
    n: Count = 0  # frames
    episodes: Count = 0  # recorded ones, that the frames are from
    n_action_steps: Count = 0  # executed per frame, over which the error is a mean
    modalities: list[str] = field(default_factory=list)  # that the policy reads and the dataset has
    controls: dict[str, ControlError] = field(default_factory=dict)  # by name, `true` first
    failures: list[str] = field(default_factory=list)  # of the check: what the policy hardly uses


class Diagnosis(Struct, kw_only=True):
    """``sensor_use.json``: what was measured of several policies."""

    remark: str = REMARK
    dataset: str
    episodes: list[int] | None  # of the dataset; None = all
    held_out: bool  # whether the user named episodes, on which no policy should have been trained
    frames: Count  # asked for
    modality_frames: Count  # asked for, for each modality alone
    seed: int
    rename_map: dict[str, str | dict[str, str]]  # as given
    policies: dict[str, SensorUse]  # by name
    command: str


def stored_diagnosis(folder: Path) -> Diagnosis | None:
    """The diagnosis in a run's folder, if there is one.

    Raises:
        ResultsError: the file is damaged, or has another format.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    return read_struct(path, Diagnosis, "Delete it, and run with --diagnose again.")


def read_diagnosis(folder: Path, policies: Mapping[str, PolicyFacts]) -> Diagnosis | None:
    """The diagnosis of a run's policies, if its folder has one.

    Args:
        folder: of the run.
        policies: of the run's manifest. One that was measured with another checkpoint counts as left out.

    Raises:
        ResultsError: as `stored_diagnosis`.
    """
    diagnosis = stored_diagnosis(folder)
    if diagnosis is None:
        return None
    known = {name: use for name, use in diagnosis.policies.items() if name in policies}
    for name, use in known.items():
        if use.controls and use.checkpoint != policies[name].checkpoint:
            reason = f"it was measured with the checkpoint {use.checkpoint}, not the run's"
            known[name] = SensorUse(use.path, use.checkpoint, reason)
    diagnosis.policies = known
    return diagnosis


def error_beside(diagnosis: Diagnosis | None, policy: str, condition: str) -> ControlError | None:
    """The action error that stands beside a policy's success under a condition, if it was measured."""
    use = diagnosis.policies.get(policy) if diagnosis else None
    control = next((c for c, known in _CONDITIONS.items() if known == condition), None)
    return use.controls.get(control) if use and control else None

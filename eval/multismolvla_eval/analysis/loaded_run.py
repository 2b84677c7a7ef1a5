"""A run as a report or a comparison reads it from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from multismolvla_eval.analysis.cells import Cells
from multismolvla_eval.analysis.summarise import summarise
from multismolvla_eval.analysis.summary import ConditionSummary, PolicySummary, Summary
from multismolvla_eval.analysis.table import episode_table
from multismolvla_eval.records.schema import RunManifest
from multismolvla_eval.records.store import iterate_rows, read_manifest


def read_episodes(folder: Path) -> tuple[RunManifest, pd.DataFrame]:
    """Manifest and episodes of a run.

    Raises:
        ResultsError: the folder holds no results, or damaged or foreign ones.
    """
    manifest = read_manifest(folder)
    return manifest, episode_table(iterate_rows(folder, manifest), manifest)


@dataclass(frozen=True)
class LoadedRun:
    """One of the two runs of a comparison."""

    name: str  # as given by the user
    manifest: RunManifest
    cells: Cells
    summary: Summary

    @cached_property
    def policies(self) -> dict[str, PolicySummary]:
        """By name."""
        return {p.name: p for p in self.summary.policies}

    @cached_property
    def conditions(self) -> dict[str, ConditionSummary]:
        """By canonical text."""
        return {c.condition: c for c in self.summary.conditions}

    @cached_property
    def notes(self) -> list[str]:
        """What a reader must know before quoting a figure of the run: all that its own page says."""
        run, notes = self.summary.run, []
        if self.manifest.synthetic:
            notes.append("Synthetic rows: made up to test the report, not measured.")
        missing = run.planned - run.finished
        if missing:
            notes.append(f"The run is not finished: {missing} episodes are missing. Figures will change.")
        return notes + self.summary.notes


def load_run(folder: Path) -> LoadedRun:
    """Read a run and compute its figures.

    Raises:
        ResultsError: as `read_episodes`.
    """
    manifest, table = read_episodes(folder)
    return LoadedRun(str(folder), manifest, Cells(table), summarise(table, manifest))

"""Which of the evaluated initial states the recorder records from: a policy may have been trained on them."""

from __future__ import annotations

from typing import Any

import numpy as np

from multismolvla_eval.analysis.table import Cells

#: The recorder's split, as environments name it.
RECORDED = "train"


def recorded_state_notes(manifest: dict[str, Any], cells: Cells) -> list[str]:
    """A sentence per suite that was evaluated on states of the recorder's split; suites that do not tell are left out.

    Args:
        manifest: of the run.
        cells: all episodes.
    """
    notes = []
    for suite, facts in manifest["suites"].items():
        splits = facts.get("init_state_splits") or {}
        own = cells.episodes.codes["suite"] == cells.episodes.code("suite", suite)
        if RECORDED not in splits or not own.any():
            continue
        total = sum(last - first + 1 for first, last in splits.values())
        states = (
            cells.episodes.numbers["init_state"][own] % total
        )  # after the last one the first follows again
        recorded = (states >= splits[RECORDED][0]) & (states <= splits[RECORDED][1])
        if recorded.any():
            notes.append(
                f"{len(np.unique(states[recorded]))} of the {len(np.unique(states))} initial states per task of {suite} in this "
                f"run ({recorded.sum()} of {own.sum()} episodes) are of the split that multismolvla-record records from: they "
                "are no held-out starts for a policy that was trained on such a recording. Policies trained on LIBERO's "
                "published demonstrations are not concerned."
            )
    return notes

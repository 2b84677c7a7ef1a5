"""docs/libero_tiny.md: its figures are those of the rows, and starts are compared with themselves."""

from __future__ import annotations

import libero_tiny
import pandas as pd
import pytest

from multismolvla.system.command import CommandError

GONE = "C1:camera=image"


def rows(**successes: dict[tuple[str, int], int]) -> pd.DataFrame:
    """Rows of a task, by policy: (condition, initial state) -> success."""
    same = {"suite": "libero_object", "task_id": 0, "task": "pick up the milk", "commit": "0123456789"}
    return pd.DataFrame(
        [
            same | {"policy": policy, "condition": condition, "init_state": state, "success": success}
            for policy, own in successes.items()
            for (condition, state), success in own.items()
        ]
    )


def test_a_loss_is_compared_with_the_clean_episodes_of_its_own_starts():
    ours = {("C0", 0): 1, ("C0", 1): 1, ("C0", 2): 0, (GONE, 0): 1, (GONE, 2): 0}
    blind = {("C0", 0): 0, ("C0", 2): 1, ("C0", 1): 1}
    text = libero_tiny.page(rows(ours=ours, replay=blind, young={("C0", 1): 1}), "Above.\n---\nBelow.")
    assert "| clean: all sensors, no change | 2/3 (21–94 %) | 2/3 (21–94 %) |" in text
    assert "| announced loss of the third-person camera | 1/2 (9–91 %) |  |" in text
    assert "| announced loss of the third-person camera | 1 of 2; clean 1, replay 1 |\n" in text
    assert "| 0: pick up the milk | 2/3 (21–94 %) | 2/3 (21–94 %) |" in text
    assert "Clean, besides: `young` 1/1 (21–100 %)." in text
    assert (
        text.index("Above.")
        < text.index("| clean")
        < text.index("Evaluated at 0123456.")
        < text.index("Below.")
    )


def test_rows_of_two_trainings_are_not_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(libero_tiny, "ROWS", tmp_path / "rows.csv.gz")
    known = rows(ours={("C0", 0): 1, ("C0", 1): 1}).assign(checkpoint="one")
    known.to_csv(libero_tiny.ROWS, index=False)
    assert len(libero_tiny.add([], {})) == 2
    other = rows(ours={("C0", 0): 0}).assign(checkpoint="two")
    monkeypatch.setattr(libero_tiny, "rows_of", lambda run, named: other)
    with pytest.raises(CommandError, match=r"'ours', 'libero_object'.* several checkpoints.*--names"):
        libero_tiny.add([tmp_path], {})
    assert len(pd.read_csv(libero_tiny.ROWS)) == 2


def test_nothing_to_tell_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(libero_tiny, "ROWS", tmp_path / "rows.csv.gz")
    with pytest.raises(CommandError, match="--runs"):
        libero_tiny.add([], {})

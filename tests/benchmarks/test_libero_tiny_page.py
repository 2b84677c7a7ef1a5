"""docs/libero_tiny.md: its figures are those of the rows, and starts are compared with themselves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

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
    text = libero_tiny.page(rows(ours=ours, replay=blind, young={("C0", 1): 1}), "Above.\n---\nBelow.", "own")
    assert "| clean: all sensors, no change | 2/3 (21–94 %) | 2/3 (21–94 %) |" in text
    assert "| announced loss of the third-person camera | 1/2 (9–91 %) |  |" in text
    assert "| announced loss of the third-person camera | 1 of 2; clean 1, replay 1 |\n" in text
    assert "| 0: pick up the milk | 2/3 (21–94 %) | 2/3 (21–94 %) |" in text
    assert "Clean, besides: `young` 1/1 (21–100 %)." in text
    assert (
        text.index("Above.")
        < text.index("| clean")
        < text.index("Evaluated at 0123456. 95 % intervals: Wilson's. [Rows](own/rows.csv.gz).")
        < text.index("Below.")
    )


def test_the_page_is_that_of_its_rows_and_notes():
    rows = pd.read_csv(libero_tiny.FOLDER / libero_tiny.ROWS, dtype={"commit": str, "checkpoint": str})
    notes = (libero_tiny.FOLDER / libero_tiny.NOTES).read_text()
    text = libero_tiny.page(rows, notes, libero_tiny.FOLDER.name)
    assert libero_tiny.FOLDER.with_suffix(".md").read_text() == text


def test_rows_of_two_trainings_are_not_put_together(tmp_path, monkeypatch):
    file = tmp_path / "rows.csv.gz"
    known = rows(ours={("C0", 0): 1, ("C0", 1): 1}).assign(checkpoint="one")
    known.to_csv(file, index=False)
    assert len(libero_tiny.add([], {}, file)) == 2
    other = rows(ours={("C0", 0): 0}).assign(checkpoint="two")
    monkeypatch.setattr(libero_tiny, "rows_of", lambda run, named: other)
    with pytest.raises(CommandError, match=r"'ours', 'libero_object'.* several checkpoints.*--names"):
        libero_tiny.add([tmp_path], {}, file)
    assert len(pd.read_csv(file)) == 2


def test_nothing_to_tell_is_an_error(tmp_path):
    with pytest.raises(CommandError, match="--runs"):
        libero_tiny.add([], {}, tmp_path / "rows.csv.gz")


def test_rows_know_the_content_of_controls_too(monkeypatch):
    """A replay of another recording must not pass for the same policy."""
    told = {
        "ours": "0123456789abcdef",
        "no_vision": "no_vision:0123456789abcdef",
        "replay": "builtin:replay@fedcba9876543210",
        "zero": "builtin:zero",
    }
    policies = {name: SimpleNamespace(checkpoint=text) for name, text in told.items()}
    suite = SimpleNamespace(tasks={0: "pick up the milk"})
    manifest = SimpleNamespace(
        policies=policies, suites={"libero_object": suite}, comparable=SimpleNamespace(seed=0)
    )
    table = rows(**{name: {("C0", 0): 1} for name in told}).assign(cause="success", steps=9)
    monkeypatch.setattr(libero_tiny, "read_episodes", lambda folder: (manifest, table))
    monkeypatch.setattr(libero_tiny, "single_commit", lambda folder, manifest: "0123456")
    found = libero_tiny.rows_of(Path("run"), {}).set_index("policy").checkpoint.to_dict()
    assert found == {
        "ours": "0123456789ab",
        "no_vision": "no_vision:0123456789ab",
        "replay": "builtin:replay@fedcba987654",
        "zero": "builtin:zero",
    }


def test_rows_and_page_of_ones_own_runs(tmp_path, monkeypatch):
    made = rows(ours={("C0", 0): 1}).assign(checkpoint="mine")
    monkeypatch.setattr(libero_tiny, "rows_of", lambda run, named: made)
    assert libero_tiny.main([f"--runs=[{tmp_path}]", f"--output={tmp_path / 'mine'}"]) == 0
    assert "[Rows](mine/rows.csv.gz)" in (tmp_path / "mine.md").read_text()
    assert len(pd.read_csv(tmp_path / "mine/rows.csv.gz")) == 1

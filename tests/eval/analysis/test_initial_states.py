"""A run on states that the recorder records from says so."""

from __future__ import annotations

import pytest
from report_readers import summary_of
from synthetic import suite


def notes_of(folder, **changes):
    suites = {"libero_goal": suite("goal", **changes), "toy": suite()}
    summary = summary_of(folder, suites=suites, texts=["C2:rgb=zero"], clean_episodes=6, episodes=4)
    return [note for note in summary.notes if "multismolvla-record" in note]


def test_states_of_the_recorder_are_counted(tmp_path):
    (note,) = notes_of(tmp_path / "run", init_state_splits={"eval": [0, 1], "train": [2, 4]})
    # 2 policies x 2 tasks x (6 clean + 4 faulted); state 5 is state 0 again
    assert note.startswith(
        "3 of the 5 initial states per task of libero_goal in this run (20 of 40 episodes)"
    )
    assert "no held-out starts for a policy that was trained on such a recording" in note
    assert "published demonstrations are not concerned" in note


@pytest.mark.parametrize(
    "facts",
    [
        {"init_state_splits": {"eval": [0, 19]}},
        {"init_state_splits": {"eval": [0, 19], "train": [20, 49]}},  # all, but only 6 episodes of them
        {"init_state_splits": {}},
        {},  # an environment that does not tell
    ],
)
def test_a_run_on_other_states_has_nothing_to_say(tmp_path, facts):
    assert notes_of(tmp_path / "run", **facts) == []

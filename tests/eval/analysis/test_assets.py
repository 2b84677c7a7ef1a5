"""The report says whose assets a suite was made with, by what the environment found in the files."""

import pytest

from multismolvla_eval.analysis.assets import assets_facts


@pytest.mark.parametrize(
    ("standins", "words"),
    [
        (True, "stand-ins (hash 5e4e)"),
        (False, ""),
        (None, "not known as"),
    ],
)
def test_what_the_environment_found_reaches_the_report(standins, words):
    (fact,) = assets_facts({"libero_goal": {"assets": "5e4e", "assets_standins": standins}})
    assert fact["standins"] is standins
    assert words in fact["note"] if words else fact["note"] == ""

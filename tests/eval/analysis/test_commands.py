"""Commands of a report, read back by the option parser that they are for."""

from __future__ import annotations

import shlex

import draccus
import pytest
from msgspec.structs import replace
from synthetic import COMPARABLE, facts, manifest_of, suite

from multismolvla.corruption import CLEAN
from multismolvla_eval.analysis.commands import repeat_command
from multismolvla_eval.config import EnvironmentArguments, EvalConfig
from multismolvla_eval.protocol.schedule import Counts
from multismolvla_eval.records.manifest import build_manifest
from multismolvla_eval.records.schema import RunFacts, SuiteFacts
from multismolvla_eval.records.store import write_manifest


def parsed(manifest, condition="C2:rgb=zero"):
    """The options of each call."""
    calls = [shlex.split(call) for call in repeat_command(condition, manifest).split(" && ")]
    assert all(call[0] == "multismolvla-eval" for call in calls)
    return [draccus.parse(EvalConfig, args=call[1:]) for call in calls]


@pytest.mark.parametrize(
    "options",
    [{"a": None, "b": True, "c": "x: y", "d": ["q", 1.5], "e": "it's"}, {"nested": {"no": "null"}}],
)
def test_options_of_the_environment_come_back_as_they_were(options):
    (config,) = parsed(manifest_of(comparable=replace(COMPARABLE, env_options=options)))
    assert config.env.options == options


def test_suites_with_different_tasks_take_a_call_each():
    """One list of task numbers holds for all suites of a call."""
    tasks = {"one": [0], "two": [3, 10], "three": [0], "whole": [0, 1]}
    suites = {s: suite(s, tasks=dict.fromkeys(ids, "t"), complete=s == "whole") for s, ids in tasks.items()}
    calls = parsed(manifest_of(suites))
    assert [(c.env.suites(), c.env.task_ids) for c in calls] == [
        (["one", "three"], [0]),
        (["two"], [3, 10]),
        (["whole"], None),
    ]
    assert {c.output for c in calls} == {calls[0].output}


def test_plugins_device_and_time_limit_are_noted_and_repeated(tmp_path):
    toy = SuiteFacts(type="toy", tasks={0: "a"}, max_steps=9)
    run = RunFacts({"toy": toy}, ["image"], {"a": facts("a", path="outputs/a b")})
    said = {"plugins": ["one", "two.three"], "device": "cuda:1", "episode_timeout": 60.0}
    said |= {"estimator_sources": {"thermal": "a folder"}, "missing_estimator": "absent"}
    config = EvalConfig(["a=outputs/a b"], env=EnvironmentArguments("toy", "toy"), output=tmp_path, **said)
    manifest = build_manifest(config, run, [CLEAN], Counts(1, 1), [])
    (again,) = parsed(manifest, "C0")
    assert {k: getattr(again, k) for k in said} == said
    assert again.policies == ["a=outputs/a b"]
    write_manifest(tmp_path, manifest)
    config.plugins = ["two.three", "four"]
    manifest = build_manifest(config, run, [CLEAN], Counts(1, 1), [])
    assert parsed(manifest)[0].plugins == ["one", "two.three", "four"], (
        "a policy of the first call needs its own"
    )

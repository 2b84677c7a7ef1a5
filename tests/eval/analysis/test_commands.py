"""Commands of a report, read back by the option parser that they are for."""

from __future__ import annotations

import shlex

import draccus
import pytest
from synthetic import manifest_of

from multismolvla.corruption import CLEAN
from multismolvla.system.files import write_json
from multismolvla_eval.analysis.commands import repeat_command, typed
from multismolvla_eval.config import EnvironmentArguments, EvalConfig
from multismolvla_eval.protocol.schedule import Counts
from multismolvla_eval.records.manifest import build_manifest


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
    manifest = manifest_of(("toy",), [])
    manifest["comparable"]["env"] = {"type": "toy", "options": options}
    (config,) = parsed(manifest)
    assert config.env.options == options


def test_suites_with_different_tasks_take_a_call_each():
    """One list of task numbers holds for all suites of a call."""
    tasks = {"one": ["0"], "two": ["3", "10"], "three": ["0"], "whole": ["0", "1"]}
    suites = {
        s: {"tasks": dict.fromkeys(ids, "t"), "max_steps": 9, "world": s, "complete": s == "whole"}
        for s, ids in tasks.items()
    }
    calls = parsed(manifest_of(suites, []))
    assert [(c.env.suites(), c.env.task_ids) for c in calls] == [
        (["one", "three"], [0]),
        (["two"], [3, 10]),
        (["whole"], None),
    ]
    assert {c.output for c in calls} == {calls[0].output}


def test_plugins_device_and_time_limit_are_noted_and_repeated(tmp_path):
    facts = {
        "suites": {"toy": {"tasks": {"0": "a"}}},
        "cameras": ["image"],
        "policies": {"a": {"checkpoint": "b:1", "path": "outputs/a b"}},
    }
    said = {"plugins": ["one", "two.three"], "device": "cuda:1", "episode_timeout": 60.0}
    config = EvalConfig(["a=outputs/a b"], env=EnvironmentArguments("toy", "toy"), output=tmp_path, **said)
    manifest = build_manifest(config, facts, [CLEAN], Counts(1, 1), [])
    (again,) = parsed(manifest, "C0")
    assert {k: getattr(again, k) for k in said} == said
    assert again.policies == ["a=outputs/a b"]
    write_json(tmp_path / "run.json", manifest)
    config.plugins = ["two.three", "four"]
    manifest = build_manifest(config, facts, [CLEAN], Counts(1, 1), [])
    assert parsed(manifest)[0].plugins == ["one", "two.three", "four"], (
        "a policy of the first call needs its own"
    )


def test_what_was_typed_can_be_typed_again():
    command = ["--policies=[a=outputs/a b]", "--note=it's", "--seed=0"]
    (words,) = typed([command])
    assert shlex.split(" ".join(words)) == command
    assert words[2] == "--seed=0"

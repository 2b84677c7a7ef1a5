"""The manifest: a call continues a run or is refused, and forgets nothing of the earlier ones."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from multismolvla.corruption import CLEAN
from multismolvla_eval.protocol.schedule import Counts
from multismolvla_eval.records.manifest import build_manifest
from multismolvla_eval.records.schema import PolicyFacts, RunFacts, SuiteFacts
from multismolvla_eval.records.store import ResultsError, read_manifest, write_manifest
from multismolvla_eval.records.system_info import distinct_calls


def toy_facts(checkpoint: str = "a", **suite) -> RunFacts:
    facts = SuiteFacts(**{"type": "toy", "tasks": {0: "t"}, "max_steps": 6, "assets": "x", **suite})
    return RunFacts(
        {"toy": facts}, ["image"], {"ours": PolicyFacts(path="p", type="t", checkpoint=checkpoint)}
    )


def manifest_of(config, facts, counts=Counts(1, 1)):  # noqa: B008 - a constant
    return build_manifest(config, facts, [CLEAN], counts, [])


@pytest.fixture
def config(make_config):
    """Options of a run whose folder is there."""
    config = make_config(policies=["ours=builtin:zero"])
    config.output.mkdir()
    return config


def test_foreign_results_are_refused(config):
    manifest = manifest_of(config, toy_facts())
    write_manifest(config.output, manifest)
    assert manifest_of(config, toy_facts()).fingerprint == manifest.fingerprint
    config.seed = 1
    with pytest.raises(ResultsError, match=r"another run.*seed 0, now 1"):
        manifest_of(config, toy_facts())
    config.seed = 0
    with pytest.raises(ResultsError, match=r"'ours' has changed.*checkpoint a, now b"):
        manifest_of(config, toy_facts(checkpoint="b"))
    with pytest.raises(ResultsError, match=r"'toy' has changed.*max_steps 6, now 7; assets 'x', now 'y'"):
        manifest_of(config, toy_facts(max_steps=7, assets="y"))
    (config.output / "episodes-0of1.jsonl").touch()
    (config.output / "run.json").unlink()
    with pytest.raises(ResultsError, match="result files but no run.json"):
        manifest_of(config, toy_facts())


def test_the_batch_size_is_part_of_the_runs_identity(config):
    config.batch_size = 4
    write_manifest(config.output, manifest_of(config, toy_facts()))
    for other in (1, 2):
        config.batch_size = other
        with pytest.raises(ResultsError, match=f"batch_size 4, now {other}"):
            manifest_of(config, toy_facts())


def test_to_act_without_an_estimator_makes_another_run_and_to_say_nothing_the_same_as_ever(config):
    """Runs from before the option was recorded are continued."""
    manifest = manifest_of(config, toy_facts())
    assert b"missing_estimator" not in msgspec.json.encode(manifest)
    write_manifest(config.output, manifest)
    config.missing_estimator = "absent"
    with pytest.raises(ResultsError, match=r"missing_estimator UNSET, now 'absent'"):
        manifest_of(config, toy_facts())


def test_a_continued_run_forgets_nothing_of_its_earlier_calls(config, monkeypatch):
    for commit, clean, episodes, note in (("one", 10, 5, "a"), ("two", 2, 8, "b"), ("two", 1, 1, "a")):
        monkeypatch.setattr("multismolvla_eval.records.manifest.source_commit", lambda commit=commit: commit)
        config.note = [note]
        write_manifest(config.output, manifest_of(config, toy_facts(), Counts(clean, episodes)))
    manifest = read_manifest(config.output)
    assert (manifest.clean_episodes, manifest.episodes) == (10, 8)
    assert [call.commit for call in manifest.calls] == ["one", "two", "two"]
    assert all(c.versions["python"] and c.hardware.cores and c.time for c in manifest.calls)
    assert [call.commit for call in distinct_calls(manifest)] == ["one", "two"]
    assert manifest.remarks == ["a", "b"]


def test_tasks_and_policies_may_be_added(config):
    config.clean_only = ["ours"]
    write_manifest(config.output, manifest_of(config, toy_facts()))
    config.env.task_ids = [1]
    facts = toy_facts(tasks={1: "u"})
    facts.policies["more"] = replace(facts.policies["ours"], checkpoint="m")
    manifest = manifest_of(config, facts)
    assert manifest.suites["toy"].tasks == {0: "t", 1: "u"}
    assert manifest.suites["toy"].complete, "an earlier call ran all tasks"
    assert list(manifest.policies) == ["ours", "more"]
    assert manifest.clean_only == ["ours"]
    config.clean_only = []
    assert manifest_of(config, facts).clean_only == [], "this call runs faults with it"

"""A policy and an environment that disagree about what is a sensor are named."""

from __future__ import annotations

from synthetic import facts, manifest_of, suite, synthetic_run

from multismolvla_eval.analysis.compare import compare
from multismolvla_eval.analysis.loaded_run import load_run
from multismolvla_eval.analysis.provenance import provenance_conflicts, provenance_notes
from multismolvla_eval.records.reach import faulted_streams

SENSORS = {"rgb": "sensor", "depth": "sensor", "thermal": "sensor"}


def manifest(policy, environment):
    policies = {"ours": facts("ours", provenance=policy)}
    return manifest_of({"toy": suite(provenance=environment)}, names=("ours",), policies=policies)


def notes(policy, environment):
    return list(provenance_notes(manifest(policy, environment)))


def test_a_contradiction_is_named_either_way():
    (note,) = notes({"rgb": "sensor", "thermal": "derived"}, SENSORS)
    assert "ours takes thermal for computed from RGB" in note
    assert "sensor of its own" in note
    (note,) = notes(SENSORS, {**SENSORS, "depth": "derived"})
    assert "ours takes depth for a sensor, but this environment computes it from RGB" in note


def test_views_are_told_apart():
    policy = {"rgb": "sensor", "image.depth": "sensor", "image2.depth": "derived"}
    assert provenance_conflicts(policy, SENSORS) == {"image2.depth": ("derived", "sensor")}


def test_agreement_and_silence_are_no_contradiction():
    assert notes(SENSORS, SENSORS) == []
    assert notes({"thermal": "derived"}, {"thermal": "derived"}) == []
    assert notes({"thermal": "derived"}, {"rgb": "sensor"}) == []
    assert notes({}, SENSORS) == []
    assert notes({}, {}) == []


def test_faults_of_rgb_concern_what_the_environment_computes_from_it():
    derived = manifest({}, {**SENSORS, "thermal": "derived"})
    assert faulted_streams("C3:rgb.image=fog@3", derived) == {
        "rgb": {"observation.images.image"},
        "thermal": {"observation.images.image_thermal"},
    }
    assert set(faulted_streams("C3:depth=holes@3", derived)) == {"depth"}
    assert set(faulted_streams("C3:rgb.image=fog@3", manifest({}, SENSORS))) == {"rgb"}


def test_faults_of_rgb_concern_what_a_policy_computes_from_it_where_no_sensor_delivers_it():
    ours = facts("ours", derives=["observation.images.image_depth", "observation.images.image_thermal"])
    toy = suite(streams=["rgb", "depth"], provenance=SENSORS)
    run = manifest_of({"toy": toy}, names=("ours",), policies={"ours": ours})
    assert faulted_streams("C3:rgb=fog@3", run, ours) == {
        "rgb": {"observation.images.image", "observation.images.image2"},
        "thermal": {"observation.images.image_thermal"},
    }
    assert set(faulted_streams("C3:rgb.image2=fog@3", run, ours)) == {"rgb"}
    assert set(faulted_streams("C1:-thermal", run, ours)) == {"thermal"}


def test_a_comparison_knows_what_is_computed_from_rgb(tmp_path):
    """The announced loss of RGB takes the thermal picture with it, of which this policy is not told."""
    ours = facts("ours", reads=["observation.images.image_thermal"], mask_reaches_policy=False)
    toy = suite(provenance={"rgb": "sensor", "thermal": "derived"})
    changes = {"texts": ["C1:-rgb"], "suites": {"toy": toy}, "policies": {"ours": ours}}
    run = load_run(synthetic_run(tmp_path / "run", **changes))
    cells = compare(run, run).cells
    (cell,) = [c for c in cells if c.policies[0] == "ours" and c.condition != "C0"]
    assert [c.mask_reaches_policy for c in cell.runs] == [False, False]

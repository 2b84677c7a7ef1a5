"""A policy and an environment that disagree about what is a sensor are named."""

from __future__ import annotations

from synthetic import synthetic_run

from multismolvla.system.files import write_json
from multismolvla_eval.analysis.compare import compare
from multismolvla_eval.analysis.loaded_run import load_side
from multismolvla_eval.analysis.provenance import provenance_conflicts, provenance_notes
from multismolvla_eval.protocol.reach import faulted_streams
from multismolvla_eval.records.store import read_json
from multismolvla_eval.report.command import write_report

SENSORS = {"rgb": "sensor", "depth": "sensor", "thermal": "sensor"}


def notes(policy, environment):
    return provenance_notes(
        {"env": {"provenance": environment}, "policies": {"ours": {"provenance": policy}}}
    )


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
    assert provenance_notes({"policies": {"ours": {"checkpoint": "x"}}}) == []


def test_faults_of_rgb_concern_what_the_environment_computes_from_it():
    manifest = {"cameras": ["image", "image2"], "env": {"provenance": {**SENSORS, "thermal": "derived"}}}
    assert faulted_streams("C3:rgb.image=fog@3", manifest) == {
        "rgb": {"observation.images.image"},
        "thermal": {"observation.images.image_thermal"},
    }
    assert set(faulted_streams("C3:depth=holes@3", manifest)) == {"depth"}
    manifest["env"]["provenance"] = SENSORS
    assert set(faulted_streams("C3:rgb.image=fog@3", manifest)) == {"rgb"}


def test_a_comparison_knows_what_is_computed_from_rgb(tmp_path):
    """The announced loss of RGB takes the thermal picture with it, of which this policy is not told."""
    folder = synthetic_run(tmp_path / "run", texts=["C1:-rgb"])
    manifest = read_json(folder / "run.json", "")
    manifest["env"]["provenance"] = {"rgb": "sensor", "thermal": "derived"}
    manifest["policies"]["ours"] |= {"reads": ["observation.images.image_thermal"], "reads_masks": False}
    write_json(folder / "run.json", manifest)
    write_report(folder)
    for path in (folder, folder / "results.json"):
        cells = compare(load_side(path), load_side(path))["cells"]
        (cell,) = [c for c in cells if c["policies"][0] == "ours" and c["condition"] != "C0"]
        assert cell["told"] == [False, False]

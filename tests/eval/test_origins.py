"""A policy and an environment that disagree about what is a sensor are named."""

from __future__ import annotations

from multismolvla_eval.checks import faulted_streams
from multismolvla_eval.origins import origin_conflicts, origin_notes

SENSORS = {"rgb": "sensor", "depth": "sensor", "thermal": "sensor"}


def notes(policy, environment):
    return origin_notes({"env": {"origins": environment}, "policies": {"ours": {"origins": policy}}})


def test_a_contradiction_is_named_either_way():
    (note,) = notes({"rgb": "sensor", "thermal": "derived"}, SENSORS)
    assert "ours takes thermal for computed from RGB" in note
    assert "sensor of its own" in note
    (note,) = notes(SENSORS, {**SENSORS, "depth": "derived"})
    assert "ours takes depth for a sensor, but this environment computes it from RGB" in note


def test_views_are_told_apart():
    policy = {"rgb": "sensor", "image.depth": "sensor", "image2.depth": "derived"}
    assert origin_conflicts(policy, SENSORS) == {"image2.depth": ("derived", "sensor")}


def test_agreement_and_silence_are_no_contradiction():
    assert notes(SENSORS, SENSORS) == []
    assert notes({"thermal": "derived"}, {"thermal": "derived"}) == []
    assert notes({"thermal": "derived"}, {"rgb": "sensor"}) == []
    assert notes({}, SENSORS) == []
    assert origin_notes({"policies": {"ours": {"checkpoint": "x"}}}) == []


def test_faults_of_rgb_concern_what_the_environment_computes_from_it():
    manifest = {"cameras": ["image", "image2"], "env": {"origins": {**SENSORS, "thermal": "derived"}}}
    assert faulted_streams("C3:rgb.image=fog@3", manifest) == {
        "rgb": {"observation.images.image"},
        "thermal": {"observation.images.image_thermal"},
    }
    assert set(faulted_streams("C3:depth=holes@3", manifest)) == {"depth"}
    manifest["env"]["origins"] = SENSORS
    assert set(faulted_streams("C3:rgb.image=fog@3", manifest)) == {"rgb"}

"""What a run's rows say about faults that were noticed and alarms that were false."""

from __future__ import annotations

import math

import pytest
from synthetic import manifest_of, row_of

from multismolvla.corruption import parse_condition
from multismolvla_eval.analysis.health import (
    FalseAlarms,
    detections,
    false_alarms,
    health_text,
)
from multismolvla_eval.analysis.statistics import auroc
from multismolvla_eval.protocol.schedule import EpisodeSpec
from multismolvla_eval.records.schema import HealthRecord

FAULT = "C2:rgb=zero"


@pytest.fixture
def run():
    conditions = [parse_condition(t) for t in ("C0", FAULT, "C1:-rgb", "C3:rgb=motion_blur@3")]
    manifest = manifest_of(conditions=conditions, policies={})
    manifest.suites["toy"].fps = 10
    manifest.policies["ours"].n_action_steps = 2

    def row(policy, condition, episode, **health):
        made = row_of(EpisodeSpec(policy, "toy", 0, condition, episode), manifest, True)
        made.steps, made.first_fault_step = 3600, 3
        made.health = {k.replace("_", "."): v for k, v in health.items()} or None
        return made

    fit = HealthRecord(10, score=0.4)
    black = HealthRecord(10, 7, 3, "zero", 10.0)
    rows = [row("ours", "C0", e, image_rgb=fit, image_depth=fit) for e in range(4)]
    rows[3].health["image.depth"] = HealthRecord(10, 1, 9, "unusual", 1.4)
    rows += [row("ours", FAULT, e, image_rgb=black, image_depth=fit) for e in range(3)]
    rows += [row("ours", "C1:-rgb", 0, image_depth=fit)]
    rows += [row("vanilla", c, 0) for c in ("C0", FAULT)]
    return manifest, rows


def test_a_fault_that_is_always_found_has_the_full_area_and_its_delay_in_looks(run):
    (found,) = detections(*run)
    assert (found.policy, found.condition, found.n, found.found, found.others) == ("ours", FAULT, 3, 3, 0)
    assert found.area == 1.0
    assert found.delay == 3 - math.ceil(3 / 2)
    assert found.built_for


def test_a_false_alarm_is_counted_per_hour_with_its_bound(run):
    (alarms,) = false_alarms(*run)
    assert (alarms.count, alarms.hours) == (1, pytest.approx(4 * 3600 / 10 / 3600))
    # exact bounds of a Poisson count (Garwood 1936): 0 seen -> 3.0, 1 seen -> 4.74
    assert FalseAlarms("p", 0, 1.0).bound == pytest.approx(3.0, abs=0.01)
    assert FalseAlarms("p", 1, 1.0).bound == pytest.approx(4.74, abs=0.01)


def test_the_area_counts_ties_half():
    assert auroc([1, 2], [0, 1]) == pytest.approx((0.5 + 1 + 1 + 1) / 4)
    assert auroc([1.0], [1.0]) == 0.5
    assert math.isnan(auroc([], [1.0]))


def test_what_is_printed_names_what_no_rule_was_built_for(run):
    manifest, rows = run
    blurred = rows[0].__class__(**{**{f: getattr(rows[0], f) for f in rows[0].__struct_fields__}})
    blurred.condition = "C3:rgb=motion_blur@3"
    text = health_text(manifest, [*rows, blurred])
    assert "ours: 1 false alarms in 0.40 hours" in text
    assert "vanilla" not in text
    line = next(x for x in text.splitlines() if "motion_blur" in x)
    assert "no rule" in line
    assert "0/1" in line
    assert "no rule" not in next(x for x in text.splitlines() if FAULT in x)

"""What a run's rows say about faults that were noticed and alarms that were false."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
from msgspec.structs import replace
from synthetic import manifest_of, row_of

from multismolvla.corruption import parse_condition
from multismolvla_eval.analysis.health import (
    FalseAlarms,
    built_for,
    detections,
    false_alarms,
    health_text,
)
from multismolvla_eval.analysis.statistics import auroc, wilson
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
    (found,) = detections([run])
    assert (found.policy, found.condition, found.n, found.found, found.others) == ("ours", FAULT, 3, 3, 0)
    assert found.area[0] == 1.0
    assert 0 < found.area[1] < found.area[2] == 1.0
    assert found.interval == (wilson(3, 3).low, 1.0)
    assert found.delay == 3 - math.ceil(3 / 2)
    assert found.built_for


@pytest.mark.parametrize(
    ("looks", "delay"),
    [([0, 1], None), ([1, 5], 3), ([2], 0)],
    ids=["early alone", "early and again", "at the fault's first look"],
)
def test_an_alarm_before_the_fault_does_not_find_it(run, looks, delay):
    manifest, rows = run
    for row in rows:
        if row.condition == FAULT and row.health:
            row.health["image.rgb"] = HealthRecord(10, len(looks), looks[0], "zero", 10.0, looks)
    (found,) = detections([(manifest, rows)])
    assert (found.n, found.found) == (3, 0 if delay is None else 3)
    assert math.isnan(found.delay) if delay is None else found.delay == delay


def test_an_episode_that_never_met_the_fault_is_left_out_and_counted(run):
    manifest, rows = run
    last = rows[6]
    last.fault_steps = last.fault_looks = 0  # over before the fault began
    last.first_fault_step = None
    (found,) = detections([(manifest, rows)])
    assert (found.n, found.unmet, found.found) == (2, 1, 2)
    assert "1 never met it" in health_text([(manifest, rows)])
    last.fault_looks = None  # the environment does not tell of looks, but of steps
    last.fault_steps = 4
    assert detections([(manifest, rows)])[0].n == 3


def test_a_false_alarm_is_counted_per_hour_with_its_bound(run):
    (alarms,) = false_alarms([run])
    assert (alarms.count, alarms.hours) == (1, pytest.approx(4 * 3600 / 10 / 3600))
    assert (alarms.alarmed, alarms.episodes) == (1, 4)
    # exact bounds of a Poisson count (Garwood 1936): 0 seen -> 3.0, 1 seen -> 4.74
    assert FalseAlarms("p", 0, 1.0, 0, 1).bound == pytest.approx(3.0, abs=0.01)
    assert FalseAlarms("p", 1, 1.0, 1, 1).bound == pytest.approx(4.74, abs=0.01)


def test_evaluations_are_pooled_by_the_name_of_the_policy(run):
    """Scores are compared within each: what is usual for one policy's cameras is not so for another's."""
    manifest, rows = run
    others = deepcopy([row for row in rows if row.health])
    for row in others:  # a clean episode there has more than a faulted one here
        row.health = {k: replace(record, score=record.score + 20) for k, record in row.health.items()}
    both = [run, (manifest, others)]
    (found,) = detections(both)
    assert (found.n, found.found, found.area[0]) == (6, 6, 1.0)
    (alarms,) = false_alarms(both)
    assert (alarms.count, alarms.alarmed, alarms.episodes) == (2, 2, 8)
    assert alarms.hours == 2 * false_alarms([run])[0].hours


@pytest.mark.parametrize(
    ("condition", "known"),
    [
        ("C2:rgb=noisy_freeze", True),
        ("C4:rgb=burst_silent", True),
        ("C5:depth=scale@10", True),
        ("C5:depth=scale@0.1", True),
        ("C5:depth=scale@1.2", False),
        ("C2:depth=grey", False),
        ("C2:seg=zero", False),
        ("C3:rgb=smoke@3", False),
    ],
)
def test_a_rule_was_built_for_a_type_a_modality_and_a_strength(condition, known):
    (fault,) = parse_condition(condition).faults
    assert built_for(fault) == known


def test_the_area_counts_ties_half():
    assert auroc([1, 2], [0, 1]) == pytest.approx((0.5 + 1 + 1 + 1) / 4)
    assert auroc([1.0], [1.0]) == 0.5
    assert math.isnan(auroc([], [1.0]))


def test_what_is_printed_names_what_no_rule_was_built_for(run):
    manifest, rows = run
    blurred = deepcopy(rows[0])
    blurred.condition = "C3:rgb=motion_blur@3"
    text = health_text([(manifest, [*rows, blurred])])
    assert "ours: 1 false alarms in 0.400 hours" in text
    assert "in 1 of 4 episodes" in text
    assert "vanilla" not in text
    line = next(x for x in text.splitlines() if "motion_blur" in x)
    assert "no rule" in line
    assert "0/1" in line
    assert "no rule" not in next(x for x in text.splitlines() if FAULT in x)

"""Levels and the matrix."""

from __future__ import annotations

import re

import pytest

from multismolvla.corruption import IMAGENET_C_TYPES, SEVERITIES, SOFT_TYPES, parse_condition
from multismolvla_eval.protocol.levels import (
    ALL_SUBSETS,
    CORE_SOFT_TYPES,
    LEVELS,
    describe,
    level_conditions,
    refuse_unfaultable,
    resolve,
)


@pytest.mark.parametrize("level", LEVELS.values(), ids=lambda level: level.name)
def test_every_condition_of_a_level_parses_back_and_has_a_description(level):
    assert level.conditions[0] == "C0"
    for text in level.conditions:
        condition = parse_condition(text)
        assert parse_condition(condition.id) == condition
        assert describe(condition)
    assert len({parse_condition(t) for t in level.conditions}) == len(level.conditions)
    assert level.quotable == (level.name in ("standard", "full"))


def test_matrix_is_complete():
    assert len(set(ALL_SUBSETS)) == 15
    full = set(LEVELS["full"].conditions)
    assert set(ALL_SUBSETS) <= full
    assert {"C1:camera=image", "C1:camera=image2"} <= full
    for modality, types in CORE_SOFT_TYPES.items():
        assert len(types) >= 3
        assert set(types) <= set(SOFT_TYPES[modality])
        assert all(f"C3:{modality}={t}@{s}" in full for t in types for s in (1, 2, 3, 4, 5))


def test_quick_is_cheap_and_covers_every_group():
    quick = LEVELS["quick"]
    assert len(quick.conditions) <= 8
    assert {c[:2] for c in quick.conditions} == {"C0", "C1", "C2", "C3"}, "more needs the standard level"


def test_full_holds_the_whole_protocol():
    full = set(LEVELS["full"].conditions)
    assert {c[:2] for c in full} == {"C0", "C1", "C2", "C3", "C4", "C5"}
    of_every_modality = ("builtin_occlusion", "builtin_dead_pixels", "builtin_fade")
    assert {f"C3:rgb={t}@{s}" for t in (*IMAGENET_C_TYPES, *of_every_modality) for s in SEVERITIES} <= full
    assert {
        f"C3:{m}={t}@{s}" for m in ("depth", "seg", "thermal") for t in SOFT_TYPES[m] for s in SEVERITIES
    } <= full
    # Each loss of C1 has its silent twin.
    silent = [parse_condition(c) for c in full if c.startswith("C2")]
    zeroed = {
        tuple(f.modality for f in c.faults)
        for c in silent
        if all(f.type == "zero" and not f.cameras for f in c.faults)
    }
    assert len(zeroed) == 15
    assert {"C2:all.image=zero", "C2:all.image2=freeze"} <= full
    for target in ("all", "rgb", "depth", "seg", "thermal"):
        types = ["frozen", "burst", "burst_silent"]
        types += [f"delay@{k}" for k in (2, 5, 10)] + [f"frame_drop@{p}" for p in (0.1, 0.3, 0.5)]
        assert {f"C4:{target}={t}" for t in types} <= full
    cross = {f"C5:depth=shift@{n}" for n in (2, 4, 8, 16)} | {"C5:depth=scale@0.8", "C5:depth=scale@1.2"}
    cross |= {"C5:all=swapped"} | {f"C5:{m}=rotated" for m in ("rgb", "depth", "seg", "thermal")}
    for target in ("all.image", "depth.image"):
        cross |= {f"C5:{target}=moved@{n}" for n in (1, 2, 5)}
        cross |= {f"C5:{target}=turned@{n}" for n in (2, 5, 10)}
    assert cross <= full


def test_levels_have_the_protocols_episodes():
    smoke, quick, standard, full = (LEVELS[n] for n in ("smoke", "quick", "standard", "full"))
    assert (smoke.tasks, smoke.clean_episodes, smoke.episodes) == (1, 1, 1)
    assert (quick.clean_episodes, quick.episodes, len(quick.conditions)) == (5, 5, 8)
    assert (standard.clean_episodes, standard.episodes, standard.clean_repeats) == (10, 10, 3)
    assert (full.clean_episodes, full.episodes) == (50, 50)
    assert set(standard.conditions) <= set(full.conditions)
    assert set(quick.conditions) <= set(full.conditions)


def test_an_all_zero_depth_picture_is_named_for_what_it_is():
    assert "acts like an announced loss" in describe(parse_condition("C2:depth=zero"))
    assert "announced loss" not in describe(parse_condition("C2:depth=grey"))
    assert "announced loss" not in describe(parse_condition("C2:rgb=zero"))


def test_resolve():
    conditions = resolve(["C1:-rgb", "C1:depth+seg+thermal", "C2:rgb=zero"], ("image", "image2"))
    assert [c.id for c in conditions] == ["C0", "C1:depth+seg+thermal", "C2:rgb=zero"]
    with pytest.raises(ValueError, match=r"exchanges cameras.*\['image'\]"):
        resolve(["C5:rgb=swapped"], ("image",))
    with pytest.raises(ValueError, match=r"camera 'left'.*\['image'\]"):
        resolve(["C1:camera=left"], ("image",))
    with pytest.raises(ValueError, match="Known levels"):
        level_conditions("huge")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("C4:all=burst", "every modality gone for 20 %.*, announced"),
        (
            "C4:rgb.image2=frame_drop@0.3",
            "rgb of the wrist camera loses each frame with probability 0.3 .*not announced",
        ),
        ("C5:depth=shift@8", "depth shifted sideways by 8 px"),
        ("C2:all.image=freeze", "every modality of the third-person camera frozen, not announced"),
        ("C6:rgb=policy@4", "rgb changed by up to 4/255 so that the actions go wrong most .*not announced"),
        ("C6:rgb.image=feature@2+rgb.image2=feature@2", "rgb of the third-person camera and the"),
    ],
)
def test_descriptions_say_what_happens_and_whether_the_policy_is_told(text, words):
    assert re.match(words, describe(parse_condition(text)))


def test_faults_are_refused_where_the_environment_cannot_be_seen_through_them():
    conditions = resolve(["C2:rgb=zero"], ("image",))
    with pytest.raises(ValueError, match=r"'C2:rgb=zero'.*'b'.*conditions='\[C0\]'"):
        refuse_unfaultable(conditions, ["b"])
    refuse_unfaultable(conditions[:1], ["b"])
    refuse_unfaultable(resolve(["C6:rgb=policy@4"], ("image",)), ["b"])
    refuse_unfaultable(conditions, [])


@pytest.mark.parametrize(
    ("text", "idle"),
    [
        ("C1:-thermal", None),  # an announced loss reaches who computes it, too
        ("C2:thermal=zero", "thermal"),
        ("C2:rgb=zero+thermal=zero", None),  # what is computed of RGB follows it
        ("C3:rgb=fog@3+thermal=low_contrast@5", "thermal"),
        ("C4:all=burst", None),
        ("C4:thermal=burst", "thermal"),
        ("C5:all.image=moved@2", None),
        ("C2:rgb.image=zero+thermal.image2=zero", "thermal"),
        ("C3:depth=holes@3", None),
        ("C6:rgb=policy@4", None),
    ],
)
def test_a_fault_of_a_stream_that_no_sensor_delivers_is_refused(text, idle):
    condition, streams = parse_condition(text), ["rgb", "depth", "seg"]
    assert condition.undelivered(streams) == idle
    assert condition.undelivered([*streams, "thermal"]) is None
    if idle:
        with pytest.raises(ValueError, match=f"changes {idle}.*rgb, depth, seg alone.*C1:-{idle}.*streams"):
            condition.check_delivered(streams)
    else:
        condition.check_delivered(streams)


def test_without_rgb_nothing_follows_it():
    assert parse_condition("C2:all=zero").undelivered(["depth", "seg"]) == "rgb"

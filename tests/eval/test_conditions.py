"""Levels and the matrix."""

from __future__ import annotations

import pytest

from multismolvla.corruption import SOFT_TYPES, parse_condition
from multismolvla_eval.conditions import (
    ALL_SUBSETS,
    CORE_SOFT_TYPES,
    LEVELS,
    describe,
    level_conditions,
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
    assert {c[:2] for c in quick.conditions} == {"C0", "C1", "C2", "C3"}


def test_an_all_zero_depth_picture_is_named_for_what_it_is():
    assert "acts like an announced loss" in describe(parse_condition("C2:depth=zero"))
    assert "announced loss" not in describe(parse_condition("C2:depth=grey"))
    assert "announced loss" not in describe(parse_condition("C2:rgb=zero"))


def test_resolve():
    conditions = resolve(["C1:-rgb", "C1:depth+seg+thermal", "C2:rgb=zero"], ("image", "image2"))
    assert [c.id for c in conditions] == ["C0", "C1:depth+seg+thermal", "C2:rgb=zero"]
    with pytest.raises(ValueError, match=r"camera 'left'.*\['image'\]"):
        resolve(["C1:camera=left"], ("image",))
    with pytest.raises(ValueError, match="Known levels"):
        level_conditions("huge")

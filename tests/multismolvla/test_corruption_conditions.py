"""Text form of conditions: parses back, canonical, and refuses with what is known."""

from __future__ import annotations

import pytest

from multismolvla.corruption import CLEAN, Fault, camera_loss, parse_condition, subset_condition


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("C0", "C0"),
        ("C1:depth+rgb", "C1:rgb+depth"),
        ("C1:-rgb", "C1:depth+seg+thermal"),
        ("C1:-rgb+depth", "C1:seg+thermal"),
        ("C1:rgb+depth+seg+thermal", "C1:rgb+depth+seg+thermal"),
        ("C1:camera=image2", "C1:camera=image2"),
        ("C2:rgb=zero", "C2:rgb=zero"),
        ("C2:seg=zero+rgb.image=freeze", "C2:rgb.image=freeze+seg=zero"),
        ("C3:rgb=gaussian_noise@3", "C3:rgb=gaussian_noise@3"),
        ("C3:depth.image2=holes@5", "C3:depth.image2=holes@5"),
    ],
)
def test_text_round_trip(text, canonical):
    condition = parse_condition(text)
    assert condition.id == canonical
    assert parse_condition(condition.id) == condition
    assert condition.group == canonical[:2]


def test_meaning():
    assert parse_condition("C0") is CLEAN
    assert CLEAN.faults == ()
    kept = subset_condition(("depth",))
    assert kept.lost_modalities == ("rgb", "seg", "thermal")
    assert all(f.announced and f.type == "drop" for f in kept.faults)
    loss = camera_loss("image2")
    assert loss.lost_modalities == ()
    assert all(f.hits("image2", f.modality) and not f.hits("image", f.modality) for f in loss.faults)
    assert parse_condition("C2:rgb=grey").faults == (Fault("rgb", "grey", 0, None, announced=False),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("C9", "Known: C0, C1"),
        ("", "Cannot read the condition"),
        ("C1:", "Cannot read the condition"),
        ("C1:-rgb+depth+seg+thermal", "non-empty subset"),
        ("C1:smell", "non-empty subset"),
        ("C1:-smell", "Unknown modality 'smell'"),
        ("C1:camera=", "needs a camera name"),
        ("C2:rgb", "C2:rgb=zero"),
        ("C2:rgb=drop", "announced losses are C1"),
        ("C2:seg=grey", "no mid-grey"),
        ("C2:rgb=zero+rgb.image=grey", "two faults for the same stream"),
        ("C3:rgb=gaussian_noise", "gaussian_noise@3"),
        ("C3:rgb=gaussian_noise@9", r"\[1, 2, 3, 4, 5\]"),
        ("C3:rgb=gaussian_noise@x", r"\[1, 2, 3, 4, 5\]"),
        ("C3:rgb=holes@3", "known soft types for rgb"),
        ("C3:rgb=zero@3", "hard fault"),
        ("C3:sound=noise@3", "Unknown modality 'sound'"),
    ],
)
def test_unreadable_conditions_name_what_is_known(text, message):
    with pytest.raises(ValueError, match=message):
        parse_condition(text)

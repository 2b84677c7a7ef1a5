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
        ("C2:all=zero", "C2:all=zero"),
        ("C2:thermal=zero+seg=zero+depth=zero+rgb=zero", "C2:all=zero"),
        ("C2:all.image=freeze", "C2:all.image=freeze"),
        ("C4:rgb=delay@5", "C4:rgb=delay@5"),
        ("C4:rgb=delay@05.0", "C4:rgb=delay@5"),
        ("C4:rgb.image2=frame_drop@0.30", "C4:rgb.image2=frame_drop@0.3"),
        ("C4:all=burst", "C4:all=burst"),
        ("C4:depth=burst_silent+rgb=frozen", "C4:rgb=frozen+depth=burst_silent"),
        ("C5:depth=shift@8", "C5:depth=shift@8"),
        ("C5:all=swapped", "C5:all=swapped"),
        ("C5:seg=rotated", "C5:seg=rotated"),
        ("C5:depth=scale@1.20", "C5:depth=scale@1.2"),
        ("C6:rgb=policy@4", "C6:rgb=policy@4"),
        ("C6:rgb.image2=feature@08", "C6:rgb.image2=feature@8"),
        ("C6:rgb=random_sign@0.50", "C6:rgb=random_sign@0.5"),
        ("C6:rgb.image2=policy@2+rgb.image=policy@2", "C6:rgb.image=policy@2+rgb.image2=policy@2"),
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
    burst, silent = parse_condition("C4:all=burst").faults, parse_condition("C4:all=burst_silent").faults
    assert [f.modality for f in burst] == ["rgb", "depth", "seg", "thermal"]
    assert all(f.announced and f.kind == "temporal" for f in burst)
    assert not any(f.announced for f in silent)
    assert parse_condition("C4:rgb=delay@5").faults == (Fault("rgb", "delay", 0, None, False, 5.0),)
    assert parse_condition("C2:rgb=grey").faults == (Fault("rgb", "grey", 0, None, announced=False),)


def test_an_attack_is_one_for_all_its_cameras():
    attack = parse_condition("C6:rgb.image=policy@2+rgb.image2=policy@2").attack
    assert attack == Fault("rgb", "policy", 0, ("image", "image2"), announced=False, parameter=2.0)
    assert attack.kind == "adversarial"
    assert attack.changes_first_frame
    assert not attack.seen_in_training
    assert not attack.hard
    assert parse_condition("C6:rgb=feature@8").attack.cameras is None
    assert parse_condition("C3:rgb=fog@3").attack is None


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
        ("C2:rgb=drop", "Announced losses are written as C1"),
        ("C2:seg=grey", "no mid-grey"),
        ("C2:rgb=zero+rgb.image=grey", "two faults for the same stream"),
        ("C3:rgb=gaussian_noise", "gaussian_noise@3"),
        ("C3:rgb=gaussian_noise@9", r"\[1, 2, 3, 4, 5\]"),
        ("C3:rgb=gaussian_noise@x", r"\[1, 2, 3, 4, 5\]"),
        ("C3:rgb=holes@3", "known soft types for rgb"),
        ("C3:rgb=zero@3", "hard fault"),
        ("C3:sound=noise@3", "Unknown modality 'sound'"),
        ("C2:all=grey", "no mid-grey"),
        ("C2:rgb=zero@3", "takes no number"),
        ("C2:rgb.=zero", "C2:rgb=zero"),
        ("C2:all=zero+rgb=freeze", "two faults for the same stream"),
        ("C2:rgb.image=zero+rgb.image2=zero+rgb.image=freeze", "two faults for the same stream"),
        ("C4:rgb=gaussian_noise@3", "is a soft fault"),
        ("C4:rgb=zero", "is a hard fault"),
        ("C3:rgb=delay@3", "is a temporal fault"),
        ("C4:rgb=delay", "whole number of steps"),
        ("C4:rgb=delay@", "C4:rgb=delay@5"),
        ("C4:rgb=delay@x", "not a number"),
        ("C4:rgb=frame_drop@1", "probability"),
        ("C4:rgb=burst@2", "has no number"),
        ("C5:rgb=scale@0.8", "cross-modal: .*rotated"),
        ("C5:depth=shift@0", "pixels at a width of 224"),
        ("C5:rgb.image=swapped", "all cameras change places"),
        ("C6:rgb=patch", "attacks on rgb: .'policy', 'feature', 'random_sign'"),
        ("C6:rgb=patch@4", "Unknown fault type 'patch'"),
        ("C6:rgb=policy", "more than 0 and at most 255, e.g. C6:rgb=policy@4"),
        ("C6:rgb=policy@0", "more than 0 and at most 255"),
        ("C6:rgb=policy@256", "more than 0 and at most 255"),
        ("C6:rgb=policy@nan", "more than 0 and at most 255"),
        ("C6:rgb=feature@x", "not a number"),
        ("C6:depth=policy@4", "depth becomes discrete tokens.*C6:rgb=policy@4"),
        ("C6:all=policy@4", "becomes discrete tokens"),
        ("C6:rgb=gaussian_noise@3", "is a soft fault"),
        ("C3:rgb=policy@4", "is an adversarial fault"),
        ("C6:rgb.image=policy@2+rgb.image2=feature@2", "two attacks"),
        ("C6:rgb.image=policy@2+rgb.image2=policy@4", "two attacks"),
        ("C6", "C6:rgb=<policy.feature.random_sign>@<grey levels>"),
        ("C7", "--env.type=libero_plus"),
    ],
)
def test_unreadable_conditions_name_what_is_known(text, message):
    with pytest.raises(ValueError, match=message):
        parse_condition(text)

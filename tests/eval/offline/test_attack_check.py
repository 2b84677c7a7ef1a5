"""Attacks on recorded frames: what is printed is what was measured, and a weak attack is found out."""

from __future__ import annotations

import json

import msgspec
import pytest
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from msgspec.structs import replace
from tiny_policies import save, save_diffusion

from multismolvla_eval.offline.attack_check import (
    BREAKS,
    AttackFigures,
    AttackOptions,
    AttackReport,
    checks,
    main,
    render,
)

QUICK = ["--frames=3", "--batch_size=2", "--steps=3", "--fewer_steps=[1]", "--radii=[8]", "--method=pgd"]


@pytest.fixture
def policies(make_policy, hub, tmp_path) -> str:
    ours = save(make_policy(stage="robust", dropout_mode="none"), tmp_path / "ours")
    upstream = save(SmolVLAPolicy.from_pretrained(hub / "base"), tmp_path / "upstream")
    other = save_diffusion(tmp_path / "other")
    return f"--policies=[ours={ours}, upstream={upstream}, other={other}, zero=builtin:zero]"


@pytest.mark.slow
def test_the_table_holds_every_attack_beside_random_signs(policies, tiny_dataset, tmp_path, capsys):
    given = [policies, f"--dataset={tiny_dataset}", f"--output={tmp_path / 'out'}", *QUICK]
    code = main(given)
    text = capsys.readouterr().out
    report = msgspec.convert(json.loads((tmp_path / "out/attacks.json").read_text()), AttackReport)
    for name in ("ours", "upstream"):
        policy = report.policies[name]
        assert policy.frames == 3
        assert policy.modalities == {"ours": ["rgb", "depth", "seg", "thermal"], "upstream": ["rgb"]}[name]
        assert render(policy) in text
        assert [(f.against, f.radius, f.steps) for f in policy.figures] == [
            (a, r, n) for a in ("policy", "feature") for r, n in ((8, 1), (8, 3), (BREAKS, 3))
        ]
        for figures in policy.figures:
            assert figures.reached > max(figures.clean, figures.control)
            assert figures.gradient > 0
            assert figures.moved > 0
            assert figures.moved_8bit > 0
            assert figures.error > 0
        failed = {c.name.partition(": ")[2] for c in policy.checks if not c.passed}
        # three steps do not break a policy of random weights as the protocol's hundred would
        assert failed <= {f"{BREAKS:g}/255 moves the actions as far as other frames' pictures do"}
        assert code == int(any(not c.passed for p in report.policies.values() for c in p.checks))
    assert (
        report.policies["other"].left_out
        == "no gradient of a diffusion policy towards its pictures is known here"
    )
    assert "other: left out, no gradient" in text
    assert "zero: left out, it looks at no picture" in text


def figures(radius: float, steps: int, reached: float, **changed) -> AttackFigures:
    usual = AttackFigures("policy", radius, steps, 1.0, 1.1, reached, 0.1, 0.5, 0.1, 0.5, 0.6, 0.5)
    return replace(usual, **changed)


@pytest.mark.parametrize(
    ("changed", "failed"),
    [
        ({}, []),
        ({"nothing": figures(0, 1, 1.0, moved=1e-6)}, ["radius 0 moves nothing"]),
        ({"shorter": [figures(8, 5, 4.5)]}, ["more steps are not weaker"]),
        ({"figures": [figures(4, 20, 1.05), figures(8, 20, 4.0)]}, ["stronger than random signs"]),
        ({"figures": [figures(4, 20, 5.0), figures(8, 20, 4.0)]}, ["a larger radius is not weaker"]),
        ({"figures": [figures(8, 20, 4.0, gradient=0.0)]}, ["gradients are not zero"]),
        ({"broken": figures(64, 20, 9.0, moved=0.2)}, ["64/255 moves the actions as far as"]),
    ],
)
def test_an_attack_that_is_no_good_is_found_out(changed, failed):
    usual = {
        "nothing": figures(0, 1, 1.0, moved=0.0),
        "shorter": [figures(8, 5, 3.5)],
        "figures": [figures(4, 20, 2.0), figures(8, 20, 4.0)],
        "broken": figures(64, 20, 9.0, moved=0.9),
    }
    weak = {"broken": figures(64, 20, 9.0, moved=0.2)}
    assert all(c.passed for c in checks("feature", **(usual | weak), moved_by_others=0.8)), "it has no task"
    found = checks("policy", **(usual | changed), moved_by_others=0.8)
    names = [c.name.removeprefix("policy: ") for c in found if not c.passed]
    assert len(names) == len(failed)
    assert all(n.startswith(f) for n, f in zip(names, failed, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radii": [0.0]}, "--radii=.*more than 0"),
        ({"radii": [300.0]}, "at most 255"),
        ({"against": ["depth"]}, "--against=.*expected some of .'policy', 'feature'"),
        ({"method": "fgsm"}, "Unknown attack 'fgsm'"),
        ({"fewer_steps": [0]}, "at least 1 step"),
        ({"frames": 1}, "--frames=1 must be at least 2"),
    ],
)
def test_options_without_meaning_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        AttackOptions(**options)

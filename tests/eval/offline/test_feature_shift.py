"""How far a tower's tokens move: per layer and set of modalities, of 4M and SigLIP alike."""

from __future__ import annotations

import json

import msgspec
import pytest
import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from tiny_policies import save, save_act

from multismolvla.fourm import MINI_DOMAINS
from multismolvla_eval.offline import feature_shift
from multismolvla_eval.offline.feature_shift import (
    FeatureShifts,
    _left,
    _Seen,
    main,
    modality_sets,
    why_left_out,
)


def test_sets_are_rgb_alone_with_each_and_with_all():
    assert modality_sets(["rgb"]) == [("rgb",)]
    assert modality_sets(["rgb", "depth"]) == [("rgb",), ("rgb", "depth")]
    assert modality_sets(["rgb", "depth", "seg"]) == [
        ("rgb",), ("rgb", "depth"), ("rgb", "seg"), ("rgb", "depth", "seg"),
    ]  # fmt: skip


def test_who_has_no_tower_to_be_attacked_is_named_and_left_out(make_policy, tmp_path, capsys):
    blind = {"domains": {"depth": MINI_DOMAINS["depth"]}}
    depth, beside = (
        save(make_policy(stage="robust", vision_tower=tower, **blind), tmp_path / tower)
        for tower in ("fourm", "siglip+fourm")
    )
    act = save_act(tmp_path / "act")
    named = f"[depth={depth}, beside={beside}, act={act}, none=no_vision:{act}, zero=builtin:zero]"
    assert main([f"--policies={named}", f"--output={tmp_path}"]) == 0
    said = capsys.readouterr().out
    for name in ("depth", "beside"):
        assert f"{name}: left out, its vision tower reads no RGB" in said
    assert "act: left out, a act policy has no vision tower that is known here" in said
    for name in ("none", "zero"):
        assert f"{name}: left out, it looks at no picture" in said
    ours = save(make_policy(), tmp_path / "ours")
    assert why_left_out(ours) == why_left_out(f"no_health:{ours}") == ""


@pytest.mark.slow
def test_every_layer_of_both_towers_is_measured(make_policy, hub, tiny_dataset, tmp_path, capsys):
    ours = save(make_policy(stage="robust", dropout_mode="none"), tmp_path / "ours")
    upstream = save(SmolVLAPolicy.from_pretrained(hub / "base"), tmp_path / "upstream")
    out = tmp_path / "out"
    given = [f"--policies=[ours={ours}, upstream={upstream}, zero=builtin:zero]", f"--dataset={tiny_dataset}"]
    assert (
        main([*given, f"--output={out}", "--frames=4", "--batch_size=2", "--steps=2", "--radii=[2, 8]"]) == 0
    )
    found = msgspec.convert(json.loads((out / "feature_shift.json").read_text()), FeatureShifts)
    assert (out / "feature_shift.png").stat().st_size > 10_000
    assert "zero: left out" in capsys.readouterr().out
    rows = {(r.policy, r.modalities, r.change, r.radius, r.layer, r.tokens): r for r in found.rows}
    assert {(r.policy, r.tower) for r in found.rows} == {("ours", "4M"), ("upstream", "SigLIP")}
    assert {r.modalities for r in found.rows if r.policy == "upstream"} == {"rgb"}
    assert {r.modalities for r in found.rows if r.policy == "ours"} == {
        "rgb", "rgb+depth", "rgb+seg", "rgb+thermal", "rgb+depth+seg+thermal",
    }  # fmt: skip
    layers = {"ours": ["block 1", "block 2"], "upstream": ["block 1"]}
    for name, blocks in layers.items():
        for layer in (*blocks, "last", "connector"):
            small, large = (rows[name, "rgb", "attack", r, layer, "rgb"].median for r in (2.0, 8.0))
            assert 0 < small < large
            assert large > rows[name, "rgb", "random signs", 8.0, layer, "rgb"].median
            assert rows[name, "rgb", "another frame", 0.0, layer, "rgb"].median > 0
    joined = "rgb+depth+seg+thermal"
    others = rows["ours", joined, "attack", 8.0, "last", "other"]
    assert others.median > 0, "other tokens see RGB through attention"
    assert others.n > rows["ours", "rgb+depth", "attack", 8.0, "last", "other"].n
    assert ("ours", "rgb", "attack", 8.0, "last", "other") not in rows
    assert others.n + rows["ours", joined, "attack", 8.0, "last", "rgb"].n < 10**5
    assert main([*given, "--dataset=nowhere"]) == 2


def seen(tokens: torch.Tensor) -> _Seen:
    there = torch.ones(tokens.shape[:3], dtype=torch.bool)
    return _Seen({"last": tokens}, there, there, there.any(2))


def test_what_a_map_per_token_undoes_and_what_it_cannot():
    generator = torch.Generator().manual_seed(0)

    def pairs(change):
        clean = [torch.randn(2, 1, 200, 8, generator=generator) for _ in range(4)]
        return [(seen(x), seen(change(x))) for x in clean]

    turned = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    assert _left(pairs(lambda x: x @ turned + 1), "rgb") < 0.05
    noisy = _left(pairs(lambda x: x + torch.randn(x.shape, generator=generator)), "rgb")
    assert 0.5 < noisy < 1.0
    assert _left(pairs(lambda x: x + 1)[:1], "rgb") is None, "nothing to measure it on"
    assert feature_shift._RIDGE > 0

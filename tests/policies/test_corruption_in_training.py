"""Corruption in training: it reaches the encoder from pictures and from ids, costs nothing when off, and
resumes exactly.
"""

from __future__ import annotations

import pytest
import torch
from tiny_policy import SIDE, canonical_batch, chunk, flow_inputs

from lerobot_policy_multismolvla import training_faults
from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from multismolvla.corruption import TRAINING_TYPES
from multismolvla.corruption.soft import apply_soft
from multismolvla.corruption.tokens import SWAPPED_FRACTION, TOKEN_TYPES, corrupt_tokens
from multismolvla.corruption.training import corrupt_rgb
from multismolvla.fourm import MINI_DOMAINS
from multismolvla.modalities import MODALITIES, default_view_map, token_key
from multismolvla.tokenizers.recipe import token_recipe
from multismolvla.tower import tokenize_view

VIEWS = default_view_map()
ALWAYS = {
    "stage": "robust", "dropout_mode": "none", "corruption_probability": 1.0, "corruption_max_severity": 5,
    "curriculum_steps": 10, "corruption_ramp": 0.2, "curriculum_step": 4, "curriculum_stage": "robust",
    "curriculum_seed": 0,
}  # fmt: skip


def door_of(policy: MultiSmolVLAPolicy, batch: dict[str, torch.Tensor]) -> dict[str, str]:
    size = len(batch["action"])
    loss, _ = policy.train().forward(dict(batch), **flow_inputs(size))
    assert loss.isfinite()
    return policy.last_look().inputs.fingerprint()


def with_ids(policy: MultiSmolVLAPolicy, batch: dict[str, torch.Tensor], keep_pictures: bool) -> dict:
    """The batch as a dataset with cached ids gives it."""
    out, tower = dict(batch), policy.model.tower
    for view, streams in VIEWS.items():
        for m, key in streams.items():
            if m == "rgb":
                continue
            picture = {m: batch[key], "depth_valid": batch.get(f"{key}_valid")}
            out[token_key(view, m)] = tokenize_view(m, picture, tower.tokenizers[m], SIDE, "crop").to(
                torch.int16
            )
            if not keep_pictures:
                del out[key]
                out.pop(f"{key}_valid", None)
    return out


@pytest.mark.parametrize("source", ["live", "ids"])
def test_every_modality_is_disturbed_in_the_encoder(source, make_policy, batch):
    clean = door_of(make_policy(stage="robust", dropout_mode="none"), batch)
    faulty = door_of(make_policy(**ALWAYS, corruption_source=source), batch)
    assert {d for d in clean if clean[d] != faulty[d]} == set(MINI_DOMAINS.values())


def test_ids_are_disturbed_where_there_are_no_pictures(make_policy, batch):
    policy = make_policy(**ALWAYS, corruption_source="ids")
    ids = with_ids(policy, batch, keep_pictures=False)
    clean = door_of(make_policy(stage="robust", dropout_mode="none"), ids)
    faulty = door_of(policy, ids)
    assert {d for d in clean if clean[d] != faulty[d]} == set(MINI_DOMAINS.values())


def test_live_tokenizes_anew_what_was_disturbed_beside_its_ids(make_policy, batch):
    policy = make_policy(**ALWAYS | {"corruption_probability": 0.5}, corruption_source="live")
    assert door_of(policy, with_ids(policy, batch, keep_pictures=True)) == door_of(policy, batch)
    with pytest.raises(ValueError, match="--policy.corruption_source=ids"):
        door_of(policy, with_ids(policy, batch, keep_pictures=False))


@pytest.mark.parametrize("source", ["live", "ids"])
def test_zero_is_the_identity(source, make_policy, batch):
    never = make_policy(**ALWAYS | {"corruption_probability": 0.0}, corruption_source=source).train()
    rising = make_policy(**ALWAYS | {"curriculum_step": 0}, corruption_source=source).train()
    last = make_policy(**ALWAYS | {"curriculum_step": 9}, corruption_source=source).train()
    plain = make_policy(stage="robust", dropout_mode="none").train()
    losses = [p.forward(dict(batch), **flow_inputs())[0] for p in (plain, never, rising, last)]
    assert all(torch.equal(loss, losses[0]) for loss in losses)
    assert (
        never.last_look().inputs.fingerprint()
        == last.last_look().inputs.fingerprint()
        == plain.last_look().inputs.fingerprint()
    )


@pytest.mark.parametrize("stage", ["connector", "robust"])
def test_evaluation_and_stage_one_are_never_disturbed(stage, make_policy, batch):
    policy = make_policy(**ALWAYS | {"stage": stage, "curriculum_stage": stage})
    clean = make_policy(stage=stage, dropout_mode="none")
    if stage == "robust":
        assert torch.equal(chunk(policy, batch), chunk(clean, batch))
    else:
        assert door_of(policy, batch) == door_of(clean, batch)


def test_the_probability_rises_and_ends_clean_and_the_log_says_so(make_policy, batch):
    policy = make_policy(
        **ALWAYS
        | {
            "curriculum_step": 0,
            "corruption_ramp": 0.5,
            "corruption_clean": 0.2,
            "corruption_probability": 0.8,
        }
    ).train()
    seen = []
    for _ in range(10):
        logs = policy.forward(canonical_batch(), **flow_inputs())[1]
        seen.append(logs["corruption_p"])
        assert (logs["pictures_disturbed"] > 0) == (logs["corruption_p"] > 0)
        policy.update()
    assert seen == pytest.approx([0, 0.16, 0.32, 0.48, 0.64, 0.8, 0.8, 0.8, 0, 0])


def test_a_resumed_run_draws_the_same_and_dropout_draws_as_without(make_policy, batch, tmp_path):
    options = ALWAYS | {"dropout_mode": "fixed", "dropout_complete": 0.0, "corruption_probability": 0.5}
    policy = make_policy(**options)
    policy.save_pretrained(tmp_path)
    torch.manual_seed(5)
    first = door_of(policy, batch)
    assert door_of(MultiSmolVLAPolicy.from_pretrained(tmp_path), batch) == first
    policy.update()
    assert door_of(policy, batch) != first
    presence = {d: m.clone() for d, m in policy.last_look().inputs.present.items() if d.startswith("rgb")}
    without = make_policy(**options | {"corruption_probability": 0.0, "curriculum_step": 5})
    door_of(without, batch)
    assert torch.equal(without.last_look().inputs.present["rgb@64"], presence["rgb@64"])


def test_each_sample_view_and_modality_is_drawn_alone(make_config):
    cfg = make_config(**ALWAYS | {"corruption_probability": 0.5})
    presence = torch.ones(64, 2, len(MODALITIES), dtype=torch.bool)
    presence[:, 1, 2] = False
    drawn = training_faults.draw_corruption(cfg, presence, seed=0, rank=0)
    hit = drawn.severity > 0
    assert not hit[:, 1, 2].any()
    assert hit[:, 0].float().mean(0).sub(0.5).abs().max() < 0.2
    assert set(drawn.severity[hit].tolist()) == {1, 2, 3, 4, 5}
    assert len(hit.flatten(1).unique(dim=0)) > 50
    assert not torch.equal(
        training_faults.draw_corruption(cfg, presence, seed=0, rank=1).severity, drawn.severity
    )


@pytest.mark.parametrize(("source", "keep_pictures"), [("live", True), ("ids", True), ("ids", False)])
def test_beside_a_disturbed_rgb_nothing_is_seen_that_was_derived_from_the_clean_one(
    source, keep_pictures, make_policy, batch, monkeypatch
):
    derived = {
        "provenance": {"depth": "derived", "image": {"depth": "sensor"}}
    }  # a sensor in front, an estimate at the wrist
    policy = make_policy(**ALWAYS, corruption_source=source, **derived)
    batch = with_ids(policy, batch, keep_pictures)
    draw = training_faults.draw_corruption
    only_rgb = torch.zeros(3, 2, len(MODALITIES))
    only_rgb[1, :, MODALITIES.index("rgb")] = 1.0
    draws = iter([1 - only_rgb, torch.zeros_like(only_rgb)])  # what is hit, and by which type
    monkeypatch.setattr(training_faults.torch, "rand", lambda *_, **__: next(draws))
    with torch.no_grad():
        drawn = draw(policy.config, torch.ones(3, 2, len(MODALITIES), dtype=torch.bool), 0, 0)
    monkeypatch.undo()
    monkeypatch.setattr(training_faults, "draw_corruption", lambda *_: drawn)
    clean = make_policy(stage="robust", dropout_mode="none")
    door_of(clean, batch)
    door_of(policy, batch)
    differs = {
        domain: [
            not torch.equal(
                policy.last_look().inputs.values[domain][row], clean.last_look().inputs.values[domain][row]
            )
            or not torch.equal(
                policy.last_look().inputs.present[domain][row], clean.last_look().inputs.present[domain][row]
            )
            for row in range(6)
        ]
        for domain in MINI_DOMAINS.values()
    }
    assert [r for r in range(6) if differs[MINI_DOMAINS["rgb"]][r]] == [2, 3]  # sample 1, both views
    assert [r for r in range(6) if differs[MINI_DOMAINS["depth"]][r]] == [3]  # the wrist's alone
    there = policy.last_look().inputs.present[MINI_DOMAINS["depth"]].flatten(1).any(1)
    assert there.tolist() == [True, True, True, False, True, True]
    assert not any(differs[MINI_DOMAINS["seg"]] + differs[MINI_DOMAINS["thermal"]])


def test_what_is_derived_has_faults_of_its_own_beside_a_sound_rgb_alone(make_config):
    presence = torch.ones(64, 2, len(MODALITIES), dtype=torch.bool)
    rgb, depth = (MODALITIES.index(m) for m in ("rgb", "depth"))
    presence[:8, :, depth] = False
    options = ALWAYS | {"corruption_probability": 0.5}
    plain = training_faults.draw_corruption(make_config(**options), presence, seed=0, rank=0)
    cfg = make_config(**options, provenance={"depth": "derived"})
    drawn = training_faults.draw_corruption(cfg, presence, seed=0, rank=0)
    disturbed = plain.severity[:, :, rgb] > 0
    expected = plain.severity.clone()
    expected[:, :, depth][disturbed] = 0
    assert torch.equal(drawn.severity, expected)
    assert not torch.equal(drawn.severity, plain.severity)
    assert torch.equal(drawn.kind, plain.kind)
    assert drawn.seed == plain.seed
    left = training_faults.seen_beside(cfg, presence, drawn)
    assert torch.equal(left[:, :, depth], presence[:, :, depth] & ~disturbed)
    others = [m for m in range(len(MODALITIES)) if m != depth]
    assert left[:, :, others].all()


def test_an_rgb_that_the_tower_does_not_read_takes_nothing_along(make_config):
    without = {m: d for m, d in MINI_DOMAINS.items() if m != "rgb"}
    cfg = make_config(**ALWAYS, provenance={"depth": "derived"}, domains=without)
    presence = torch.ones(8, 2, len(MODALITIES), dtype=torch.bool)
    drawn = training_faults.draw_corruption(cfg, presence, seed=0, rank=0)
    assert training_faults.seen_beside(cfg, presence, drawn).all()


def test_the_batch_itself_is_left_alone(make_policy, batch):
    policy = make_policy(**ALWAYS)
    ids = with_ids(policy, batch, keep_pictures=True)
    before = {k: v.clone() for k, v in ids.items()}
    door_of(policy, ids)
    assert all(torch.equal(ids[k], v) for k, v in before.items())


def test_consistency_compares_with_the_undisturbed(make_policy, batch):
    options = {"consistency_weight": 1.0, "corruption_source": "live"}
    clean = make_policy(**ALWAYS | {"corruption_probability": 0.0} | options).train()
    faulty = make_policy(**ALWAYS | options).train()
    assert clean.forward(dict(batch), **flow_inputs())[1]["consistency"] == 0.0
    assert faulty.forward(dict(batch), **flow_inputs())[1]["consistency"] > 0.0


# -- told at the start ---------------------------------------------------------------------------------------


def test_live_without_pictures_is_refused_at_the_start(make_config):
    key = token_key("image", "depth")
    cfg = make_config(**ALWAYS, corruption_source="live")
    info = token_recipe(cfg, "image", "depth", num_labels=cfg.num_labels)
    rgb = {streams["rgb"]: {"dtype": "image"} for streams in VIEWS.values()}
    ids_only = rgb | {key: {"dtype": "int16", "shape": (64,), "info": info}}
    with pytest.raises(ValueError, match=r"image_depth.*--keep_pictures=true.*corruption_source=ids"):
        cfg.set_dataset_feature_metadata(ids_only)
    cfg.set_dataset_feature_metadata(ids_only | {VIEWS["image"]["depth"]: {"dtype": "image"}})
    make_config(**ALWAYS, corruption_source="ids").set_dataset_feature_metadata(ids_only)


def test_a_stage_without_a_length_is_named(make_policy, batch):
    policy = make_policy(**ALWAYS | {"curriculum_steps": 0}).train()
    with pytest.raises(ValueError, match="corruption_probability=0"):
        policy.forward(dict(batch), **flow_inputs())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"corruption_probability": 1.5}, "corruption_probability=1.5"),
        (
            {"corruption_probability": 0.1, "vision_tower": "siglip"},
            "not supported with --policy.vision_tower=siglip",
        ),
        ({"corruption_max_severity": 6}, "corruption_max_severity=6"),
        ({"corruption_ramp": 0.0}, "corruption_ramp=0.0"),
        ({"corruption_clean": 1.0}, "corruption_clean=1.0"),
        ({"corruption_source": "both"}, "corruption_source='both'.*'live', 'ids'"),
    ],
)
def test_a_wrong_option_is_named(option, message, make_config):
    with pytest.raises(ValueError, match=message):
        make_config(**option)


# -- faults of many at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(TRAINING_TYPES["rgb"])))
@pytest.mark.parametrize("severity", [1, 4])
def test_a_batch_is_disturbed_as_single_pictures_are(number, severity):
    """What draws nothing is equal but for rounding; of the rest, the size of the change."""
    types, images = TRAINING_TYPES["rgb"], torch.rand(6, 3, 40, 48)
    kind = torch.full((6,), (number + 0.5) / len(types))
    g = torch.Generator().manual_seed(0)
    batched = corrupt_rgb(images, kind, torch.full((6,), severity), g)
    single = torch.stack([apply_soft(i, None, "rgb", types[number], severity, g)[0] for i in images])
    if types[number] in ("builtin_noise", "builtin_occlusion"):
        assert (batched - images).std().item() == pytest.approx((single - images).std().item(), rel=0.15)
    else:
        assert torch.allclose(batched, single, atol=1e-5)


def test_autocast_around_it_changes_no_picture() -> None:
    kind = (torch.arange(5) + 0.5) / 5  # one of each type
    images, severity = (
        torch.rand(5, 3, 24, 24, generator=torch.Generator().manual_seed(1)),
        torch.full((5,), 3),
    )
    made = []
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            made.append(corrupt_rgb(images, kind, severity, torch.Generator().manual_seed(0)))
    assert torch.equal(*made)


def test_every_picture_of_a_batch_has_its_own_fault():
    images = torch.rand(1, 3, 32, 32).expand(10, -1, -1, -1)
    types = len(TRAINING_TYPES["rgb"])
    kind = (torch.arange(10) % types + 0.5) / types
    severity = torch.tensor([1] * types + [5] * types)
    made = corrupt_rgb(images, kind, severity, torch.Generator().manual_seed(0))
    change = (made - images).abs().mean((1, 2, 3))
    assert (change > 0).all()
    assert (change[types:] > change[:types]).all()


# -- faults of ids -------------------------------------------------------------------------------------------

KIND = {name: (i + 0.5) / len(TOKEN_TYPES) for i, name in enumerate(TOKEN_TYPES)}


def disturbed(values, present, vocab, type_, severity, generator):
    """Two pictures, of which the second is left alone."""
    kind, severities = torch.tensor([KIND[type_]] * 2), torch.tensor([severity, 0])
    made, there = corrupt_tokens(
        torch.stack([values] * 2), torch.stack([present] * 2), vocab, kind, severities, generator
    )
    assert torch.equal(made[1], values)
    assert torch.equal(there[1], present)
    return made[0], there[0]


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_swapped_ids_stay_in_the_vocabulary_and_missing_ones_leave_a_block(severity):
    g = torch.Generator().manual_seed(0)
    ids, present = torch.full((14, 14), 99), torch.ones(14, 14, dtype=torch.bool)
    swapped, there = disturbed(ids, present, 8192, "random_ids", severity, g)
    assert there.all()
    assert (swapped != 99).float().mean().item() == pytest.approx(SWAPPED_FRACTION[severity - 1], abs=0.08)
    assert 0 <= swapped.min() <= swapped.max() < 8192
    same, there = disturbed(ids, present, 8192, "missing_block", severity, g)
    rows, columns = (~there).nonzero().unbind(1)
    assert torch.equal(same, ids)
    assert (~there).sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)


@pytest.mark.parametrize("type_", TOKEN_TYPES)
@pytest.mark.parametrize("severity", [1, 5])
def test_no_fault_of_tokens_does_nothing(type_, severity):
    g = torch.Generator().manual_seed(0)
    ids, all_there = torch.full((16,), 8191), torch.ones(16, dtype=torch.bool)
    rows, grid = torch.rand(4, 4, 3), torch.ones(4, 4, dtype=torch.bool)
    for _ in range(50):
        swapped, there = disturbed(ids, all_there, 8191, type_, severity, g)  # no place: others are named
        assert there.all()
        assert 0 < (swapped != ids).sum() <= 15
        same, there = disturbed(rows, grid, None, type_, severity, g)  # no vocabulary: a block is gone
        assert torch.equal(same, rows)
        assert 0 < (~there).sum() < 16


def test_what_cannot_be_disturbed_is_named():
    g = torch.Generator().manual_seed(0)
    nothing = torch.ones(1, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\(1, 16\)"):
        corrupt_tokens(torch.rand(1, 16, 3), nothing, None, torch.rand(1), torch.ones(1).long(), g)

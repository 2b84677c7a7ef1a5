"""Rules 1, 3, 4 and 8 of the design on the policy itself."""

from __future__ import annotations

import pytest
import torch
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy, resize_with_pad
from tiny_policy import SIDE, actions, canonical_batch, chunk, common_options, flow_inputs, rgb_features

from lerobot_policy_multismolvla import training_faults
from lerobot_policy_multismolvla.losses import teacher_tokens
from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from lerobot_policy_multismolvla.visual import siglip_tokens
from multismolvla.modalities import MODALITIES, default_view_map, padding_mask_key

VIEWS = default_view_map()


@pytest.fixture
def upstream(hub):
    return SmolVLAPolicy.from_pretrained(
        hub / "base",
        config=SmolVLAConfig(**common_options(hub), input_features=rgb_features(), output_features=actions()),
    ).eval()


@pytest.mark.parametrize("tower", ["siglip", "siglip+fourm"])
def test_vanilla_inside_our_harness_is_upstream_bit_for_bit(tower, upstream, make_policy, batch, tmp_path):
    ours = make_policy(vision_tower=tower, stage="robust", dropout_mode="none")
    rgb_only = {k: v for k, v in batch.items() if not any(m in k for m in ("depth", "seg", "thermal"))}
    for policy in (ours, _reloaded(ours, tmp_path)):
        assert torch.equal(
            policy.forward(dict(batch), **flow_inputs())[0], upstream.forward(rgb_only, **flow_inputs())[0]
        )
        assert torch.equal(chunk(policy, batch), chunk(upstream, rgb_only))


def _reloaded(policy, folder):
    policy.save_pretrained(folder)
    return MultiSmolVLAPolicy.from_pretrained(folder)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("view", list(VIEWS))
def test_each_modality_of_each_view_changes_the_action(modality, view, make_policy, batch):
    policy = make_policy()
    other = canonical_batch(seed=5)
    key = VIEWS[view][modality]
    changed = dict(batch) | {k: other[k] for k in other if k in (key, f"{key}_valid")}
    assert (chunk(policy, changed) - chunk(policy, batch)).abs().amax((1, 2)).min() > 1e-6


@pytest.mark.parametrize("modality", MODALITIES)
def test_masking_a_modality_equals_not_having_it(modality, make_policy, batch):
    policy = make_policy()
    keys = [streams[modality] for streams in VIEWS.values()]
    masked = dict(batch) | {padding_mask_key(k): torch.zeros(3, dtype=torch.bool) for k in keys}
    without = {k: v for k, v in batch.items() if not any(k in (key, f"{key}_valid") for key in keys)}
    assert torch.allclose(chunk(policy, masked), chunk(policy, without), atol=1e-6)
    assert not torch.allclose(chunk(policy, masked), chunk(policy, batch), atol=1e-6)


def test_a_lost_view_is_as_one_that_was_never_delivered(make_policy, batch):
    policy = make_policy()
    with torch.no_grad():
        policy.model.bridge.absent.normal_()
    lost = list(VIEWS["image2"].values())
    masked = dict(batch) | {padding_mask_key(k): torch.zeros(3, dtype=torch.bool) for k in lost}
    without = {k: v for k, v in batch.items() if not k.startswith(tuple(lost))}
    assert torch.allclose(chunk(policy, masked), chunk(policy, without), atol=1e-6)
    assert torch.allclose(
        policy(dict(masked), **flow_inputs())[0], policy(dict(without), **flow_inputs())[0], atol=1e-6
    )
    assert not torch.allclose(chunk(policy, masked), chunk(policy, batch), atol=1e-3)


def test_the_language_model_reads_as_many_tokens_whatever_is_lost(make_policy, batch):
    """Positions count what is attended to: with one camera lost all that follows would move up."""
    policy = make_policy()
    lost = {padding_mask_key(k): torch.zeros(3, dtype=torch.bool) for k in VIEWS["image"].values()}
    for seen in (dict(batch), dict(batch) | lost, {k: v for k, v in batch.items() if "images" not in k}):
        prefix = policy.prepare_images(seen)
        assert [t.shape[1] for t in prefix.tokens] == [policy.model.bridge_tokens] * 2
        assert all(attended.all() for attended in prefix.attended)
    assert policy.last_look().seen.tolist() == [[False, False]] * 3


def test_presence_is_per_sample(make_policy, batch):
    policy = make_policy()
    mask = torch.tensor([True, False, True])
    mixed = dict(batch) | {padding_mask_key(VIEWS["image"]["rgb"]): mask}
    clean, faulty = chunk(policy, batch), chunk(policy, mixed)
    assert torch.allclose(clean[mask], faulty[mask], atol=1e-6)
    assert not torch.allclose(clean[~mask], faulty[~mask], atol=1e-5)


def test_nothing_left_to_see_is_finite(make_policy, batch):
    blind = {k: v for k, v in batch.items() if "images" not in k}
    assert chunk(make_policy(on_blind="act"), blind).isfinite().all()


def test_a_derived_modality_dies_with_its_rgb(make_policy, batch):
    policy = make_policy(
        provenance={"rgb": "sensor", "depth": "sensor", "seg": "sensor", "thermal": "derived"}
    )
    gone = {padding_mask_key(s["rgb"]): torch.zeros(3, dtype=torch.bool) for s in VIEWS.values()}
    presence = policy.availability(dict(batch) | gone)
    assert presence[:, :, MODALITIES.index("depth")].all()
    assert not presence[:, :, MODALITIES.index("thermal")].any()


def test_a_stream_dies_with_its_own_views_rgb_alone(make_policy, batch):
    policy = make_policy(
        provenance={"depth": "derived", "image": {"depth": "sensor"}, "image2": {"seg": "derived"}}
    )
    gone = {padding_mask_key(s["rgb"]): torch.zeros(3, dtype=torch.bool) for s in VIEWS.values()}
    presence = policy.availability(dict(batch) | gone)
    kept = {
        (v, m): bool(presence[:, i, j].all()) for i, v in enumerate(VIEWS) for j, m in enumerate(MODALITIES)
    }
    assert {stream for stream, there in kept.items() if not there} == {
        ("image", "rgb"), ("image2", "rgb"), ("image2", "depth"), ("image2", "seg")
    }  # fmt: skip
    one = dict(batch) | {padding_mask_key(VIEWS["image"]["rgb"]): torch.zeros(3, dtype=torch.bool)}
    assert policy.availability(one)[:, 1].all()


def test_stage_one_trains_the_bridge_alone(make_policy, batch):
    policy = make_policy(stage="connector").train()
    loss, logs = policy.forward(dict(batch), **flow_inputs())
    loss.backward()
    touched = {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched
    assert all(n.startswith("model.bridge.") for n in touched)
    assert {"align_cosine", "losses_after_forward"} <= logs.keys()
    # every modality's way into the fusion learns
    for m in MODALITIES:
        assert any(f"fusion.value.{m}." in n for n in touched), m


def test_the_teacher_is_siglip_after_the_connector(make_policy, upstream, batch):
    policy = make_policy(stage="connector")
    tokens, masks = teacher_tokens(policy, dict(batch))
    image = batch[VIEWS["image"]["rgb"]] * 2 - 1
    assert torch.equal(tokens[:, 0], upstream.model.vlm_with_expert.embed_image(image))
    assert masks.all()
    assert not any("vision_model" in n or "teacher" in n for n in policy.state_dict())


def test_connector_starts_at_the_teachers_norm(make_policy, batch):
    policy = make_policy(stage="connector").train()
    policy.forward(dict(batch), **flow_inputs())
    teacher, _ = teacher_tokens(policy, dict(batch))
    student, _ = policy.prepare_images(dict(batch))
    assert student[0].pow(2).mean().sqrt().item() == pytest.approx(
        teacher.pow(2).mean().sqrt().item(), rel=1e-3
    )


def test_checkpoint_leaves_the_frozen_tower_out_and_acts_the_same(make_policy, batch, tmp_path):
    from safetensors import safe_open

    policy = make_policy(stage="connector")
    policy.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as f:
        assert not any(k.startswith("model.tower") for k in f.keys())  # noqa: SIM118
    again = MultiSmolVLAPolicy.from_pretrained(tmp_path)
    assert again.config.encoder_hash == policy.config.encoder_hash
    assert torch.equal(chunk(again, batch), chunk(policy, batch))


def test_select_action_runs_chunk_after_chunk(make_policy, batch):
    policy = make_policy()
    observation = {k: v for k, v in batch.items() if k != "action"}
    policy.reset()
    assert torch.stack([policy.select_action(dict(observation)) for _ in range(5)]).isfinite().all()


def test_real_time_chunking_uses_the_leftover_of_the_last_chunk(make_policy, batch):
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    policy = make_policy(rtc_config=RTCConfig(enabled=True, execution_horizon=2))
    assert policy.supports_rtc()
    first = chunk(policy, batch)
    noise = flow_inputs()["noise"]
    second = policy.predict_action_chunk(
        dict(batch), noise=noise, inference_delay=1, prev_chunk_left_over=first[:, 2:] + 1.0
    )
    assert second.isfinite().all()
    assert not torch.allclose(first, second)


def test_consistency_vanishes_without_dropout_and_not_with_it(make_policy, batch):
    options = {
        "stage": "robust",
        "consistency_weight": 1.0,
        "curriculum_steps": 10,
        "dropout_mode": "fixed",
        "dropout_ramp": 1.0,
    }
    clean = make_policy(**options, dropout_p_max=0.0).train().forward(dict(batch), **flow_inputs())[1]
    faulty = make_policy(**options, dropout_p_max=0.5).train().forward(dict(batch), **flow_inputs())[1]
    assert clean["consistency"] == 0.0
    assert faulty["consistency"] > 0.0


def test_the_encoder_inputs_tell_a_fault_from_none(make_policy, batch):
    policy = make_policy()
    chunk(policy, batch)
    clean = policy.last_look().inputs.fingerprint()
    chunk(policy, batch)
    assert policy.last_look().inputs.fingerprint() == clean
    noisy = dict(batch)
    noisy[VIEWS["image"]["rgb"]] = (batch[VIEWS["image"]["rgb"]] + 0.1).clamp(0, 1)
    chunk(policy, noisy)
    changed = {k for k, v in policy.last_look().inputs.fingerprint().items() if v != clean[k]}
    assert changed == {policy.config.domains["rgb"]}


@pytest.mark.parametrize("tower", ["siglip", "fourm"])
def test_several_draws_per_observation_are_upstreams_loss(tower, make_policy, batch, monkeypatch):
    """With equal noise and time in all draws, the shared prefix gives upstream's loss and gradient."""
    policy = make_policy(vision_tower=tower, stage="robust", dropout_mode="none", flow_samples=3)
    fixed = flow_inputs()
    expected, _ = policy.forward(dict(batch), **fixed)
    expected.backward()
    before = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    monkeypatch.setattr(
        policy.model, "sample_noise", lambda shape, device: fixed["noise"].repeat_interleave(3, 0)
    )
    monkeypatch.setattr(
        policy.model, "sample_time", lambda size, device: fixed["time"].repeat_interleave(3, 0)
    )
    loss, _ = policy.train().forward(dict(batch))
    loss.backward()
    assert torch.allclose(loss, expected, atol=1e-6)
    after = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
    assert before.keys() == after.keys()
    assert all(torch.allclose(after[n], g, atol=1e-5) for n, g in before.items())


def test_a_lost_sensor_is_told_once_and_its_return_too(make_policy, batch, caplog):
    policy = make_policy()
    key = VIEWS["image2"]["depth"]
    lost = {k: v for k, v in batch.items() if k not in (key, f"{key}_valid")}
    with caplog.at_level("WARNING"):
        for observation in (batch, lost, lost, batch):
            chunk(policy, observation)
    told = [r.getMessage() for r in caplog.records if "Sensor" in r.getMessage()]
    assert told == ["Sensor lost: image2.depth. The policy goes on without it.", "Sensor back: image2.depth."]


def test_the_order_of_views_means_nothing_to_presence(make_policy, batch):
    lost = {padding_mask_key(VIEWS["image2"]["depth"]): torch.tensor([False, True, False])}
    forward = make_policy().availability(dict(batch) | lost)
    backward = make_policy(views=dict(reversed(VIEWS.items()))).availability(dict(batch) | lost)
    assert torch.equal(forward, backward.flip(1))
    assert not torch.equal(forward, backward)


@pytest.mark.parametrize("tower", ["fourm", "siglip+fourm"])
@pytest.mark.parametrize("stage", ["connector", "robust"])
def test_dead_colour_cameras_stop_nobody(tower, stage, make_policy, batch):
    policy = make_policy(vision_tower=tower, stage=stage, absent_streams=["image.rgb", "image2.rgb"])
    blind = {k: v for k, v in batch.items() if k not in policy.config.rgb_keys}
    assert chunk(policy, blind).isfinite().all()
    assert policy.train().forward(dict(blind), **flow_inputs())[0].isfinite()


def test_what_a_step_draws_depends_on_the_step_alone(make_policy, batch):
    policy = make_policy(stage="robust", flow_samples=2, dropout_mode="none").train()
    torch.manual_seed(1)
    first = policy.forward(dict(batch))[0]
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(policy.forward(dict(batch))[0], first)
    assert torch.equal(torch.random.get_rng_state(), state)
    policy.update()
    assert not torch.equal(policy.forward(dict(batch))[0], first)


def test_siglip_and_fourm_speak_at_one_norm(make_policy, batch):
    policy = make_policy(vision_tower="siglip+fourm", stage="connector").train()
    policy.forward(dict(batch), **flow_inputs())
    siglip = torch.cat(list(siglip_tokens(policy, batch).values())).pow(2).mean().sqrt().item()
    assert policy.model.bridge.connector.gain.mean().item() == pytest.approx(siglip, rel=1e-5)


def test_derived_modalities_leave_something_to_see(make_policy, batch):
    provenance = {"rgb": "sensor", "depth": "derived", "seg": "derived", "thermal": "derived"}
    options = {"dropout_mode": "fixed", "dropout_complete": 0.0, "dropout_p_max": 0.5}
    policy = make_policy(
        stage="robust", provenance=provenance, views={"image": VIEWS["image"]}, **options
    ).train()
    big = canonical_batch(size=64)
    for _ in range(5):
        presence = training_faults.drop_sensors(policy.config, policy.availability(big), seed=0, rank=0)
        assert presence.flatten(1).any(1).all()
        policy.update()


def test_upstreams_class_loads_the_baseline_that_our_plugin_trained(upstream, make_policy):
    ours = make_policy(vision_tower="siglip", stage="robust", dropout_mode="none")
    assert list(ours.state_dict()) == list(upstream.state_dict())
    upstream.load_state_dict(ours.state_dict(), strict=True)


def test_fourm_beside_siglip_keeps_a_view_alive_that_siglip_alone_sees(make_policy, batch):
    """4M reads no RGB here, and all that it reads is lost: SigLIP's tokens must still reach the action."""
    options = {"vision_tower": "siglip+fourm", "domains": {"depth": "tok_depth@64"}}
    policy = make_policy(**options)
    gone = {padding_mask_key(s["depth"]): torch.zeros(3, dtype=torch.bool) for s in VIEWS.values()}
    other = dict(batch) | {s["rgb"]: 1 - batch[s["rgb"]] for s in VIEWS.values()}
    assert (chunk(policy, dict(batch) | gone) - chunk(policy, other | gone)).abs().max() > 1e-4


def test_adapters_on_the_encoder_get_gradients(make_policy, batch):
    policy = make_policy(stage="robust", dropout_mode="none").train()
    layer = next(m for m in policy.model.tower.encoder.modules() if isinstance(m, torch.nn.Linear))
    layer.weight.requires_grad_(True)
    policy.forward(dict(batch), **flow_inputs())[0].backward()
    assert layer.weight.grad.abs().max() > 0


def test_a_view_is_known_by_its_embedding_not_by_its_place(make_policy, batch):
    plain, policy = make_policy(view_embedding=False), make_policy()
    assert torch.equal(chunk(policy, batch), chunk(plain, batch))  # zero at first
    turned = make_policy(views=dict(reversed(VIEWS.items())))
    with torch.no_grad():
        for view in policy.model.bridge.view_embedding.values():
            view.normal_()
    turned.load_state_dict(policy.state_dict())
    ours, theirs = policy.prepare_images(dict(batch)).tokens, turned.prepare_images(dict(batch)).tokens
    for first, second in zip(ours, reversed(theirs), strict=True):
        assert torch.allclose(first, second, atol=1e-5)


def test_consistency_under_autocast_trains_every_weight_that_it_trains_in_full_precision(make_policy, batch):
    """The pass without gradients must not leave casts behind that carry none."""
    policy = make_policy(
        stage="robust", dropout_mode="fixed", dropout_p_max=0.5, consistency_weight=0.1, dropout_complete=0.0
    ).train()

    def trained(enabled):
        policy.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            policy.forward(dict(batch), **flow_inputs())[0].backward()
        return {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}

    assert trained(True) >= trained(False)


# -- pictures that are not square ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (64, 64)])
def test_padded_as_smolvla_pads_the_same_place_lies_in_the_same_cell(size, make_policy):
    policy = make_policy(square="pad")
    height, width = size
    picture = torch.zeros(1, 3, height, width)
    for row, column in ((0, 0), (height - 4, width - 4), (height // 2, width // 3)):
        picture[..., row : row + 4, column : column + 4] = 1.0
    upstream = resize_with_pad(picture, SIDE, SIDE, pad_value=0)
    presence = torch.ones(1, 1, len(MODALITIES), dtype=torch.bool)
    streams = {
        "rgb": picture,
        "depth": torch.ones(1, 1, height, width),
        "seg": torch.ones(1, 1, height, width, dtype=torch.int64),
        "thermal": torch.full((1, 1, height, width), 0.5),
    }
    inputs = policy.model.tower.encoder_inputs([streams], presence)
    assert (inputs.values["rgb@64"] - upstream).abs().max() < 0.5  # antialiasing apart
    assert (inputs.values["rgb@64"] - upstream).abs().mean() < 0.02
    # what SmolVLA adds is absent, for every modality alike
    added = resize_with_pad(torch.ones(1, 1, height, width), SIDE, SIDE, pad_value=0)[0, 0] < 0.5
    for domain, present in inputs.present.items():
        cell = SIDE // present.shape[-1]
        cells = added.unflatten(0, (-1, cell)).unflatten(2, (-1, cell)).float().mean((1, 3)) > 0.5
        assert torch.equal(present[0], ~cells), domain


def test_a_teacher_that_pads_and_a_student_that_crops_are_refused(make_config):
    wide = rgb_features()
    wide["observation.images.image"].shape = (3, 48, 64)
    with pytest.raises(ValueError, match="image is 64x48.*--policy.square=pad"):
        make_config(stage="connector", input_features=wide).validate_features()
    make_config(stage="connector", input_features=wide, square="pad").validate_features()
    make_config(stage="connector", input_features=wide, align_weight=0.0).validate_features()
    # where 4M's tokens are added to SigLIP's, they meet in every stage
    for stage in ("connector", "robust"):
        both = {"vision_tower": "siglip+fourm", "input_features": wide, "stage": stage, "align_weight": 0.0}
        with pytest.raises(ValueError, match=r"image is 64x48.*Set --policy.square=pad\.$"):
            make_config(**both).validate_features()
        make_config(**both, square="pad").validate_features()

"""Objectives in the policy: what they see, what they train, what they leave alone."""

from __future__ import annotations

import re
from types import SimpleNamespace

import draccus
import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from tiny_official import official_options, write_official
from tiny_policy import chunk, flow_inputs
from training_batch import TASKS, training_batch

from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from lerobot_policy_multismolvla.flow import FlowDraw, draw_noise_and_time, velocities
from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from lerobot_policy_multismolvla.objectives import step as steps
from lerobot_policy_multismolvla.objectives.step import LabelWatch, Sensors, TrainingStep
from lerobot_policy_multismolvla.training_faults import drop_sensors
from multismolvla.modalities import MODALITIES, default_view_map, padding_mask_key
from multismolvla.objectives.alignment import consistency_loss
from multismolvla.objectives.attack import pgd
from multismolvla.objectives.options import ObjectivesOptions, RlbindOptions, RobultOptions

VIEWS = default_view_map()
ON = {
    "robult": {"robult": {"weight": 1.0}},
    "rlbind": {"rlbind": {"weight": 1.0, "attack_steps": 2}},
    "consistency": {"consistency_weight": 1.0},
}
MIDDLE = {"curriculum_step": 50, "curriculum_stage": "robust"}


def forward(policy, batch):
    return policy.forward(dict(batch), **flow_inputs(len(batch["index"])))


def look(policy, batch, presence=None, faults=None) -> TrainingStep:
    available = policy.availability(batch)
    presence = available if presence is None else presence
    visual = policy.visual_tokens(batch, presence, faults)
    return TrainingStep(policy, batch, Sensors(available, presence, faults), visual, FlowDraw())


# -- the stage's loss and the terms --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ON)
def test_an_objective_is_added_to_the_stages_loss_and_logged(name, train, batch):
    plain, plain_logs = forward(train(**MIDDLE), batch)
    loss, logs = forward(train(**MIDDLE, **ON[name]), batch)
    assert loss.item() == pytest.approx(plain.item() + logs[f"{name}_scale"] * logs[name], rel=1e-5)
    assert logs[name] > 0
    assert logs[f"{name}_scale"] == 1
    assert logs[f"{name}_s"] > 0
    assert {k: logs[k] for k in plain_logs} == plain_logs  # dropout, noise and time are drawn as without


@pytest.mark.parametrize("name", ["robult", "rlbind"])
def test_they_join_stage_one_too(name, stage_one, batch):
    config = PreTrainedConfig.from_pretrained(stage_one)
    config.pretrained_path, config.curriculum_step = stage_one, 50
    config.objectives = ObjectivesOptions(tasks=TASKS)
    getattr(config.objectives, name).weight = 1.0
    policy = MultiSmolVLAPolicy.from_pretrained(stage_one, config=config).train()
    loss, logs = forward(policy, batch)
    loss.backward()
    assert logs[name] > 0
    trained = {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert any(n.startswith(f"model.objectives.{name}.") for n in trained)
    assert all(n.startswith(("model.bridge.", "model.objectives.")) for n in trained)


def test_a_trained_connector_keeps_its_norm_in_a_further_stage_one(stage_one, batch):
    """It would be set anew at the first step, away from what RLBind holds it to."""
    config = PreTrainedConfig.from_pretrained(stage_one)
    config.pretrained_path = stage_one
    config.curriculum_steps = 10
    config.objectives = ObjectivesOptions(tasks=TASKS, rlbind=RlbindOptions(weight=1.0))
    policy = MultiSmolVLAPolicy.from_pretrained(stage_one, config=config).train()
    gain = policy.model.bridge.connector.gain.clone()
    assert forward(policy, batch)[1]["rlbind_clean"] < 1e-6
    assert torch.equal(policy.model.bridge.connector.gain, gain)


@pytest.mark.parametrize("name", ["robult", "rlbind"])
def test_gradients_reach_heads_and_connector_and_not_the_tower(name, train, batch):
    policy = train(**MIDDLE, **ON[name], dropout_mode="none")
    term = policy.model.objectives[name](look(policy, batch))
    term.loss.backward()
    touched = {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert f"model.objectives.{name}.projection.weight" in touched
    assert any(n.startswith("model.bridge.connector.") for n in touched)
    assert all(n.startswith(("model.bridge.", f"model.objectives.{name}.")) for n in touched)
    in_groups = {id(p) for p in policy.get_optim_params()}
    assert {id(p) for p in policy.model.objectives.parameters()} <= in_groups


@pytest.mark.parametrize("name", ON)
def test_under_autocast_every_weight_is_trained_that_is_in_full_precision(name, train, batch):
    policy = train(**MIDDLE, **ON[name], dropout_mode="fixed", dropout_complete=0.0)

    def trained(enabled):
        policy.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            forward(policy, batch)[0].backward()
        return {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}

    assert trained(True) >= trained(False)


def test_building_an_objective_draws_nothing_from_the_global_generator(train):
    torch.manual_seed(4)
    train()
    state = torch.get_rng_state()
    torch.manual_seed(4)
    train(**ON["robult"], **ON["rlbind"])
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_knows_nothing_of_objectives(train, batch):
    plain, both = train(), train(**ON["robult"], **ON["rlbind"])
    assert torch.equal(chunk(both, batch), chunk(plain, batch))
    loss, logs = forward(both.eval(), batch)
    assert torch.equal(loss, forward(plain.eval(), batch)[0])
    assert not any("robult" in k or "rlbind" in k for k in logs)


@pytest.mark.parametrize("name", ON)
def test_the_last_look_stays_that_of_the_stages_loss(name, train, batch):
    options = {"dropout_mode": "fixed", "dropout_p_max": 0.5, "dropout_complete": 0.0}
    plain, policy = train(**MIDDLE, **options), train(**MIDDLE, **options, **ON[name])
    for one in (plain, policy):
        forward(one, batch)
    assert policy.last_look().inputs.fingerprint() == plain.last_look().inputs.fingerprint()


def test_consistency_compares_each_draw_of_noise_and_time(train, batch):
    options = {"dropout_mode": "fixed", "dropout_p_max": 0.5, "dropout_complete": 0.0, "flow_samples": 3}
    policy = train(**MIDDLE, **ON["consistency"], **options)
    padded = torch.tensor([[False] * 4, [False, False, True, True]] * 2)
    padded_batch = batch | {"action_is_pad": padded}
    _, logs = policy.forward(dict(padded_batch))
    available = policy.availability(batch)
    presence = drop_sensors(policy.config, available, policy.curriculum_seed, 0)
    noise, time = draw_noise_and_time(policy, policy.prepare_action(batch).repeat_interleave(3, 0))
    dropped, complete = (
        velocities(policy, batch, policy.visual_tokens(batch, there), noise, time)[0].flatten(0, 1)
        for there in (presence, available)
    )
    weight = (~padded)[..., None].float().repeat_interleave(3, 0)
    expected = consistency_loss(dropped, complete, weight)
    assert logs["consistency"] == pytest.approx(expected.item(), rel=1e-4)
    assert expected > 0


def test_consistency_looks_again_at_what_was_disturbed_alone(train, batch, monkeypatch):
    options = {"dropout_mode": "fixed", "dropout_p_max": 0.5, "dropout_complete": 0.5, "flow_samples": 2}
    policy = train(**MIDDLE, **ON["consistency"], **options)
    available = policy.availability(batch)
    presence = drop_sensors(policy.config, available, policy.curriculum_seed, 0)
    lost = (presence != available).flatten(1).any(1)
    assert 0 < lost.sum() < len(lost)
    looked, run = [], steps.visual_tokens

    def spy(policy, batch, presence, faults):
        looked.append(len(presence))
        return run(policy, batch, presence, faults)

    monkeypatch.setattr(steps, "visual_tokens", spy)
    _, logs = policy.forward(dict(batch))
    assert looked == [int(lost.sum())]
    noise, time = draw_noise_and_time(policy, policy.prepare_action(batch).repeat_interleave(2, 0))
    dropped, complete = (
        velocities(policy, batch, policy.visual_tokens(batch, there), noise, time)[0].flatten(0, 1)
        for there in (presence, available)
    )
    expected = consistency_loss(dropped, complete, torch.ones_like(dropped[..., :1]))
    assert logs["consistency"] == pytest.approx(expected.item(), rel=1e-3)


# -- looks ---------------------------------------------------------------------------------------------------


def passes(monkeypatch) -> list[set[str]]:
    """Grows by what is there in each pass of the tower: encoder domains."""
    shown, run = [], steps.run_tower

    def spy(policy, inputs, presence, **options):
        shown.append({domain for domain, there in inputs.present.items() if there.any()})
        return run(policy, inputs, presence, **options)

    monkeypatch.setattr(steps, "run_tower", spy)
    return shown


def test_one_modality_is_shown_alone_and_another_one_at_another_step(train, batch, monkeypatch):
    policy = train(**ON["robult"])
    shown, drawn = passes(monkeypatch), set()
    for _ in range(30):
        made = look(policy, batch)
        one = made.unimodal()
        assert made.unimodal() is one
        assert shown[-1] == {policy.config.domains[one.modality]}
        assert one.look.there.all()
        assert not one.encoded.requires_grad
        drawn.add(one.modality)
        policy.update()
    assert drawn == set(MODALITIES)


def test_all_ranks_draw_the_same_modality(train, batch, monkeypatch):
    policy = train(**ON["robult"])
    first = [look(policy, batch).unimodal().modality for policy.config.curriculum_step in range(8)]
    monkeypatch.setattr(steps, "rank", lambda: 1)
    assert [look(policy, batch).unimodal().modality for policy.config.curriculum_step in range(8)] == first


def test_what_is_computed_from_rgb_is_never_shown_alone(train, batch):
    policy = train(provenance={"thermal": "derived", "depth": "derived"}, **ON["robult"])
    drawn = {look(policy, batch).unimodal().modality for policy.config.curriculum_step in range(30)}
    assert drawn == {"rgb", "seg"}


def test_a_sample_without_the_drawn_modality_is_not_there(train, batch):
    policy = train(**ON["robult"])
    presence = policy.availability(batch)
    modality = MODALITIES.index(look(policy, batch).unimodal().modality)
    presence[1, :, modality] = False
    found = look(policy, batch, presence).unimodal()
    assert found.look.there.tolist() == [True, False, True, True]
    assert found.encoded[1].abs().max() == 0
    assert found.look.features[1].abs().max() == 0


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    return write_official(tmp_path_factory.mktemp("official"))


@pytest.mark.parametrize("route", ["vision", "bridge"])
def test_nor_is_it_where_a_domain_has_no_grid(route, official, make_policy, monkeypatch):
    """Its tokens are read beside the views', whether it is there or not."""
    objectives = ObjectivesOptions(robult=RobultOptions(weight=1.0), tasks=TASKS)
    policy = make_policy(**official_options(official, route), objectives=objectives, curriculum_seed=0)
    with torch.no_grad():
        policy.model.bridge.absent.normal_()
    batch = {k: v for k, v in training_batch(3).items() if not re.search("image2|images.image$|seg", k)}
    for modality in ("depth", "thermal"):
        monkeypatch.setattr(steps, "alone_modalities", lambda cfg, drawn=modality: (drawn,))
        presence = policy.availability(batch)
        presence[1, :, MODALITIES.index(modality)] = presence[2] = False
        made = look(policy, batch, presence)
        alone, seen = made.unimodal(), made.seen()
        assert alone.look.there.tolist() == [True, False, False]
        assert seen.there.tolist() == [True, True, False]
        assert (alone.encoded.abs().amax(1) > 0).tolist() == [True, False, False]
        assert (alone.look.features.abs().amax(1) > 0).tolist() == [True, False, False]
        assert (seen.features.abs().amax(1) > 0).tolist() == [True, True, False]


def attack(policy, batch, **options):
    """(complete look, attacked look, how far the tokens moved per sample and camera)."""
    made = look(policy, batch)
    complete = made.complete()
    target = complete.tokens.detach()
    found = made.attacked(lambda t: (t - target).square().sum(), 8 / 255, 2 / 255, **({"steps": 5} | options))
    return complete, found, (found.tokens - target).square().sum((2, 3))


def test_the_attack_moves_the_tokens_more_than_random_signs_do(train, batch):
    policy = train(**ON["rlbind"])
    _, _, moved = attack(policy, batch)
    _, _, start = attack(policy, batch, steps=0)  # the random start
    g = torch.Generator().manual_seed(0)
    signs = {
        key: (batch[key] + 8 / 255 * (torch.randint(2, batch[key].shape, generator=g) * 2.0 - 1)).clamp(0, 1)
        for key in policy.config.rgb_keys
    }
    target = look(policy, batch).complete().tokens
    random = (look(policy, batch | signs).complete().tokens - target).square().sum((2, 3))
    assert moved.sum() > 1.5 * random.sum() > 0
    assert moved.sum() > 1.5 * start.sum() > 0


def test_an_unavailable_camera_is_neither_attacked_nor_counted(train, batch, monkeypatch):
    policy = train(**ON["rlbind"])
    found = []

    def spy(*arguments):
        found.append(pgd(*arguments))
        return found[-1]

    monkeypatch.setattr(steps, "pgd", spy)
    lost = {padding_mask_key(VIEWS["image2"]["rgb"]): torch.tensor([True, False, True, True])}
    complete, attacked, moved = attack(policy, batch | lost)
    shown = batch[VIEWS["image2"]["rgb"]]
    assert ((found[0][1] - shown).abs().flatten(1).amax(1) > 0).tolist() == [True, False, True, True]
    assert complete.rgb.tolist() == [[True, True], [True, False], [True, True], [True, True]]
    assert moved[1, 1] == 0
    assert (moved > 0).sum() == 7
    blind = {padding_mask_key(streams["rgb"]): torch.zeros(4, dtype=torch.bool) for streams in VIEWS.values()}
    complete, attacked, moved = attack(policy, batch | blind)
    assert torch.equal(attacked.tokens, complete.tokens)


def test_streams_that_are_computed_from_rgb_do_not_show_the_clean_picture(train, batch, monkeypatch):
    policy = train(provenance={"thermal": "derived"}, **ON["rlbind"])
    shown = passes(monkeypatch)
    attack(policy, batch)
    assert "tok_thermal@64" in shown[0]
    assert all("tok_thermal@64" not in domains for domains in shown[1:])
    assert all("tok_depth@64" in domains for domains in shown)


def test_without_a_radius_the_attacked_look_is_what_it_is_compared_with(train, batch):
    policy = train(provenance={"thermal": "derived", "depth": "derived"}, **ON["rlbind"])
    made = look(policy, batch)
    found = made.attacked(lambda t: t.sum(), 1e-6 / 255, 1e-6 / 255, 1)
    beside = made.measured()
    assert (found.tokens - beside.tokens).abs().max() < 1e-4
    assert (made.complete().tokens - beside.tokens).abs().max() > 1e-2
    logs = forward(policy, batch)[1]
    assert logs["rlbind_clean"] < 1e-6
    rlbind = policy.model.objectives["rlbind"]
    rlbind.options.radius = 1e-6
    policy.config.curriculum_step = 50
    assert forward(policy, batch)[1]["rlbind_adversarial"] < 1e-4


def test_where_all_is_measured_nothing_is_looked_at_twice(train, batch):
    made = look(train(**ON["rlbind"]), batch)
    assert made.measured() is made.complete()


def test_a_pixels_gradient_does_not_shrink_with_the_batch(train, batch, monkeypatch):
    """In float16 it would vanish."""
    policy = train(**ON["rlbind"])
    slopes = []

    def spy(loss_fn, pictures, *_):
        varied = [picture.detach().requires_grad_() for picture in pictures]
        slopes.append(torch.autograd.grad(loss_fn(varied), varied)[0][0].abs().max().item())
        return list(pictures)

    monkeypatch.setattr(steps, "pgd", spy)
    one = {k: v[:1] for k, v in batch.items()}
    for some in (one, batch):
        made = look(policy, some)
        made.attacked(lambda t: t.square().mean(), 2 / 255, 1 / 255, 1)
    assert slopes[1] == pytest.approx(slopes[0], rel=1e-3)


def test_an_attack_changes_nothing_else(train, batch):
    policy = train(**ON["rlbind"])
    forward(policy, batch)[0].backward()
    weights = {k: v.clone() for k, v in policy.state_dict().items()}
    gradients = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    flags = [m.training for m in policy.modules()], [p.requires_grad for p in policy.parameters()]
    pictures = {k: v.clone() for k, v in batch.items()}
    state = torch.get_rng_state()
    attack(policy, batch)
    assert all(torch.equal(v, weights[k]) for k, v in policy.state_dict().items())
    assert all(torch.equal(p.grad, gradients[n]) for n, p in policy.named_parameters() if p.grad is not None)
    assert flags == ([m.training for m in policy.modules()], [p.requires_grad for p in policy.parameters()])
    assert all(torch.equal(v, pictures[k]) for k, v in batch.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_attack_depends_on_seed_step_and_rank_alone(train, batch, monkeypatch):
    policy = train(**ON["rlbind"])
    torch.manual_seed(1)
    first = attack(policy, batch)[1].tokens
    torch.manual_seed(2)
    assert torch.equal(attack(policy, batch)[1].tokens, first)
    policy.update()
    assert not torch.equal(attack(policy, batch)[1].tokens, first)
    policy.config.curriculum_step -= 1
    monkeypatch.setattr(steps, "rank", lambda: 1)
    assert not torch.equal(attack(policy, batch)[1].tokens, first)


# -- labels --------------------------------------------------------------------------------------------------


def test_actions_of_unlabelled_episodes_teach_nothing(train):
    batch = training_batch(8)
    policy = train(label_fraction=0.5, label_episodes=[1, 2, 5], dropout_mode="none")
    labelled = torch.tensor([False, True, True, False, False, True, False, False])
    loss = forward(policy, batch)[0]
    for rows, same in ((~labelled, True), (labelled, False)):
        other = dict(batch) | {"action": torch.where(rows[:, None, None], 5.0, batch["action"])}
        assert torch.equal(forward(policy, other)[0], loss) == same
    assert not torch.equal(forward(train(dropout_mode="none"), batch)[0], loss)


def test_unlabelled_samples_have_no_task(train):
    batch = training_batch(8)
    policy = train(label_fraction=0.5, label_episodes=[1, 2, 5], **ON["robult"])
    assert look(policy, batch).task.tolist() == [-1, 1, 0, -1, -1, 1, -1, -1]
    assert forward(policy, batch)[1]["robult_labelled"] == 3 / 8


def test_anchors_are_those_of_the_instructions_whatever_their_number_in_the_data(train, caplog):
    with caplog.at_level("INFO", logger="lerobot_policy_multismolvla"):
        one = train(**ON["robult"])
    other = train(**ON["robult"], tasks=TASKS[::-1])
    first, second = (p.model.objectives["robult"].anchors for p in (one, other))
    assert torch.allclose(first, second.flip(0), atol=1e-6)
    gram = first @ first.T
    assert gram.clone().fill_diagonal_(0).abs().max() < 0.99
    told = caplog.text.rpartition("cosines to each other:\n")[2].splitlines()[: len(TASKS)]
    assert torch.allclose(torch.tensor([[*map(float, row.split())] for row in told]), gram, atol=0.006)


# -- errors before training starts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"consistency_weight": -1.0}, "--policy.consistency_weight=-1.0 must be a number of at least 0"),
        ({"consistency_weight": 1.0}, "weight=1.0 is not supported with --policy.stage=connector"),
        (
            {"objectives": ObjectivesOptions(robult=RobultOptions(weight=1.0)), "vision_tower": "siglip"},
            "--policy.objectives.robult.weight=1.0 is not supported with --policy.vision_tower=siglip",
        ),
        (
            {"objectives": ObjectivesOptions(rlbind=RlbindOptions(weight=1.0)), "domains": {"depth": "d"}},
            "rlbind.weight=1.0 attacks RGB, which the tower does not read",
        ),
        ({"objectives": ObjectivesOptions(label_fraction=2.0)}, "label_fraction=2.0 must lie in"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MultiSmolVLAConfig(device="cpu", **options)


def test_a_new_connector_cannot_be_held_to_what_it_was(make_policy):
    options = ObjectivesOptions(rlbind=RlbindOptions(weight=1.0), tasks=TASKS)
    with pytest.raises(ValueError, match="rlbind.weight=1.0.*this one is new.*--policy.path"):
        make_policy(objectives=options)


def test_a_tower_whose_own_map_learns_moves_the_target_too(make_config):
    soft = {"rgb": "rgb@224", "thermal": "soft_thermal@224"}
    views = {"image": {m: f"observation.images.image{'' if m == 'rgb' else '_thermal'}" for m in soft}}
    objectives = ObjectivesOptions(rlbind=RlbindOptions(weight=1.0))
    with pytest.raises(
        ValueError, match=r"rlbind.weight=1.0 keeps .* thermal's rows .* another --policy.thermal_route"
    ):
        make_config(domains=soft, views=views, objectives=objectives, thermal_route="soft")


def test_without_instructions_there_are_no_anchors(train):
    with pytest.raises(ValueError, match="robult.weight needs the instructions.*--policy.objectives.tasks"):
        train(**ON["robult"], tasks=[])


def test_a_tower_that_reads_nothing_of_a_sensor_is_refused(make_policy):
    options = ObjectivesOptions(robult=RobultOptions(weight=1.0), tasks=TASKS)
    with pytest.raises(ValueError, match=r"robult.weight shows one modality.*\(depth\).*--policy.domains"):
        make_policy(objectives=options, domains={"depth": "tok_depth@64"}, provenance={"depth": "derived"})


def test_a_stage_without_a_length_is_refused(train, batch):
    policy = train(**ON["robult"], dropout_mode="none", curriculum_steps=0)
    with pytest.raises(ValueError, match="--policy.curriculum_steps=0: robult.*--steps"):
        forward(policy, batch)


@pytest.mark.parametrize("key", ["task_index", "episode_index", "index"])
def test_a_batch_that_does_not_say_what_it_shows_is_refused(key, train, batch):
    policy = train(**ON["robult"], label_fraction=0.5, label_episodes=[0])
    flow = flow_inputs(4)
    with pytest.raises(ValueError, match=f"no '{key}'"):
        policy.forward({k: v for k, v in batch.items() if k != key}, **flow)


def test_without_a_table_of_episodes_none_is_labelled_by_guess(train, batch):
    with pytest.raises(
        ValueError, match="label_fraction=0.5, but which episodes.*--policy.objectives.label_epi"
    ):
        forward(train(label_fraction=0.5), batch)


def test_a_run_that_reads_no_labelled_episode_is_ended():
    def frames(*numbers):
        return torch.zeros(len(numbers), dtype=torch.bool), torch.tensor(numbers)

    watch = LabelWatch(0.5)
    for _ in range(12):
        watch.look(*frames(*range(3, 11)))
    with pytest.raises(ValueError, match="None of the 104 frames.*--dataset.episodes.*label_episodes="):
        watch.look(*frames(*range(3, 11)))
    for share, first in ((0.0, False), (0.5, True)):  # not known; there is one
        watch = LabelWatch(share)
        watch.look(torch.tensor([first]), torch.tensor([0]))
        for _ in range(20):
            watch.look(*frames(*range(8)))
    watch = LabelWatch(0.5)
    for number in range(20):  # the data have not begun anew
        watch.look(*frames(*range(8 * number, 8 * number + 8)))


def test_training_watches_the_labels(train):
    batch = training_batch(8)
    episodes = {"episode_index": list(range(10)), "tasks": [TASKS[:1]] * 10}
    policy = train(
        label_episodes=[8, 9], dropout_mode="none", dataset_meta=SimpleNamespace(episodes=episodes)
    )
    for _ in range(31):
        forward(policy, batch)
    with pytest.raises(ValueError, match="None of the 256 frames"):
        forward(policy, batch)


def test_a_task_beyond_the_known_ones_is_refused(train, batch):
    policy = train(**ON["robult"], tasks=TASKS[:1])
    with pytest.raises(ValueError, match="task_index=1, but --policy.objectives.tasks names 1"):
        forward(policy, batch)


# -- options -------------------------------------------------------------------------------------------------


def test_options_are_typed_by_their_place(stage_one, tmp_path):
    words = ["--objectives.robult.weight=0.5", "--objectives.label_fraction=0.1", "--stage=robust"]
    config = PreTrainedConfig.from_pretrained(stage_one, cli_overrides=words)
    assert config.active_objectives == {"robult": 0.5}
    config.save_pretrained(tmp_path)
    again = PreTrainedConfig.from_pretrained(tmp_path)
    assert again.objectives == config.objectives
    fresh = draccus.parse(MultiSmolVLAConfig, args=[*words, "--device=cpu"])
    assert fresh.objectives == config.objectives


def test_an_unknown_objective_is_named(capsys):
    with pytest.raises(SystemExit):
        draccus.parse(MultiSmolVLAConfig, args=["--objectives.robolt.weight=1.0", "--device=cpu"])
    assert "--objectives.robolt.weight=1.0" in capsys.readouterr().err

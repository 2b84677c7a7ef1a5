"""Rule 6 in the policy: when dropout happens, what advances it, what resets it, and what the ranks see."""

from __future__ import annotations

import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from tiny_policy import canonical_batch, chunk, flow_inputs

from lerobot_policy_multismolvla import flow, losses
from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from lerobot_policy_multismolvla.objectives import step
from multismolvla import dropout
from multismolvla.objectives.alignment import alignment_loss


def keep_of(policy, batch) -> tuple[torch.Tensor, dict]:
    """What entered the encoder in one training forward, and the log."""
    _, logs = policy.forward(dict(batch), **flow_inputs(len(batch["observation.state"])))
    present = torch.stack(
        [
            policy.last_look().inputs.present[d].flatten(1).any(1)
            for d in sorted(policy.last_look().inputs.present)
        ]
    )
    return present, logs


@pytest.fixture
def robust(make_policy):
    def make(**options) -> MultiSmolVLAPolicy:
        return make_policy(**({"stage": "robust", "dropout_complete": 0.0} | options))

    return make


def test_evaluation_never_drops(robust, batch):
    policy = robust(dropout_mode="fixed", dropout_p_max=0.9).eval()
    present, logs = keep_of(policy, batch)
    assert present.all()
    assert "dropout_p" not in logs
    assert torch.equal(chunk(policy, batch), chunk(policy, batch))


def test_training_drops_and_the_log_says_how_much(robust):
    policy = robust(dropout_mode="fixed", dropout_p_max=0.4).train()
    kept = []
    for _ in range(12):
        _, logs = keep_of(policy, canonical_batch(size=8))
        assert logs["dropout_p"] == 0.4
        kept.append(logs["modalities_kept"])
        policy.update()
    assert sum(kept) / len(kept) == pytest.approx(0.6, abs=0.05)  # 768 draws
    assert len(set(kept)) > 3


def test_stage_one_never_drops_unless_it_is_asked_to(make_policy, batch):
    policy = make_policy(stage="connector", dropout_mode="fixed", dropout_p_max=0.9).train()
    assert keep_of(policy, batch)[0].all()


def test_stage_one_distils_what_is_left_to_the_whole_pictures_tokens(make_policy, monkeypatch):
    policy = make_policy(stage="connector", connector_dropout=0.5).train()
    seen = []

    def spy(student, teacher, mask):
        seen.append((student.detach(), teacher, mask))
        return alignment_loss(student, teacher, mask)

    monkeypatch.setattr(losses, "alignment_loss", spy)
    big = canonical_batch(size=64)
    whole, _ = losses.teacher_tokens(policy, dict(big))
    _, logs = keep_of(policy, big)
    assert 0.5 < logs["modalities_kept"] < 0.75  # a quarter stays complete, the others keep half
    _, teacher, mask = seen[0]
    assert torch.equal(teacher, whole.flatten(0, 1))
    rgb = policy.last_look().inputs.present[policy.config.domains["rgb"]].flatten(1).any(1)
    assert (mask & ~rgb).sum() > 10  # views whose RGB is lost are distilled all the same
    policy.eval()
    assert keep_of(policy, big)[0].all()


def test_what_stage_one_drops_depends_on_the_step(make_policy):
    policy = make_policy(stage="connector", connector_dropout=0.5, curriculum_seed=3).train()
    big = canonical_batch(size=16)
    first, again = keep_of(policy, big)[0], keep_of(policy, big)[0]
    assert torch.equal(first, again)
    policy.update()
    assert not torch.equal(keep_of(policy, big)[0], first)


@pytest.mark.parametrize("probability", [-0.1, 1.0])
def test_a_connector_dropout_that_leaves_nothing_is_refused(probability, make_config):
    with pytest.raises(ValueError, match=r"connector_dropout=.* must lie in \[0, 1\)"):
        make_config(connector_dropout=probability)


def test_the_probability_follows_the_counter_that_update_advances(robust, batch):
    policy = robust(curriculum_steps=10, dropout_ramp=0.5).train()
    seen = []
    for _ in range(12):
        seen.append(keep_of(policy, batch)[1]["dropout_p"])
        policy.update()
    assert seen == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0, 0, 0])
    assert policy.config.curriculum_step == 12


def test_mode_none_leaves_everything(robust, batch):
    policy = robust(dropout_mode="none", dropout_p_max=0.9).train()
    present, logs = keep_of(policy, batch)
    assert present.all()
    assert "dropout_p" not in logs


def test_what_is_estimated_seldom_is_missed_without_any_dropout(robust):
    derived = {"provenance": {"thermal": "derived"}, "refresh": {"thermal": 4}, "estimators": {"thermal": {}}}
    policy = robust(dropout_mode="none", **derived).train()
    _, logs = keep_of(policy, canonical_batch(size=64))
    thermal = policy.last_look().inputs.present[policy.config.domains["thermal"]].flatten(1).any(1)
    assert 0.1 < thermal.float().mean() < 0.4
    assert 0.7 < logs["modalities_kept"] < 1
    assert logs["dropout_p"] == 0


def test_a_clean_batch_gives_the_loss_without_dropout(robust, batch):
    clean = robust(dropout_mode="none").train()
    done = robust(
        dropout_mode="fixed", curriculum_steps=10, curriculum_step=9, curriculum_stage="robust"
    ).train()
    assert torch.equal(
        clean.forward(dict(batch), **flow_inputs())[0], done.forward(dict(batch), **flow_inputs())[0]
    )


def test_masks_depend_on_seed_step_and_rank_alone(robust, monkeypatch):
    batch = canonical_batch(size=8)

    def masks(rank: int = 0, **options) -> torch.Tensor:
        monkeypatch.setattr(step, "rank", lambda: rank)
        settings = {"dropout_mode": "fixed", "curriculum_stage": "robust", "curriculum_step": 5} | options
        policy = robust(**settings).train()
        torch.manual_seed(torch.seed())  # the global generator has no part in it
        return keep_of(policy, batch)[0]

    first = masks()
    assert torch.equal(masks(), first)
    assert not torch.equal(masks(rank=1), first)
    assert not torch.equal(masks(curriculum_step=6), first)
    assert not torch.equal(masks(curriculum_seed=2), first)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_rank_is_the_process_groups(rank):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    assert flow.rank() == 0
    torch.distributed.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
    try:
        assert flow.rank() == rank
    finally:
        torch.distributed.destroy_process_group()


def test_all_ranks_start_stage_one_from_one_norm(make_policy, batch, monkeypatch):
    # each rank measures the teacher on its own pictures, and DDP never compares weights after construction
    alone = make_policy(stage="connector").train()
    alone.forward(dict(batch), **flow_inputs())
    mine = alone.model.bridge.connector.gain.detach().clone()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.add_(3 * mine))
    together = make_policy(stage="connector").train()
    together.forward(dict(batch), **flow_inputs())
    assert torch.allclose(together.model.bridge.connector.gain, 2 * mine)


# -- the counter over checkpoints and stages -----------------------------------------------------------------


def test_the_counter_survives_save_and_load(robust, batch, tmp_path):
    policy = robust().train()
    for _ in range(3):
        policy.update()
    before = keep_of(policy, batch)
    policy.save_pretrained(tmp_path)
    again = MultiSmolVLAPolicy.from_pretrained(tmp_path).train()
    assert again.config.curriculum_step == 3
    after = keep_of(again, batch)
    assert torch.equal(before[0], after[0])
    assert before[1]["dropout_p"] == after[1]["dropout_p"] > 0


def test_a_new_stage_begins_at_zero(make_policy, batch, tmp_path):
    policy = make_policy(stage="connector").train()
    for _ in range(7):
        policy.update()
    policy.save_pretrained(tmp_path)
    same = MultiSmolVLAPolicy.from_pretrained(tmp_path)
    assert (same.config.curriculum_stage, same.config.curriculum_step) == ("connector", 7)
    config = PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=["--stage=robust"])
    other = MultiSmolVLAPolicy.from_pretrained(tmp_path, config=config)
    assert (other.config.curriculum_stage, other.config.curriculum_step) == ("robust", 0)


def test_a_run_from_a_finished_stage_begins_its_curriculum_anew(robust, batch, caplog, tmp_path):
    finished = robust(curriculum_steps=10).train()
    for _ in range(10):
        finished.update()
    finished.save_pretrained(tmp_path)
    policy = MultiSmolVLAPolicy.from_pretrained(tmp_path).train()
    with caplog.at_level("WARNING"):
        keep_of(policy, batch)
    assert policy.config.curriculum_step == 0
    assert "step 10 of a curriculum of 10" in caplog.text
    interrupted = robust(curriculum_steps=10, curriculum_step=9, curriculum_stage="robust").train()
    with caplog.at_level("INFO"):
        keep_of(interrupted, batch)
    assert interrupted.config.curriculum_step == 9
    assert "goes on at step 9 of 10" in caplog.text


def test_a_run_of_another_length_begins_its_curriculum_anew(robust, batch, caplog, tmp_path):
    stopped = robust(curriculum_steps=10).train()
    for _ in range(4):
        keep_of(stopped, batch)
        stopped.update()
    stopped.save_pretrained(tmp_path)

    def started(*options: str) -> int:
        config = PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=list(options))
        policy = MultiSmolVLAPolicy.from_pretrained(tmp_path, config=config).train()
        keep_of(policy, batch)
        return policy.config.curriculum_step

    assert started() == 4
    with caplog.at_level("WARNING"):
        assert started("--curriculum_steps=100") == 0
    assert "step 4 of a curriculum of 10; this run's of 100" in caplog.text


def test_draws_follow_the_seed_of_the_run_unless_one_is_given(make_config):
    def seed_of(run: int, **options) -> int:
        torch.manual_seed(run)
        return MultiSmolVLAPolicy(make_config(**options)).curriculum_seed

    assert seed_of(7) == 7
    assert seed_of(8) == 8
    assert seed_of(8, curriculum_seed=3) == 3


def test_dropout_and_noise_do_not_share_their_draws(robust, batch, monkeypatch):
    seen = []
    make = flow.step_generator

    def spy(*arguments):
        seen.append(make(*arguments).initial_seed())
        return make(*arguments)

    monkeypatch.setattr(flow, "step_generator", spy)
    policy = robust(dropout_mode="fixed").train()
    policy.forward(dict(batch))
    masks = dropout.step_generator(policy.curriculum_seed, policy.config.curriculum_step).initial_seed()
    assert seen
    assert masks not in seen


def test_vanilla_learns_to_miss_a_camera(robust, batch, monkeypatch):
    """``base_dropout``: SmolVLA's own padding masks say which camera is lost; nothing else is dropped."""
    policy = robust(
        vision_tower="siglip",
        dropout_mode="fixed",
        dropout_p_max=0.5,
        dropout_cameras=1.0,
        dropout_independent=0,
        dropout_modalities=0,
    ).train()
    seen = []
    embed = policy.model.embed_prefix

    def spy(images, masks, *arguments, **options):
        seen.append(torch.stack(list(masks), 1))
        return embed(images, masks, *arguments, **options)

    monkeypatch.setattr(policy.model, "embed_prefix", spy)
    for _ in range(8):
        policy.forward(canonical_batch(size=8), **flow_inputs(8))
        policy.update()
    masks = torch.cat(seen)
    assert masks.any(1).all()
    assert not masks.all(1).all()
    policy.eval().forward(canonical_batch(size=8), **flow_inputs(8))
    assert seen[-1].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"connector_dropout": 0.5, "dropout_modalities": 0, "dropout_cameras": 1},
            "connector_dropout=0.5.*has no connector",
        ),
        ({"dropout_modalities": 0.5, "dropout_cameras": 0.5}, "dropout_modalities=0.5.*reads RGB alone"),
    ],
)
def test_vanilla_is_asked_for_no_dropout_that_cannot_reach_it(robust, batch, options, message):
    policy = robust(vision_tower="siglip", dropout_independent=0, dropout_mode="fixed", **options).train()
    with pytest.raises(ValueError, match=message):
        policy.forward(dict(batch))


def test_the_clean_share_shows_what_the_robot_will_have(robust):
    policy = robust(
        deployment=["image.rgb", "image2.rgb"],
        curriculum_steps=10,
        curriculum_step=9,
        curriculum_stage="robust",
    ).train()
    policy.forward(canonical_batch(size=8), **flow_inputs(8))
    present = {d: p.any().item() for d, p in policy.last_look().inputs.present.items()}
    assert {d for d, there in present.items() if there} == {"rgb@64"}


def test_a_deployment_that_names_no_declared_stream_is_an_error(make_config):
    with pytest.raises(ValueError, match="deployment='image.lidar'"):
        make_config(deployment=["image.lidar"])


def test_a_stage_without_a_length_acts_but_fails_when_trained(robust, batch):
    policy = robust(curriculum_steps=0)
    chunk(policy, batch)  # acting needs no curriculum
    with pytest.raises(ValueError, match="--policy.curriculum_steps=0.*--steps.*--policy.dropout_mode=none"):
        policy.train().forward(dict(batch), **flow_inputs())


def test_dropout_kills_what_is_derived_from_a_lost_modality(robust):
    policy = robust(
        dropout_mode="fixed",
        dropout_p_max=0.5,
        provenance={"rgb": "sensor", "depth": "derived", "seg": "sensor"},
    ).train()
    for _ in range(5):
        policy.forward(canonical_batch(size=8), **flow_inputs(8))
        present = policy.last_look().inputs.present
        rgb, depth = (present[d].flatten(1).any(1) for d in ("rgb@64", "tok_depth@64"))
        assert not (depth & ~rgb).any()
        policy.update()


def test_dropout_respects_sensors_that_are_not_there(robust):
    policy = robust(dropout_mode="fixed", dropout_p_max=0.5).train()
    batch = {k: v for k, v in canonical_batch(size=8).items() if "thermal" not in k}
    for _ in range(5):
        policy.forward(dict(batch), **flow_inputs(8))
        assert "tok_thermal@64" not in policy.last_look().inputs.present
        alive = torch.stack([m.flatten(1).any(1) for m in policy.last_look().inputs.present.values()]).any(0)
        assert alive.unflatten(0, (8, 2)).any(1).all()  # something is left of each sample
        policy.update()

"""What enters the encoder: every fault reaches it while it is there, and touches nothing else."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

pytestmark = [pytest.mark.sim, pytest.mark.slow]

STEPS = 6


def test_every_fault_reaches_the_encoder_and_touches_nothing_else(checkpoints, source):
    from multismolvla.modalities import MODALITIES
    from multismolvla_eval.policies.load import load_policy
    from multismolvla_eval.protocol.schedule import EpisodeSpec
    from multismolvla_eval.rollout.episode import run_episode

    policy = load_policy(str(checkpoints / "ours"), source)
    clean = run_episode(EpisodeSpec("ours", source.suite, 0, "C0", 0), source, policy, 0)
    assert set(clean.encoder_inputs) == set(MODALITIES)
    again = run_episode(EpisodeSpec("ours", source.suite, 0, "C0", 0), source, policy, 0)
    assert (again.encoder_inputs, again.policy_inputs, again.start) == (
        clean.encoder_inputs,
        clean.policy_inputs,
        clean.start,
    )
    for condition, hit in {
        "C1:-rgb": {"rgb"},
        "C1:depth": {"rgb", "seg", "thermal"},
        "C1:camera=image2": set(MODALITIES),
        "C2:seg=zero": {"seg"},
        "C2:thermal=grey": {"thermal"},
        "C3:rgb=builtin_noise@1": {"rgb"},
        "C3:depth=holes@3": {"depth"},
    }.items():
        row = run_episode(EpisodeSpec("ours", source.suite, 0, condition, 0), source, policy, 0)
        changed = {m for m in MODALITIES if row.encoder_inputs.get(m) != clean.encoder_inputs[m]}
        assert changed == hit, condition
        assert row.start == clean.start
        alive = {m for m in MODALITIES if m in row.encoder_inputs}
        assert set(row.modality_weight or ()) == (alive if len(alive) > 1 else set()), condition


def test_weights_that_notice_a_fault_differ_from_the_clean_ones(checkpoints, source):
    import torch

    from multismolvla.fusion import GatedFusion
    from multismolvla_eval.policies.load import load_policy
    from multismolvla_eval.protocol.schedule import EpisodeSpec
    from multismolvla_eval.rollout.episode import run_episode

    policy = load_policy(str(checkpoints / "ours"), source)
    policy.config.health = "off"  # else the black picture is absent, and has no weight

    def weights(condition):
        return run_episode(
            EpisodeSpec("ours", source.suite, 0, condition, 0), source, policy, 0
        ).modality_weight

    assert weights("C0") == dict.fromkeys(weights("C0"), 0.5), "a new fusion is the plain mean"
    fusion = next(m for m in policy.policy.modules() if isinstance(m, GatedFusion))
    torch.nn.init.normal_(fusion.gate["rgb"].weight, generator=torch.Generator().manual_seed(0))
    clean, black = weights("C0"), weights("C2:rgb=zero")
    assert clean["rgb"] != black["rgb"]
    assert all(0 < value < 1 for value in (*clean.values(), *black.values()))


class Watched(gym.Wrapper):
    """Remembers which observations its environment says to have changed."""

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        self.active = [info["fault_active"]]
        return observation, info

    def step(self, action):
        *rest, info = self.env.step(action)
        self.active.append(info["fault_active"])
        return (*rest, info)


class Spy:
    """Looks at every step, remembers what encoder and policy were given, and always moves the same way."""

    def __init__(self, policy) -> None:
        self._policy, self.seen = policy, []

    def __getattr__(self, name):
        return getattr(self._policy, name)

    def act(self, batch):
        from multismolvla_eval.rollout.episode import policy_inputs

        self._policy.act(batch)
        self.seen.append((self._policy.look(0, first=True).encoder_inputs, policy_inputs(batch)))
        return torch.tensor([[0.8, 0.5, -0.8, 0.0, 0.0, 0.3, 0.0]])


@pytest.mark.parametrize(
    ("condition", "hit"),
    [
        ("C4:rgb=frozen", {"rgb"}),
        ("C4:rgb=delay@2", {"rgb"}),
        ("C4:thermal=frame_drop@0.5", {"thermal"}),
        ("C4:rgb.image=burst_silent", {"rgb"}),
        ("C4:all=burst", {"rgb", "depth", "seg", "thermal"}),
        ("C5:depth=shift@16", {"depth"}),
        ("C5:depth=scale@1.2", {"depth"}),
        ("C5:thermal=rotated", {"thermal"}),
        ("C5:rgb=swapped", {"rgb"}),
    ],
)
def test_faults_in_time_and_between_sensors_reach_the_encoder_when_they_are_there(
    checkpoints, source, monkeypatch, condition, hit
):
    from multismolvla.modalities import MODALITIES
    from multismolvla_eval.policies.load import load_policy
    from multismolvla_eval.protocol.schedule import EpisodeSpec
    from multismolvla_eval.rollout.episode import run_episode

    wrapped = []
    original = source.with_faults

    def with_faults(env, condition, run_seed):
        wrapped.append(Watched(original(env, condition, run_seed)) if condition.faults else env)
        return wrapped[-1]

    monkeypatch.setattr(source, "with_faults", with_faults)
    policy = load_policy(str(checkpoints / "ours"), source)
    clean, faulted = (Spy(policy) for _ in range(2))
    for text, spy in (("C0", clean), (condition, faulted)):
        run_episode(EpisodeSpec("ours", source.suite, 0, text, 0), source, spy, 0)
    active = wrapped[-1].active[:STEPS]
    in_time = condition.startswith("C4")
    assert any(active)
    assert all(active) != in_time, "a fault in time is not always there"
    for step, now in enumerate(active):
        (before, at_input), (after, at_input_after) = clean.seen[step], faulted.seen[step]
        changed = {m for m in MODALITIES if before.get(m) != after.get(m)}
        assert changed == (hit if now else set()), f"encoder, step {step}"
        assert (at_input != at_input_after) == now, f"input, step {step}"


def test_token_grids_for_the_picture(checkpoints, source, tmp_path):
    from multismolvla_eval.policies.load import load_policy
    from multismolvla_eval.protocol.schedule import EpisodeSpec
    from multismolvla_eval.rollout.episode import run_episode

    policy = load_policy(str(checkpoints / "ours"), source)
    run_episode(
        EpisodeSpec("ours", source.suite, 0, "C0", 0), source, policy, 0, picture=tmp_path / "seen.png"
    )
    grids = policy.look(0, first=True).tokens
    assert {m for _, m in grids} >= {"depth", "seg"}
    assert all(np.issubdtype(g.dtype, np.integer) and g.ndim == 2 for g in grids.values())
    assert (tmp_path / "seen.png").stat().st_size > 10_000


def test_the_manifest_says_what_the_policy_reads_and_where_it_comes_from(checkpoints, source):
    from multismolvla_eval.policies.features import what_it_reads
    from multismolvla_eval.policies.load import load_policy

    policy = load_policy(str(checkpoints / "ours"), source)
    policy.config.provenance = {"depth": "derived", "image2": {"thermal": "derived"}}
    facts = policy.facts()
    assert facts.modalities == ["rgb", "depth", "seg", "thermal"]
    assert facts.views == ["image", "image2"]
    assert (facts.mask_reaches_policy, facts.needs_a_picture) == (True, False)
    assert facts.provenance == {
        "rgb": "sensor", "depth": "derived", "seg": "sensor", "image.thermal": "sensor",
        "image2.thermal": "derived",
    }  # fmt: skip
    policy.config.vision_tower = "siglip"  # declares all sensors, looks at one
    facts = what_it_reads(policy.config, source.cameras, {})
    assert facts.modalities == ["rgb"]
    assert facts.provenance == {"rgb": "sensor"}
    assert facts.keys == ["observation.images.image", "observation.images.image2", "observation.state"]


def test_a_stream_that_is_late_is_absent_and_the_row_says_why(checkpoints, source):
    from multismolvla_eval.policies.load import load_policy
    from multismolvla_eval.protocol.schedule import EpisodeSpec
    from multismolvla_eval.rollout.episode import run_episode

    policy = load_policy(str(checkpoints / "ours"), source)

    def depth(condition):
        row = run_episode(EpisodeSpec("ours", source.suite, 0, condition, 0), source, policy, 0)
        return row.health["image.depth"], row.health["image.rgb"]

    policy.config.max_skew_ms = 60.0  # at 20 pictures a second: more than one step
    found, rgb = depth("C4:depth=delay@2")
    assert (found.cause, found.first, found.absent) == (
        "skew",
        1,
        found.looks - 1,
    )  # the first one is on time
    assert found.absent_at == list(range(1, found.looks))
    assert rgb.cause is None
    assert depth("C4:depth=delay@1")[0].cause is None
    policy.config.max_skew_ms = None
    assert depth("C4:depth=delay@2")[0].cause != "skew"


def test_an_evaluation_shows_that_a_fault_of_rgb_reaches_the_thermal_that_the_policy_computes(
    checkpoints, tmp_path
):
    """The environment renders no thermal. What its report would say of it is asked, too."""
    from msgspec.structs import asdict
    from synthetic import manifest_of
    from tiny_policies import save_deriving

    from multismolvla.corruption import parse_condition
    from multismolvla.modalities import MODALITIES
    from multismolvla_eval.analysis.cells import Cells
    from multismolvla_eval.analysis.fairness import fairness_checks
    from multismolvla_eval.analysis.table import episode_table
    from multismolvla_eval.config import EnvironmentArguments
    from multismolvla_eval.environments import load_sources
    from multismolvla_eval.policies.load import load_policy
    from multismolvla_eval.protocol.schedule import EpisodeSpec
    from multismolvla_eval.records.schema import SuiteRecord
    from multismolvla_eval.rollout.episode import run_episode

    options = {"episode_length": 2, "streams": ["rgb", "depth", "seg"]}
    (source,) = load_sources(EnvironmentArguments(task_ids=[0], options=options)).values()
    policy = load_policy(save_deriving(tmp_path, checkpoints), source)
    expected = {
        "C0": set(),
        "C1:rgb+depth+seg": {"thermal"},
        "C1:rgb": {"depth", "seg", "thermal"},
        "C1:depth+seg+thermal": {"rgb", "thermal"},
        "C1:camera=image2": set(MODALITIES),
        "C2:rgb=zero": {"rgb", "thermal"},
        "C3:rgb=gaussian_noise@5": {"rgb", "thermal"},
        "C3:depth=holes@3": {"depth"},
    }
    rows = {c: run_episode(EpisodeSpec("ours", source.suite, 0, c, 0), source, policy, 0) for c in expected}
    source.make(0).close()
    clean = rows["C0"].encoder_inputs
    assert set(clean) == set(MODALITIES)
    for condition, changed in expected.items():
        found = rows[condition].encoder_inputs
        assert {m for m in MODALITIES if found.get(m) != clean[m]} == changed, condition
        if condition.startswith("C1") and "camera" not in condition:
            assert set(found) == set(MODALITIES) - changed, condition
    facts = policy.facts()
    assert facts.derives == ["observation.images.image2_thermal", "observation.images.image_thermal"]
    conditions = [parse_condition(c) for c in expected]
    suites = {source.suite: SuiteRecord(**asdict(source.facts()))}
    manifest = manifest_of(suites, conditions, ("ours",), {"ours": facts}, cameras=list(source.cameras))
    cells = Cells(episode_table(list(rows.values()), manifest))
    arrivals = fairness_checks(["ours"], list(expected), cells, manifest).faults
    assert [a.condition for a in arrivals] == list(expected)[1:]
    assert not any(a.doubtful for a in arrivals), arrivals


def test_in_a_batch_each_episode_has_the_thermal_of_its_own_rgb_when_its_own_turn_comes(
    checkpoints, source, tmp_path
):
    from tiny_policies import save_deriving

    from lerobot_env_multismolvla.processor_multismolvla_libero import add_batch_axis
    from multismolvla_eval.policies.interface import as_request
    from multismolvla_eval.policies.lerobot import LeRobotPolicy, draw_noise
    from multismolvla_eval.rollout.batching import ChunkBatcher

    policy = LeRobotPolicy(save_deriving(tmp_path, checkpoints), source)
    policy.config.refresh = {"thermal": 2}
    policy.keep_shapes()
    requests = []
    for state in range(2):
        raw, _ = source.make(0).reset(seed=0, options={"init_state_id": state})
        observe, _ = source.processors(policy.config)
        policy.reset()
        batch = policy.prepare(observe({**add_batch_axis(raw), "task": ["put it there"]}))
        seen = {key: value for key, value in batch.items() if "thermal" not in key}
        noise = draw_noise(policy.config)
        requests.append(as_request("p", seen | policy.config.first_memory(), noise, first=True))
    batcher = ChunkBatcher(policy, 3)
    alone = [batcher.answer([request])[0] for request in requests]
    hashes = [reply.look.encoder_inputs["thermal"] for reply in alone]
    assert hashes[0] != hashes[1]
    for reply, single in zip(batcher.answer(requests), alone, strict=True):
        assert reply.actions.tobytes() == single.actions.tobytes()
        assert reply.look.encoder_inputs == single.look.encoder_inputs
    later = replace(requests[0], arrays=requests[0].arrays | alone[0].look.memory)
    second, first = batcher.answer([later, requests[1]])
    assert "thermal" not in second.look.encoder_inputs, "its second look"
    assert first.look.encoder_inputs["thermal"] == hashes[1]

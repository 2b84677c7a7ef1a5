"""The control that plays a demonstration open loop: which one, how it ends, and what it refuses."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from tiny_dataset import EPISODES, FRAMES, write_dataset
from toy_environment import MAX_STEPS, ToySource

from multismolvla_eval.config import EnvironmentArguments
from multismolvla_eval.policies.checkpoints import policy_hash
from multismolvla_eval.policies.load import load_policy
from multismolvla_eval.protocol.schedule import EpisodeSpec
from multismolvla_eval.rollout.episode import run_episode


def simulated(folder: Path, executed: list[np.ndarray]) -> str:
    """Add what the recorder keeps beside the frames; returns the policy's path."""
    (folder / "meta/simulation").mkdir()
    for number, actions in enumerate(executed):
        np.savez(folder / f"meta/simulation/episode_{number:06d}.npz", executed_action=actions)
    return f"builtin:replay:{folder}"


def toy(task_ids: list[int]) -> ToySource:
    return ToySource(EnvironmentArguments("toy_environment:ToySource", "toy", task_ids))


@pytest.fixture
def executed() -> list[np.ndarray]:
    return [np.random.default_rng(i).uniform(-1, 1, (FRAMES, 7)) for i in range(EPISODES)]


def test_the_first_demonstrations_executed_actions_are_played_from_every_start(tmp_path, executed):
    path = simulated(write_dataset(tmp_path / "data", task="toy task 0"), executed)
    source = toy([0])
    policy = load_policy(path, source)
    actions = executed[0].astype(np.float32)
    for episode, steps in ((1, MAX_STEPS), (3, MAX_STEPS), (0, 3)):  # even starts succeed in the third step
        row = run_episode(EpisodeSpec("replay", "toy", 0, "C0", episode), source, policy, run_seed=0)
        assert row.steps == steps
        assert row.actions == hashlib.sha256(actions[:steps].tobytes()).hexdigest()[:16]
    assert (row.checkpoint, policy.facts().type) == (policy_hash(path), "builtin:replay")
    assert not policy.facts().privileged


def test_afterwards_it_stands_still_with_the_gripper_as_it_was(tmp_path, executed):
    policy = load_policy(simulated(write_dataset(tmp_path / "data", task="toy task 0"), executed), toy([0]))
    batch = {"task": ["toy task 0"]}
    for _ in range(2):
        policy.reset()
        assert policy.act(batch).shape == (FRAMES, 7)
        assert policy.act(batch).tolist() == [[0] * 6 + [executed[0][-1, -1].astype(np.float32)]]


def test_other_actions_are_another_policy_and_the_place_is_not(tmp_path, executed):
    found = []
    for name, actions in (("a", executed), ("b", executed), ("c", executed[::-1])):
        (tmp_path / name / "meta").mkdir(parents=True)
        found.append(policy_hash(simulated(tmp_path / name, actions)))
    assert found[0] == found[1] != found[2]


def test_a_recording_that_does_not_fit_is_refused(tmp_path, executed):
    data = write_dataset(tmp_path / "data", task="toy task 0")
    with pytest.raises(FileNotFoundError, match="no executed actions there.*multismolvla-record"):
        load_policy(f"builtin:replay:{data}", toy([0]))
    path = simulated(data, [actions[:, :6] for actions in executed])
    with pytest.raises(ValueError, match="no demonstration of 'toy task 1'.*'toy task 0'"):
        load_policy(path, toy([0, 1]))
    with pytest.raises(ValueError, match="actions of 6 numbers; the environment takes 7"):
        load_policy(path, toy([0]))

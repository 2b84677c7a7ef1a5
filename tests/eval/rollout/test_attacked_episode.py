"""An episode under attack (C6): paired with the clean one, and nothing of it is left afterwards."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.sim, pytest.mark.slow]

STEPS = 4
RGB = {"observation.images.image", "observation.images.image2"}


def episode_of(source, policy, condition):
    from multismolvla_eval.protocol.schedule import EpisodeSpec
    from multismolvla_eval.rollout.episode import run_episode

    return run_episode(EpisodeSpec("p", source.suite, 0, condition, 0), source, policy, 0)


def changed(row, clean):
    return {k for k, v in row.policy_inputs.items() if clean.policy_inputs[k] != v}


@pytest.fixture
def short(monkeypatch):
    """Two steps of search instead of twenty."""
    from multismolvla_eval.policies import attacked

    monkeypatch.setattr(attacked, "STEPS", 2)


@pytest.mark.parametrize("name", ["vanilla", "ours"])
def test_an_attack_is_paired_and_leaves_nothing_behind(checkpoints, source, short, name):
    from multismolvla_eval.policies.load import load_policy

    policy = load_policy(str(checkpoints / name), source)
    assert policy.facts().attacks == ["policy", "feature", "random_sign"]
    clean = episode_of(source, policy, "C0")
    row = episode_of(source, policy, "C6:rgb=policy@8")
    assert (row.start, row.env_seed, row.noise_seed) == (clean.start, clean.env_seed, clean.noise_seed)
    assert changed(row, clean) == RGB
    assert row.actions != clean.actions
    assert (row.fault_steps, row.first_fault_step, row.fault_looks) == (2, 0, 2), "looks, of two steps each"
    assert row.attack.looks == 2
    assert row.attack.weaker == 0
    assert row.attack.clean < row.attack.control + 1
    assert row.attack.reached > max(row.attack.clean, row.attack.control)
    assert row.attack.gradient > 0
    assert clean.attack is None
    again = episode_of(source, policy, "C6:rgb=policy@8")
    assert (again.actions, again.attack) == (row.actions, row.attack)
    assert episode_of(source, policy, "C0").actions == clean.actions
    wrist = episode_of(source, policy, "C6:rgb.image2=feature@8")
    assert changed(wrist, clean) == {"observation.images.image2"}
    assert wrist.attack.reached > wrist.attack.control
    signs = episode_of(source, policy, "C6:rgb=random_sign@8")
    assert changed(signs, clean) == RGB
    assert signs.attack is None
    assert signs.fault_looks == 2


def test_who_cannot_be_attacked_is_refused(checkpoints, source):
    from multismolvla_eval.policies.load import load_policy

    with pytest.raises(ValueError, match=r"'p' has no weights in this process.*C6:rgb=policy@4"):
        episode_of(source, load_policy("builtin:zero", source), "C6:rgb=policy@4")
    blind = load_policy(f"no_vision:{checkpoints / 'vanilla'}", source)
    assert blind.facts().attacks == []

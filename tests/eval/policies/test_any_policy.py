"""LeRobot's own policies in the harness: they run, faults reach them, and they are told of losses as they understand it."""

from __future__ import annotations

import shutil

import pytest
import torch

pytestmark = [pytest.mark.sim, pytest.mark.slow]

STEPS = 4
KINDS = ("act", "diffusion", "smolvla", "pi0", "pi05")
#: As lerobot 0.6.1 is: told of the loss of one camera, and of the loss of all.
TOLD = {
    "act": (False, False), "diffusion": (False, False), "smolvla": (True, True), "pi0": (True, False),
    "pi05": (True, False),
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """One of each kind, by its type."""
    from tiny_policies import save_act, save_diffusion, save_pi, save_smolvla
    from tiny_policy import TINY

    from lerobot_policy_multismolvla.mini.tiny_vlm import build_tiny_vlm

    root = tmp_path_factory.mktemp("policies")
    vlm = build_tiny_vlm(root / "vlm", TINY)
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield {
            "act": save_act(root / "act"),
            "diffusion": save_diffusion(root / "diffusion"),
            "smolvla": save_smolvla(root / "smolvla", vlm),
            **{kind: save_pi(kind, root / kind, vlm, monkeypatch) for kind in ("pi0", "pi05")},
        }


def episode_of(source, policy, condition="C0"):
    from multismolvla_eval.protocol.schedule import Episode
    from multismolvla_eval.rollout.episode import run_episode

    row = run_episode(Episode("p", source.suite, 0, condition, 0), source, policy, 0)
    assert (row["steps"], row["cause"]) == (STEPS, "time_out")
    return row


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_runs_repeats_itself_and_reacts_to_a_fault(checkpoints, source, kind):
    from multismolvla_eval.policies.load import load_policy

    policy = load_policy(checkpoints[kind], source)
    clean, again, black, depth = (
        episode_of(source, policy, c) for c in ("C0", "C0", "C2:rgb=zero", "C2:depth=zero")
    )
    assert clean["actions"] == again["actions"] == depth["actions"], "it reads no depth"
    assert clean["actions"] != black["actions"]
    assert clean["start"] == black["start"]
    facts = policy.describe()
    assert facts["type"] == kind
    assert (facts["modalities"], facts["views"]) == (["rgb"], ["image", "image2"])
    assert "provenance" not in facts


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_manifest_says_of_announced_losses_is_what_the_policy_does(checkpoints, source, kind):
    """A policy that is told acts otherwise than on a black picture, one that is not acts the same."""
    from multismolvla_eval.policies.load import load_policy
    from multismolvla_eval.protocol.reach import told_of_loss

    policy = load_policy(checkpoints[kind], source)
    facts, manifest = policy.describe(), {"cameras": ["image", "image2"]}
    for (announced, black), told in zip(
        (("C1:camera=image", "C2:rgb.image=zero"), ("C1:-rgb", "C2:rgb=zero")), TOLD[kind], strict=True
    ):
        differs = (
            episode_of(source, policy, announced)["actions"] != episode_of(source, policy, black)["actions"]
        )
        assert differs == told
        assert told_of_loss(facts, announced, manifest) == told, announced
    assert facts["reads_masks"] == TOLD[kind][0]
    assert told_of_loss(facts, "C1:-depth", manifest) is None, "nothing of it is lost"
    assert told_of_loss(facts, "C2:rgb=zero", manifest) is None, "nothing is announced"


def test_a_gap_in_the_batch_is_a_masked_picture(checkpoints, source, monkeypatch):
    """For pi0, where the missing ones come last, as if it were masked in its place."""
    from multismolvla_eval.policies.load import load_policy

    policy = load_policy(checkpoints["pi0"], source)
    generator = torch.Generator().manual_seed(0)
    keys = [f"observation.images.{c}" for c in ("image", "image2")]
    batch = {k: torch.rand(1, 3, 64, 64, generator=generator) for k in keys}
    batch["observation.state"] = torch.rand(1, 8, generator=generator)
    prepared = policy.prepare(
        {**batch, "task": ["go"], f"{keys[0]}_padding_mask": torch.tensor([False]),
         f"{keys[1]}_padding_mask": torch.tensor([True])}
    )  # fmt: skip
    assert keys[0] not in prepared
    noise = torch.randn(1, 4, 7, generator=generator)
    gap = policy.chunk(prepared, noise=noise)
    images, masks = policy.policy._preprocess_images({**prepared, keys[0]: batch[keys[0]]})
    masked = (images, [torch.zeros_like(masks[0]), masks[1]])
    monkeypatch.setattr(policy.policy, "_preprocess_images", lambda batch: masked)
    assert torch.allclose(gap, policy.chunk(prepared, noise=noise), atol=1e-5)
    monkeypatch.setattr(policy.policy, "_preprocess_images", lambda batch: (images, masks))
    assert not torch.allclose(gap, policy.chunk(prepared, noise=noise), atol=1e-4)


def test_a_picture_that_is_left_out_counts_as_a_fault_that_arrived(checkpoints, source):
    from multismolvla_eval.analysis.fairness import fairness_checks
    from multismolvla_eval.analysis.table import Cells, collect
    from multismolvla_eval.policies.load import load_policy

    policy = load_policy(checkpoints["pi0"], source)
    conditions = ["C0", "C1:camera=image"]
    rows = [episode_of(source, policy, c) for c in conditions]
    facts = {"p": {"checkpoint": policy.checkpoint, **policy.describe()}}
    checks = fairness_checks(
        ["p"], conditions, Cells(collect(rows, facts)), {"cameras": list(source.cameras), "policies": facts}
    )
    (found,) = checks["faults"]
    assert (found["reached"], found["rest_equal"], found["where"]) == (1, 1, "input")


def test_a_renamed_camera_is_described_by_the_environments_name(checkpoints, source):
    """And the report's check finds it under the policy's."""
    from multismolvla_eval.policies.features import describe_input
    from multismolvla_eval.policies.load import load_policy
    from multismolvla_eval.protocol.reach import renaming

    config = load_policy(checkpoints["pi0"], source).config
    config.input_features = {
        k.replace("image2", "wrist"): feature for k, feature in config.input_features.items()
    }
    rename = {"observation.images.image2": "observation.images.wrist"}
    facts = describe_input(config, source.cameras, rename)
    assert facts["reads"] == ["observation.images.image", "observation.images.image2", "observation.state"]
    assert facts["views"] == ["image", "image2"]
    assert (
        renaming("p", {"rename_map": {"p": rename, "q": {}}})
        == renaming("q", {"rename_map": rename})
        == rename
    )


def test_a_checkpoint_without_weights_is_refused_where_lerobot_goes_on_with_random_ones(
    checkpoints, source, tmp_path
):
    from multismolvla_eval.policies.load import load_policy

    folder = tmp_path / "pi0"
    shutil.copytree(checkpoints["pi0"], folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged .*Copy or train"):
        load_policy(str(folder), source)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="has no weights"):
        load_policy(str(folder), source)

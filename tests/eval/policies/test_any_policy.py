"""LeRobot's own policies in the harness: they run, and faults and announced losses reach them."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch

pytestmark = [pytest.mark.sim, pytest.mark.slow]

STEPS = 4
KINDS = ("act", "diffusion", "smolvla", "pi0", "pi05")
#: As lerobot 0.6.1 is: whether the announced loss of one camera reaches the policy, and the loss of all.
REACHES = {
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
    from multismolvla_eval.protocol.schedule import EpisodeSpec
    from multismolvla_eval.rollout.episode import run_episode

    row = run_episode(EpisodeSpec("p", source.suite, 0, condition, 0), source, policy, 0)
    assert (row.steps, row.cause) == (STEPS, "time_out")
    return row


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_runs_repeats_itself_and_reacts_to_a_fault(checkpoints, source, kind):
    from multismolvla_eval.policies.load import load_policy

    policy = load_policy(checkpoints[kind], source)
    clean, again, black, depth = (
        episode_of(source, policy, c) for c in ("C0", "C0", "C2:rgb=zero", "C2:depth=zero")
    )
    assert clean.actions == again.actions == depth.actions, "it reads no depth"
    assert clean.actions != black.actions
    assert clean.start == black.start
    facts = policy.facts()
    assert facts.type == kind
    assert (facts.modalities, facts.views, facts.provenance) == (["rgb"], ["image", "image2"], {})


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_manifest_says_of_announced_losses_is_what_the_policy_does(checkpoints, source, kind):
    """A policy that the mask reaches acts otherwise than on a black picture, any other acts the same."""
    from multismolvla_eval.policies.load import load_policy
    from multismolvla_eval.records.reach import mask_reaches_policy

    policy = load_policy(checkpoints[kind], source)
    facts, manifest = policy.facts(), SimpleNamespace(cameras=["image", "image2"], provenance={})
    for (announced, black), reaches in zip(
        (("C1:camera=image", "C2:rgb.image=zero"), ("C1:-rgb", "C2:rgb=zero")), REACHES[kind], strict=True
    ):
        differs = episode_of(source, policy, announced).actions != episode_of(source, policy, black).actions
        assert differs == reaches
        assert mask_reaches_policy(facts, announced, manifest) == reaches, announced
    assert facts.mask_reaches_policy == REACHES[kind][0]
    assert mask_reaches_policy(facts, "C1:-depth", manifest) is None, "nothing of it is lost"
    assert mask_reaches_policy(facts, "C2:rgb=zero", manifest) is None, "nothing is announced"


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


def test_a_picture_that_is_left_out_is_missing_among_the_inputs(checkpoints, source):
    from multismolvla_eval.policies.load import load_policy

    policy = load_policy(checkpoints["pi0"], source)
    clean, lost = (episode_of(source, policy, c).policy_inputs for c in ("C0", "C1:camera=image"))
    key = "observation.images.image"
    assert key in clean
    assert key not in lost
    assert clean[f"{key}2"] == lost[f"{key}2"]


def test_a_renamed_camera_is_described_by_the_environments_name(checkpoints, source):
    """And the report's check finds it under the policy's."""
    from multismolvla_eval.config import renaming
    from multismolvla_eval.policies.features import what_it_reads
    from multismolvla_eval.policies.load import load_policy

    config = load_policy(checkpoints["pi0"], source).config
    config.input_features = {
        k.replace("image2", "wrist"): feature for k, feature in config.input_features.items()
    }
    rename = {"observation.images.image2": "observation.images.wrist"}
    reads = what_it_reads(config, source.cameras, rename)
    assert reads.keys == ["observation.images.image", "observation.images.image2", "observation.state"]
    assert reads.views == ["image", "image2"]
    assert renaming("p", {"p": rename, "q": {}}) == renaming("q", rename) == rename


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

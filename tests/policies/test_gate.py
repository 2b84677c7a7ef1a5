"""The gate between two stages: a policy that looks passes, one that does not look is named, whatever the frames' storage."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from tiny_dataset import EPISODES, FRAMES
from tiny_policy import SIDE

from lerobot_policy_multismolvla.mini.pretrain import MINI_DOMAINS
from lerobot_policy_multismolvla.processor_multismolvla import make_multismolvla_pre_post_processors
from multismolvla.modalities import default_view_map, padding_mask_key, token_key
from multismolvla_data.tokens import TokensConfig, cache_tokens
from multismolvla_eval.offline import action_error as gate
from multismolvla_eval.offline.action_error import (
    Arm,
    GateConfig,
    action_errors,
    failures,
    partners,
    spread,
    table,
)

RGB, DEPTH = "observation.images.image", "observation.images.image_depth"
DECLARED = {f"{m} {how}" for m in ("rgb", "depth", "seg", "thermal") for how in ("shuffled", "masked")}


@pytest.fixture(scope="module")
def cached(tiny_dataset, hub, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("gate") / "tokens"
    domains = {m: d for m, d in MINI_DOMAINS.items() if m != "rgb"}
    return cache_tokens(
        TokensConfig(dataset=tiny_dataset, output=out, encoder=hub / "fourm", domains=domains)
    )


def saved(policy, make_processors, dataset: Path, folder: Path) -> Path:
    """A checkpoint as lerobot-train leaves it: weights, configuration, both pipelines with statistics."""
    stats = LeRobotDataset("tests/tiny", root=dataset).meta.stats
    policy.save_pretrained(folder)
    for pipeline in make_processors(policy.config, stats):
        pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def ours(make_policy, tiny_dataset, tmp_path) -> Path:
    policy = make_policy(stage="robust", dropout_mode="none")
    return saved(policy, make_multismolvla_pre_post_processors, tiny_dataset, tmp_path / "ours")


@pytest.fixture
def upstream(hub, tiny_dataset, tmp_path) -> Path:
    policy = SmolVLAPolicy.from_pretrained(hub / "base")
    return saved(policy, make_smolvla_pre_post_processors, tiny_dataset, tmp_path / "upstream")


class Oracle:
    """Reads the place of the bright square, which is what the first two actions of the tiny dataset say."""

    def __init__(self, reads: bool):
        self.reads = reads
        features = {RGB: None, "observation.state": None}
        self.config = SimpleNamespace(
            type="oracle", image_features={RGB: None}, input_features=features, action_delta_indices=[0, 1], n_action_steps=2
        )  # fmt: skip

    def predict_action_chunk(self, batch):
        picture = batch[RGB]
        assert picture.dtype == torch.float32
        assert picture.max() <= 1
        out = torch.zeros(len(picture), 4, 7)  # a longer chunk than is executed
        if self.reads:
            bright = (picture[:, 0] > 0.7).float()
            grid = torch.arange(SIDE).float()
            count = bright.sum((1, 2)).clamp_min(1)
            places = (bright.sum(2) @ grid / count - 7.5, bright.sum(1) @ grid / count - 7.5)
            out[:, :, :2] = 10 * (torch.stack(places, -1) / SIDE - 0.5)[:, None]
        return out


def preprocess(batch):
    """Stands in for the normaliser: the two actions that can be predicted outweigh the five that are noise."""
    scale = torch.tensor([10.0, 10.0, *[0.1] * 5])
    return {**batch, "action": batch["action"] * scale}


def gate_of(monkeypatch, reads: bool, *arguments: str) -> int:
    monkeypatch.setattr(gate, "load_policy", lambda cfg, meta: (Oracle(reads), preprocess))
    return command(monkeypatch, *arguments)


def command(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gate", *arguments])
    return gate.main()


def options(dataset: Path, output: Path, policy: Path | None = None, *more: str) -> list[str]:
    return [
        f"--dataset={dataset}",
        f"--output={output}",
        f"--policy={policy or output.parent}",
        "--batch_size=8",
        *more,
    ]


def test_a_policy_that_reads_its_pictures_passes(monkeypatch, tiny_dataset, tmp_path, capsys):
    out = tmp_path / "new" / "gate.json"
    assert gate_of(monkeypatch, True, *options(tiny_dataset, out)) == 0
    result = json.loads(out.read_text())
    assert result["passed"]
    assert result["failures"] == []
    assert (result["n"], result["episodes"], result["n_action_steps"]) == (EPISODES * FRAMES, EPISODES, 2)
    assert result["where"] == "on training frames"
    assert result["seed"] == 0
    assert f"--output={out}" in result["command"]
    assert list(result["arms"]) == ["true", "zeroed", "shuffled"]
    row = result["arms"]["shuffled"]
    assert row["error"] - result["arms"]["true"]["error"] == pytest.approx(row["difference"])
    assert row["difference_low"] < row["difference"] < row["difference_high"]
    assert [p.name for p in out.parent.iterdir()] == ["gate.json"]
    printed = capsys.readouterr().out
    assert "on training frames" in printed
    assert "gate open" in printed


@pytest.mark.parametrize(("more", "code"), [([], 1), (["--strict=false"], 0)])
def test_a_policy_that_ignores_its_pictures_is_named(monkeypatch, tiny_dataset, tmp_path, capsys, more, code):
    out = tmp_path / "gate.json"
    assert gate_of(monkeypatch, False, *options(tiny_dataset, out, None, *more)) == code
    result = json.loads(out.read_text())
    assert not result["passed"]
    assert len(result["failures"]) == 2
    said = capsys.readouterr().err
    for control in ("zeroed", "shuffled"):
        assert f"{'error' if code else 'warning'}: gate closed by {control} pictures" in said
        assert result["arms"][control]["difference"] == 0


def test_the_same_seed_measures_the_same(monkeypatch, tiny_dataset, tmp_path):
    results = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = tmp_path / f"{name}.json"
        gate_of(monkeypatch, True, *options(tiny_dataset, out, None, "--frames=9", f"--seed={seed}"))
        results.append(json.loads(out.read_text())["arms"])
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_named_episodes_alone_are_measured(monkeypatch, tiny_dataset, tmp_path):
    out = tmp_path / "gate.json"
    assert gate_of(monkeypatch, True, *options(tiny_dataset, out, None, "--episodes=[1]")) == 0
    result = json.loads(out.read_text())
    assert (result["n"], result["episodes"]) == (FRAMES, 1)
    assert result["where"] == "on frames of the episodes [1]"


def test_our_checkpoint_shows_every_modality_from_pictures_and_from_ids(
    monkeypatch, ours, tiny_dataset, cached, tmp_path
):
    arms = []
    for dataset in (tiny_dataset, cached):
        out = tmp_path / "gate.json"
        assert (
            command(monkeypatch, *options(dataset, out, ours, "--frames=12", "--modality_frames=5")) == 1
        )  # untrained
        arms.append(json.loads(out.read_text())["arms"])
        assert set(arms[-1]) == {"true", "zeroed", "shuffled"} | DECLARED
        assert {name: row["n"] for name, row in arms[-1].items()} == {
            name: 8 if name in DECLARED else 12 for name in arms[-1]
        }
        assert all(row["difference"] != 0 for name, row in arms[-1].items() if name != "true")
    for name in arms[0]:  # id 0 is not what an all-zero picture becomes
        if name != "zeroed":
            assert arms[0][name]["error"] == pytest.approx(arms[1][name]["error"], abs=1e-6)


def test_upstreams_checkpoint_is_measured_too(monkeypatch, upstream, tiny_dataset, tmp_path):
    out = tmp_path / "gate.json"
    assert command(monkeypatch, *options(tiny_dataset, out, upstream, "--strict=false", "--frames=8")) == 0
    result = json.loads(out.read_text())
    assert result["policy_type"] == "smolvla"
    assert list(result["arms"]) == ["true", "zeroed", "shuffled"]


def test_siglip_tower_reads_rgb_only(make_config):
    config = make_config(vision_tower="siglip", base_checkpoint=None)
    assert set(gate.streams_of(config)) == {"rgb"}
    assert set(gate.streams_of(make_config(vision_tower="siglip+fourm"))) == set(MINI_DOMAINS)


def test_errors_are_lerobots_chunks_without_the_padding(tiny_dataset):
    cfg = GateConfig(policy=tiny_dataset, dataset=tiny_dataset)
    oracle = Oracle(False)
    data = gate.open_dataset(cfg)
    frames = gate.load_frames(cfg, data, oracle.config, gate.streams_of(oracle.config))
    timed = LeRobotDataset("tests/tiny", root=tiny_dataset, delta_timestamps={"action": [0.0, 0.05]})
    for n in range(len(frames)):
        item = timed[n]
        assert torch.equal(frames.is_pad[n], item["action_is_pad"])
        assert torch.equal(frames.action[n][~frames.is_pad[n]], item["action"][~item["action_is_pad"]])
    errors = action_errors(oracle, lambda b: b, frames, [Arm("true", "none")], {}, cfg)["true"]
    last = FRAMES - 1
    assert errors[last] == pytest.approx(frames.action[last, 0].abs().mean().item(), rel=1e-6)


def test_what_each_arm_shows(tiny_dataset, cached, make_config):
    config = make_config()
    streams = gate.streams_of(config)
    shown = {}
    for root in (tiny_dataset, cached):
        cfg = GateConfig(policy=root, dataset=root, frames=6)
        frames = gate.load_frames(cfg, gate.open_dataset(cfg), config, streams)
        rows, other = torch.tensor([0, 3]), partners(6, 0)
        for arm in (
            Arm("t", "none"),
            Arm("z", "zero"),
            Arm("s", "shuffle"),
            Arm("d", "shuffle", "depth"),
            Arm("m", "mask", "depth"),
        ):
            shown[arm.name] = gate.show(frames, streams, arm, rows, other)
        keys = [k for k in shown["t"] if k not in ("task", "action", "observation.state")]
        depth = {k for k in keys if "depth" in k}
        assert len(keys) == 8
        assert len(depth) == 2
        for key in keys:
            assert not shown["z"][key].any()
            assert torch.equal(
                shown["s"][key], gate.show(frames, streams, Arm("t", "none"), other[rows], other)[key]
            )
            assert torch.equal(shown["d"][key], shown["s" if key in depth else "t"][key])
            assert torch.equal(shown["m"][key], shown["t"][key])
        for batch in shown.values():
            assert torch.equal(batch["observation.state"], shown["t"]["observation.state"])
        flags = {k for k in shown["m"] if k.endswith("_padding_mask")}
        assert flags == {padding_mask_key(v["depth"]) for v in default_view_map().values()}
        assert not any(shown["m"][k].any() for k in flags)
    assert token_key("image", "depth") in shown["t"]
    assert DEPTH not in shown["t"]


@pytest.mark.parametrize("count", [2, 3, 256])
def test_partners_are_a_permutation_without_fixed_points(count):
    other = partners(count, seed=3)
    assert sorted(other.tolist()) == list(range(count))
    assert (other != torch.arange(count)).all()


def test_frames_are_spread_evenly():
    rows = np.array(spread(10_000, 100, seed=0))
    assert (rows // 100 == np.arange(100)).all()
    assert spread(5, 9, seed=0) == [0, 1, 2, 3, 4]
    assert spread(10_000, 100, 0) == rows.tolist() != spread(10_000, 100, 1)


def test_both_the_interval_and_the_size_decide():
    rng = np.random.default_rng(0)
    true = rng.uniform(0.9, 1.1, 200)

    def verdict(zeroed, shuffled):
        return failures(table({"true": true, "zeroed": zeroed, "shuffled": shuffled}))

    assert verdict(true + 0.5, true + 0.2) == []
    small, noisy = verdict(true + 0.05, true + 0.2), verdict(true + 0.5, true + rng.normal(0.2, 6, 200))
    assert len(small) == len(noisy) == 1  # certain but small; large but uncertain
    assert "zeroed" in small[0]
    assert "shuffled" in noisy[0]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"policy": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"dataset": "nowhere"}, FileNotFoundError, "meta/info.json"),
        ({"episodes": [0, 7]}, ValueError, r"\[7\].*episodes 0 to 1"),
        ({"episodes": []}, ValueError, "--episodes"),
        ({"frames": 1}, ValueError, "--frames=1"),
    ],
)
def test_wrong_requests_are_named_and_write_nothing(change, error, text, tiny_dataset, tmp_path):
    out = tmp_path / "gate.json"
    wishes = {"policy": tmp_path, "dataset": tiny_dataset, "output": out} | change
    wishes |= {k: Path(wishes[k]) for k in ("policy", "dataset")}
    with pytest.raises(error, match=text):
        gate.run_gate(GateConfig(**wishes))
    assert not out.exists()


def test_actions_that_are_not_finite_are_refused(tiny_dataset):
    cfg = GateConfig(policy=tiny_dataset, dataset=tiny_dataset, frames=4)
    oracle = Oracle(False)
    frames = gate.load_frames(cfg, gate.open_dataset(cfg), oracle.config, gate.streams_of(oracle.config))
    oracle.predict_action_chunk = lambda batch: torch.full((len(batch[RGB]), 2, 7), float("nan"))
    with pytest.raises(FloatingPointError, match="true"):
        action_errors(oracle, lambda b: b, frames, [Arm("true", "none")], {}, cfg)

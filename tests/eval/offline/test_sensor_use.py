"""How much a policy uses its sensors, whatever the frames' storage: one that looks, and one that does not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from tiny_dataset import EPISODES, FRAMES
from tiny_policy import SIDE, TINY

from lerobot_policy_multismolvla.mini.pretrain import PretrainConfig, _smolvla_config
from lerobot_policy_multismolvla.mini.tiny_vlm import build_tiny_vlm
from lerobot_policy_multismolvla.processor_multismolvla import make_multismolvla_pre_post_processors
from multismolvla.fourm import MINI_DOMAINS
from multismolvla.modalities import default_view_map, padding_mask_key, token_key
from multismolvla_data.tokens import TokensConfig, cache_tokens
from multismolvla_eval.analysis.diagnosis import stored_diagnosis
from multismolvla_eval.offline import sensor_use
from multismolvla_eval.offline.attack_check import AttackOptions
from multismolvla_eval.offline.feature_shift import FeatureShiftOptions
from multismolvla_eval.offline.sensor_use import (
    Control,
    Frames,
    SensorUseOptions,
    action_errors,
    control_errors,
    controls_for,
    load_frames,
    open_dataset,
    other_tasks,
    partners,
    show,
    spread,
)
from multismolvla_eval.offline.sensor_use_check import failures, main
from multismolvla_eval.policies.features import streams_by_modality

RGB, DEPTH = "observation.images.image", "observation.images.image_depth"
STATE = "observation.state"
TRUE = Control("true", "none")
ALONE = {f"{m} {how}" for m in ("rgb", "depth", "seg", "thermal") for how in ("zeroed", "shuffled", "masked")}


@pytest.fixture(scope="module")
def cached(tiny_dataset, hub, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tokens") / "tokens"
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
            type="act", image_features={RGB: None}, input_features=features, action_delta_indices=[0, 1],
            n_action_steps=2, device="cpu",
        )  # fmt: skip

    def reset(self):
        """It remembers nothing."""

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
    """Stands in for the normaliser: the two predictable actions outweigh the five that are noise."""
    scale = torch.tensor([10.0, 10.0, *[0.1] * 5])
    return {**batch, "action": batch["action"] * scale}


def check(dataset: Path, folder: Path, policy: Path, *more: str):
    """Exit code of the command, and what it wrote about the policy."""
    given = [
        f"--policies=[p={policy}]",
        f"--dataset={dataset}",
        f"--output={folder}",
        "--batch_size=8",
        *more,
    ]
    code = main(given)
    return code, stored_diagnosis(folder).policies["p"]


def check_oracle(monkeypatch, reads: bool, dataset: Path, folder: Path, *more: str):
    oracle = Oracle(reads)
    monkeypatch.setattr(sensor_use, "stored_config", lambda path, options: oracle.config)
    monkeypatch.setattr(sensor_use, "load_as_trained", lambda *arguments: (oracle, preprocess))
    policy = folder.parent / "oracle"
    policy.mkdir(exist_ok=True)
    (policy / "config.json").write_text("{}")
    return check(dataset, folder, policy, *more)


def test_a_policy_that_reads_its_pictures_passes(monkeypatch, tiny_dataset, tmp_path, capsys):
    out = tmp_path / "new"
    code, use = check_oracle(monkeypatch, True, tiny_dataset, out)
    assert (code, use.failures) == (0, [])
    assert (use.n, use.episodes, use.n_action_steps) == (EPISODES * FRAMES, EPISODES, 2)
    stored = stored_diagnosis(out)
    assert stored.held_out is False
    assert stored.seed == 0
    assert f"--output={out}" in stored.command
    assert list(use.controls) == ["true", "zeroed", "shuffled"]
    row = use.controls["shuffled"]
    assert row.error - use.controls["true"].error == pytest.approx(row.change.difference)
    assert row.change.low < row.change.difference < row.change.high
    assert [p.name for p in out.iterdir()] == ["sensor_use.json"]
    assert "may have been trained on" in capsys.readouterr().out


@pytest.mark.parametrize(("more", "code"), [([], 1), (["--strict=false"], 0)])
def test_a_policy_that_ignores_its_pictures_is_named(monkeypatch, tiny_dataset, tmp_path, capsys, more, code):
    found, use = check_oracle(monkeypatch, False, tiny_dataset, tmp_path / "out", *more)
    assert found == code
    assert len(use.failures) == 2
    said = capsys.readouterr().err
    assert said.count(f"{'error' if code else 'warning'}: p: the policy hardly uses its pictures") == 2
    for control in ("zeroed", "shuffled"):
        assert f"with {control} ones" in said
        assert use.controls[control].change.difference == 0


def test_the_same_seed_measures_the_same(monkeypatch, tiny_dataset, tmp_path):
    results = [
        check_oracle(monkeypatch, True, tiny_dataset, tmp_path / name, "--frames=9", f"--seed={seed}")[
            1
        ].controls
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_named_episodes_alone_are_measured(monkeypatch, tiny_dataset, tmp_path, capsys):
    code, use = check_oracle(monkeypatch, True, tiny_dataset, tmp_path / "out", "--episodes=[1]")
    assert (code, use.n, use.episodes) == (0, FRAMES, 1)
    assert "of the episodes [1]" in capsys.readouterr().out


def test_our_checkpoint_shows_every_modality_from_pictures_and_from_ids(ours, tiny_dataset, cached, tmp_path):
    found = []
    for dataset in (tiny_dataset, cached):
        code, use = check(
            dataset, tmp_path / "out", ours, "--frames=8", "--modality_frames=3", "--batch_size=4"
        )
        assert code == 1, "untrained"
        found.append(use.controls)
        assert set(use.controls) == {"true", "zeroed", "shuffled"} | ALONE
        assert {n: row.n for n, row in use.controls.items()} == {
            n: 4 if n in ALONE else 8 for n in use.controls
        }
        assert all(row.change.difference != 0 for name, row in use.controls.items() if name != "true")
    for name in found[0]:
        if not name.endswith("zeroed"):  # id 0 is not what an all-zero picture becomes
            assert found[0][name].error == pytest.approx(found[1][name].error, abs=1e-6)


def test_upstreams_checkpoint_is_measured_too(upstream, tiny_dataset, tmp_path):
    code, use = check(tiny_dataset, tmp_path / "out", upstream, "--strict=false", "--frames=8")
    assert (code, use.type) == (0, "smolvla")
    assert list(use.controls) == ["true", "zeroed", "shuffled"]


def test_siglip_tower_reads_rgb_only(make_config):
    config = make_config(vision_tower="siglip", base_checkpoint=None)
    assert set(streams_by_modality(config)) == {"rgb"}
    assert set(streams_by_modality(make_config(vision_tower="siglip+fourm"))) == set(MINI_DOMAINS)


def test_streams_of_a_foreign_policy_follow_the_keys_endings():
    config = SimpleNamespace(image_features=[RGB, DEPTH, "observation.images.image2"])
    streams = streams_by_modality(config)
    assert streams == {"rgb": {RGB: None, "observation.images.image2": None}, "depth": {DEPTH: None}}
    assert [c.name for c in controls_for(streams, masks=False, tasks=1)] == [
        "true", "zeroed", "shuffled", "rgb zeroed", "depth zeroed", "rgb shuffled", "depth shuffled",
    ]  # fmt: skip
    assert len(controls_for({"rgb": {RGB: None}}, masks=False, tasks=1)) == 3


def frames_of(dataset: Path, config, **changes):
    options = SensorUseOptions(dataset=dataset, **changes)
    return load_frames(options, open_dataset(options, "m"), config, {})


def test_errors_are_lerobots_chunks_without_the_padding(tiny_dataset):
    oracle = Oracle(False)
    frames = frames_of(tiny_dataset, oracle.config)
    timed = LeRobotDataset("tests/tiny", root=tiny_dataset, delta_timestamps={"action": [0.0, 0.05]})
    for n in range(len(frames)):
        item = timed[n]
        assert torch.equal(frames.is_pad[n], item["action_is_pad"])
        assert torch.equal(frames.action[n][~frames.is_pad[n]], item["action"][~item["action_is_pad"]])
    errors = action_errors(oracle, lambda b: b, frames, [TRUE], {}, SensorUseOptions())["true"]
    last = FRAMES - 1
    assert errors[last] == pytest.approx(frames.action[last, 0].abs().mean().item(), rel=1e-6)


def test_what_each_control_shows(tiny_dataset, cached, make_config):
    config = make_config()
    streams = streams_by_modality(config)
    controls = {
        "t": TRUE,
        "z": Control("zeroed", "zero"),
        "s": Control("shuffled", "shuffle"),
        "d": Control("depth shuffled", "shuffle", "depth"),
        "m": Control("depth masked", "mask", "depth"),
    }
    for root in (tiny_dataset, cached):
        frames = frames_of(root, config, frames=6)
        rows, other = torch.tensor([0, 3]), partners(6, 0)
        shown = {name: show(frames, streams, control, rows, other) for name, control in controls.items()}
        swapped = show(frames, streams, TRUE, other[rows], other)
        keys = [k for k in shown["t"] if k not in ("task", "action", "observation.state")]
        depth = {k for k in keys if "depth" in k}
        assert len(keys) == 8
        assert len(depth) == 2
        for key in keys:
            assert not shown["z"][key].any()
            assert torch.equal(shown["s"][key], swapped[key])
            assert torch.equal(shown["d"][key], shown["s" if key in depth else "t"][key])
            assert torch.equal(shown["m"][key], shown["t"][key])
        for batch in shown.values():
            assert torch.equal(batch["observation.state"], shown["t"]["observation.state"])
        flags = {k for k in shown["m"] if k.endswith("_padding_mask")}
        assert flags == {padding_mask_key(v["depth"]) for v in default_view_map().values()}
        assert not any(shown["m"][k].any() for k in flags)
    assert token_key("image", "depth") in shown["t"]
    assert DEPTH not in shown["t"]


@pytest.mark.parametrize("options", [AttackOptions, FeatureShiftOptions])
def test_under_attack_no_stored_estimate_shows_the_true_rgb(options, tiny_dataset, cached, make_config):
    config = make_config(provenance={"thermal": "derived", "image": {"depth": "derived"}})
    depth = DEPTH.replace("image_", "image2_")
    for root, kept in ((tiny_dataset, depth), (cached, token_key("image2", "depth"))):
        chosen = options(dataset=root, frames=2)
        frames = load_frames(chosen, open_dataset(chosen, "m"), config, {})
        assert [k for k in frames.observation if "depth" in k or "thermal" in k] == [kept]
        assert list(frames.streams(config)) == ["rgb", "depth", "seg"]
        whole = frames_of(root, config, frames=2)  # RGB stays the true one
        assert len(whole.observation) == len(frames.observation) + 3


def test_what_the_policy_computes_of_rgb_follows_the_rgb_that_is_shown(
    tiny_dataset, cached, make_policy, tmp_path
):
    """The datasets hold thermal pictures, or their ids, of the true RGB."""
    from dataclasses import asdict

    from tiny_thermalgen import write_tiny_thermalgen

    from multismolvla.estimators import load_estimator

    network = str(write_tiny_thermalgen(tmp_path / "thermalgen"))
    recipe = asdict(load_estimator("thermal", network, steps=1, size=32).recipe)
    policy = make_policy(
        provenance={"thermal": "derived"}, estimators={"thermal": recipe}, refresh={"thermal": 2},
        estimator_sources={"thermal": network}, health="off",
    )  # fmt: skip
    stats = LeRobotDataset("tests/tiny", root=tiny_dataset).meta.stats
    prepare, _ = make_multismolvla_pre_post_processors(policy.config, stats)
    rows, other = torch.arange(2), partners(4, 0)
    domain = MINI_DOMAINS["thermal"]
    for root in (tiny_dataset, cached):
        frames = frames_of(root, policy.config, frames=4)
        assert not any("thermal" in key for key in frames.observation)
        streams = frames.streams(policy.config)
        assert list(streams) == ["rgb", "depth", "seg", "thermal"]
        computed = set(streams) - set(frames.hold(streams))
        names = [c.name for c in controls_for(streams, masks=True, tasks=1, computed=computed)]
        assert [name for name in names if "thermal" in name] == ["thermal masked"]

        def seen(control, rows=rows, frames=frames, streams=streams):
            policy.reset()
            policy.predict_action_chunk(prepare(show(frames, streams, control, rows, other)))
            return policy.last_look().inputs.values.get(domain)

        shuffled = seen(Control("rgb shuffled", "shuffle", "rgb"))
        assert not torch.equal(shuffled, seen(TRUE))
        assert torch.equal(shuffled, seen(TRUE, rows=other[rows]))
        assert seen(Control("thermal masked", "mask", "thermal")) is None
        action_errors(policy, prepare, frames, [TRUE], streams, SensorUseOptions(batch_size=2))
        assert domain in policy.last_look().inputs.values, "the second batch is no second look of an episode"


def test_every_frame_is_shown_the_instruction_of_another_task_and_of_all_others_in_turn():
    tasks = ["take", "push", "take", "open", "take"]
    other = other_tasks(tasks)
    assert all(a != b for a, b in zip(tasks, other, strict=True))
    assert {o for t, o in zip(tasks, other, strict=True) if t == "take"} == {"push", "open"}
    streams = {"rgb": {RGB: None}}
    assert "another task" in [c.name for c in controls_for(streams, masks=False, tasks=2)]
    assert "another task" not in [c.name for c in controls_for(streams, masks=False, tasks=1)]


def test_another_task_changes_the_instruction_and_nothing_else():
    pictures = {RGB: torch.rand(3, 3, 4, 4)}
    padding = torch.zeros(3, 1, dtype=torch.bool)
    frames = Frames(pictures, ["a", "b", "a"], torch.rand(3, 1, 2), padding, torch.arange(3))
    rows, streams = torch.tensor([2, 1]), {"rgb": {RGB: None}}
    shown = show(frames, streams, Control("another task", "task"), rows, partners(3, 0))
    true = show(frames, streams, TRUE, rows, partners(3, 0))
    assert shown.pop("task") == ["b", "a"]
    assert true.pop("task") == ["a", "b"]
    assert all(torch.equal(shown[key], true[key]) for key in true)


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
        return failures(control_errors({"true": true, "zeroed": zeroed, "shuffled": shuffled}))

    assert verdict(true + 0.5, true + 0.2) == []
    small, noisy = verdict(true + 0.05, true + 0.2), verdict(true + 0.5, true + rng.normal(0.2, 6, 200))
    assert len(small) == len(noisy) == 1  # certain but small; large but uncertain
    assert "zeroed" in small[0]
    assert "shuffled" in noisy[0]


def test_the_instruction_is_judged_where_that_is_asked_for():
    true = np.random.default_rng(0).uniform(0.9, 1.1, 200)
    errors = {"true": true, "zeroed": true + 0.5, "shuffled": true + 0.5, "another task": true + 0.05}
    controls = control_errors(errors)
    assert failures(controls) == []
    (deaf,) = failures(controls, judge_instruction=True)
    assert "hardly follows its instruction" in deaf
    assert failures(control_errors(errors | {"another task": true + 0.2}), judge_instruction=True) == []
    with pytest.raises(ValueError, match="--judge_instruction=true.*several tasks"):
        failures({name: row for name, row in controls.items() if name != "another task"}, True)


def test_one_scene_with_two_instructions_makes_two_actions(tmp_path):
    """LIBERO-Object's instructions differ in a word, one token; the check tells who has learnt it."""
    torch.manual_seed(0)
    tasks = [f"pick up the {thing} and place it in the basket" for thing in ("butter", "ketchup")]
    build_tiny_vlm(tmp_path / "vlm", TINY, tasks)
    words = PretrainConfig(output=tmp_path, text_width=48, text_layers=2, chunk_size=4, n_action_steps=4)
    policy = SmolVLAPolicy(_smolvla_config(words))
    stats = {k: {"mean": torch.zeros(n), "std": torch.ones(n)} for k, n in ((STATE, 8), ("action", 7))}
    preprocess, _ = make_smolvla_pre_post_processors(policy.config, stats)
    count = 16
    scene = {f"observation.images.{c}": torch.rand(1, 3, SIDE, SIDE) for c in ("image", "image2")}
    scene = {k: v.expand(count, -1, -1, -1) for k, v in scene.items()} | {STATE: torch.zeros(count, 8)}
    action = torch.tensor([1.0, -1.0]).repeat(count // 2)[:, None, None].expand(-1, 4, 7)
    padding = torch.zeros(count, 4, dtype=torch.bool)
    frames = Frames(scene, tasks * (count // 2), action, padding, torch.arange(count))
    controls = [TRUE, Control("another task", "task")]
    same = {name: np.ones(count) for name in ("zeroed", "shuffled")}  # of the instruction alone

    def complaints() -> list[str]:
        errors = action_errors(policy.eval(), preprocess, frames, controls, {}, SensorUseOptions())
        return [f for f in failures(control_errors(errors | same), judge_instruction=True) if "instruct" in f]

    assert complaints(), "before the training it acts alike"
    batch = preprocess({**scene, "task": frames.task, "action": action})
    optimizer = torch.optim.AdamW([p for p in policy.train().parameters() if p.requires_grad], 2e-3)
    for _ in range(60):
        policy.forward(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not complaints()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"policies": "[p=nowhere]"}, "nowhere"),
        ({"dataset": "nowhere"}, "meta/info.json"),
        ({"episodes": "[0, 7]"}, "[7]"),
        ({"episodes": "[]"}, "--episodes"),
        ({"frames": 1}, "--frames=1"),
        ({"estimator_sources": "{rgb: x}"}, "--estimator_sources names 'rgb'"),
        ({"missing_estimator": "maybe"}, "--missing_estimator=maybe"),
    ],
)
def test_wrong_requests_are_named_and_write_nothing(
    monkeypatch, changes, named, tiny_dataset, tmp_path, capsys
):
    if "policies" not in changes:
        (tmp_path / "config.json").write_text("{}")
        monkeypatch.setattr(sensor_use, "stored_config", lambda path, options: Oracle(True).config)
    out = tmp_path / "out"
    options = {"policies": f"[p={tmp_path}]", "dataset": tiny_dataset, "output": out} | changes
    assert main([f"--{k}={v}" for k, v in options.items()]) == 2
    assert named in capsys.readouterr().err
    assert not out.exists()


def test_actions_that_are_not_finite_are_refused(tiny_dataset):
    oracle = Oracle(False)
    frames = frames_of(tiny_dataset, oracle.config, frames=4)
    oracle.predict_action_chunk = lambda batch: torch.full((len(batch[RGB]), 2, 7), float("nan"))
    with pytest.raises(FloatingPointError, match="true"):
        action_errors(oracle, lambda b: b, frames, [TRUE], {}, SensorUseOptions())

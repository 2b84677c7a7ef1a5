"""Stage 0 of the mini preset on a tiny dataset: folders in the official formats, and the marker last."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from tiny_dataset import EPISODES, FRAMES, write_dataset
from tiny_policy import SIDE
from transformers import AutoTokenizer

from lerobot_policy_multismolvla.mini import pretrain as stage
from lerobot_policy_multismolvla.mini.grounding import Grounding, centroids, named_labels
from lerobot_policy_multismolvla.mini.pretrain import (
    DONE,
    PretrainConfig,
    cell_targets,
    load_frames,
    pretrain,
)
from lerobot_policy_multismolvla.mini.tiny_vlm import build_tiny_vlm
from multismolvla.fourm import MINI_DOMAINS, FourMEncoder, small_domains
from multismolvla.modalities import MINI_LABELS
from multismolvla.tokenizers.factory import make_tokenizers
from multismolvla.tokenizers.label_sets import LIBERO

SMALL = {
    "dim": 32, "depth": 1, "heads": 2, "text_width": 48, "text_layers": 2, "vision_width": 32,
    "vision_layers": 1,
    "steps": 4, "batch_size": 4, "log_every": 1,
}  # fmt: skip


def small(dataset: Path, output: Path, **options) -> PretrainConfig:
    return PretrainConfig(dataset=dataset, output=output, **(SMALL | options))


@pytest.fixture(scope="module")
def done(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained")
    pretrain(small(tiny_dataset, out))
    return out


def test_the_encoder_loads_as_an_official_one(done):
    encoder = FourMEncoder.from_pretrained(done / "fourm", list(MINI_DOMAINS.values()))
    assert encoder.grid("rgb@64") == (8, 8)
    out = encoder({"rgb@64": torch.rand(2, 3, SIDE, SIDE)})
    assert out["rgb@64"].shape == (2, 64, 32)
    assert out["rgb@64"].isfinite().all()


def test_the_checkpoint_is_upstreams_own(done):
    policy = SmolVLAPolicy.from_pretrained(done / "smolvla_init")
    pre, post = make_pre_post_processors(policy.config, pretrained_path=str(done / "smolvla_init"))
    frame = {f"observation.images.{c}": torch.rand(3, SIDE, SIDE) for c in ("image", "image2")}
    action = post(policy.select_action(pre(frame | {"observation.state": torch.zeros(8), "task": "push"})))
    assert action.shape == (1, 7)
    assert action.isfinite().all()
    assert policy.config.vlm_model_name == str(done / "vlm")
    # the base stage of the preset trains all of it
    assert policy.config.train_expert_only is False
    assert policy.config.freeze_vision_encoder is False


def test_the_report_has_every_logged_step(done):
    report = json.loads((done / DONE).read_text())
    assert [row["step"] for row in report["history"]] == [0, 1, 2, 3]
    assert {"fourm", "siglip", "fourm_object_recall", "siglip_object_recall"} <= report["history"][0].keys()
    assert report["config"]["steps"] == 4


def test_the_marker_is_written_last(tiny_dataset, tmp_path, monkeypatch):
    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lerobot.processor.pipeline.DataProcessorPipeline.save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        pretrain(small(tiny_dataset, tmp_path))
    assert (tmp_path / "fourm").is_dir()  # so the failure came late
    assert not (tmp_path / DONE).exists()


def test_a_second_run_takes_the_marker_away_first(tiny_dataset, tmp_path, monkeypatch):
    (tmp_path / DONE).write_text("{}")
    monkeypatch.setattr(sys, "argv", ["pretrain", f"--dataset={tiny_dataset}", f"--output={tmp_path}"])
    seen = []
    monkeypatch.setattr(stage, "pretrain", lambda cfg: seen.append((cfg.output / DONE).exists()))
    stage.main()
    assert seen == [False]


def test_training_moves_both_towers_down_their_losses(tiny_dataset, tmp_path):
    history = pretrain(small(tiny_dataset, tmp_path, steps=25, lr=3e-3))
    assert history[-1]["fourm"] < 0.7 * history[0]["fourm"]
    assert history[-1]["siglip"] < 0.7 * history[0]["siglip"]


def test_every_word_of_the_instructions_is_one_token_and_the_rest_is_read_by_bytes(tmp_path):
    texts = ["pick up the alphabet soup and place it in the basket", "put up the pick in and out"]
    tokenizer = AutoTokenizer.from_pretrained(build_tiny_vlm(tmp_path, None, texts))
    for text in texts:
        assert len(tokenizer(text + "\n")["input_ids"]) == len(text.split()) + 1
    other = tokenizer("pick up the alphabets")["input_ids"]
    assert len(other) == 5
    assert tokenizer.decode(other).strip() == "pick up the alphabets"
    assert len(AutoTokenizer.from_pretrained(build_tiny_vlm(tmp_path / "bytes"))) == 264


def test_larger_pictures_and_label_sets_are_pre_trained_in_as_many_tokens(tmp_path):
    """As libero_tiny does: 33 labels, pictures of another size, words for tokens."""
    shown = {"thing": LIBERO.ids.index("butter"), "task": "pick up the butter"}
    data = write_dataset(tmp_path / "data", side=SIDE * 2, labels=LIBERO.ids, **shown)
    pretrain(small(data, tmp_path / "out", image_size=SIDE * 2, words=True, steps=2))
    domains = [d.name for d in small_domains(SIDE * 2).values()]
    encoder = FourMEncoder.from_pretrained(tmp_path / "out/fourm", domains)
    assert encoder.grid(f"rgb@{SIDE * 2}") == (8, 8)
    assert encoder.config.modality(f"tok_semseg@{SIDE * 2}").vocab == 16 * 33
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out/vlm")) > 264


def test_things_smaller_than_a_quadrant_of_a_patch_are_told_by_a_finer_grid(tmp_path):
    """As libero_tiny does: what the encoder reads, and what it is asked for, follow `seg_grid`."""
    shown = {"thing": LIBERO.ids.index("butter"), "task": "pick up the butter"}
    side, name = SIDE * 2, f"tok_semseg@{SIDE * 2}"
    data = write_dataset(tmp_path / "data", side=side, labels=LIBERO.ids, **shown)
    history = pretrain(small(data, tmp_path / "out", image_size=side, words=True, steps=2, seg_grid=16))
    assert all(math.isfinite(row["fourm"]) for row in history)
    encoder = FourMEncoder.from_pretrained(tmp_path / "out/fourm", [name])
    assert encoder.config.modality(name).grid == (16, 16)

    speck = torch.zeros(1, 1, side, side, dtype=torch.int64)
    speck[..., 36:40, 36:41] = shown["thing"]  # 20 of the 64 pixels of a quadrant of a patch
    empty = torch.zeros(1, 1, side, side)
    pictures = torch.zeros(1, 3, side, side), empty + 1, speck, empty
    for grid, parts, told in ((8, 4, False), (16, 16, True)):
        domain = small_domains(side, 16 * 33, grid)["seg"]
        ids, _ = make_tokenizers("patch", {"seg": domain}, 33, image_size=side)["seg"].encode(speck)
        assert (ids // 16 == shown["thing"]).any() == told
        assert (cell_targets(*pictures, grid=8, parts=parts)["seg"] == shown["thing"]).any() == told
    for wrong in (12, 48):
        with pytest.raises(ValueError, match=f"--seg_grid={wrong}.*multiple of 8"):
            small(data, tmp_path, image_size=side, seg_grid=wrong)


# -- frames and targets --------------------------------------------------------------------------------------


def test_frames_are_canonical_and_spread_over_the_dataset(tiny_dataset, tmp_path):
    frames = load_frames(small(tiny_dataset, tmp_path))
    rows = EPISODES * FRAMES * 2
    assert len(frames) == EPISODES * FRAMES
    assert frames.rows(torch.tensor([3, 0])).tolist() == [6, 7, 0, 1]  # both views of a frame, adjacent
    assert frames.state.shape == (EPISODES * FRAMES, 8)
    assert len(set(frames.task)) == 1
    assert frames.rgb.shape == (rows, 3, SIDE, SIDE)
    assert frames.rgb.dtype == frames.seg.dtype == frames.thermal.dtype == torch.uint8
    assert frames.seg.unique().tolist() == [0, 3]
    assert sorted({round(v, 2) for v in frames.depth.unique().tolist()}) == [0.0, 0.8, 1.2]
    assert frames.thermal.unique().tolist() == [50, 200]
    few = load_frames(small(tiny_dataset, tmp_path, max_frames=3))
    assert len(few) == 3
    assert torch.equal(few.rgb[-1], frames.rgb[-1])  # the last frame of the last episode is among them


def test_pictures_are_held_in_no_more_memory_than_their_frames(tiny_dataset, tmp_path, monkeypatch):
    kept = []
    compact = stage._compact
    monkeypatch.setattr(stage, "_compact", lambda *given: kept.append(compact(*given)) or kept[-1])
    load_frames(small(tiny_dataset, tmp_path, max_frames=3))
    held = sum(picture.untyped_storage().nbytes() for picture in kept)
    assert held == 3 * 18 * SIDE * SIDE  # as the option max_frames says


def test_a_dataset_that_does_not_fit_is_named(tiny_dataset, tmp_path):
    with pytest.raises(ValueError, match=r"\['observation.images.side'.*multismolvla-record"):
        load_frames(small(tiny_dataset, tmp_path, cameras=["image", "side"]))
    with pytest.raises(ValueError, match="64.*expected side 32.*--image_size"):
        load_frames(small(tiny_dataset, tmp_path, image_size=32))


def test_targets_say_what_is_in_each_quadrant():
    rgb, thermal = torch.zeros(1, 3, 16, 16), torch.full((1, 1, 16, 16), 0.25)
    depth, seg = torch.ones(1, 1, 16, 16), torch.zeros(1, 1, 16, 16, dtype=torch.int64)
    rows, columns = slice(4, 8), slice(8, 12)  # lower left quadrant of the cell (0, 1) in a 2x2 grid
    (
        rgb[:, 0, rows, columns],
        thermal[..., rows, columns],
        depth[..., rows, columns],
        seg[..., rows, columns],
    ) = 1, 0.75, 2.0, 5
    target = cell_targets(rgb, depth, seg, thermal, grid=2)
    cell, quadrant = 1, 2
    expected = torch.zeros(1, 4, 4, dtype=torch.int64)
    expected[0, cell, quadrant] = 5
    assert torch.equal(target["seg"], expected)
    assert torch.allclose(target["thermal"], torch.where(expected > 0, 0.75, 0.25))
    assert torch.allclose(
        target["depth"], torch.where(expected > 0, 2 * torch.log(torch.tensor(2.0)), 0.0), atol=1e-6
    )
    red = target["rgb"].unflatten(-1, (3, 4))[:, :, 0]
    assert torch.equal(red, (expected > 0).float())


# -- grounding -----------------------------------------------------------------------------------------------


def names(instruction, labels, unseen=()):
    seen = [i for i, name in enumerate(labels) if name not in unseen]
    return [labels[i] for i in named_labels(instruction, labels, seen)]


def test_the_named_things_are_taken_from_the_instruction():
    assert named_labels("Put the cube in the basket.", MINI_LABELS, range(8)) == [3, 5, 2]
    assert named_labels("put the can on the plate", MINI_LABELS, range(8)) == [4, 6, 2]
    assert names("put the cube, then the can in the basket", MINI_LABELS) == ["cube", "basket", "gripper"]


@pytest.mark.parametrize(
    ("instruction", "first", "last"),
    [
        ("pick up the tomato sauce and place it in the basket", "tomato_sauce", "basket"),
        ("pick up the bbq sauce and place it in the basket", "bbq_sauce", "basket"),
        ("pick up the black bowl next to the ramekin and place it on the plate", "akita_black_bowl", "plate"),
        ("open the middle drawer of the cabinet", "wooden_cabinet", "wooden_cabinet"),
        ("turn on the stove", "flat_stove", "flat_stove"),
    ],
)
def test_a_thing_may_be_named_by_the_end_of_its_label(instruction, first, last):
    found = names(instruction, LIBERO.ids, unseen=("white_cabinet",))
    assert found == [first, last, "gripper"]


@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10"])
def test_every_instruction_of_the_suites_names_something(suite):
    from multismolvla_data.formats.simulators import suite_tasks

    for instruction in suite_tasks(suite).values():
        assert names(instruction, LIBERO.ids)


@pytest.mark.parametrize("instruction", ["open the gripper", "push the square", ""])
def test_an_instruction_that_names_nothing_is_refused(instruction):
    with pytest.raises(ValueError, match=r"names nothing of the labels that the pictures show.*cube"):
        named_labels(instruction, MINI_LABELS, range(8))


def test_centroids_are_where_the_label_is():
    seg = torch.zeros(1, 2, 5, 5, dtype=torch.int64)
    seg[0, 0, 0, 4] = 3  # upper right corner of the first view
    seg[0, 1, 2, :] = 3  # a bar through the middle of the second
    where, visible = centroids(seg, torch.tensor([[3, 5]]))
    assert visible.tolist() == [[[True, False], [True, False]]]
    assert where[0, 0, 0].tolist() == [1.0, -1.0]  # x to the right, y downwards
    assert where[0, 1, 0].tolist() == [0.0, 0.0]


def test_what_is_not_visible_has_no_position_to_learn():
    torch.manual_seed(0)
    head = Grounding(width=8, views=1, things=1)
    hidden = torch.randn(4, 2, 8)  # the two depths that are read
    unseen = torch.zeros(4, 1, 1, dtype=torch.bool)
    far = torch.full((4, 1, 1, 2), 9.0)
    assert head(hidden, far, unseen)[0].item() == head(hidden, -far, unseen)[0].item()
    assert head(hidden, far, ~unseen)[0].item() > head(hidden, far, unseen)[0].item() + 1

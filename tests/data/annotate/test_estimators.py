"""Estimators: units and label sets that the tokenizers expect, from tiny networks in the official layouts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_estimators import write_tiny_depth_estimator, write_tiny_segmenter

from multismolvla.tokenizers.depth import prepare_depth
from multismolvla.tokenizers.label_sets import COCO_PANOPTIC
from multismolvla_data.annotate import estimators
from multismolvla_data.annotate.estimators import (
    DepthEstimator,
    SegmentationEstimator,
    ThermalEstimator,
    ThermalSettings,
    depth_from_disparity,
)


def pictures(count: int = 2, height: int = 30, width: int = 44) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def frames(count: int = 2) -> list[tuple[int, int]]:
    return [(0, t) for t in range(count)]


# -- depth
# ---------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1e4, width=32), min_size=10, max_size=30))
def test_nearer_in_disparity_is_nearer_in_depth_and_nothing_is_nan(values):
    disparity = torch.tensor(values).reshape(1, 1, 1, -1)
    depth = depth_from_disparity(disparity, (0.3, 3.0))
    assert depth.isfinite().all()
    assert (depth >= 0.3 - 1e-6).all()
    assert (depth <= 3.0 + 1e-5).all()
    order = disparity.flatten().argsort()
    assert (depth.flatten()[order].diff() <= 1e-6).all()
    assert prepare_depth(depth, torch.ones_like(depth, dtype=torch.bool)).isfinite().all()


def test_scale_and_shift_of_the_disparity_do_not_matter():
    disparity = pictures()[:, :1]
    same = depth_from_disparity(disparity * 7 + 2)
    assert torch.allclose(depth_from_disparity(disparity), same, atol=1e-4)
    assert torch.equal(depth_from_disparity(torch.full((1, 1, 3, 3), 5.0)), torch.full((1, 1, 3, 3), 3.0))


def test_relative_depth_is_inverted_and_metric_depth_is_not(tmp_path):
    relative = DepthEstimator.from_pretrained(str(write_tiny_depth_estimator(tmp_path / "r")))
    metric = DepthEstimator.from_pretrained(str(write_tiny_depth_estimator(tmp_path / "m", metric=True)))
    as_disparity = DepthEstimator.from_pretrained(str(tmp_path / "m"), output="relative")
    rgb = pictures()
    depth, metres = relative.estimate(rgb, frames()), metric.estimate(rgb, frames())
    assert depth.shape == metres.shape == (2, 1, 30, 44)
    assert depth.amin(dim=(1, 2, 3)).tolist() == pytest.approx([0.3, 0.3], abs=1e-5)
    assert depth.amax(dim=(1, 2, 3)).tolist() == pytest.approx([3.0, 3.0], abs=1e-5)
    assert torch.equal(as_disparity.estimate(rgb, frames()), depth_from_disparity(metres))
    assert relative.recipe.settings == {"output": "relative", "range_m": (0.3, 3.0)}
    assert metric.recipe.settings == {"output": "metric"}


def test_an_output_of_unknown_meaning_must_be_declared(monkeypatch):
    """DPT and others do not say whether they give disparity or metres; guessing wrong turns near into far."""
    silent = SimpleNamespace(config=SimpleNamespace(), device=torch.device("cpu"))
    monkeypatch.setattr(estimators, "_load", lambda *_: (silent, None, Path(__file__)))
    with pytest.raises(ValueError, match=r"--depth_output=relative or metric"):
        DepthEstimator.from_pretrained("Intel/dpt-large")
    assert DepthEstimator.from_pretrained("Intel/dpt-large", output="metric").metric


# -- segmentation
# -----------------------------------------------------------------------------------------------------


def test_classes_are_matched_by_name_whatever_their_order(tmp_path):
    turned = tuple(reversed(COCO_PANOPTIC))
    straight = SegmentationEstimator.from_pretrained(str(write_tiny_segmenter(tmp_path / "a")))
    reverse = SegmentationEstimator.from_pretrained(str(write_tiny_segmenter(tmp_path / "b", names=turned)))
    ids, other = (e.estimate(pictures(), frames()) for e in (straight, reverse))
    assert ids.dtype == torch.int64
    assert ids.shape == (2, 1, 30, 44)
    assert 1 <= ids.min() <= ids.max() <= 133
    assert torch.equal(other, 134 - ids)  # the same networks: only the names differ


def test_nameless_classes_are_taken_in_order_and_foreign_ones_refused(tmp_path):
    nameless = tuple(f"LABEL_{i}" for i in range(133))
    estimator = SegmentationEstimator.from_pretrained(
        str(write_tiny_segmenter(tmp_path / "a", names=nameless))
    )
    assert estimator.table.tolist() == list(range(1, 134))
    with pytest.raises(ValueError, match=r"COCO panoptic.*'robot arm'"):
        SegmentationEstimator.from_pretrained(
            str(write_tiny_segmenter(tmp_path / "b", names=("robot arm", "cup")))
        )


# -- thermal
# ------------------------------------------------------------------------------------------------------------


def test_thermal_noise_belongs_to_the_frame_or_the_episode(tmp_path):
    from tiny_thermalgen import write_tiny_thermalgen

    folder = str(write_tiny_thermalgen(tmp_path / "t"))
    options = {"steps": 2, "size": 32}
    rgb = pictures(1).expand(3, -1, -1, -1)
    which = [(0, 4), (0, 5), (1, 4)]
    modes = (ThermalSettings(noise_mode=mode, **options) for mode in ("frame", "episode"))
    frame_wise, by_episode = (ThermalEstimator.from_pretrained(folder, chosen) for chosen in modes)
    by_frame = frame_wise.estimate(rgb, which)
    made = by_episode.estimate(rgb, which)
    assert made.shape == (3, 1, 30, 44)
    assert 0 <= made.min() <= made.max() <= 1
    assert torch.allclose(made[0], made[1], atol=1e-6)
    assert not torch.allclose(made[0], made[2], atol=1e-3)
    assert not torch.allclose(by_frame[0], by_frame[1], atol=1e-3)
    alone = by_episode.estimate(rgb[:1], [(1, 4)])
    assert torch.allclose(alone[0], made[2], atol=1e-5)
    assert by_episode.recipe.settings["noise_mode"] == "episode"


# -- files
# ------------------------------------------------------------------------------------------------------------


def test_missing_files_name_repository_licence_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)facebook/mask2former.*config.json"):
        SegmentationEstimator.from_pretrained("facebook/mask2former-swin-base-coco-panoptic")
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        DepthEstimator.from_pretrained(str(tmp_path))


def test_damaged_and_foreign_weights_are_refused_with_the_first_bad_key(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_tiny_depth_estimator(tmp_path / "d")
    file = folder / "model.safetensors"
    whole = load_file(file)
    first = sorted(whole)[3]
    save_file({k: v for k, v in whole.items() if k != first}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=first.replace(".", r"\.")):
        DepthEstimator.from_pretrained(str(folder))
    save_file(whole, file, metadata={"format": "pt"})
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        DepthEstimator.from_pretrained(str(folder))
    with pytest.raises(ValueError, match="cannot be read as a network for depth estimation"):
        DepthEstimator.from_pretrained(str(write_tiny_segmenter(tmp_path / "s")))


def test_tables_that_are_not_learned_may_be_in_the_file_and_other_surplus_may_not(tmp_path):
    """Published files were written by older versions of transformers, which stored what is computed."""
    from safetensors.torch import load_file, save_file

    folder = write_tiny_segmenter(tmp_path / "s")
    file = folder / "model.safetensors"
    whole = load_file(file)
    layer = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0"
    tables = {f"{layer}.attn_mask": torch.zeros(4), f"{layer}.old.relative_position_index": torch.zeros(4)}
    before = SegmentationEstimator.from_pretrained(str(folder)).estimate(pictures(), frames())
    loss = {k: v for k, v in whole.items() if not k.endswith("criterion.empty_weight")}
    for content in (whole | tables, loss, loss | {"criterion.empty_weight": torch.zeros(134)}):
        save_file(content, file, metadata={"format": "pt"})
        after = SegmentationEstimator.from_pretrained(str(folder)).estimate(pictures(), frames())
        assert torch.equal(after, before)
    save_file(whole | {"model.head.weight": torch.zeros(4)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.head\.weight"):
        SegmentationEstimator.from_pretrained(str(folder))

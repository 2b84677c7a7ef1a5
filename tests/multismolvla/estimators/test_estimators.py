"""Estimators: units and label sets that the tokenizers expect, from tiny networks in the official layouts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_estimators import write_tiny_depth_estimator, write_tiny_segmenter
from tiny_thermalgen import write_tiny_thermalgen

from multismolvla.estimators import (
    DepthEstimator,
    EstimatorRecipe,
    SegmentationEstimator,
    ThermalEstimator,
    depth_from_disparity,
    load_estimator,
    restore_estimator,
)
from multismolvla.estimators import depth as depth_module
from multismolvla.estimators.interface import estimate_checked
from multismolvla.tokenizers.depth import prepare_depth
from multismolvla.tokenizers.label_sets import COCO_PANOPTIC


def pictures(count: int = 2, height: int = 30, width: int = 44) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


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
    depth, metres = relative.estimate(rgb), metric.estimate(rgb)
    assert depth.shape == metres.shape == (2, 1, 30, 44)
    assert depth.amin(dim=(1, 2, 3)).tolist() == pytest.approx([0.3, 0.3], abs=1e-5)
    assert depth.amax(dim=(1, 2, 3)).tolist() == pytest.approx([3.0, 3.0], abs=1e-5)
    assert torch.equal(as_disparity.estimate(rgb), depth_from_disparity(metres))
    assert relative.recipe.settings == {"output": "relative", "range_m": (0.3, 3.0)}
    assert metric.recipe.settings == {"output": "metric"}


def test_an_output_of_unknown_meaning_must_be_declared(monkeypatch):
    """DPT and others do not say whether they give disparity or metres; guessing wrong turns near into far."""
    silent = SimpleNamespace(config=SimpleNamespace(), device=torch.device("cpu"))
    monkeypatch.setattr(depth_module, "load_network", lambda *_: (silent, None, Path(__file__)))
    with pytest.raises(ValueError, match=r"--depth_output=relative or metric"):
        DepthEstimator.from_pretrained("Intel/dpt-large")
    assert DepthEstimator.from_pretrained("Intel/dpt-large", output="metric").metric


# -- segmentation
# -----------------------------------------------------------------------------------------------------


def test_classes_are_matched_by_name_whatever_their_order(tmp_path):
    turned = tuple(reversed(COCO_PANOPTIC))
    straight = SegmentationEstimator.from_pretrained(str(write_tiny_segmenter(tmp_path / "a")))
    reverse = SegmentationEstimator.from_pretrained(str(write_tiny_segmenter(tmp_path / "b", names=turned)))
    ids, other = (e.estimate(pictures()) for e in (straight, reverse))
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


def test_a_pictures_temperature_depends_on_that_picture_alone(tmp_path):
    folder = str(write_tiny_thermalgen(tmp_path / "t"))
    options = {"steps": 2, "size": 32}
    estimator = ThermalEstimator.from_pretrained(folder, **options)
    rgb = pictures(3)
    rgb[2] = rgb[0]
    made = estimator.estimate(rgb)
    assert made.shape == (3, 1, 30, 44)
    assert 0 <= made.min() <= made.max() <= 1
    assert torch.allclose(made[0], made[2], atol=1e-6)
    assert not torch.allclose(made[0], made[1], atol=1e-3)
    assert torch.allclose(estimator.estimate(rgb[1:2])[0], made[1], atol=1e-5)  # in other company
    other = ThermalEstimator.from_pretrained(folder, seed=1, **options)
    assert not torch.allclose(other.estimate(rgb), made, atol=1e-3)
    assert estimator.recipe.settings["seed"] == 0


def test_tf32_and_autocast_around_the_call_do_not_reach_the_network():
    """LeRobot's programs switch TF32 on, an annotation does not."""
    found = []

    def estimate(rgb):
        precision = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        found.append((*precision, torch.is_autocast_enabled("cpu")))
        return rgb[:, :1]

    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        recipe = EstimatorRecipe("a", None, "b", "float32")
        with torch.autocast("cpu", torch.bfloat16):
            estimate_checked(SimpleNamespace(estimate=estimate, recipe=recipe), pictures(), "depth")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
    assert found == [("highest", False, False)]


# -- recipes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("networks")
    made = {
        "depth": write_tiny_depth_estimator(root / "depth"),
        "seg": write_tiny_segmenter(root / "seg"),
        "thermal": write_tiny_thermalgen(root / "thermal"),
    }
    return {modality: str(folder) for modality, folder in made.items()}


OPTIONS = {"depth": {"range_m": (0.2, 2.0)}, "seg": {}, "thermal": {"steps": 2, "size": 32, "seed": 3}}


def stored(recipe: EstimatorRecipe) -> EstimatorRecipe:
    """As it comes back from a file."""
    return msgspec.json.decode(msgspec.json.encode(recipe), type=EstimatorRecipe)


@pytest.mark.parametrize("modality", ["depth", "seg", "thermal"])
def test_pictures_of_a_network_that_fails_are_no_pictures(modality, folders):
    """Rounded to what data sets store, NaN would be a black picture."""
    estimator = load_estimator(modality, folders[modality], **OPTIONS[modality])
    for parameter in estimator.model.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="gave NaN or infinite"):
        estimator.estimate(pictures())


@pytest.mark.parametrize("modality", ["depth", "seg", "thermal"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_stored_recipe_makes_the_same_pictures_again(modality, dtype, folders):
    first = load_estimator(modality, folders[modality], dtype=dtype, **OPTIONS[modality])
    again = restore_estimator(modality, stored(first.recipe), source=folders[modality])
    assert torch.equal(again.estimate(pictures()), first.estimate(pictures()))
    assert stored(again.recipe) == stored(first.recipe)


def test_other_weights_than_the_recipes_are_refused_by_name(folders, tmp_path):
    recipe = load_estimator("depth", folders["depth"]).recipe
    other = write_tiny_depth_estimator(tmp_path / "other")
    trained_on = {name: w + 0.1 for name, w in load_file(other / "model.safetensors").items()}
    save_file(trained_on, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"depth estimator at .*other.*fingerprint.*'depth'"):
        restore_estimator("depth", recipe, source=str(other))


@pytest.mark.parametrize(
    ("modality", "file", "setting"),
    [
        ("depth", "preprocessor_config.json", "image_mean"),
        ("seg", "preprocessor_config.json", "image_std"),
        ("thermal", "config.json", "thermal_normalizer"),
    ],
)
def test_other_settings_beside_the_same_weights_are_refused_by_name(
    modality, file, setting, folders, tmp_path
):
    recipe = load_estimator(modality, folders[modality], **OPTIONS[modality]).recipe
    edited = shutil.copytree(folders[modality], tmp_path / "edited") / file
    content = json.loads(edited.read_text())
    part = content.get("model_config", content)
    part[setting] = part[setting] * 2 if isinstance(part[setting], float) else [0.1, 0.2, 0.3]
    edited.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{modality} estimator at .*edited.* another {file} than"):
        restore_estimator(modality, stored(recipe), source=str(edited.parent))
    # data annotated before the files were looked at: what is not known cannot be compared
    restore_estimator(modality, stored(replace(recipe, files={})), source=str(edited.parent))


@pytest.mark.parametrize("modality", ["depth", "seg", "thermal"])
def test_exactly_the_revision_of_the_recipe_is_restored(modality, folders, tmp_path, monkeypatch):
    """The hub has moved on since: the same weights, and who knows what settings."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cache = tmp_path / "models--lab--network"
    then, now = "0123abcd" * 5, "4567cdef" * 5
    for commit in (then, now):
        shutil.copytree(folders[modality], cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(then)
    recipe = load_estimator(modality, "lab/network", **OPTIONS[modality]).recipe
    assert (recipe.model, recipe.revision) == ("lab/network", then)
    (cache / "refs" / "main").write_text(now)
    assert restore_estimator(modality, stored(recipe)).recipe == recipe
    with pytest.raises(ValueError, match=rf"is revision {now} of 'lab/network', the recipe's is {then}"):
        restore_estimator(modality, recipe, source=str(cache / "snapshots" / now))
    restore_estimator(modality, recipe, source=folders[modality])  # no revision: its weights say enough
    mirror = tmp_path / "models--another--network"
    shutil.copytree(folders[modality], mirror / "snapshots" / now)
    (mirror / "refs").mkdir()
    (mirror / "refs" / "main").write_text(now)
    restore_estimator(modality, recipe, source="another/network")  # which has other commits
    shutil.rmtree(cache / "snapshots" / then)
    with pytest.raises(FileNotFoundError, match=f"of 'lab/network' at revision '{then}'"):
        restore_estimator(modality, recipe)


def test_what_cannot_be_estimated_or_made_again_is_named(folders):
    with pytest.raises(ValueError, match="'rgb' cannot be estimated.*depth, seg or thermal"):
        load_estimator("rgb", folders["depth"])
    recipe = load_estimator("thermal", folders["thermal"], size=32).recipe
    old = replace(recipe, settings={**recipe.settings, "noise_mode": "episode"})
    with pytest.raises(ValueError, match=r"\['noise_mode'\].*annotate the data set anew"):
        restore_estimator("thermal", old, source=folders["thermal"])
    for modality in ("depth", "seg"):
        recipe = load_estimator(modality, folders[modality]).recipe
        other = replace(recipe, settings={**recipe.settings, "flip": 1})
        with pytest.raises(ValueError, match=rf"{modality} estimator .* has no setting 'flip'.*anew"):
            restore_estimator(modality, other, source=folders[modality])
    recipe = load_estimator("depth", folders["depth"]).recipe
    with pytest.raises(ValueError, match=r"range_m=\(3, 1\); expected .* nearest < farthest"):
        restore_estimator("depth", replace(recipe, settings={"range_m": [3, 1]}), source=folders["depth"])
    with pytest.raises(ValueError, match="dtype 'float8'.*bfloat16"):
        restore_estimator("depth", replace(recipe, dtype="float8"), source=folders["depth"])


# -- files
# ------------------------------------------------------------------------------------------------------------


def test_missing_files_name_repository_licence_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)facebook/mask2former.*config.json"):
        SegmentationEstimator.from_pretrained("facebook/mask2former-swin-base-coco-panoptic")
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        DepthEstimator.from_pretrained(str(tmp_path))


def test_damaged_and_foreign_weights_are_refused_with_the_first_bad_key(tmp_path):
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
    folder = write_tiny_segmenter(tmp_path / "s")
    file = folder / "model.safetensors"
    whole = load_file(file)
    layer = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0"
    tables = {f"{layer}.attn_mask": torch.zeros(4), f"{layer}.old.relative_position_index": torch.zeros(4)}
    before = SegmentationEstimator.from_pretrained(str(folder)).estimate(pictures())
    loss = {k: v for k, v in whole.items() if not k.endswith("criterion.empty_weight")}
    for content in (whole | tables, loss, loss | {"criterion.empty_weight": torch.zeros(134)}):
        save_file(content, file, metadata={"format": "pt"})
        after = SegmentationEstimator.from_pretrained(str(folder)).estimate(pictures())
        assert torch.equal(after, before)
    save_file(whole | {"model.head.weight": torch.zeros(4)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.head\.weight"):
        SegmentationEstimator.from_pretrained(str(folder))

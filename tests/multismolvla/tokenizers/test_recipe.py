"""The recipe of token ids: what is written beside them, and which differences are told."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from multismolvla.fourm import MODALITY_INFO
from multismolvla.tokenizers.recipe import (
    OfficialOptions,
    file_fingerprint,
    fingerprints_of,
    id_feature,
    parts_of,
    recipe_difference,
    split_domains,
    token_recipe,
)

DENSE_AND_GLOBAL = "tok_imagebind@224+tok_imagebind_global"


def recipe(modality: str = "depth", fingerprints: dict[str, str] | None = None, **options: Any) -> dict:
    settings: dict[str, Any] = {
        "tokenizers": "official", "tokenizer_sources": {}, "thermal_route": "vision", "imagebind": "a/b",
        "imagebind_rows": "trunk", "bridge_map": None, "seg_labels": "coco_panoptic", "seg_unknown": "error",
        "domains": {"depth": "tok_depth@224", "seg": "tok_semseg@224", "thermal": DENSE_AND_GLOBAL},
        "image_size": 224, "square": "crop", "half_turns": {}, "depth_range_m": (0.011, 10),
        "num_labels": 134,
    }  # fmt: skip
    settings |= options
    known = {"depth": "ab"} if fingerprints is None else fingerprints
    num_labels = settings.pop("num_labels")
    return token_recipe(
        SimpleNamespace(**settings), "top", modality, num_labels=num_labels, fingerprints=known
    )


def test_the_weight_free_recipe_is_what_existing_datasets_hold() -> None:
    made = recipe(tokenizers="patch", num_labels=8, image_size=64)
    assert made == {
        "tokenizers": "patch", "image_size": 64, "square": "crop", "num_labels": 8, "half_turns": 0,
        "depth_range_m": [0.011, 10.0],
    }  # fmt: skip


def test_each_modality_names_what_decides_its_ids_alone() -> None:
    assert "depth_range_m" in recipe("depth")
    assert "num_labels" not in recipe("depth")
    assert recipe("seg")["seg_labels"] == "coco_panoptic"
    thermal = recipe("thermal")
    assert (thermal["thermal_route"], thermal["imagebind_rows"]) == ("vision", "trunk")
    assert thermal["domain"] == DENSE_AND_GLOBAL
    feature = id_feature(thermal, 272)
    assert (feature["dtype"], feature["shape"]) == ("int16", (272,))
    assert json.loads(json.dumps(feature["info"])) == thermal


def test_soft_rows_have_no_ids() -> None:
    with pytest.raises(ValueError, match="nothing to cache"):
        recipe("thermal", thermal_route="soft")


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ({"image_size": 448}, "image_size"),
        ({"half_turns": {"top": 1}}, "half_turns"),
        ({"domains": {"depth": "tok_depth@448"}}, "domain"),
        ({"fingerprints": {"depth": "cd"}}, "weights of depth"),
    ],
)
def test_a_difference_is_named(option: dict[str, Any], name: str) -> None:
    different = recipe_difference(recipe(), recipe(**option))
    assert different is not None
    assert different[0] == name


def test_unknown_weights_are_not_compared_but_missing_ones_are_told() -> None:
    assert recipe_difference(recipe(), recipe(fingerprints={})) is None
    assert recipe_difference(recipe(fingerprints={}), recipe()) == ("weights of depth", None, "ab")


def test_what_unknown_labels_mean_is_in_the_recipe_of_segmentation_alone() -> None:
    void, strict = recipe("seg", seg_unknown="void"), recipe("seg")
    assert recipe_difference(strict, void) == ("seg_unknown", "error", "void")
    assert recipe_difference(void, void) is None
    assert recipe("depth", seg_unknown="void") == recipe("depth")


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="seg_unknown='skip'.*'error', 'void'"):
        OfficialOptions(seg_unknown="skip")
    with pytest.raises(ValueError, match="thermal_route='warm'.*'vision', 'bridge', 'soft'"):
        OfficialOptions(thermal_route="warm")
    with pytest.raises(ValueError, match="imagebind_rows='raw'"):
        OfficialOptions(imagebind_rows="raw")
    with pytest.raises(ValueError, match="tokenizer_sources names 'lidar'"):
        OfficialOptions(tokenizer_sources={"lidar": "x"})
    with pytest.raises(ValueError, match="joined by"):
        split_domains("a+a")


def test_the_parts_of_a_route() -> None:
    vision, bridge, soft = (OfficialOptions(thermal_route=r) for r in ("vision", "bridge", "soft"))
    dense, global_ = MODALITY_INFO["tok_imagebind@224"], MODALITY_INFO["tok_imagebind_global"]
    assert parts_of("depth", [MODALITY_INFO["tok_depth@224"]], vision) == ("depth",)
    assert parts_of("thermal", [dense, global_], vision) == ("network", "imagebind", "imagebind_global")
    assert parts_of("thermal", [global_], bridge) == ("network", "imagebind_global")
    assert parts_of("thermal", [dense], soft) == ("network",)


@pytest.mark.parametrize("size", [0, 10, 65_536, 3_000_000])
def test_a_fingerprint_tells_other_weights_and_other_lengths(tmp_path, size: int) -> None:
    content = bytes(i * 7 % 251 for i in range(size))
    one, two, longer = (tmp_path / n for n in ("one", "two", "longer"))
    one.write_bytes(content)
    two.write_bytes(content[:-1] + b"\xff" if size else b"")
    longer.write_bytes(content + b"\0")
    assert file_fingerprint(one) == file_fingerprint(one)
    assert size == 0 or file_fingerprint(one) != file_fingerprint(two)
    assert file_fingerprint(one) != file_fingerprint(longer)
    assert fingerprints_of(["network"], OfficialOptions(imagebind=str(one))) == {
        "network": file_fingerprint(one)
    }

"""The recipe of token ids: what is written beside them, and which differences are told."""

from __future__ import annotations

import json
from typing import Any

import pytest

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


def recipe(modality: str = "depth", **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "family": "official", "domain": "tok_depth@224", "image_size": 224, "square": "crop", "half_turns": 0,
        "depth_range_m": (0.011, 10), "num_labels": 134, "official": OfficialOptions(), "fingerprints": {"depth": "ab"},
    }  # fmt: skip
    return token_recipe(modality, **(settings | options))


def test_the_weight_free_recipe_is_what_existing_datasets_hold() -> None:
    made = recipe(family="patch", num_labels=8, image_size=64)
    assert made == {
        "tokenizers": "patch", "image_size": 64, "square": "crop", "num_labels": 8, "half_turns": 0,
        "depth_range_m": [0.011, 10.0],
    }  # fmt: skip


def test_each_modality_names_what_decides_its_ids_alone() -> None:
    assert "depth_range_m" in recipe("depth")
    assert "num_labels" not in recipe("depth")
    assert recipe("seg", domain="tok_semseg@224")["seg_labels"] == "coco_panoptic"
    thermal = recipe("thermal", domain=DENSE_AND_GLOBAL)
    assert (thermal["thermal_route"], thermal["imagebind_rows"]) == ("vision", "trunk")
    assert thermal["domain"] == DENSE_AND_GLOBAL
    feature = id_feature(thermal, 272)
    assert (feature["dtype"], feature["shape"]) == ("int16", (272,))
    assert json.loads(json.dumps(feature["info"])) == thermal


def test_soft_rows_have_no_ids() -> None:
    with pytest.raises(ValueError, match="nothing to cache"):
        recipe("thermal", official=OfficialOptions(thermal_route="soft"))


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ({"image_size": 448}, "image_size"),
        ({"half_turns": 1}, "half_turns"),
        ({"domain": "tok_depth@448"}, "domain"),
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


def test_void_for_unknown_labels_is_in_the_recipe_and_the_default_is_not() -> None:
    void = recipe("seg", official=OfficialOptions(seg_unknown="void"))
    strict = recipe("seg")
    assert "seg_unknown" not in strict  # as recipes were written before there was a choice
    assert void == strict | {"seg_unknown": "void"}
    assert recipe_difference(strict, void) == ("seg_unknown", "error", "void")
    assert recipe_difference(void, strict) == ("seg_unknown", "void", "error")
    assert recipe_difference(void, void) is None
    assert recipe("depth", official=OfficialOptions(seg_unknown="void")) == recipe("depth")


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match="seg_unknown='skip'.*'error', 'void'"):
        OfficialOptions(seg_unknown="skip")
    with pytest.raises(ValueError, match="thermal_route='warm'.*'vision', 'bridge', 'soft'"):
        OfficialOptions(thermal_route="warm")
    with pytest.raises(ValueError, match="imagebind_rows='raw'"):
        OfficialOptions(imagebind_rows="raw")
    with pytest.raises(ValueError, match="tokenizer_sources names 'lidar'"):
        OfficialOptions(sources={"lidar": "x"})
    with pytest.raises(ValueError, match="joined by"):
        split_domains("a+a")


def test_the_parts_of_a_route() -> None:
    vision, bridge, soft = (OfficialOptions(thermal_route=r) for r in ("vision", "bridge", "soft"))
    assert parts_of("depth", 1, 0, vision) == ("depth",)
    assert parts_of("thermal", 1, 1, vision) == ("network", "imagebind", "imagebind_global")
    assert parts_of("thermal", 0, 1, bridge) == ("network", "imagebind_global")
    assert parts_of("thermal", 1, 0, soft) == ("network",)


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

"""ProvenanceMap: the dataset's word is adopted, told and kept, a contradiction is refused, and views may
differ.
"""

from __future__ import annotations

import json
import logging

import pytest
from lerobot.configs.policies import PreTrainedConfig

from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from multismolvla.modalities import MODALITIES, default_view_map, token_key
from multismolvla.provenance import ProvenanceMap

VIEWS = default_view_map()
SENSORS = dict.fromkeys(MODALITIES, "sensor")


def said(**provenance: str) -> dict[str, dict]:
    """Features of a dataset; ``image_depth="derived"`` speaks of one picture, ``tokens_image_depth`` of its
    ids.
    """
    features: dict[str, dict] = {streams["rgb"]: {} for streams in VIEWS.values()}
    for name, kind in provenance.items():
        ids = name.startswith("tokens_")
        view, modality = name.removeprefix("tokens_").split("_")
        features[token_key(view, modality) if ids else VIEWS[view][modality]] = {"info": {"provenance": kind}}
    return features


def annotated(kind: str = "") -> dict[str, dict]:
    """Everything but RGB was estimated, in both views."""
    derived = {f"{kind}{v}_{m}": "derived" for v in VIEWS for m in MODALITIES if m != "rgb"}
    return said(image_rgb="sensor", image2_rgb="sensor", **derived)


def config(**options) -> MultiSmolVLAConfig:
    return MultiSmolVLAConfig(device="cpu", **options)


def adopt(cfg: MultiSmolVLAConfig, features: dict[str, dict]) -> MultiSmolVLAConfig:
    cfg.set_dataset_feature_metadata(features)
    return cfg


@pytest.mark.parametrize("kind", ["", "tokens_"])
def test_what_the_dataset_derived_is_derived_for_the_policy_and_stays_so(kind, caplog, tmp_path):
    features = annotated(kind)
    adopted = {"rgb": "sensor", "depth": "derived", "seg": "derived", "thermal": "derived"}
    with caplog.at_level(logging.INFO):
        provenance = ProvenanceMap.parse({}, VIEWS).adopt(features)
    assert provenance.option() == adopted
    (line,) = [r.message for r in caplog.records]
    assert line == "Provenance as the dataset says: rgb sensor, depth derived, seg derived, thermal derived."
    if kind:
        return  # ids alone would also need a recipe
    cfg = adopt(config(), features)
    cfg.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["provenance"] == adopted
    again = PreTrainedConfig.from_pretrained(tmp_path)
    assert again.is_derived("image2", "seg")
    assert adopt(again, features).provenance == adopted  # the next stage, on the same data


def test_a_dataset_that_says_nothing_or_sensor_leaves_what_old_checkpoints_say(tmp_path):
    assert adopt(config(), said()).provenance == SENSORS
    assert adopt(config(), said(image_rgb="sensor", image_depth="sensor")).provenance == SENSORS
    old = config(provenance=dict(SENSORS))
    old.save_pretrained(tmp_path)
    assert adopt(PreTrainedConfig.from_pretrained(tmp_path), said(image_depth="sensor")).provenance == SENSORS
    given = adopt(config(provenance={"depth": "derived"}), said())
    assert given.provenance == SENSORS | {"depth": "derived"}


def test_views_may_differ_and_nothing_more_than_the_difference_is_written(tmp_path):
    cfg = adopt(
        config(),
        said(image_depth="sensor", image2_depth="derived", image_seg="derived", image2_seg="derived"),
    )
    expected = {"rgb": "sensor", "seg": "derived", "thermal": "sensor"}
    assert cfg.provenance == expected | {"image": {"depth": "sensor"}, "image2": {"depth": "derived"}}
    assert (cfg.is_derived("image", "depth"), cfg.is_derived("image2", "depth")) == (False, True)
    assert cfg.provenance_map.table() == expected | {
        "image.depth": "sensor",
        "image2.depth": "derived",
    }
    cfg.save_pretrained(tmp_path)
    assert PreTrainedConfig.from_pretrained(tmp_path).provenance == cfg.provenance


@pytest.mark.parametrize(
    ("given", "features", "message"),
    [
        (
            {"depth": "sensor"}, said(image2_depth="derived"),
            r'image2.depth is derived \(policy: sensor\).*\'{"image2": {"depth": "derived"}}\'',
        ),
        ({"depth": "derived"}, said(image_depth="sensor"), r"image.depth is sensor \(policy: derived\)"),
        (SENSORS, annotated(), r"image.depth is derived .*image2.thermal is derived"),
    ],
)  # fmt: skip
def test_a_contradiction_names_both_sides_and_the_remedy(given, features, message):
    with pytest.raises(ValueError, match=message) as caught:
        adopt(config(provenance=dict(given)), features)
    remedy = json.loads(str(caught.value).rsplit("--policy.provenance='", 1)[1].removesuffix("'."))
    assert adopt(config(provenance=given | remedy), features)


def test_pictures_and_ids_that_disagree_count_as_derived():
    for picture, ids in (("sensor", "derived"), ("derived", "sensor")):
        features = said(image_depth=picture, tokens_image_depth=ids)
        assert ProvenanceMap.parse({}, VIEWS).adopt(features).is_derived("image", "depth")


def test_an_unknown_origin_in_the_dataset_is_named():
    with pytest.raises(
        ValueError,
        match="image_depth.*'guess'.*'sensor', 'derived'.*info.json",
    ):
        adopt(config(), said(image_depth="guess"))


def test_a_derived_stream_without_its_rgb_is_refused_instead_of_never_being_there():
    views = {"image": {"depth": VIEWS["image"]["depth"]}, "image2": VIEWS["image2"]}
    with pytest.raises(ValueError, match="image.depth.*'image'"):
        adopt(config(views=views), said(image_depth="derived"))

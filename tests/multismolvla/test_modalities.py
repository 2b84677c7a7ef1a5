"""The registry: names, order, keys, and the errors of a wrong view map."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multismolvla.modalities import (
    MODALITIES,
    PICTURE_CHANNELS,
    default_view_map,
    modality_of_key,
    padding_mask_key,
    picture_key,
    stream_name,
    valid_key,
    validate_view_map,
    view_map_difference,
)


def test_order_and_keys_are_the_project_wide_ones():
    assert MODALITIES == ("rgb", "depth", "seg", "thermal")
    assert tuple(PICTURE_CHANNELS) == MODALITIES
    assert default_view_map() == {
        "image": {
            "rgb": "observation.images.image",
            "depth": "observation.images.image_depth",
            "seg": "observation.images.image_seg",
            "thermal": "observation.images.image_thermal",
        },
        "image2": {
            "rgb": "observation.images.image2",
            "depth": "observation.images.image2_depth",
            "seg": "observation.images.image2_seg",
            "thermal": "observation.images.image2_thermal",
        },
    }
    assert padding_mask_key("observation.images.image") == "observation.images.image_padding_mask"
    assert valid_key("observation.images.image_depth") == "observation.images.image_depth_valid"


def test_the_streams_in_which_two_view_maps_differ_are_named():
    views = {"front": {"rgb": "a", "depth": "b"}, "wrist": {"rgb": "c"}}
    assert view_map_difference(views, {"wrist": {"rgb": "c"}, "front": {"depth": "b", "rgb": "a"}}) == ""
    other = {"front": {"rgb": "x", "depth": "b"}, "top": {"seg": "d"}}
    expected = (
        "front.rgb is x instead of a, wrist.rgb is not there instead of c, top.seg is d instead of not there"
    )
    assert view_map_difference(other, views) == expected


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_ending_of_a_key_names_its_modality(modality):
    assert modality_of_key(picture_key("wrist", modality)) == modality
    assert picture_key("wrist", modality) == f"observation.images.{stream_name('wrist', modality)}"


@given(
    cameras=st.lists(
        st.sampled_from(["front", "wrist", "image", "image2"]), min_size=1, max_size=3, unique=True
    ),
    modalities=st.lists(st.sampled_from(MODALITIES), min_size=1, unique=True),
)
def test_every_default_map_is_valid(cameras, modalities):
    views = default_view_map(tuple(cameras), tuple(modalities))
    validate_view_map(views)
    assert list(views) == cameras
    assert all(list(streams) == modalities for streams in views.values())


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({}, "view map is empty.*--policy.views"),
        ({"front": {}}, "'front' has no streams"),
        ({"front": {"lidar": "observation.lidar"}}, "'front' names the unknown modality 'lidar'.*'rgb'"),
        ({"front": {"rgb": "images.front"}}, "'images.front' must start with 'observation.'"),
        (
            {"front": {"rgb": "observation.a"}, "wrist": {"depth": "observation.a"}},
            "'observation.a' is used twice.*front.rgb and wrist.depth",
        ),
    ],
)
def test_a_wrong_view_map_is_named(views, message):
    with pytest.raises(ValueError, match=message):
        validate_view_map(views)

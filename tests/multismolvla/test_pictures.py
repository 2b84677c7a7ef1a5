"""Colours and contact sheets: units do not change a picture, and every tile stands in its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from multismolvla.modalities import default_view_map, padding_mask_key
from multismolvla.pictures import (
    ABSENT_GREY,
    GAP,
    SheetRow,
    Tile,
    colourise,
    contact_sheet,
    draw_encoder_inputs,
    streams,
)

RED, GREEN = (np.full((4, 8, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0)))


@pytest.mark.parametrize("modality", ["rgb", "seg", "thermal"])
def test_bytes_and_shares_of_255_look_alike(modality):
    stored = np.random.default_rng(0).integers(0, 256, (3, 5, 7)).astype(np.uint8)
    drawn = colourise(modality, stored)
    assert drawn.shape == (5, 7, 3)
    assert drawn.dtype == np.uint8
    assert (drawn == colourise(modality, (stored / 255).astype(np.float32))).all()


def test_invalid_depth_is_black_and_near_differs_from_far():
    metres = np.array([[[0.0, 0.5, 1.5, 0.9]]], np.float32)
    valid = np.array([[[True, True, True, False]]])
    for span in (None, (0.2, 1.6)):
        drawn = colourise("depth", metres, valid, span)[0]
        assert not drawn[[0, 3]].any()
        assert drawn[1:3].any(axis=1).all()
        assert (drawn[1] != drawn[2]).any()
    assert not colourise("depth", np.zeros((1, 2, 2), np.float32), None, None).any()


def test_no_class_looks_like_the_background():
    colours = colourise("seg", np.arange(256)[None, None])[0]
    assert not (colours[1:] == colours[0]).all(axis=1).any()
    assert len(np.unique(colours[:8], axis=0)) == 8


def test_a_label_above_a_single_picture_is_not_cut_off():
    long = contact_sheet([SheetRow("put the cube in the basket: image3", [Tile(RED)])], side=16)
    short = contact_sheet([SheetRow("put", [Tile(RED)])], side=16)
    ink = np.flatnonzero((np.asarray(long)[:13] < 255).any((0, 2)))
    assert long.width > short.width
    assert ink.max() < long.width - GAP


@pytest.mark.parametrize("label_width", [0, 50])
def test_every_tile_stands_in_its_row_and_column(label_width):
    rows = [
        SheetRow("first", [Tile(RED, "two\nlines"), None, Tile(GREEN)]),
        SheetRow("", [Tile(GREEN), Tile(None, "gone")]),
    ]
    sheet = np.asarray(contact_sheet(rows, side=16, label_width=label_width, font_size=10))
    assert sheet.shape[1] == label_width + 3 * (16 + GAP)
    above = 0 if label_width else 13
    top = (
        above + 2 * 13
    )  # a row's pictures begin below its longest label; 8 pixels high, as the picture is wide
    assert (sheet[top : top + 8, label_width : label_width + 16] == RED[0, 0]).all()
    assert (sheet[top : top + 8, label_width + 2 * (16 + GAP) :][:, :16] == GREEN[0, 0]).all()
    assert (sheet[top : top + 8, label_width + 16 + GAP :][:, :16] == 255).all()
    top += 8 + GAP + 13
    assert (sheet[top : top + 8, label_width : label_width + 16] == GREEN[0, 0]).all()
    assert (sheet[top, label_width + 16 + GAP] == ABSENT_GREY).all()


def test_streams_of_a_batch_tell_absent_from_undeclared(tmp_path):
    keys = default_view_map()["image"]
    batch = {keys["rgb"]: torch.rand(2, 3, 8, 8), keys["depth"]: torch.rand(2, 1, 8, 8)}
    batch[padding_mask_key(keys["depth"])] = torch.tensor([False, True])
    found = streams(batch, ["image", "image2"])
    assert list(found) == [("image", "rgb"), ("image", "depth")]
    assert found["image", "depth"] is None
    tokens = {("image", "depth"): np.arange(4).reshape(2, 2)}
    draw_encoder_inputs(tmp_path / "inputs.png", batch, ["image"], tokens)
    assert Image.open(tmp_path / "inputs.png").size == (2 * (256 + GAP), 2 * (256 + GAP + 14))

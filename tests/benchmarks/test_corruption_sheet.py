"""The pictures of all corruptions: complete, labelled, and made of what an evaluation would show."""

from __future__ import annotations

import corruption_sheet
import numpy as np
import pytest
from corruption_sheet import SHOWN, STEPS, SheetConfig, draw, modality_rows, time_rows
from PIL import Image

from multismolvla.corruption import IMAGENET_C_TYPES, SOFT_TYPES
from multismolvla.modalities import MODALITIES

SIZE, THUMBNAIL = 48, 24


def frame(step: int = 0) -> dict:
    """A picture per camera and modality with the environment's dtypes."""
    rng = np.random.default_rng(step)
    ids = np.repeat(np.repeat(rng.integers(0, 6, (6, 6)), 8, 0), 8, 1).astype(np.uint8)
    grey = np.repeat(rng.integers(0, 255, (SIZE, SIZE, 1)), 3, 2).astype(np.uint8)
    pictures = {
        "rgb": rng.integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8),
        "depth": rng.uniform(0.4, 1.5, (SIZE, SIZE, 1)).astype(np.float32),
        "seg": np.stack([ids, ids, ids * 0], -1),
        "thermal": grey,
    }
    return {(camera, m): picture for camera in ("image", "image2") for m, picture in pictures.items()}


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_type_at_every_severity_has_its_picture(modality):
    rows = modality_rows(frame(), modality, labels=6)
    labels = [r.label.split("\n")[0].replace(" ", "_") for r in rows]
    assert labels[: len(SOFT_TYPES[modality])] == list(SOFT_TYPES[modality])
    for row in rows[: len(SOFT_TYPES[modality])]:
        assert [t.label.split()[-1] for t in row.tiles] == ["clean", "1", "2", "3", "4", "5"]
    tiles = [tile for row in rows for tile in row.tiles]
    assert all(t.picture.shape == (SIZE, SIZE, 3) and t.picture.dtype == np.uint8 for t in tiles)
    words = {t.label for t in tiles}
    assert {"zero", "rotated", "swapped"} <= words
    assert ("shift 16" in words) == (modality != "rgb")
    assert ("scale 1.2" in words) == (modality == "depth")
    seen = [r.label for r in rows if "seen in training" in r.label]
    assert seen
    assert not any("fog" in label or label == "noise" for label in seen)


def test_faults_in_time_show_the_frames_that_they_name():
    frames = [frame(step)["image", "rgb"] for step in range(STEPS)]
    rows = time_rows(frames)
    assert [r.label for r in rows][:2] == ["clean", "frozen"]
    assert len(rows) == 10
    for tile in (tile for row in rows[1:] for tile in row.tiles):
        if tile.label == "black":
            assert not tile.picture.any()
        elif tile.picture is not None:
            assert (tile.picture == frames[int(tile.label.removeprefix("of "))]).all()
    absent = {r.label: sum(t.picture is None for t in r.tiles) for r in rows}
    assert [label for label, count in absent.items() if count] == ["burst"]
    assert len(rows[0].tiles) == len(SHOWN)


@pytest.mark.sim
def test_sheets_are_written_whole(tmp_path):
    paths = draw(SheetConfig(output=tmp_path / "docs", size=SIZE, thumbnail=THUMBNAIL))
    assert {p.name for p in paths} == {
        f"corruptions_{n}.png" for n in ("rgb", "rgb_more", "depth", "seg", "thermal", "time", "camera")
    }
    assert sorted(p.name for p in (tmp_path / "docs").iterdir()) == sorted(p.name for p in paths)
    widths = {p.name: Image.open(p).size for p in paths}
    assert all(w > 150 and h > 100 for w, h in widths.values())
    assert len(IMAGENET_C_TYPES) == 19


def test_sizes_without_meaning_are_refused(capsys):
    assert corruption_sheet.main(["--thumbnail=300"]) == 1
    assert "thumbnail=300" in capsys.readouterr().err

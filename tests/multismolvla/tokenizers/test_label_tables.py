"""Label tables: every source label is decided, ids are right, nothing is invented."""

from __future__ import annotations

import ast
import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multismolvla.geometry import resize_ids
from multismolvla.modalities import MINI_LABELS
from multismolvla.tokenizers import label_sets
from multismolvla.tokenizers.label_sets import (
    ADE20K,
    COCO_CATEGORIES,
    COCO_PANOPTIC,
    COCO_THINGS,
    LIBERO,
    LIBERO_90,
    MINI,
    read_label_set,
)
from multismolvla.tokenizers.labels import LABEL_TABLES, LabelTable, coco_id


def test_coco_order() -> None:
    assert (len(COCO_THINGS), len(COCO_PANOPTIC), len(set(COCO_PANOPTIC))) == (80, 133, 133)
    at = {0: "person", 39: "bottle", 45: "bowl", 60: "dining table", 79: "toothbrush", 80: "banner"}
    at |= {
        90: "gravel",
        100: "road",
        110: "wall-stone",
        120: "cabinet-merged",
        130: "rock-merged",
        132: "rug-merged",
    }
    assert {i: COCO_PANOPTIC[i] for i in at} == at
    assert (coco_id(None), coco_id("person"), coco_id("rug-merged")) == (0, 1, 133)


def test_coco_category_ids() -> None:
    ids = COCO_CATEGORIES
    assert len(set(ids.values())) == 133
    assert list(ids.values()) == sorted(ids.values())
    known = {
        "person": 1,
        "stop sign": 13,
        "bowl": 51,
        "dining table": 67,
        "tv": 72,
        "toothbrush": 90,
        "banner": 92,
    }
    known |= {
        "door-stuff": 112,
        "floor-wood": 118,
        "light": 130,
        "platform": 144,
        "wall-tile": 176,
        "window-other": 181,
    }
    known |= {"tree-merged": 184, "table-merged": 189, "rug-merged": 200}
    assert {name: ids[name] for name in known} == known


@pytest.mark.parametrize(
    ("table", "pairs"),
    [
        ("coco_panoptic", {0: 0, 1: 1, 46: 46, 133: 133}),
        ("coco_contiguous", {0: 1, 45: 46, 132: 133, 255: 0}),
        ("coco_category", {0: 0, 1: 1, 51: 46, 90: 80, 92: 81, 200: 133}),
        ("coco_instance", {0: 0, 1: 1, 51: 46, 90: 80}),
        ("ade20k", {0: coco_id("wall-other-merged"), 12: 1, 149: 0, 255: 0, 19: coco_id("chair")}),
        ("mini", {0: 0, 1: 0, 4: coco_id("bottle"), 6: coco_id("bowl")}),
        ("libero", {0: 0, 5: coco_id("bowl"), 9: coco_id("book"), 32: coco_id("cabinet-merged")}),
    ],
)
def test_tables_by_id(table: str, pairs: dict[int, int]) -> None:
    mapped = LabelTable.from_name(table).map_ids(torch.tensor(list(pairs)))
    assert mapped.tolist() == list(pairs.values())
    assert mapped.dtype == torch.int64


@pytest.mark.parametrize("table", LABEL_TABLES)
def test_every_table_stays_inside_the_label_set(table: str) -> None:
    labels = LabelTable.from_name(table, unknown="void")
    mapped = labels.map_ids(torch.arange(-3, 300))
    assert 0 <= mapped.min() <= mapped.max() <= 133
    assert not mapped[:3].any()


def test_mask2former_order_of_transformers() -> None:
    """The published id2label is not at hand; its order is detectron2's, pinned by corner names."""
    table = LabelTable.from_name("coco_contiguous")
    assert table.map_ids(torch.arange(133)).tolist() == list(range(1, 134))
    assert [table.map_name(n) for n in ("person", "toothbrush", "banner")] == [1, 80, 81]


def test_mini_and_ade20k_are_complete() -> None:
    assert MINI.ids == tuple(MINI.classes) == MINI_LABELS
    assert len(ADE20K.ids) == len(ADE20K.classes) == 150
    at = {
        0: "wall",
        10: "cabinet",
        15: "table",
        33: "desk",
        67: "book",
        98: "bottle",
        124: "microwave",
        149: "flag",
    }
    assert {i: ADE20K.ids[i] for i in at} == at


def test_every_libero_category_is_decided() -> None:
    """Read from the installed simulator's sources: importing it would start it up."""
    spec = find_spec("libero")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("hf-libero is not installed")
    root = Path(next(iter(spec.submodule_search_locations))) / "libero"
    registered = set()
    for path in (root / "envs" / "objects").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(
                isinstance(d, ast.Name) and d.id == "register_object" for d in node.decorator_list
            ):
                registered.add("_".join(re.sub(r"([A-Z0-9])", r" \1", node.name).split()).lower())
    assert {"akita_black_bowl", "chefmate_8_frypan", "target_zone", "yellow_book"} <= registered
    assert registered <= set(LIBERO.classes), sorted(registered - set(LIBERO.classes))
    named = set()
    for path in (root / "bddl_files").rglob("*.bddl"):
        for section in re.findall(r"\(:(?:fixtures|objects)(.*?)\)", path.read_text(), re.DOTALL):
            named |= set(re.findall(r"-\s+(\w+)", section))
    assert {"kitchen_table", "floor", "moka_pot"} <= named
    assert named <= set(LIBERO.classes), sorted(named - set(LIBERO.classes))


def test_libero_90_continues_the_four_suites() -> None:
    assert LIBERO_90.ids[: len(LIBERO.ids)] == LIBERO.ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"classes": {"mug": "cups"}}, r"mine\.json: 'cups' is no COCO panoptic class"),
        ({"classes": {"mug": "cup"}, "ids": ["mugs"]}, r"mine\.json: ids \['mugs'\]"),
        ({"classes": {"mug": "cup"}, "ids": ["mug", "mug"]}, r"ids \['mug', 'mug'\]"),
    ],
)
def test_a_bad_label_set_is_named(tmp_path: Path, content: dict, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_label_set(path)


def test_every_label_set_says_where_it_comes_from() -> None:
    files = list(Path(label_sets.__file__).with_name("label_sets").glob("*.json"))
    assert len(files) == 4
    for file in files:
        content = json.loads(file.read_text())
        assert content["source"]
        assert content["licence"]
        assert set(content.get("reasons", {})) <= set(content.get("classes", {}))


def test_other_order_of_known_names() -> None:
    labels = ("floor", "plate", "robot")
    table = LabelTable(LIBERO.classes, labels=labels, source="label table 'libero'")
    expected = [coco_id("floor-other-merged"), coco_id("bowl"), 0]
    assert table.map_ids(torch.tensor([0, 1, 2])).tolist() == expected
    with pytest.raises(ValueError, match=r"'libero'.*\[3, 7\] in 3 pixels.*0-2"):
        table.map_ids(torch.tensor([3, 7, 7, 0]))


def test_names_and_ids_side_by_side() -> None:
    table = LabelTable({"mug": "cup", 7: "bowl", "arm": None}, labels=("arm", "mug"))
    assert table.map_ids(torch.tensor([[0, 1], [7, 1]])).tolist() == [[0, 42], [46, 42]]
    assert table.num_source_ids == 8
    assert table.map_ids(torch.tensor([1], dtype=torch.uint8)).tolist() == [42]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelTable.from_name("libro"), r"no label table 'libro'\. Did you mean 'libero'"),
        (
            lambda: LabelTable({"mug": "cups"}),
            r"'mug': 'cups' is no COCO panoptic class\. Did you mean 'cup'",
        ),
        (lambda: LabelTable({"mug": 3}), "'mug': 3 is no COCO panoptic class"),
        (lambda: LabelTable({-1: "cup"}), r"key -1 is neither a name nor an id"),
        (lambda: LabelTable({True: "cup"}), "key True is neither"),
        (lambda: LabelTable({}), "no labels in it"),
        (lambda: LabelTable({"mug": "cup"}, unknown="ignore"), "unknown='ignore'"),
        (
            lambda: LabelTable({"mug": "cup"}, labels=("mugs",)),
            r"unknown label 'mugs'\. Did you mean 'mug'\? Known: \['mug'\].*unknown='void'",
        ),
        (lambda: LabelTable.from_name("libero").map_name("akita_bowl"), "Did you mean 'akita_black_bowl'"),
        (lambda: LabelTable({"mug": "cup"}).map_ids(torch.tensor([0])), "it maps names; give `labels`"),
        (lambda: LabelTable.from_name("mini").map_ids(torch.rand(3)), r"ids are torch\.float32"),
        (
            lambda: LabelTable.from_name("mini").map_ids(torch.tensor([8])),
            r"unknown label ids \[8\] in 1 pixels",
        ),
        (lambda: LabelTable.from_name("mini").map_ids(torch.tensor([-1])), r"unknown label ids \[-1\]"),
        (
            lambda: LabelTable.from_name("coco_instance").map_ids(torch.tensor([12])),
            r"\[12\].*0-11, 13-25, 27-28",
        ),
    ],
)
def test_what_is_unknown_is_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_as_none_is_an_explicit_choice() -> None:
    table = LabelTable({"mug": "cup"}, labels=("mug", "thing"), unknown="void")
    assert table.map_ids(torch.tensor([0, 1, 2, 999, -4])).tolist() == [42, 0, 0, 0, 0]
    assert table.map_name("whatever") == 0


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_table_from_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps({"red mug": "cup", "12": "bottle", "0": None}))
    else:
        path.write_text("red mug: cup\n12: bottle  # the can\n0: null\n")
    table = LabelTable.load(path)
    assert table.map_ids(torch.tensor([0, 12])).tolist() == [0, 40]
    assert table.map_name("red mug") == 42
    assert LabelTable.load("mini").map_ids(torch.tensor([0])).tolist() == [0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "mug: cupp\n", r"a\.yaml: 'mug': 'cupp' is no COCO panoptic class\. Did you mean 'cup'"),
        ("a.yaml", "- cup\n", "holds a list"),
        ("a.yaml", "a: [b\n", "cannot be read"),
        ("a.json", "{", "cannot be read"),
        ("a.yaml", "yes: cup\n", "key True is neither a name"),
        ("a.yaml", "", "holds a NoneType"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        LabelTable.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="No label table at"):
        LabelTable.load(tmp_path / "missing.yaml")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(LABEL_TABLES)), st.data())
def test_a_map_of_one_label_stays_a_map_of_one_label(name: str, data) -> None:
    table = LabelTable.from_name(name)
    source = data.draw(st.sampled_from([i for i in range(table.num_source_ids) if i in table._ids]))
    side, size = data.draw(st.integers(1, 50)), data.draw(st.sampled_from([16, 32, 48]))
    mapped = table.map_ids(torch.full((1, 1, side, side), source))
    assert len(mapped.unique()) == 1
    assert torch.equal(resize_ids(mapped, size), torch.full((1, 1, size, size), int(mapped[0, 0, 0, 0])))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(LABEL_TABLES)),
    st.integers(0, 2**31),
    st.integers(8, 60),
    st.sampled_from([16, 32]),
)
def test_no_label_is_ever_invented(name: str, seed: int, side: int, size: int) -> None:
    table = LabelTable.from_name(name)
    known = torch.tensor(sorted(table._ids))
    picks = torch.randint(len(known), (1, 1, side, side), generator=torch.Generator().manual_seed(seed))
    ids = known[picks]
    out = resize_ids(table.map_ids(ids), size)
    assert set(out.unique().tolist()) <= set(table.map_ids(ids.unique()).tolist())
    # Mapping and resizing commute: each pixel is picked, none is mixed.
    assert torch.equal(out, table.map_ids(resize_ids(ids, size)))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(17, 64), st.integers(0, 63), st.integers(0, 63))
def test_an_object_of_one_pixel_survives_only_if_it_is_picked(side: int, row: int, column: int) -> None:
    row, column = row % side, column % side
    ids = torch.zeros(1, 1, side, side, dtype=torch.long)
    ids[..., row, column] = 3  # the cube
    cells = torch.arange(side * side).view(1, 1, side, side)
    picked = resize_ids(cells, 16) == row * side + column
    out = resize_ids(LabelTable.from_name("mini").map_ids(ids), 16)
    assert torch.equal(out, picked.long() * coco_id("cardboard"))

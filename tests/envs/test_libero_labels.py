"""Segmentation ids of LIBERO: complete, stable, and mapped to COCO in evaluation as in training."""

import re

import pytest
import torch

from lerobot_env_multismolvla.labels import label_set, label_table
from lerobot_env_multismolvla.libero.setup import libero_package_folder
from lerobot_env_multismolvla.mini import SUITE_NAME
from multismolvla.modalities import MINI_LABELS
from multismolvla.tokenizers.label_sets import LIBERO
from multismolvla.tokenizers.labels import LabelTable, coco_id

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
#: Fixtures without a body of their own: they are the background.
WORKSPACES = {"table", "floor", "kitchen_table", "living_room_table", "study_table", "coffee_table"}


def categories(suite: str) -> set[str]:
    """Every object and fixture category that the suite's task files name."""
    found = set()
    for file in (libero_package_folder() / "bddl_files" / suite).glob("*.bddl"):
        for block in re.findall(r"\(:(?:objects|fixtures)(.*?)\n\s*\)", file.read_text(), re.DOTALL):
            found |= set(re.findall(r"-\s+(\S+)", block))
    return found


@pytest.mark.parametrize("suite", SUITES)
def test_every_category_of_the_task_files_has_a_class(suite):
    found = categories(suite)
    assert len(found) > 5
    assert found - set(label_set(suite)) <= WORKSPACES


def test_ids_of_the_four_suites_are_final():
    assert [LIBERO.ids.index(n) for n in ("akita_black_bowl", "flat_stove", "plate", "wooden_cabinet")] == [
        5,
        16,
        23,
        32,
    ]
    assert label_set("libero_90")[: len(LIBERO.ids)] == LIBERO.ids == label_set("libero_10")
    assert len(LIBERO.ids) == 33
    assert len(set(label_set("libero_90"))) == 38


@pytest.mark.parametrize("suite", [*SUITES, SUITE_NAME])
def test_a_policys_label_table_means_what_the_simulator_draws(suite):
    # Training maps the recorded ids by the policy's `seg_labels`; in evaluation the same table meets the
    # simulator's ids.
    names = label_set(suite)
    table = LabelTable.from_name(label_table(suite))
    assert table.num_source_ids == len(names)
    assert table.map_ids(torch.arange(len(names))).tolist() == [table.map_name(name) for name in names]
    if suite != SUITE_NAME:
        assert [table.map_name(name) for name in names] == [coco_id(LIBERO.classes[name]) for name in names]
    else:
        assert names == MINI_LABELS


def test_ids_of_libero_90_are_refused_by_the_four_suites_table():
    with pytest.raises(ValueError, match="unknown label ids"):
        LabelTable.from_name("libero").map_ids(torch.tensor([label_set("libero_90").index("yellow_book")]))

"""Fixed class tables: what a segmentation id and a temperature mean, in every task of a suite alike.

The simulator's own ids depend on a task's objects. Here each geom gets a class of a fixed table, and an
instance number by the body that it belongs to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lerobot_env_multismolvla.mini import CATEGORY_LABELS, SUITE_NAME
from multismolvla.modalities import MINI_LABELS
from multismolvla.tokenizers.label_sets import COCO_PANOPTIC, LIBERO, LIBERO_90
from multismolvla.tokenizers.labels import LabelTable

#: Relative temperature of a class in [0, 1]: 0 = fridge, 1 = freshly heated. What is not named stands at room
#: level.
TEMPERATURES: dict[str, float] = json.loads(Path(__file__).with_name("temperatures.json").read_text())
ROOM_TEMPERATURE = 0.34


def label_set(suite: str, seg_labels: str = "suite") -> tuple[str, ...]:
    """Names of a suite's segmentation classes; the position is the id. At most 256.

    Args:
        suite: name of the suite. libero_90 has five classes more than LIBERO's other suites, after theirs.
        seg_labels: ``"suite"``, or ``"coco"``: ids of 4M's tokenizer, 0 = none and COCO panoptic class + 1.
    """
    if seg_labels == "coco":
        return ("none", *COCO_PANOPTIC)
    if suite == SUITE_NAME:
        return MINI_LABELS
    return (LIBERO_90 if suite == "libero_90" else LIBERO).ids


def label_table(suite: str) -> str:
    """Name of the label table that maps a suite's own ids to COCO, for ``--policy.seg_labels``."""
    if suite == SUITE_NAME:
        return "mini"
    return "libero_90" if suite == "libero_90" else "libero"


@dataclass(frozen=True)
class GeomTables:
    """Lookup tables over geom ids; the last entry (index -1) is "no geom".

    Attributes:
        class_ids: uint8 (ngeom + 1,), position in the label set asked for.
        instance_ids: uint8 (ngeom + 1,): 0 background, 1 robot, 2 gripper, 3... objects in the task's order.
        temperatures: float32 (ngeom + 1,), relative temperature in [0, 1].
    """

    class_ids: np.ndarray
    instance_ids: np.ndarray
    temperatures: np.ndarray


def geom_tables(domain: Any, suite: str, seg_labels: str = "suite") -> GeomTables:
    """Assign a class, an instance and a temperature to every geom of a LIBERO problem (``ControlEnv.env``).

    Raises:
        ValueError: more than 253 objects in the scene, which uint8 instance numbers cannot hold.
    """
    labels = label_set(suite)
    model = domain.sim.model._model
    owners = {domain.obj_body_id[name]: category for name, category in object_categories(domain).items()}
    if len(owners) > 253:
        raise ValueError(
            f"The scene has {len(owners)} objects; instance numbers are uint8, so at most 253 fit."
        )
    numbers = {body: 3 + i for i, body in enumerate(owners)}
    classes = np.zeros(model.ngeom + 1, np.uint8)
    instances = np.zeros(model.ngeom + 1, np.uint8)
    for geom in range(model.ngeom):
        label, instance = "background", 0
        body = model.geom_bodyid[geom]
        while body > 0:
            name = model.body(body).name
            if body in owners:
                category = owners[body]
                label, instance = CATEGORY_LABELS.get(category, category), numbers[body]
                break
            if name.startswith(("gripper0", "mount0", "robot0")):
                label = {"g": "gripper", "m": "mount", "r": "robot"}[name[0]]
                instance = 2 if label == "gripper" else 1
                break
            body = model.body_parentid[body]
        label = label if label in labels else "other"
        classes[geom], instances[geom] = labels.index(label), instance
    celsius = np.array([TEMPERATURES.get(label, ROOM_TEMPERATURE) for label in labels], np.float32)
    temperatures = celsius[classes]
    if seg_labels == "coco":
        table = LabelTable.from_name(label_table(suite))
        classes = table.map_ids(torch.from_numpy(classes)).numpy().astype(np.uint8)
    return GeomTables(classes, instances, temperatures)


def object_categories(domain: Any) -> dict[str, str]:
    """Category of each object and fixture that has a body of its own (a floor or table has none).

    As the task file names it: the objects' own ``category_name`` is "chefmate8_frypan" for
    ``chefmate_8_frypan``.
    """
    declared = [*domain.parsed_problem["fixtures"].items(), *domain.parsed_problem["objects"].items()]
    categories = {name: category for category, names in declared for name in names}
    names = [*domain.objects_dict, *domain.fixtures_dict]
    return {name: categories[name] for name in names if name in domain.obj_body_id}

"""The label sets that the package knows; their names are data, in ``label_sets/*.json`` beside this module.

Each file states its source and licence, and for every class the COCO panoptic class that stands for it. 4M's
segmentation tokenizer knows those 133 classes and nothing else, so a class without counterpart becomes "none"
(null) or the class that looks and is used most like it; ``reasons`` explains the choices that are not
obvious.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).with_name("label_sets")


@dataclass(frozen=True)
class LabelSet:
    """A data set's classes.

    Attributes:
        classes: name -> COCO panoptic class, or ``None`` = none of them.
        ids: names by id (position = id), of the classes that the pictures number.
    """

    classes: Mapping[str, str | None]
    ids: tuple[str, ...]


_COCO = json.loads((_FOLDER / "coco_panoptic.json").read_text(encoding="utf-8"))
#: Name -> category id of COCO's annotation files, of the countable classes and of all 133, in detectron2's
#: order. 4M's id of a class is its position + 1; 0 = none.
COCO_THINGS: dict[str, int] = _COCO["things"]
COCO_CATEGORIES: dict[str, int] = COCO_THINGS | _COCO["stuff"]
COCO_PANOPTIC: tuple[str, ...] = tuple(COCO_CATEGORIES)


def read_label_set(path: Path, more_ids: str | None = None) -> LabelSet:
    """Read a file of the form described above.

    Args:
        path: the file.
        more_ids: field with names whose ids follow those of ``ids`` (which default to all classes in order).

    Raises:
        ValueError: a class stands for something that is no COCO panoptic class, or an id for no class.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    classes: dict[str, str | None] = content["classes"]
    ids = (*content.get("ids", classes), *(content[more_ids] if more_ids else ()))
    unknown = sorted({name for name in classes.values() if name} - set(COCO_PANOPTIC))
    if unknown:
        raise ValueError(f"{path}: {unknown[0]!r} is no COCO panoptic class. Correct it, or write null.")
    if len(set(ids)) != len(ids) or not set(ids) <= set(classes):
        raise ValueError(f"{path}: ids {list(ids)} must be different names, all of them under 'classes'.")
    return LabelSet(classes, ids)


#: The LIBERO environment's segmentation pictures in the four suites, and in libero_90, which has five classes
#: more. Policies are trained on these ids, so their order is final.
LIBERO = read_label_set(_FOLDER / "libero.json")
LIBERO_90 = read_label_set(_FOLDER / "libero.json", "ids_of_libero_90_alone")
#: The mini suite's, see `multismolvla.modalities.MINI_LABELS`.
MINI = read_label_set(_FOLDER / "mini.json")
#: ADE20K's 150 classes as detectors number them.
ADE20K = read_label_set(_FOLDER / "ade20k.json")

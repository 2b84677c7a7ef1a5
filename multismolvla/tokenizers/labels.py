"""From the class ids of a data set, a simulator or a detector to those of 4M's segmentation tokenizer.

Target ids: 0 = none, c + 1 for class c of `COCO_PANOPTIC`. The official tokenizer accepts any number below
    134 and
would turn instance ids or another label set into plausible nonsense, so ids are mapped by an explicit table
or refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from multismolvla.tokenizers.label_sets import (
    ADE20K,
    COCO_CATEGORIES,
    COCO_PANOPTIC,
    COCO_THINGS,
    LIBERO,
    LIBERO_90,
    MINI,
)

#: Names that `LabelTable.from_name` knows, with what their ids are.
LABEL_TABLES: dict[str, str] = {
    "coco_panoptic": "the tokenizer's own ids: 0 = none, COCO panoptic class + 1 (changes nothing)",
    "coco_contiguous": "0...132, 255 = void: detectron2, and transformers' Mask2Former for COCO panoptic",
    "coco_category": "category ids of COCO's panoptic annotations: 1...200 with gaps, 0 = void",
    "coco_instance": "category ids of COCO's instance annotations: 1...90 with gaps, 0 = background",
    "ade20k": "0...149, 255 = void: detectors trained on ADE20K's 150 classes",
    "libero": "the LIBERO environment's segmentation pictures in the four suites",
    "libero_90": "the LIBERO environment's segmentation pictures in libero_90: `libero` and five more",
    "mini": "the mini suite's segmentation pictures",
}

UNKNOWN = ("error", "void")

#: 8-bit label pictures mark pixels without label by it.
_VOID = 255
_LARGEST_ID = 65_535


def coco_id(name: str | None) -> int:
    """The tokenizer's id of a COCO panoptic class; 0 for ``None``.

    Raises:
        ValueError: there is no such class.
    """
    if name is None:
        return 0
    if name not in COCO_PANOPTIC:
        hint = _hint(name, COCO_PANOPTIC)
        raise ValueError(f"{name!r} is no COCO panoptic class.{hint} Known classes: {list(COCO_PANOPTIC)}.")
    return COCO_PANOPTIC.index(name) + 1


class LabelTable:
    """Maps source labels to the tokenizer's ids.

    Example:
        >>> table = LabelTable({"mug": "cup", "gripper": None}, labels=("nothing", "mug"), unknown="void")
        >>> table.map_ids(torch.tensor([0, 1])).tolist(), table.map_name("gripper")
        ([0, 42], 0)

    Args:
        mapping: source name or id -> COCO panoptic class, or ``None`` for none.
        labels: names by id (position = id) where pictures hold ids and ``mapping`` names.
        unknown: what a label outside the table means: ``"error"``, or ``"void"`` = none.
        source: what the table is called in error messages.

    Raises:
        ValueError: no labels, a value that is no COCO panoptic class, a key that is neither a name nor an id,
            or (unless ``unknown="void"``) a name in ``labels`` that the table lacks.
    """

    def __init__(
        self,
        mapping: Mapping[str | int, str | None] | Mapping[str, str | None] | Mapping[int, str | None],
        *,
        labels: Sequence[str] = (),
        unknown: str = "error",
        source: str = "label table",
    ) -> None:
        if unknown not in UNKNOWN:
            raise ValueError(f"{source}: unknown={unknown!r}; expected one of {list(UNKNOWN)}.")
        if not mapping:
            raise ValueError(f"{source}: no labels in it. Expected {{name or id: COCO class or null}}.")
        self.source, self.unknown = source, unknown
        self._names: dict[str, int] = {}
        self._ids: dict[int, int] = {}
        for key, name in mapping.items():
            try:
                target = coco_id(name)
            except ValueError as error:
                raise ValueError(f"{source}: {key!r}: {error}") from error
            if isinstance(key, str):
                self._names[key] = target
            elif isinstance(key, int) and not isinstance(key, bool) and 0 <= key <= _LARGEST_ID:
                self._ids[key] = target
            else:
                raise ValueError(
                    f"{source}: the key {key!r} is neither a name nor an id in [0, {_LARGEST_ID}]."
                )
        for i, name in enumerate(labels):
            self._ids[i] = self.map_name(name)
        self._lookup = torch.full((max(self._ids, default=-1) + 1,), -1)
        for i, target in self._ids.items():
            self._lookup[i] = target

    @classmethod
    def from_name(cls, name: str, *, unknown: str = "error") -> LabelTable:
        """One of `LABEL_TABLES`; ``unknown`` as for the class.

        Raises:
            ValueError: there is no such table.
        """
        source = f"label table {name!r}"
        sets = {"ade20k": ADE20K, "libero": LIBERO, "libero_90": LIBERO_90, "mini": MINI}
        mapping: dict[str | int, str | None] = {}
        if name in sets:
            mapping.update(sets[name].classes.items())
            if name == "ade20k":
                mapping[_VOID] = None
            return cls(mapping, labels=sets[name].ids, unknown=unknown, source=source)
        coco = {
            "coco_panoptic": (enumerate(COCO_PANOPTIC, 1), 0),
            "coco_contiguous": (enumerate(COCO_PANOPTIC), _VOID),
            "coco_category": (((i, c) for c, i in COCO_CATEGORIES.items()), 0),
            "coco_instance": (((i, c) for c, i in COCO_THINGS.items()), 0),
        }
        if name not in coco:
            raise ValueError(
                f"There is no label table {name!r}.{_hint(name, LABEL_TABLES)} Known: {LABEL_TABLES}. "
                "Or give a YAML or JSON file {name or id: COCO class or null}."
            )
        by_id, none = coco[name]
        mapping = {c: c for c in COCO_PANOPTIC}
        mapping |= {none: None, **dict(by_id)}
        return cls(mapping, unknown=unknown, source=source)

    @classmethod
    def from_file(cls, path: str | Path, *, unknown: str = "error") -> LabelTable:
        """Read ``{name or id: COCO class or null}`` from a ``.json``, ``.yaml`` or ``.yml`` file.

        Args:
            path: the file. Keys of digits are ids.
            unknown: see the class.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else, or see the class.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"No label table at {path}. Known by name: {list(LABEL_TABLES)}.")
        content = _read(path)
        if not isinstance(content, dict):
            raise ValueError(
                f"{path} holds a {type(content).__name__}; expected {{name or id: COCO class or null}}."
            )
        mapping = {int(k) if isinstance(k, str) and k.isdecimal() else k: v for k, v in content.items()}
        return cls(mapping, unknown=unknown, source=str(path))

    @classmethod
    def load(cls, name_or_path: str | Path, *, unknown: str = "error") -> LabelTable:
        """`from_file` for what ends like a table file, `from_name` for everything else."""
        if str(name_or_path).endswith((".json", ".yaml", ".yml")):
            return cls.from_file(name_or_path, unknown=unknown)
        return cls.from_name(str(name_or_path), unknown=unknown)

    @property
    def num_source_ids(self) -> int:
        """Largest known source id + 1; 0 for a table of names alone."""
        return len(self._lookup)

    def map_name(self, name: str) -> int:
        """The tokenizer's id of a source name.

        Raises:
            ValueError: unknown name, unless ``unknown="void"``.
        """
        if name in self._names:
            return self._names[name]
        if self.unknown == "void":
            return 0
        raise ValueError(
            f"{self.source}: unknown label {name!r}.{_hint(name, self._names)} Known: {sorted(self._names)}. "
            "Add it with a COCO panoptic class or null, or choose unknown='void'."
        )

    def map_ids(self, ids: Tensor) -> Tensor:
        """Map a picture of source ids; each pixel on its own, so no new label can appear.

        Args:
            ids: integer tensor of any shape.

        Returns:
            int64 of the same shape in [0, 133].

        Raises:
            ValueError: not integer, an id that the table lacks (unless ``unknown="void"``), or a table of
                names only.
        """
        if ids.is_floating_point() or ids.dtype == torch.bool or ids.is_complex():
            raise ValueError(f"{self.source}: ids are {ids.dtype}; expected an integer tensor of class ids.")
        if not self.num_source_ids:
            raise ValueError(
                f"{self.source}: it maps names; give `labels`, the names by id, to map pictures with it."
            )
        wide = ids.long()
        outside = (wide < 0) | (wide >= self.num_source_ids)
        lookup = self._lookup.to(ids.device)
        mapped = lookup[wide.clamp(0, self.num_source_ids - 1)].masked_fill(outside, -1)
        if self.unknown == "error" and bool((mapped < 0).any()):
            unknown = wide[mapped < 0].unique().tolist()
            raise ValueError(
                f"{self.source}: unknown label ids {unknown[:8]} in {int((mapped < 0).sum())} pixels. Known "
                f"ids: {_ranges(sorted(self._ids))}. Are these instance ids, or ids of another label set? "
                "Name the right table, or choose unknown='void'."
            )
        return mapped.clamp_min(0)


def _read(path: Path) -> object:
    import yaml  # here: the package itself loads with torch alone

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML, too
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read as YAML or JSON: {error}.") from error


def _hint(name: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), 3, 0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def _ranges(ids: list[int]) -> str:
    """``[0, 1, 2, 5]`` as ``0-2, 5``."""
    starts = [i for i in ids if i - 1 not in ids]
    ends = [i for i in ids if i + 1 not in ids]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))

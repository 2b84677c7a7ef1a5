"""What decides which ids a picture becomes: one description for the policy, the id cache and the annotation tool.

Ids are frozen once written. A policy that reads ids of other tokenizers, other sizes or another label set learns from
noise without any error, so the description travels with the ids and is compared before training.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from multismolvla import weights
from multismolvla.modalities import Modality
from multismolvla.tokenizers.labels import UNKNOWN

#: ``patch``: the weight-free tokenizers of the mini preset. ``official``: 4M's own VQ tokenizers.
TOKENIZER_FAMILIES = ("patch", "official")
#: From a thermal picture to tokens, see `multismolvla.tokenizers.thermal_routes`.
THERMAL_ROUTES = ("vision", "bridge", "soft")
#: Which 1280-wide rows of ImageBind the tokenizers get: raw, or after the head's LayerNorm (not documented upstream).
IMAGEBIND_ROWS = ("trunk", "norm")

#: Where the official tokenizers are, by part.
TOKENIZER_SOURCES: dict[str, str] = {
    "depth": "EPFL-VILAB/4M_tokenizers_depth_8k_224-448",
    "seg": "EPFL-VILAB/4M_tokenizers_semseg_4k_224-448",
    "imagebind": "EPFL-VILAB/4M_tokenizers_ImageBind-H14_8k_224-448",
    "imagebind_global": "EPFL-VILAB/4M_tokenizers_ImageBind-H14-global_8k_16_224",
}
IMAGEBIND = "nielsr/imagebind-huge"
#: Name of ImageBind's own weights among the fingerprints, beside the tokenizers' parts.
NETWORK = "network"
#: Name of the bridge's learned map among them.
BRIDGE_MAP = "bridge_map"
#: The label set of 4M's segmentation tokenizer: 0 = nothing, then COCO's 133 panoptic classes.
OFFICIAL_LABELS = "coco_panoptic"
NUM_OFFICIAL_LABELS = 134

#: A LeRobot id feature holds int16; no 4M vocabulary is larger.
ID_DTYPE = "int16"

#: Entries that a recipe holds only where they differ from this, so that older recipes stay equal.
_OMITTED = {"seg_unknown": "error"}

_BLOCKS, _BLOCK_BYTES = 16, 65_536


class TokenOptions(Protocol):
    """Options that decide the ids, as they are called in the policy's config and in the tools that cache ids.

    For their meaning see `OfficialOptions` and `token_recipe`; ``domains`` goes by modality, ``half_turns`` by view.
    """

    tokenizers: str
    tokenizer_sources: dict[str, str]
    thermal_route: str
    imagebind: str
    imagebind_rows: str
    bridge_map: str | None
    seg_labels: str
    seg_unknown: str
    domains: dict[str, str]
    image_size: int
    square: str
    half_turns: dict[str, int]
    depth_range_m: tuple[float, float]


@dataclass(frozen=True)
class OfficialOptions:
    """Which official networks make the ids.

    Attributes:
        sources: part (`TOKENIZER_SOURCES`) -> hub id or folder; parts left out come from the official hub.
        thermal_route: one of `THERMAL_ROUTES`.
        imagebind: hub id, folder or ``.pth`` file of ImageBind-Huge.
        imagebind_rows: one of `IMAGEBIND_ROWS`: the rows that the ImageBind tokenizers were trained on.
        bridge_map: safetensors file of route ``bridge``'s learned map; ``None`` = closed form (rows ``norm`` only).
        seg_labels: label table of the segmentation pictures' ids, a name or a file, see `multismolvla.tokenizers.labels`;
            the default are the tokenizer's own ids.
        seg_unknown: what an id outside that table means: ``error``, or ``void`` = none.

    Raises:
        ValueError: an unknown part, route, convention or meaning.
    """

    sources: Mapping[str, str] = field(default_factory=dict)
    thermal_route: str = "vision"
    imagebind: str = IMAGEBIND
    imagebind_rows: str = "trunk"
    bridge_map: str | None = None
    seg_labels: str = OFFICIAL_LABELS
    seg_unknown: str = _OMITTED["seg_unknown"]

    def __post_init__(self) -> None:
        unknown = sorted(set(self.sources) - set(TOKENIZER_SOURCES))
        if unknown:
            raise ValueError(
                f"tokenizer_sources names {unknown[0]!r}. Expected some of {list(TOKENIZER_SOURCES)}."
            )
        for name, value, allowed in (
            ("thermal_route", self.thermal_route, THERMAL_ROUTES),
            ("imagebind_rows", self.imagebind_rows, IMAGEBIND_ROWS),
            ("seg_unknown", self.seg_unknown, UNKNOWN),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is unknown. Expected one of {list(allowed)}.")

    @classmethod
    def of(cls, options: TokenOptions) -> Self:
        """Those among the options of a command or a policy."""
        return cls(
            sources=options.tokenizer_sources,
            thermal_route=options.thermal_route,
            imagebind=options.imagebind,
            imagebind_rows=options.imagebind_rows,
            bridge_map=options.bridge_map,
            seg_labels=options.seg_labels,
            seg_unknown=options.seg_unknown,
        )

    def source(self, part: str) -> str:
        """Hub id, folder or file of a part, of ImageBind itself (`NETWORK`) or of the `BRIDGE_MAP`."""
        if part == BRIDGE_MAP:
            return str(self.bridge_map)
        return self.imagebind if part == NETWORK else self.sources.get(part, TOKENIZER_SOURCES[part])

    def label_set(self) -> str:
        """What the recipe calls the label table: its name, or a file's name and the beginning of its hash."""
        file = Path(self.seg_labels)
        if not file.is_file():
            return self.seg_labels
        return f"{file.name}#{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"


def split_domains(domain: str) -> tuple[str, ...]:
    """The encoder domains of a modality: ``"tok_imagebind@224+tok_imagebind_global"`` names two.

    Raises:
        ValueError: an empty or doubled name.
    """
    names = tuple(name.strip() for name in domain.split("+"))
    if not all(names) or len(set(names)) != len(names):
        raise ValueError(f"Domain {domain!r}: expected one or more different names joined by '+'.")
    return names


def parts_of(modality: str, num_grids: int, num_globals: int, options: OfficialOptions) -> tuple[str, ...]:
    """Which weights make the tokens of a modality.

    Args:
        modality: depth, seg or thermal.
        num_grids: how many of its domains have a grid.
        num_globals: how many have none.
        options: the official networks.
    """
    if modality != Modality.THERMAL:
        return (str(modality),)
    if options.thermal_route == "soft":
        return (NETWORK,)
    learned = options.thermal_route == "bridge" and options.bridge_map is not None
    return (
        NETWORK,
        *["imagebind"] * bool(num_grids),
        *["imagebind_global"] * bool(num_globals),
        *[BRIDGE_MAP] * learned,
    )


def token_recipe(
    modality: str,
    *,
    family: str,
    domain: str,
    image_size: int,
    square: str,
    half_turns: int,
    depth_range_m: Sequence[float],
    num_labels: int,
    official: OfficialOptions | None = None,
    fingerprints: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What decides the ids of one stream, as stored beside cached ids (JSON types only).

    Args:
        modality: depth, seg or thermal.
        family: one of `TOKENIZER_FAMILIES`.
        domain: encoder domain, or several joined by "+".
        image_size: side in pixels at which pictures are tokenized.
        square: see `multismolvla.geometry.to_square`.
        half_turns: 180-degree turns of the stream's view.
        depth_range_m: (near, far), outside = invalid.
        num_labels: size of the segmentation label set.
        official: needed for family ``official``.
        fingerprints: part -> `file_fingerprint`, as far as known (family ``official``).

    Returns:
        The recipe. Family ``patch`` has one recipe for all modalities of a view.

    Raises:
        ValueError: the modality has no ids (thermal route ``soft``), or ``official`` is missing.
    """
    common: dict[str, Any] = {
        "tokenizers": family,
        "image_size": image_size,
        "square": square,
        "half_turns": half_turns,
    }
    depth = [float(metres) for metres in depth_range_m]
    if family == "patch":
        return common | {"num_labels": num_labels, "depth_range_m": depth}
    if official is None:
        raise ValueError(f"tokenizers={family!r}: the recipe of {modality} needs the official options.")
    recipe = common | {"domain": "+".join(split_domains(domain)), "weights": dict(fingerprints or {})}
    if modality == Modality.DEPTH:
        return recipe | {"depth_range_m": depth}
    if modality == Modality.SEG:
        labels = {"num_labels": num_labels, "seg_labels": official.label_set()}
        unknown = {"seg_unknown": official.seg_unknown}
        return recipe | labels | (unknown if unknown != _OMITTED else {})
    if official.thermal_route == "soft":
        raise ValueError(
            "thermal_route='soft' feeds rows of numbers to the encoder, not ids, so there is nothing to cache. Leave thermal "
            "out of the cache and keep its pictures, or choose thermal_route=vision."
        )
    return recipe | {"thermal_route": official.thermal_route, "imagebind_rows": official.imagebind_rows}


def stream_recipe(
    options: TokenOptions,
    view: str,
    modality: str,
    *,
    num_labels: int,
    fingerprints: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """`token_recipe` of one stream under the options of a command or a policy."""
    return token_recipe(
        modality,
        family=options.tokenizers,
        domain=options.domains.get(modality, ""),
        image_size=options.image_size,
        square=options.square,
        half_turns=options.half_turns.get(view, 0),
        depth_range_m=options.depth_range_m,
        num_labels=num_labels,
        official=OfficialOptions.of(options),
        fingerprints=fingerprints,
    )


def id_feature(recipe: Mapping[str, Any], length: int) -> dict[str, Any]:
    """The LeRobotDataset feature of cached ids: ``int16 (length,)`` with the recipe as its ``info``."""
    return {"dtype": ID_DTYPE, "shape": (length,), "names": None, "info": dict(recipe)}


def recipe_difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """First entry in which stored ids differ from what is wanted: (name, found, wanted), or ``None``.

    Fingerprints of weights are compared where ``wanted`` knows them; a machine that trains from ids alone need not have
    the tokenizers.
    """
    for name, value in (_OMITTED | dict(wanted)).items():
        there = found.get(name, _OMITTED.get(name))
        if name != "weights" and there != value:
            return name, there, value
    stored = found.get("weights") or {}
    for part, value in (wanted.get("weights") or {}).items():
        if stored.get(part) != value:
            return f"weights of {part}", stored.get(part), value
    return None


def file_fingerprint(path: Path) -> str:
    """Recognise a weight file in milliseconds: SHA-256 over its size and sixteen 64-KiB blocks spread evenly over it.

    The first block holds a safetensors file's header. Other weights of the same shapes differ in every block. It is a
    guard against mixing up files, not a cryptographic proof, which would read gigabytes at every start.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for block in range(_BLOCKS):
            file.seek(block * max(0, size - _BLOCK_BYTES) // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def find_weights(source: str, *, local_files_only: bool = False) -> Path:
    """The weight file of a hub id, a folder in the official layout, or the file itself.

    Raises:
        FileNotFoundError: see `multismolvla.weights.locate`.
    """
    file = Path(source)
    if file.is_file():
        return file
    return weights.locate(source, (weights.WEIGHTS_FILE,), local_files_only=local_files_only)[0]


def fingerprints_of(
    parts: Sequence[str], options: OfficialOptions, *, local_files_only: bool = False
) -> dict[str, str]:
    """Part -> `file_fingerprint` of its weights.

    Raises:
        FileNotFoundError: a file is not there; the message says where to get it.
    """
    return {
        part: file_fingerprint(find_weights(options.source(part), local_files_only=local_files_only))
        for part in parts
    }


def local_fingerprints(parts: Iterable[str], options: OfficialOptions) -> dict[str, str]:
    """`fingerprints_of` those parts whose files are on this machine; asks no network."""
    found: dict[str, str] = {}
    for part in parts:
        if part not in (*TOKENIZER_SOURCES, NETWORK, BRIDGE_MAP):
            continue
        with contextlib.suppress(FileNotFoundError):
            found |= fingerprints_of([part], options, local_files_only=True)
    return found

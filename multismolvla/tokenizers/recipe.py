"""What decides which ids a picture becomes: one description for policy, id cache and annotation tool.

Ids are frozen once written. A policy that reads ids of other tokenizers, other sizes or another label set
learns from noise without any error, so the description travels with the ids and is compared before training.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, Self

from multismolvla import weights
from multismolvla.fourm.modality import FourMModality
from multismolvla.modalities import Feature, Modality
from multismolvla.pretrained import IMAGEBIND, TOKENIZER_SOURCES
from multismolvla.thermal.imagebind import ROW_CONVENTIONS
from multismolvla.tokenizers.labels import UNKNOWN

#: ``patch``: the weight-free tokenizers of the mini preset. ``official``: 4M's own VQ tokenizers.
TOKENIZER_FAMILIES = ("patch", "official")
#: From a thermal picture to tokens, see `multismolvla.tokenizers.thermal_routes`.
THERMAL_ROUTES = ("vision", "bridge", "soft")

#: Names of ImageBind's own weights and of the bridge's learned map among the fingerprints, beside the
#: tokenizers'.
NETWORK, BRIDGE_MAP = "network", "bridge_map"
#: The label set of 4M's segmentation tokenizer: 0 = nothing, then COCO's 133 panoptic classes.
OFFICIAL_LABELS = "coco_panoptic"
NUM_OFFICIAL_LABELS = 134

#: A LeRobot id feature holds int16; no 4M vocabulary is larger.
ID_DTYPE = "int16"

_BLOCKS, _BLOCK_BYTES = 16, 65_536

#: A recipe as it is stored in the ``info`` of an id feature; JSON types only.
type TokenRecipe = dict[str, object]


class TokenOptions(Protocol):
    """Options that decide the ids, as the policy's configuration and the tools that cache ids call them.

    ``domains`` goes by modality, ``half_turns`` (of 180 degrees) by view; ``depth_range_m`` is (near, far),
    outside = invalid. For ``square`` see `multismolvla.geometry.to_square`, for the networks
    `OfficialOptions`.
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
        tokenizer_sources: part (`TOKENIZER_SOURCES`) -> hub id or folder; others come from the official hub.
        thermal_route: one of `THERMAL_ROUTES`.
        imagebind: hub id, folder or ``.pth`` file of ImageBind-Huge.
        imagebind_rows: one of `ROW_CONVENTIONS`: the rows that the ImageBind tokenizers were trained on.
        bridge_map: safetensors file of route ``bridge``'s learned map; ``None`` = closed form (rows ``norm``
            only).
        seg_labels: label table of the segmentation pictures' ids, a name or a file, see
            `multismolvla.tokenizers.labels`; the default are the tokenizer's own ids.
        seg_unknown: what an id outside that table means: ``error``, or ``void`` = none.

    Raises:
        ValueError: an unknown part, route, convention or meaning.
    """

    tokenizer_sources: dict[str, str] = field(default_factory=dict)
    thermal_route: str = "vision"
    imagebind: str = IMAGEBIND
    imagebind_rows: str = "trunk"
    bridge_map: str | None = None
    seg_labels: str = OFFICIAL_LABELS
    seg_unknown: str = "error"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.tokenizer_sources) - set(TOKENIZER_SOURCES))
        if unknown:
            expected = list(TOKENIZER_SOURCES)
            raise ValueError(f"tokenizer_sources names {unknown[0]!r}. Expected some of {expected}.")
        for name, value, allowed in (
            ("thermal_route", self.thermal_route, THERMAL_ROUTES),
            ("imagebind_rows", self.imagebind_rows, ROW_CONVENTIONS),
            ("seg_unknown", self.seg_unknown, UNKNOWN),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is unknown. Expected one of {list(allowed)}.")

    @classmethod
    def of(cls, options: TokenOptions) -> Self:
        """Those among the options of a command or a policy."""
        return cls(**{own.name: getattr(options, own.name) for own in fields(cls)})

    def source(self, part: str) -> str:
        """Hub id, folder or file of a part, of ImageBind itself (`NETWORK`) or of the `BRIDGE_MAP`."""
        if part == BRIDGE_MAP:
            return str(self.bridge_map)
        return self.imagebind if part == NETWORK else (TOKENIZER_SOURCES | self.tokenizer_sources)[part]

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


def parts_of(modality: str, domains: Iterable[FourMModality], options: OfficialOptions) -> tuple[str, ...]:
    """Which weights make the tokens of a modality (depth, seg or thermal) for its encoder domains."""
    if modality != Modality.THERMAL:
        return (str(modality),)
    if options.thermal_route == "soft":
        return (NETWORK,)
    with_grid = {info.grid is not None for info in domains}
    parts = [NETWORK]
    if True in with_grid:
        parts.append("imagebind")
    if False in with_grid:
        parts.append("imagebind_global")
    if options.thermal_route == "bridge" and options.bridge_map is not None:
        parts.append(BRIDGE_MAP)
    return tuple(parts)


def token_recipe(
    options: TokenOptions,
    view: str,
    modality: str,
    *,
    num_labels: int,
    fingerprints: Mapping[str, str] | None = None,
) -> TokenRecipe:
    """What decides the ids of one stream, as stored beside cached ids.

    Args:
        options: of a command or a policy.
        view: the stream's view.
        modality: depth, seg or thermal.
        num_labels: size of the segmentation pictures' label set.
        fingerprints: part -> `file_fingerprint` of the official weights, as far as known.

    Returns:
        The recipe. The weight-free tokenizers have one recipe for all modalities of a view.

    Raises:
        ValueError: the modality has no ids (thermal route ``soft``).
    """
    recipe: TokenRecipe = {
        "tokenizers": options.tokenizers,
        "image_size": options.image_size,
        "square": options.square,
        "half_turns": options.half_turns.get(view, 0),
    }
    depth = [float(metres) for metres in options.depth_range_m]
    if options.tokenizers == "patch":
        return recipe | {"num_labels": num_labels, "depth_range_m": depth}
    recipe["domain"] = "+".join(split_domains(options.domains.get(modality, "")))
    used: TokenRecipe = {"weights": dict(fingerprints or {})}
    if modality == Modality.DEPTH:
        return recipe | {"depth_range_m": depth} | used
    if modality == Modality.SEG:
        labels = OfficialOptions.of(options).label_set()
        recipe |= {"num_labels": num_labels, "seg_labels": labels, "seg_unknown": options.seg_unknown}
        return recipe | used
    if options.thermal_route == "soft":
        raise ValueError(
            "thermal_route='soft' feeds rows of numbers to the encoder, not ids, so there is nothing to "
            "cache. Leave thermal out of the cache and keep its pictures, or choose thermal_route=vision."
        )
    recipe |= {"thermal_route": options.thermal_route, "imagebind_rows": options.imagebind_rows}
    return recipe | used


def id_feature(recipe: TokenRecipe, length: int) -> Feature:
    """The LeRobotDataset feature of cached ids: ``int16 (length,)`` with the recipe as its ``info``."""
    return {"dtype": ID_DTYPE, "shape": (length,), "names": None, "info": dict(recipe)}


def recipe_difference(found: Mapping[str, Any], wanted: TokenRecipe) -> tuple[str, object, object] | None:
    """First entry in which stored ids differ from what is wanted: (name, found, wanted), or ``None``.

    Fingerprints of weights are compared where ``wanted`` knows them; a machine that trains from ids alone
    need not have the tokenizers.
    """
    for name, value in wanted.items():
        if isinstance(value, dict):  # the weights' fingerprints
            stored = found.get(name) or {}
            for part, fingerprint in value.items():
                if stored.get(part) != fingerprint:
                    return f"{name} of {part}", stored.get(part), fingerprint
        elif found.get(name) != value:
            return name, found.get(name), value
    return None


def file_fingerprint(path: Path) -> str:
    """Recognise a weight file in milliseconds: SHA-256 over its size and sixteen blocks spread over it.

    The first block holds a safetensors file's header. Other weights of the same shapes differ in every block.
    It guards against mixing up files; a cryptographic proof would read gigabytes at every start.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for block in range(_BLOCKS):
            file.seek(block * max(0, size - _BLOCK_BYTES) // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def fingerprints_of(
    parts: Iterable[str], options: OfficialOptions, *, local_files_only: bool = False
) -> dict[str, str]:
    """Part -> `file_fingerprint` of its weights.

    Raises:
        FileNotFoundError: a file is not there; the message says where to get it.
    """
    return {
        part: file_fingerprint(weights.find_weights(options.source(part), local_files_only=local_files_only))
        for part in parts
    }


def local_fingerprints(parts: Iterable[str], options: OfficialOptions) -> dict[str, str]:
    """`fingerprints_of` those parts whose files are on this machine; asks no network."""
    found: dict[str, str] = {}
    for part in {*TOKENIZER_SOURCES, NETWORK, BRIDGE_MAP}.intersection(parts):
        with contextlib.suppress(FileNotFoundError):
            found |= fingerprints_of([part], options, local_files_only=True)
    return found

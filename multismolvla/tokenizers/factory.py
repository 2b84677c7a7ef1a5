"""Tokenizers by name, checked against the encoder that will read their ids."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from multismolvla import weights
from multismolvla.fourm import FourMModality
from multismolvla.modalities import Modality
from multismolvla.pretrained import TOKENIZER_SOURCES, size_in_words
from multismolvla.thermal.imagebind import ImageBindHead, ImageBindThermal, ImageBindVision
from multismolvla.tokenizers import thermal_routes as routes
from multismolvla.tokenizers.interface import ImageTokenizer, StreamTokenizer, Tokens
from multismolvla.tokenizers.labels import LabelTable
from multismolvla.tokenizers.official import OfficialDepthTokenizer, OfficialSegTokenizer, VQTokenizer
from multismolvla.tokenizers.recipe import (
    NETWORK,
    OFFICIAL_LABELS,
    TOKENIZER_FAMILIES,
    OfficialOptions,
    fingerprints_of,
    parts_of,
)
from multismolvla.tokenizers.vq_config import VQConfig
from multismolvla.tokenizers.weight_free import PatchDepthTokenizer, ThermalGridTokenizer, seg_tokenizer

logger = logging.getLogger(__name__)

_DOMAINS_OF_ROUTE = {
    "vision": {routes.DENSE_DOMAIN, routes.GLOBAL_DOMAIN},
    "bridge": {routes.GLOBAL_DOMAIN},
    "soft": {routes.SOFT_DOMAIN},
}


def make_tokenizers(
    family: str,
    domains: Mapping[str, FourMModality | Sequence[FourMModality]],
    num_labels: int,
    *,
    image_size: int = 224,
    official: OfficialOptions | None = None,
    fingerprints: Mapping[str, str] | None = None,
    unread: Collection[str] = (),
) -> dict[str, ImageTokenizer | StreamTokenizer]:
    """Make the tokenizers of a family for an encoder's domains.

    Args:
        family: one of ``TOKENIZER_FAMILIES``; the options below are those of ``official``.
        domains: modality -> the encoder's domain, or domains; RGB may be among them and gets no tokenizer.
        num_labels: size of the segmentation pictures' label set.
        image_size: side of the pictures in pixels.
        official: which networks.
        fingerprints: part -> `file_fingerprint` that its file must have; parts left out may be any.
        unread: modalities whose ids the data hold: their files need not exist before a picture comes.

    Returns:
        modality -> tokenizer. The official ones read their weights at their first picture; sizes are checked
        now, from the files' configurations alone.

    Raises:
        ValueError: unknown family, or a tokenizer that does not fit its domain.
        FileNotFoundError: the files of an official tokenizer are not there.
    """
    if family not in TOKENIZER_FAMILIES:
        raise ValueError(f"--policy.tokenizers={family!r}: expected one of {list(TOKENIZER_FAMILIES)}.")
    options = official or OfficialOptions()
    made: dict[str, ImageTokenizer | StreamTokenizer] = {}
    for modality, wanted in domains.items():
        if modality == Modality.RGB:
            continue
        infos = (wanted,) if isinstance(wanted, FourMModality) else tuple(wanted)
        if family == "patch":
            made[modality] = _weight_free(modality, infos, num_labels)
            continue
        lazy: LazyTokenizer
        if modality == Modality.THERMAL:
            lazy = _LazyThermal(modality, infos, options, fingerprints or {})
        else:
            lazy = _LazyPicture(modality, infos, options, fingerprints or {}, num_labels, image_size)
        if modality not in unread:
            lazy.check()
        made[modality] = lazy
    return made


def _weight_free(modality: str, infos: Sequence[FourMModality], num_labels: int) -> ImageTokenizer:
    domain = infos[0]
    if domain.grid is None or len(infos) > 1:
        raise ValueError(
            f"The 'patch' tokenizer for {modality} needs one domain with a grid, not "
            f"{'+'.join(i.name for i in infos)!r}."
        )
    tokenizer: ImageTokenizer
    if modality == Modality.DEPTH:
        tokenizer = PatchDepthTokenizer(grid=domain.grid)
    elif modality == Modality.SEG:
        tokenizer = seg_tokenizer(domain.grid, num_labels)
    else:
        tokenizer = ThermalGridTokenizer(grid=domain.grid)
    if domain.vocab is None or tokenizer.vocab_size > domain.vocab:
        raise ValueError(
            f"The 'patch' tokenizer for {modality} makes ids up to {tokenizer.vocab_size - 1}, but the "
            f"encoder's {domain.name!r} knows {domain.vocab}. The weight-free tokenizers belong to the mini "
            "preset's encoder; official 4M-21 weights need the official tokenizers."
        )
    return tokenizer


class LazyTokenizer(ABC):
    """An official tokenizer that reads its weights at the first picture: never in training from cached ids.

    Args:
        modality: depth, seg or thermal.
        infos: the encoder domains it serves.
        options: where the weights are.
        fingerprints: part -> the fingerprint its file must have.
    """

    def __init__(
        self,
        modality: str,
        infos: Sequence[FourMModality],
        options: OfficialOptions,
        fingerprints: Mapping[str, str],
    ) -> None:
        self.modality, self.infos, self.options = modality, tuple(infos), options
        self.domains = tuple(info.name for info in infos)
        self.parts = parts_of(modality, infos, options)
        self._fingerprints = dict(fingerprints)
        self._made: tuple[torch.device, ImageTokenizer | StreamTokenizer] | None = None

    @abstractmethod
    def check(self) -> None:
        """Compare the files' configurations with the domains; reads no weights."""

    @abstractmethod
    def build(self, device: torch.device) -> ImageTokenizer | StreamTokenizer:
        """Read the weights."""

    @property
    def loaded(self) -> bool:
        """Whether the weights were read."""
        return self._made is not None

    def ready_on(self, device: torch.device) -> bool:
        """Whether the next picture on a device finds the weights there."""
        return self._made is not None and self._made[0] == device

    def encode_domains(self, image: Tensor, valid: Tensor | None = None) -> dict[str, Tokens]:
        """See `StreamTokenizer.encode_domains`; the first call on a device reads the weights.

        Raises:
            FileNotFoundError: the weights are not there.
            ValueError: they are others than the ids, or the policy, were made with, or do not fit.
        """
        if self._made is None or not self.ready_on(image.device):
            self._made = (image.device, self._load(image.device))
        tokenizer = self._made[1]
        if isinstance(tokenizer, StreamTokenizer):
            return tokenizer.encode_domains(image, valid)
        ids, present = tokenizer.encode(image, valid)
        return {self.domains[0]: Tokens(ids.flatten(1), present.flatten(1))}

    def check_fingerprints(self) -> dict[str, str]:
        """Part -> fingerprint of its file.

        Raises:
            FileNotFoundError: a file is not there.
            ValueError: it is another one than it must be.
        """
        found = fingerprints_of(self.parts, self.options)
        for part, value in found.items():
            expected = self._fingerprints.get(part, value)
            if value != expected:
                raise ValueError(
                    f"The weights of {part} at {self.options.source(part)!r} have the fingerprint "
                    f"{value[:12]}…, but this policy (or the ids it was trained on) used {expected[:12]}…. "
                    "Point to the original file; with other weights the ids, and a policy trained on them, "
                    "must be made anew."
                )
        return found

    def _load(self, device: torch.device) -> ImageTokenizer | StreamTokenizer:
        self.check_fingerprints()
        self.check()
        sources = ", ".join(self.options.source(part) for part in self.parts)
        files = (weights.find_weights(self.options.source(part)) for part in self.parts)
        size = size_in_words(sum(file.stat().st_size for file in files))
        logger.info("Reading the weights of the %s tokenizer: %s (%s).", self.modality, sources, size)
        tokenizer = self.build(device)
        served = tokenizer.domains if isinstance(tokenizer, StreamTokenizer) else self.domains
        if tuple(served) != self.domains:
            raise ValueError(
                f"The {self.modality} tokenizer makes {list(served)}, but the policy's domains are "
                f"{list(self.domains)}."
            )
        return tokenizer


class _LazyPicture(LazyTokenizer):
    """The depth or segmentation tokenizer."""

    def __init__(
        self,
        modality: str,
        infos: Sequence[FourMModality],
        options: OfficialOptions,
        fingerprints: Mapping[str, str],
        num_labels: int,
        image_size: int,
    ) -> None:
        super().__init__(modality, infos, options, fingerprints)
        if len(infos) != 1 or infos[0].grid is None:
            raise ValueError(
                f"The official {modality} tokenizer serves one domain with a grid, not {list(self.domains)}."
            )
        self.image_size = image_size
        self.table = _label_table(options, num_labels) if modality == Modality.SEG else None

    def check(self) -> None:
        _check_config(self.options, self.modality, self.infos[0], image_size=self.image_size)

    def build(self, device: torch.device) -> ImageTokenizer:
        vq = VQTokenizer.from_pretrained(self.options.source(self.modality), device=device)
        if self.modality == Modality.DEPTH:
            return OfficialDepthTokenizer(vq, self.image_size)
        return OfficialSegTokenizer(vq, self.image_size, self.table)


def _label_table(options: OfficialOptions, num_labels: int) -> LabelTable | None:
    """From the pictures' class ids to the tokenizer's; ``None`` where they are the same."""
    table = LabelTable.load(options.seg_labels, unknown=options.seg_unknown)
    known = table.num_source_ids
    unknown_ids = num_labels > known  # they become void, but only where that was chosen
    if num_labels < known or (unknown_ids and options.seg_unknown != "void"):
        hint = "; ids above the table become void with seg_unknown=void." if unknown_ids else "."
        raise ValueError(
            f"The label table {options.seg_labels!r} has {known} ids, but num_labels={num_labels}. Set "
            f"num_labels={known}, or seg_labels to the table of the pictures' ids{hint}"
        )
    return None if options.seg_labels == OFFICIAL_LABELS and not unknown_ids else table


class _LazyThermal(LazyTokenizer):
    """One of the thermal routes."""

    def __init__(
        self,
        modality: str,
        infos: Sequence[FourMModality],
        options: OfficialOptions,
        fingerprints: Mapping[str, str],
    ) -> None:
        super().__init__(modality, infos, options, fingerprints)
        route = options.thermal_route
        served = _DOMAINS_OF_ROUTE[route]
        if not set(self.domains) <= served:
            raise ValueError(
                f"thermal_route={route!r} makes {sorted(served)}, but the domain of thermal is "
                f"{'+'.join(sorted(self.domains))!r}. Set --policy.domains.thermal to one of them, or "
                "several joined by '+'."
            )
        if route == "bridge" and options.bridge_map is None and options.imagebind_rows != "norm":
            raise ValueError(
                f"thermal_route='bridge' with imagebind_rows={options.imagebind_rows!r} needs a learned map: "
                "set --policy.bridge_map, or --policy.imagebind_rows=norm for the closed form."
            )

    def check(self) -> None:
        weights.find_weights(self.options.imagebind)
        if self.options.thermal_route != "soft":
            for info in self.infos:
                part = "imagebind" if info.grid is not None else "imagebind_global"
                _check_config(self.options, part, info)

    def build(self, device: torch.device) -> StreamTokenizer:
        options, source = self.options, self.options.source(NETWORK)
        if options.thermal_route == "soft":
            return routes.SoftRoute(ImageBindThermal.from_pretrained(source, device=device))

        def tokenizer(part: str) -> VQTokenizer | None:
            if part not in self.parts:
                return None
            return VQTokenizer.from_pretrained(options.source(part), device=device)

        global_ = tokenizer("imagebind_global")
        if options.thermal_route == "vision":
            vision = ImageBindVision.from_pretrained(source, device=device)
            return routes.VisionRoute(vision, tokenizer("imagebind"), global_, rows=options.imagebind_rows)
        assert global_ is not None  # the bridge serves no other domain
        thermal, head = (
            ImageBindThermal.from_pretrained(source, device=device),
            ImageBindHead.from_pretrained(source),
        )
        rows, map_file = options.imagebind_rows, options.bridge_map
        return routes.BridgeRoute(thermal, head, global_, rows=rows, map_file=map_file)


def _check_config(
    options: OfficialOptions, part: str, info: FourMModality, *, image_size: int | None = None
) -> None:
    """Compare a tokenizer's ``config.json`` with the encoder's domain; reads no weights.

    Args:
        options: where the tokenizer is.
        part: depth, seg, imagebind or imagebind_global.
        info: the domain.
        image_size: side of the pictures in pixels; ``None`` where a map of features comes, one token per
            feature.
    """
    source = options.source(part)
    (file,) = weights.locate(source, (weights.CONFIG_FILE,))
    config = VQConfig.from_dict(weights.read_json(file), str(file))
    labels_fit = (config.n_labels is not None) == (part == Modality.SEG)
    if not labels_fit or config.patch_proj != (image_size is not None):
        raise ValueError(
            f"tokenizer_sources[{part!r}] = {source!r} is no tokenizer for {part}: its config says n_labels "
            f"= {config.n_labels}, patch_proj = {config.patch_proj}. Official: {TOKENIZER_SOURCES[part]}."
        )
    grid = info.grid if image_size is None else (image_size // config.patch_size,) * 2
    per_picture = grid if info.grid else config.num_codebooks
    wanted = info.grid or info.num_tokens
    if (config.codebook_size, per_picture) != (info.vocab, wanted):
        raise ValueError(
            f"A tokenizer for another size: the one for {part} at {source!r} makes {config.codebook_size} "
            f"different ids, {per_picture} per picture, but the encoder's {info.name!r} takes {info.vocab}, "
            f"{wanted} per picture. Correct --policy.tokenizer_sources, --policy.domains or "
            "--policy.image_size."
        )

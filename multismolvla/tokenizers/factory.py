"""Tokenizers by name, checked against the encoder that will read their ids."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multismolvla import weights
from multismolvla.fourm import FourMModality
from multismolvla.modalities import Modality
from multismolvla.tokenizers.interface import ImageTokenizer, StreamTokenizer, Tokens
from multismolvla.tokenizers.recipe import (
    NETWORK,
    OFFICIAL_LABELS,
    TOKENIZER_FAMILIES,
    TOKENIZER_SOURCES,
    OfficialOptions,
    find_weights,
    fingerprints_of,
    parts_of,
)
from multismolvla.tokenizers.weight_free import (
    PatchDepthTokenizer,
    QuadrantSegTokenizer,
    ThermalGridTokenizer,
)

logger = logging.getLogger(__name__)


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
        family: one of ``TOKENIZER_FAMILIES``.
        domains: modality -> the encoder's domain, or domains; RGB may be among them and gets no tokenizer.
        num_labels: size of the segmentation pictures' label set.
        image_size: side of the pictures in pixels (family ``official``).
        official: which networks (family ``official``).
        fingerprints: part -> `file_fingerprint` that its file must have (family ``official``); parts left out may be any.
        unread: modalities whose ids the data hold, so that their files need not even exist before a picture comes
            (family ``official``).

    Returns:
        modality -> tokenizer. The official ones read their weights at their first picture; sizes are checked now, from
        the files' configurations alone.

    Raises:
        ValueError: unknown family, or a tokenizer that does not fit its domain.
        FileNotFoundError: the files of an official tokenizer are not there.
    """
    if family not in TOKENIZER_FAMILIES:
        raise ValueError(
            f"--policy.tokenizers={family!r} is unknown. Expected one of {list(TOKENIZER_FAMILIES)}."
        )
    made: dict[str, ImageTokenizer | StreamTokenizer] = {}
    for modality, wanted in domains.items():
        if modality == Modality.RGB:
            continue
        infos = (wanted,) if isinstance(wanted, FourMModality) else tuple(wanted)
        if family == "patch":
            made[modality] = _weight_free(modality, infos, num_labels)
            continue
        options = official or OfficialOptions()
        lazy = _official(modality, infos, options, num_labels, image_size, fingerprints or {})
        if modality not in unread:
            lazy.check()
        made[modality] = lazy
    return made


# -- weight-free -------------------------------------------------------------------------------------------------------


def _weight_free(modality: str, infos: Sequence[FourMModality], num_labels: int) -> ImageTokenizer:
    domain = infos[0]
    if domain.grid is None or len(infos) > 1:
        raise ValueError(
            f"The 'patch' tokenizer for {modality} needs a domain with a grid; {'+'.join(i.name for i in infos)!r} has none or "
            "is more than one."
        )
    tokenizer: ImageTokenizer
    if modality == Modality.DEPTH:
        tokenizer = PatchDepthTokenizer(grid=domain.grid)
    elif modality == Modality.SEG:
        tokenizer = QuadrantSegTokenizer(grid=domain.grid, num_labels=num_labels)
    else:
        tokenizer = ThermalGridTokenizer(grid=domain.grid)
    if domain.vocab is None or tokenizer.vocab_size > domain.vocab:
        raise ValueError(
            f"The 'patch' tokenizer for {modality} makes ids up to {tokenizer.vocab_size - 1}, but the encoder's "
            f"{domain.name!r} knows {domain.vocab}. The weight-free tokenizers belong to the mini preset's encoder; "
            "official 4M-21 weights need the official tokenizers."
        )
    return tokenizer


# -- official ----------------------------------------------------------------------------------------------------------


class LazyTokenizer:
    """An official tokenizer whose weights are read when the first picture comes; training from cached ids never does.

    Args:
        modality: for messages.
        domains: names of the encoder domains it serves.
        parts: names of the weights it needs, see `parts_of`.
        options: where they are.
        check: compares the files' configurations with the domains, without reading weights.
        build: makes the tokenizer on a device.
        fingerprints: part -> the fingerprint its file must have.
    """

    def __init__(
        self,
        modality: str,
        domains: tuple[str, ...],
        parts: Sequence[str],
        options: OfficialOptions,
        check: Callable[[], None],
        build: Callable[[torch.device], ImageTokenizer | StreamTokenizer],
        fingerprints: Mapping[str, str],
    ) -> None:
        self.modality, self.domains, self.parts, self.options = modality, domains, tuple(parts), options
        self.check, self._build, self._fingerprints = check, build, dict(fingerprints)
        self._made: tuple[torch.device, ImageTokenizer | StreamTokenizer] | None = None

    @property
    def loaded(self) -> bool:
        """Whether the weights were read."""
        return self._made is not None

    def encode_domains(self, image: Tensor, valid: Tensor | None = None) -> dict[str, Tokens]:
        """See `StreamTokenizer.encode_domains`; the first call on a device reads the weights.

        Raises:
            FileNotFoundError: the weights are not there.
            ValueError: they are others than the ids, or the policy, were made with, or do not fit.
        """
        if self._made is None or self._made[0] != image.device:
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
                    f"The weights of {part} at {self.options.source(part)!r} have the fingerprint {value[:12]}…, but this policy "
                    f"(or the ids it was trained on) used {expected[:12]}…. Point to the original file; with other "
                    "weights the ids, and a policy trained on them, must be made anew."
                )
        return found

    def _load(self, device: torch.device) -> ImageTokenizer | StreamTokenizer:
        self.check_fingerprints()
        self.check()
        logger.info(
            "Reading the weights of the %s tokenizer: %s.",
            self.modality,
            ", ".join(self.options.source(part) for part in self.parts),
        )
        tokenizer = self._build(device)
        served = tokenizer.domains if isinstance(tokenizer, StreamTokenizer) else self.domains
        if tuple(served) != self.domains:
            raise ValueError(
                f"The {self.modality} tokenizer makes {list(served)}, but the policy's domains are {list(self.domains)}."
            )
        return tokenizer


def _official(
    modality: str,
    infos: Sequence[FourMModality],
    options: OfficialOptions,
    num_labels: int,
    image_size: int,
    fingerprints: Mapping[str, str],
) -> LazyTokenizer:
    grids = [i for i in infos if i.grid is not None]
    flat = [i for i in infos if i.grid is None]
    parts = parts_of(modality, len(grids), len(flat), options)
    check: Callable[[], None]
    build: Callable[[torch.device], ImageTokenizer | StreamTokenizer]
    if modality == Modality.THERMAL:
        check, build = _thermal(grids, flat, options)
    else:
        if len(infos) != 1 or not grids:
            raise ValueError(
                f"The official {modality} tokenizer serves one domain with a grid, not {[i.name for i in infos]}."
            )
        check, build = _picture(modality, infos[0], options, num_labels, image_size)
    return LazyTokenizer(modality, tuple(i.name for i in infos), parts, options, check, build, fingerprints)


def _picture(
    modality: str, info: FourMModality, options: OfficialOptions, num_labels: int, image_size: int
) -> tuple[Callable[[], None], Callable[[torch.device], ImageTokenizer]]:
    """Check and constructor of the depth or segmentation tokenizer."""
    source = options.source(modality)
    table: Any = None
    own = True
    if modality == Modality.SEG:
        from multismolvla.tokenizers.labels import LabelTable

        table = LabelTable.load(options.seg_labels, unknown=options.seg_unknown)
        more = (
            num_labels > table.num_source_ids
        )  # ids that the table lacks: void, but only where that was chosen
        if table.num_source_ids != num_labels and not (more and options.seg_unknown == "void"):
            raise ValueError(
                f"The label table {options.seg_labels!r} has {table.num_source_ids} ids, but num_labels={num_labels}. Set "
                f"num_labels={table.num_source_ids}, or seg_labels to the table of the pictures' ids"
                + ("; ids above the table become void with seg_unknown=void." if more else ".")
            )
        own = (
            options.seg_labels == OFFICIAL_LABELS and not more
        )  # the tokenizer takes such pictures as they are

    def check() -> None:
        _check_config(source, modality, info, image_size=image_size)

    def build(device: torch.device) -> ImageTokenizer:
        from multismolvla.tokenizers.official import (
            OfficialDepthTokenizer,
            OfficialSegTokenizer,
            VQTokenizer,
        )

        vq = VQTokenizer.from_pretrained(source, device=device)
        if modality == Modality.DEPTH:
            return OfficialDepthTokenizer(vq, image_size)
        tokenizer = OfficialSegTokenizer(vq, image_size)
        return tokenizer if own else MappedSegTokenizer(tokenizer, table)

    return check, build


class MappedSegTokenizer:
    """A segmentation tokenizer for pictures in another label set.

    Args:
        tokenizer: takes the official ids.
        table: from the pictures' ids to the official ones.
    """

    def __init__(self, tokenizer: ImageTokenizer, table: Any) -> None:
        self.tokenizer, self.table = tokenizer, table
        self.grid, self.vocab_size = tokenizer.grid, tokenizer.vocab_size

    def encode(self, image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `ImageTokenizer.encode`."""
        return self.tokenizer.encode(self.table.map_ids(image), valid)


def _thermal(
    grids: Sequence[FourMModality], flat: Sequence[FourMModality], options: OfficialOptions
) -> tuple[Callable[[], None], Callable[[torch.device], StreamTokenizer]]:
    """Check and constructor of a thermal route."""
    from multismolvla.tokenizers import thermal_routes as routes

    served = {
        "vision": {routes.DENSE_DOMAIN, routes.GLOBAL_DOMAIN},
        "bridge": {routes.GLOBAL_DOMAIN},
        "soft": {routes.SOFT_DOMAIN},
    }[options.thermal_route]
    names = {i.name for i in (*grids, *flat)}
    if not names <= served:
        raise ValueError(
            f"thermal_route={options.thermal_route!r} makes {sorted(served)}, but the domain of thermal is "
            f"{'+'.join(sorted(names))!r}. Set --policy.domains.thermal to one of them, or several joined by '+'."
        )

    if options.thermal_route == "bridge" and options.bridge_map is None and options.imagebind_rows != "norm":
        raise ValueError(
            f"thermal_route='bridge' with imagebind_rows={options.imagebind_rows!r} needs a learned map: set --policy.bridge_map, or "
            "--policy.imagebind_rows=norm for the closed form."
        )

    def check() -> None:
        find_weights(options.imagebind)
        if options.thermal_route == "soft":
            return
        for info, part in [(i, "imagebind") for i in grids] + [(i, "imagebind_global") for i in flat]:
            _check_config(options.source(part), part, info)

    def build(device: torch.device) -> StreamTokenizer:
        from multismolvla.thermal.imagebind import ImageBindHead, ImageBindThermal, ImageBindVision
        from multismolvla.tokenizers.official import VQTokenizer

        source = options.source(NETWORK)
        if options.thermal_route == "soft":
            return routes.SoftRoute(ImageBindThermal.from_pretrained(source, device=device))

        def tokenizer(part: str) -> VQTokenizer:
            return VQTokenizer.from_pretrained(options.source(part), device=device)

        if options.thermal_route == "bridge":
            return routes.BridgeRoute(
                ImageBindThermal.from_pretrained(source, device=device),
                ImageBindHead.from_pretrained(source),
                tokenizer("imagebind_global"),
                rows=options.imagebind_rows,
                map_file=options.bridge_map,
            )
        return routes.VisionRoute(
            ImageBindVision.from_pretrained(source, device=device),
            tokenizer("imagebind") if grids else None,
            tokenizer("imagebind_global") if flat else None,
            rows=options.imagebind_rows,
        )

    return check, build


def _check_config(source: str, part: str, info: FourMModality, *, image_size: int | None = None) -> None:
    """Compare a tokenizer's ``config.json`` with the encoder's domain; reads no weights.

    Args:
        source: hub id or folder.
        part: depth, seg, imagebind or imagebind_global.
        info: the domain.
        image_size: side of the pictures in pixels; ``None`` where a map of features comes, with one token per feature.
    """
    from multismolvla.tokenizers.official import VQConfig

    (file,) = weights.locate(source, (weights.CONFIG_FILE,))
    config = VQConfig.from_dict(weights.read_json(file), str(file))
    if (config.n_labels is not None) != (part == Modality.SEG) or config.patch_proj != (
        image_size is not None
    ):
        raise ValueError(
            f"tokenizer_sources[{part!r}] = {source!r} is no tokenizer for {part}: its config says n_labels = {config.n_labels}, "
            f"patch_proj = {config.patch_proj}. Official: {TOKENIZER_SOURCES[part]}."
        )
    grid = info.grid if image_size is None else (image_size // config.patch_size,) * 2
    found: tuple[Any, ...] = (config.codebook_size, grid if info.grid else config.num_codebooks)
    expected: tuple[Any, ...] = (info.vocab, info.grid or info.num_tokens)
    if found != expected:
        raise ValueError(
            f"A tokenizer for another size: the one for {part} at {source!r} makes {found[0]} different ids, {found[1]} per "
            f"picture, but the encoder's {info.name!r} takes {expected[0]}, {expected[1]} per picture. Correct "
            "--policy.tokenizer_sources, --policy.domains or --policy.image_size."
        )

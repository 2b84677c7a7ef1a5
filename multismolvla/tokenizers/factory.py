"""Tokenizers by name, checked against the encoder that will read their ids."""

from __future__ import annotations

from collections.abc import Mapping

from multismolvla.fourm import FourMModality
from multismolvla.modalities import Modality
from multismolvla.tokenizers.interface import ImageTokenizer
from multismolvla.tokenizers.weight_free import (
    PatchDepthTokenizer,
    QuadrantSegTokenizer,
    ThermalGridTokenizer,
)

#: ``patch``: the weight-free tokenizers of the mini preset.
TOKENIZER_FAMILIES = ("patch",)


def make_tokenizers(
    family: str, domains: Mapping[str, FourMModality], num_labels: int
) -> dict[str, ImageTokenizer]:
    """Make the tokenizers of a family for an encoder's domains.

    Args:
        family: one of ``TOKENIZER_FAMILIES``.
        domains: modality -> the encoder's domain; RGB may be among them and gets no tokenizer.
        num_labels: size of the segmentation label set.

    Returns:
        modality -> tokenizer, with the grid of its domain.

    Raises:
        ValueError: unknown family, a domain without a grid, or a vocabulary larger than the domain's.
    """
    if family not in TOKENIZER_FAMILIES:
        raise ValueError(
            f"--policy.tokenizers={family!r} is unknown. Expected one of {list(TOKENIZER_FAMILIES)}."
        )
    made: dict[str, ImageTokenizer] = {}
    for modality, domain in domains.items():
        if modality == Modality.RGB:
            continue
        if domain.grid is None:
            raise ValueError(
                f"The {family!r} tokenizer for {modality} needs a domain with a grid; {domain.name!r} has none."
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
                f"The {family!r} tokenizer for {modality} makes ids up to {tokenizer.vocab_size - 1}, but the encoder's "
                f"{domain.name!r} knows {domain.vocab}. The weight-free tokenizers belong to the mini preset's encoder; "
                "official 4M-21 weights need the official tokenizers."
            )
        made[modality] = tokenizer
    return made

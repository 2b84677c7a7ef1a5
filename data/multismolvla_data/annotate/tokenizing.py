"""From pictures to token ids: which tokenizers make them, what decides them, and the ids themselves.

For every command that caches ids; by the functions that the policy uses at run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from multismolvla import weights
from multismolvla.fourm import FourMConfig
from multismolvla.fourm.modality import MINI_INFO, MODALITY_INFO, FourMModality
from multismolvla.modalities import Feature, Modality, ViewMap, valid_key
from multismolvla.sensors import SensorReader
from multismolvla.tokenizers import make_tokenizers
from multismolvla.tokenizers.recipe import (
    OfficialOptions,
    TokenOptions,
    TokenRecipe,
    fingerprints_of,
    id_feature,
    parts_of,
    split_domains,
    token_recipe,
)
from multismolvla.tower import tokenize_view
from multismolvla_data.annotate.plan import Stream


@dataclass(frozen=True)
class StreamTokenizers:
    """Which tokenizers make the ids of some streams, as a command's options name them."""

    options: TokenOptions
    streams: Sequence[Stream]  # all that are read; ids are made of those with `tokenize`
    num_labels: int  # size of the segmentation pictures' label set
    encoder: str | None = None  # 4M folder or hub id whose config declares domains of its own

    @property
    def tokenized(self) -> list[Stream]:
        """Streams whose ids are made."""
        return [stream for stream in self.streams if stream.tokenize]

    @property
    def official(self) -> OfficialOptions:
        """The official networks."""
        return OfficialOptions.of(self.options)

    @cached_property
    def domains(self) -> dict[str, tuple[FourMModality, ...]]:
        """Modality -> encoder domains of its ids.

        Raises:
            ValueError: a domain that is neither official nor in the encoder's config.
        """
        known: dict[str, FourMModality] = MODALITY_INFO | MINI_INFO
        if self.encoder:
            config = FourMConfig.from_json(weights.locate(self.encoder, (weights.CONFIG_FILE,))[0])
            known |= {name: config.modality(name) for name in config.domains_in}
        found = {}
        for modality in sorted({stream.modality for stream in self.tokenized}):
            if modality not in self.options.domains:
                raise ValueError(f"--domains names no encoder domain for {modality}. Add it.")
            names = split_domains(self.options.domains[modality])
            if unknown := [name for name in names if name not in known]:
                official = [name for name in MODALITY_INFO if name.startswith("tok")]
                raise ValueError(
                    f"--domains: {unknown[0]!r} is no domain of 4M-21 ({official}). Name the encoder that "
                    "declares it with --encoder."
                )
            found[modality] = tuple(known[name] for name in names)
        return found

    @property
    def lengths(self) -> dict[str, int]:
        """Modality -> ids per picture."""
        return {m: sum(domain.num_tokens for domain in domains) for m, domains in self.domains.items()}

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Modality -> the official weights that make its ids; empty for the weight-free tokenizers."""
        if self.options.tokenizers == "patch":
            return {}
        return {m: parts_of(m, domains, self.official) for m, domains in self.domains.items()}

    @cached_property
    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Modality -> part -> fingerprint of its weights, which must be there."""
        return {m: fingerprints_of(parts, self.official) for m, parts in self.parts.items()}

    @property
    def recipes(self) -> dict[str, TokenRecipe]:
        """Token key -> what decides the ids; a policy with another recipe refuses them."""
        return {stream.token_key: self._recipe(stream) for stream in self.tokenized}

    def _recipe(self, stream: Stream) -> TokenRecipe:
        fingerprints = self.fingerprints.get(stream.modality)
        return token_recipe(
            self.options, stream.view, stream.modality, num_labels=self.num_labels, fingerprints=fingerprints
        )

    def feature(self, stream: Stream) -> Feature:
        """The LeRobot feature of a stream's ids."""
        return id_feature(self._recipe(stream), self.lengths[stream.modality])


class IdMaker:
    """Makes ids of pictures as a reader of the data set gets them; weights are read at the first picture."""

    def __init__(self, chosen: StreamTokenizers, views: ViewMap, device: str) -> None:
        options = chosen.options
        self._chosen, self._options, self._device = chosen, options, device
        self._tokenizers = make_tokenizers(
            options.tokenizers,
            chosen.domains,
            chosen.num_labels,
            image_size=options.image_size,
            official=chosen.official,
            fingerprints={part: f for found in chosen.fingerprints.values() for part, f in found.items()},
        )
        self._reader = SensorReader(
            views,
            depth_range_m=options.depth_range_m,
            num_labels=chosen.num_labels,
            half_turns=dict(options.half_turns),
        )

    def ids(self, pictures: Mapping[str, Tensor]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Ids of a batch.

        Args:
            pictures: feature -> (B, C, H, W), of the streams at least.

        Returns:
            token feature -> int16 (B, N); depth feature -> share of usable pixels.
        """
        keys = {stream.key for stream in self._chosen.streams}
        canonical = self._reader.read({k: v for k, v in pictures.items() if k in keys})
        ids, valid = {}, {}
        for stream in self._chosen.streams:
            view = {stream.modality: canonical[stream.key].to(self._device)}
            if stream.modality == Modality.DEPTH:
                usable = canonical[valid_key(stream.key)]
                valid[stream.key] = usable.float().mean().item()
                view["depth_valid"] = usable.to(self._device)
            if stream.tokenize:
                tokenizer, size = self._tokenizers[stream.modality], self._options.image_size
                with torch.no_grad():
                    made = tokenize_view(stream.modality, view, tokenizer, size, self._options.square)
                ids[stream.token_key] = made.to(torch.int16).cpu().numpy()
        return ids, valid

"""From pictures to token ids: which tokenizers make them, what decides them, and the ids themselves.

For every command that caches ids; by the functions that the policy uses at run time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from multismolvla import weights
from multismolvla.fourm import FourMConfig
from multismolvla.fourm.modality import MINI_INFO, MODALITY_INFO, FourMModality
from multismolvla.health import Cause, Picture, inspect
from multismolvla.modalities import Feature, Modality, ViewMap, padding_mask_key, valid_key
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
from multismolvla.tower import ABSENT, tokenize_view
from multismolvla_data.annotate.plan import Stream

logger = logging.getLogger(__name__)

#: Pictures that show nothing, though their ids are those of any other. Those of depth without a valid pixel
#: say themselves that nothing is there.
_SHOWS_NOTHING = (Cause.ZERO, Cause.CONSTANT)


class FramePlace(NamedTuple):
    """Where a batch of consecutive frames begins in a data set."""

    episode: int
    frame: int


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
    """Makes ids of pictures as a reader of the data set gets them; weights are read at the first picture.

    Args:
        chosen: the tokenizers.
        views: whose pictures are read.
        device: where the official networks run.
        health: what becomes of recorded pictures that show nothing: ``strict`` = an error, ``act`` = their
            ids say that they are absent.
    """

    def __init__(self, chosen: StreamTokenizers, views: ViewMap, device: str, health: str) -> None:
        options = chosen.options
        self._chosen, self._options, self._device = chosen, options, device
        self._strict = health == "strict"
        self._told: set[tuple[str, Cause]] = set()
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

    def ids(
        self, pictures: Mapping[str, Tensor], place: FramePlace
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Ids of a batch.

        Args:
            pictures: feature -> (B, C, H, W), of the streams at least, and their presence flags.
            place: of the first frame.

        Returns:
            token feature -> int16 (B, N); depth feature -> share of usable pixels.

        Raises:
            ValueError: a picture is not what it claims, or a recorded one shows nothing.
        """
        keys = {stream.key for stream in self._chosen.streams}
        keys |= {padding_mask_key(key) for key in keys}
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
                if not stream.derive:
                    made[self._showing_nothing(stream, canonical, place)] = ABSENT
                ids[stream.token_key] = made.to(torch.int16).cpu().numpy()
        return ids, valid

    def _showing_nothing(
        self, stream: Stream, canonical: Mapping[str, Tensor], place: FramePlace
    ) -> list[int]:
        """Rows of the batch whose picture shows nothing and is not said to be absent.

        Raises:
            ValueError: there are some, with ``strict``.
        """
        seen = inspect(
            [Picture(canonical[stream.key], stream.modality, canonical.get(valid_key(stream.key)))]
        )
        there = canonical.get(padding_mask_key(stream.key))
        causes = seen.cause[:, 0] if there is None else torch.where(there, seen.cause[:, 0], 0)
        found = {row: Cause(cause) for row, cause in enumerate(causes.tolist()) if cause in _SHOWS_NOTHING}
        for row, cause in found.items():
            what = f"{stream.key} is {cause.label} in episode {place.episode}, frame {place.frame + row}"
            if self._strict:
                raise ValueError(
                    f"{what}: it shows nothing, and its ids would not tell. Leave that episode out, set "
                    f"{padding_mask_key(stream.key)} to false there, or let such pictures count as absent: "
                    "--health=act."
                )
            if (stream.key, cause) not in self._told:
                self._told.add((stream.key, cause))
                logger.warning("%s: such pictures count as absent.", what)
        return [*found]

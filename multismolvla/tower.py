"""The multimodal tower: canonical pictures of all views -> encoder tokens per modality, in one encoder call.

Geometry to the encoder's size, tokenizers, presence, encoder; nothing of language models. An absent modality,
and a patch without a valid depth pixel, is a token that is not there; nothing is replaced by black.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from multismolvla.fourm import FourMEncoder
from multismolvla.geometry import (
    cells_seen,
    padding_free,
    resize_continuous,
    resize_depth,
    resize_ids,
    to_square,
)
from multismolvla.modalities import DEPTH_VALID, MODALITIES, Modality, ids_name
from multismolvla.tokenizers import ImageTokenizer, StreamTokenizer, Tokens
from multismolvla.tokenizers.factory import LazyTokenizer
from multismolvla.tokenizers.recipe import split_domains

#: Id of a token that is not there.
ABSENT = -1


@dataclass
class EncoderInputs:
    """What enters the encoder, views folded into the batch axis (R = B * V, view fastest).

    Attributes:
        values: per encoder domain: pixels float (R, 3, S, S) in [0, 1], ids int64 (R, h, w) or (R, N) without
            a grid, or rows float (R, h, w, width).
        present: per encoder domain: bool (R, h, w) or (R, N), True = this token is there.
        domains: modality -> its encoder domains, in the order of their cached ids.
    """

    values: dict[str, Tensor]
    present: dict[str, Tensor]
    domains: dict[str, tuple[str, ...]]

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 per encoder domain of exactly the content that the encoder will see.

        Content of absent tokens does not count, presence does: equal ones mean that no fault got here.
        """
        prints = {}
        for domain, content in sorted(self.values.items()):
            there = self.present[domain].cpu()
            seen = content.detach().cpu()
            if seen.shape[: there.ndim] == there.shape:  # ids or rows: one entry per token
                mask = there.reshape(*there.shape, *[1] * (seen.ndim - there.ndim))
            else:  # pixels: the mask of a patch covers its pixels
                scale = seen.shape[-1] // there.shape[-1]
                mask = there.repeat_interleave(scale, -1).repeat_interleave(scale, -2)[:, None]
            digest = hashlib.sha256(there.contiguous().numpy().tobytes())
            digest.update(torch.where(mask, seen, torch.zeros_like(seen)).contiguous().numpy().tobytes())
            prints[domain] = digest.hexdigest()
        return prints


@dataclass
class TowerOutput:
    """Encoder output, R = B * V with view fastest.

    Attributes:
        tokens: per modality with a grid: (R, h, w, D).
        present: per modality with a grid: bool (R, h, w).
        globals: per gridless encoder domain: global tokens (R, N, D).
        globals_present: per gridless encoder domain: bool (R,), whether a view has them.
    """

    tokens: dict[str, Tensor]
    present: dict[str, Tensor]
    globals: dict[str, Tensor] = field(default_factory=dict)
    globals_present: dict[str, Tensor] = field(default_factory=dict)


class MultimodalTower(nn.Module):
    """4M encoder with the tokenizers in front of it.

    Args:
        encoder: the (frozen) encoder.
        domains: modality -> encoder domain, e.g. ``{"rgb": "rgb@224", "depth": "tok_depth@224"}``; several
            are joined by "+": at most one with a grid, which is fused with the other modalities, and any
            number without (global).
        tokenizers: modality -> tokenizer, for every modality but RGB. They are no modules of the tower:
            frozen, part of no checkpoint, and possibly not loaded before they are needed.
        image_size: side in pixels at which pictures enter.
        square: see :func:`multismolvla.geometry.to_square`.

    Attributes:
        drop_absent: leave out absent tokens, and modalities that no sample has (fast), or mask them: then no
            shape, and so no rounding, depends on what the other samples of the batch lack.

    Raises:
        ValueError: a modality without a tokenizer, with two grids, or whose tokenizer serves other domains.
    """

    def __init__(
        self,
        encoder: FourMEncoder,
        domains: Mapping[str, str],
        tokenizers: Mapping[str, ImageTokenizer | StreamTokenizer],
        image_size: int,
        square: str = "crop",
    ):
        super().__init__()
        missing = [m for m in domains if m != Modality.RGB and m not in tokenizers]
        if missing:
            raise ValueError(f"No tokenizer for {missing}; got tokenizers for {sorted(tokenizers)}.")
        self.encoder = encoder
        self.domains = {m: split_domains(domains[m]) for m in MODALITIES if m in domains}
        self.tokenizers = dict(tokenizers)
        self.image_size = image_size
        self.square = square
        self.drop_absent = True
        for modality, names in self.domains.items():
            grids = [d for d in names if not self.is_global(d)]
            if len(grids) > 1 or (modality == Modality.RGB and len(names) > 1):
                raise ValueError(
                    f"{modality} has the domains {list(names)}, {len(grids)} of them with a grid. Expected "
                    "at most one with a grid, and for rgb nothing else."
                )
            tokenizer = self.tokenizers.get(modality)
            served = tokenizer.domains if isinstance(tokenizer, StreamTokenizer) else names
            if tuple(served) != names or (isinstance(tokenizer, ImageTokenizer) and len(names) > 1):
                raise ValueError(
                    f"The tokenizer of {modality} makes {list(served)}, but its domains are {list(names)}."
                )

    # -- encoder inputs -------------------------------------------------------------------------------------

    def encoder_inputs(self, views: Sequence[Mapping[str, Tensor]], presence: Tensor) -> EncoderInputs:
        """Make encoder inputs of canonical pictures.

        Args:
            views: per view, modality -> canonical picture; depth comes with its validity under
                ``DEPTH_VALID`` (bool, default all valid). Cached ids int64 (B, N) under
                ``ids_name(modality)`` go before the picture. A view may lack any modality.
            presence: bool (B, V, M), M in ``MODALITIES`` order, True = there.

        Returns:
            Folded inputs. A modality that no view has is left out; so is, with ``drop_absent``, one that no
            sample has.
        """
        values: dict[str, Tensor] = {}
        present: dict[str, Tensor] = {}
        for modality, domains in self.domains.items():
            m = MODALITIES.index(modality)
            having = [
                v for v, streams in enumerate(views) if modality in streams or ids_name(modality) in streams
            ]
            if not having or (self.drop_absent and not presence[:, having, m].any()):
                continue
            prepared = [self._prepare(modality, views[v]) for v in having]
            for d, domain in enumerate(domains):
                content = torch.stack([p[d].values for p in prepared], dim=1)  # (B, V', ...)
                cells = torch.stack([p[d].present for p in prepared], dim=1)  # (B, V', h, w)
                if len(having) < len(views):
                    content, cells = (_spread(x, having, len(views)) for x in (content, cells))
                cells = cells & presence[:, :, m].unflatten(1, (-1, *[1] * (cells.ndim - 2)))
                values[domain] = content.flatten(0, 1)
                present[domain] = cells.flatten(0, 1)
        return EncoderInputs(values, present, dict(self.domains))

    def _prepare(self, modality: str, streams: Mapping[str, Tensor]) -> list[Tokens]:
        """One modality of one view: values and presence per domain, as the encoder takes them."""
        domains = self.domains[modality]
        if modality == Modality.RGB:
            picture, grid = streams[modality], self._shape(domains[0])
            pixels = resize_continuous(to_square(picture, self.square), self.image_size)
            inside = padding_free(picture, self.square)
            there = torch.ones(len(pixels), *grid, dtype=torch.bool, device=pixels.device)
            return [Tokens(pixels, there if inside is None else cells_seen(inside, grid))]
        if ids_name(modality) in streams:
            made = self._split_ids(modality, streams[ids_name(modality)])
        else:
            made = tokens_of_view(modality, streams, self.tokenizers[modality], self.image_size, self.square)
        return [self._on_grid(domain, tokens) for domain, tokens in zip(domains, made, strict=True)]

    def tokenize(self, modality: str, streams: Mapping[str, Tensor]) -> Tensor:
        """Token ids of one stream of a view as they are cached; see :func:`tokenize_view`."""
        return tokenize_view(modality, streams, self.tokenizers[modality], self.image_size, self.square)

    def warm_tokenizers(self, device: torch.device) -> None:
        """Read what the official tokenizers would at their first picture, and run them on an empty one.

        Raises:
            FileNotFoundError, ValueError: as `multismolvla.tokenizers.factory.LazyTokenizer.encode_domains`.
        """
        for modality in self.domains:
            tokenizer = self.tokenizers.get(modality)
            if not isinstance(tokenizer, LazyTokenizer) or tokenizer.ready_on(device):
                continue
            kind = torch.int64 if modality == Modality.SEG else torch.float32
            empty = torch.zeros(1, 1, self.image_size, self.image_size, dtype=kind, device=device)
            tokens_of_view(modality, {modality: empty}, tokenizer, self.image_size, self.square)

    def _split_ids(self, modality: str, ids: Tensor) -> list[Tokens]:
        """Cached ids (B, N) -> tokens per domain."""
        domains = self.domains[modality]
        soft = [d for d in domains if self.is_soft(d)]
        if soft:
            raise ValueError(
                f"The data hold ids of {modality}, but {soft[0]!r} takes rows of numbers, which cannot be "
                f"cached as ids. Keep the pictures of {modality} in the dataset, or use another route."
            )
        lengths = [math.prod(self._shape(d)) for d in domains]
        if ids.shape[-1] != sum(lengths):
            raise ValueError(
                f"The cached ids of {modality} are {ids.shape[-1]} per picture, but the encoder's "
                f"{'+'.join(domains)!r} takes {sum(lengths)}. They were made for another encoder; make them "
                "anew: `multismolvla-annotate` from a dataset with RGB, `multismolvla-tokens` from one that "
                "holds the pictures."
            )
        return [Tokens(part.clamp_min(0), part != ABSENT) for part in ids.split(lengths, dim=-1)]

    def _on_grid(self, domain: str, tokens: Tokens) -> Tokens:
        """Bring (B, N[, width]) to the domain's grid; a gridless domain is there as a whole or not at all."""
        values, present = tokens.values, tokens.present
        if self.is_global(domain):
            # the language model masks global tokens together
            return Tokens(values, present.all(-1, keepdim=True).expand_as(present))
        grid = self._shape(domain)
        return Tokens(values.unflatten(1, grid), present.unflatten(1, grid))

    # -- the encoder ----------------------------------------------------------------------------------------

    def forward(self, views: Sequence[Mapping[str, Tensor]], presence: Tensor) -> TowerOutput:
        """Encode all views at once; arguments as :meth:`encoder_inputs`."""
        return self.encode(self.encoder_inputs(views, presence))

    def encode(self, inputs: EncoderInputs) -> TowerOutput:
        """Run the encoder."""
        flat = {d: p.flatten(1) for d, p in inputs.present.items()}
        encoded = self.encoder(inputs.values, flat, drop_absent=self.drop_absent)
        out = TowerOutput({}, {})
        for modality, domains in inputs.domains.items():
            for domain in domains:
                if domain not in encoded:
                    continue
                if self.is_global(domain):
                    out.globals[domain] = encoded[domain]
                    out.globals_present[domain] = inputs.present[domain].any(1)
                else:
                    out.tokens[modality] = encoded[domain].unflatten(1, self._shape(domain))
                    out.present[modality] = inputs.present[domain]
        return out

    def wants_gradient(self, inputs: EncoderInputs) -> bool:
        """Whether a gradient goes through the encoder: then it keeps its activations.

        To a map of soft rows, to adapters that a user puts on the encoder, or, of an attack, to the pictures.
        """
        if any(values.requires_grad for values in inputs.values.values()):
            return True
        maps = self.encoder.encoder_embeddings
        unused = {id(p) for d in maps if d not in inputs.values for p in maps[d].parameters()}
        return any(p.requires_grad and id(p) not in unused for p in self.encoder.parameters())

    # -- facts about domains --------------------------------------------------------------------------------

    def _shape(self, domain: str) -> tuple[int, ...]:
        info = self.encoder.modality(domain)
        return info.grid or (info.num_tokens,)

    def is_global(self, domain: str) -> bool:
        """Whether a domain has no grid, so that its tokens go to the language model beside the fused grid."""
        return self.encoder.modality(domain).grid is None

    def is_soft(self, domain: str) -> bool:
        """Whether a domain takes rows of numbers through a trained map."""
        return self.encoder.modality(domain).kind == "features"

    @property
    def fused_modalities(self) -> tuple[str, ...]:
        """Modalities with a grid, which the fusion combines."""
        return tuple(m for m, names in self.domains.items() if not all(self.is_global(d) for d in names))

    @property
    def soft_domains(self) -> tuple[str, ...]:
        """Domains that take rows of numbers through a trained map."""
        return tuple(d for names in self.domains.values() for d in names if self.is_soft(d))

    @property
    def vocabularies(self) -> dict[str, int | None]:
        """Domain -> number of ids; ``None`` for pixels and rows."""
        return {d: self.encoder.modality(d).vocab for names in self.domains.values() for d in names}

    @property
    def gridless(self) -> dict[str, int]:
        """Domain without a grid -> its number of tokens per view."""
        names = [d for several in self.domains.values() for d in several]
        return {d: self._shape(d)[0] for d in names if self.is_global(d)}


def tokens_of_view(
    modality: str,
    streams: Mapping[str, Tensor],
    tokenizer: ImageTokenizer | StreamTokenizer,
    image_size: int,
    square: str,
) -> list[Tokens]:
    """Tokens of one canonical stream, one entry per domain of its tokenizer, in their order.

    Args:
        modality: depth, seg or thermal.
        streams: the view's canonical pictures, see :meth:`MultimodalTower.encoder_inputs`.
        tokenizer: of that modality.
        image_size: side in pixels at which the picture is tokenized.
        square: see :func:`multismolvla.geometry.to_square`.
    """
    inside = padding_free(streams[modality], square)
    image, valid = to_square(streams[modality], square), None
    if inside is not None:  # what was added to make it square is absent
        valid = resize_ids(inside.to(torch.uint8), image_size).bool()
    if modality == Modality.SEG:
        image = resize_ids(image, image_size)
    elif modality == Modality.DEPTH:
        mask = streams.get(DEPTH_VALID)
        mask = torch.ones_like(image, dtype=torch.bool) if mask is None else to_square(mask, square)
        image, valid = resize_depth(image, mask, image_size)
    else:
        image = resize_continuous(image, image_size)
    # No autocast: ids flip on near ties, and those of training, evaluation and cache must be the same.
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        if isinstance(tokenizer, StreamTokenizer):
            made = tokenizer.encode_domains(image, valid)
            return [made[domain] for domain in tokenizer.domains]
        ids, there = tokenizer.encode(image, valid)
        return [Tokens(ids.flatten(1), there.flatten(1))]


def tokenize_view(
    modality: str,
    streams: Mapping[str, Tensor],
    tokenizer: ImageTokenizer | StreamTokenizer,
    image_size: int,
    square: str,
) -> Tensor:
    """Token ids of one canonical stream as they are cached; arguments as `tokens_of_view`.

    Returns:
        int64 (B, N), the ids of all domains one after the other; ``ABSENT`` where there is no token.

    Raises:
        ValueError: the tokenizer makes rows of numbers instead of ids.
    """
    made = tokens_of_view(modality, streams, tokenizer, image_size, square)
    if any(tokens.values.is_floating_point() for tokens in made):
        raise ValueError(f"Rows of numbers (thermal route 'soft') of {modality} cannot be cached as ids.")
    return torch.cat([torch.where(t.present, t.values, ABSENT) for t in made], dim=-1)


def _spread(x: Tensor, having: list[int], num_views: int) -> Tensor:
    """(B, V', ...) -> (B, V, ...), zeros (False) for the views that lack the stream."""
    full = x.new_zeros(x.shape[0], num_views, *x.shape[2:])
    full[:, having] = x
    return full

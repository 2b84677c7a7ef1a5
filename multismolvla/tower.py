"""The multimodal tower: canonical pictures of all views -> encoder tokens per modality, in one batched encoder call.

This is the encoder's door: geometry to the encoder's size, tokenizers, presence. It knows nothing of language models.
An absent modality, and a patch without a valid depth pixel, is a token that is not there; nothing is replaced by black.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .fourm import FourMEncoder
from .geometry import resize_continuous, resize_depth, resize_ids, to_square
from .modalities import MODALITIES, Modality
from .tokenizers import ImageTokenizer

#: Id of a token that is not there.
ABSENT = -1


@dataclass
class DoorInputs:
    """What enters the encoder, views folded into the batch axis (R = B * V, view fastest).

    Attributes:
        inputs: per encoder domain: pixels float (R, 3, S, S) in [0, 1], or ids int64 (R, h, w).
        present: per encoder domain: bool (R, h, w), True = this token is there.
        domains: modality -> encoder domain.
    """

    inputs: dict[str, Tensor]
    present: dict[str, Tensor]
    domains: dict[str, str]

    def fingerprint(self) -> dict[str, str]:
        """SHA-256 per encoder domain of exactly the content that the encoder will see.

        Content of absent tokens does not count, presence does: two equal fingerprints mean that a fault did not get here.
        """
        prints = {}
        for domain, content in sorted(self.inputs.items()):
            there = self.present[domain].cpu()
            seen = content.detach().cpu()
            if seen.ndim == 4:  # pixels: the mask of a patch covers its pixels
                scale = seen.shape[-1] // there.shape[-1]
                mask = there.repeat_interleave(scale, -1).repeat_interleave(scale, -2)[:, None]
            else:
                mask = there
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
        globals: global tokens of all gridless modalities (R, G, D), or ``None``.
        globals_present: bool (R,), whether a view has its global tokens.
    """

    tokens: dict[str, Tensor]
    present: dict[str, Tensor]
    globals: Tensor | None = None
    globals_present: Tensor | None = None


class MultimodalTower(nn.Module):
    """4M encoder with the tokenizers in front of it.

    Args:
        encoder: the (frozen) encoder.
        domains: modality -> encoder domain, e.g. ``{"rgb": "rgb@224", "depth": "tok_depth@224"}``.
        tokenizers: modality -> tokenizer, for every modality but RGB.
        image_size: side in pixels at which pictures enter.
        square: see :func:`multismolvla.geometry.to_square`.

    Raises:
        ValueError: a modality without a tokenizer, or more than one gridless domain.
    """

    def __init__(
        self,
        encoder: FourMEncoder,
        domains: Mapping[str, str],
        tokenizers: Mapping[str, ImageTokenizer],
        image_size: int,
        square: str = "crop",
    ):
        super().__init__()
        missing = [m for m in domains if m != Modality.RGB and m not in tokenizers]
        if missing:
            raise ValueError(f"No tokenizer for {missing}; got tokenizers for {sorted(tokenizers)}.")
        self.encoder = encoder
        self.domains = {m: domains[m] for m in MODALITIES if m in domains}
        self.tokenizers = dict(tokenizers)
        self.image_size = image_size
        self.square = square
        gridless = [m for m in self.domains if self.is_global(m)]
        if len(gridless) > 1:
            raise ValueError(f"Only one modality may have a gridless (global) domain, got {gridless}.")

    def door(self, views: Sequence[Mapping[str, Tensor]], presence: Tensor) -> DoorInputs:
        """Bring canonical pictures to the encoder's door.

        Args:
            views: per view, modality -> canonical picture (see ``modalities.SPECS``); depth comes with its validity
                under ``"depth_valid"`` (bool, optional: default all valid), cached ids int64 (B, N) under
                ``ids_name(modality)`` and take precedence. A view may lack any modality.
            presence: bool (B, V, M), M in ``MODALITIES`` order, True = there.

        Returns:
            Folded inputs. A modality that no view has, or that is present in no sample, is left out.
        """
        inputs: dict[str, Tensor] = {}
        present: dict[str, Tensor] = {}
        for modality, domain in self.domains.items():
            m = MODALITIES.index(modality)
            having = [
                v for v, streams in enumerate(views) if modality in streams or ids_name(modality) in streams
            ]
            if not having or not presence[:, having, m].any():
                continue
            pictures = [self._prepare(modality, views[v]) for v in having]
            content = torch.stack([p[0] for p in pictures], dim=1)  # (B, V', ...)
            cells = torch.stack([p[1] for p in pictures], dim=1)  # (B, V', h, w)
            if len(having) < len(views):
                content, cells = (_spread(x, having, len(views)) for x in (content, cells))
            cells = cells & presence[:, :, m].unflatten(1, (-1, *[1] * (cells.ndim - 2)))
            inputs[domain] = content.flatten(0, 1)
            present[domain] = cells.flatten(0, 1)
        return DoorInputs(inputs, present, dict(self.domains))

    def _prepare(self, modality: str, streams: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """One modality of one view -> (pixels or ids, presence of its cells)."""
        if modality == Modality.RGB:
            pixels = resize_continuous(to_square(streams[modality], self.square), self.image_size)
            grid = self.grid(modality)
            return pixels, torch.ones(len(pixels), *grid, dtype=torch.bool, device=pixels.device)
        if ids_name(modality) in streams:
            ids = streams[ids_name(modality)]
            if ids.shape[-1] != math.prod(self.grid(modality)):
                raise ValueError(
                    f"The cached ids of {modality} are {ids.shape[-1]} per picture, but the encoder's {self.domains[modality]!r} takes "
                    f"{math.prod(self.grid(modality))}. They were made for another encoder; make them anew with `multismolvla-tokens`."
                )
            ids = ids.unflatten(-1, self.grid(modality))
        else:
            ids = tokenize_view(modality, streams, self.tokenizers[modality], self.image_size, self.square)
        return ids.clamp_min(0), ids != ABSENT

    def forward(self, views: Sequence[Mapping[str, Tensor]], presence: Tensor) -> TowerOutput:
        """Encode all views at once; arguments as :meth:`door`."""
        return self.encode(self.door(views, presence))

    def encode(self, door: DoorInputs) -> TowerOutput:
        """Run the encoder on what stands at the door."""
        flat = {d: p.flatten(1) for d, p in door.present.items()}
        encoded = self.encoder(door.inputs, flat)
        out = TowerOutput({}, {})
        for modality, domain in door.domains.items():
            if domain in encoded and self.is_global(modality):
                out.globals, out.globals_present = encoded[domain], door.present[domain].any(1)
            elif domain in encoded:
                out.tokens[modality] = encoded[domain].unflatten(1, self.grid(modality))
                out.present[modality] = door.present[domain]
        return out

    def grid(self, modality: str) -> tuple[int, ...]:
        """Token grid (h, w) of a modality; (N,) for a gridless (global) one."""
        info = self.encoder.modality(self.domains[modality])
        return info.grid or (info.num_tokens,)

    def is_global(self, modality: str) -> bool:
        """Whether a modality has no grid, so that its tokens go to the language model beside the fused grid."""
        return self.encoder.modality(self.domains[modality]).grid is None

    @property
    def num_globals(self) -> int:
        """Global tokens per view."""
        return sum(self.grid(m)[0] for m in self.domains if self.is_global(m))


def ids_name(modality: str) -> str:
    """Name under which a view carries cached token ids of a modality."""
    return f"{modality}_ids"


def tokenize_view(
    modality: str, streams: Mapping[str, Tensor], tokenizer: ImageTokenizer, image_size: int, square: str
) -> Tensor:
    """Token ids of one canonical stream, the same live and when they are cached.

    Args:
        modality: depth, seg or thermal.
        streams: the view's canonical pictures, see :meth:`MultimodalTower.door`.
        tokenizer: of that modality.
        image_size: side in pixels at which the picture is tokenized.
        square: see :func:`multismolvla.geometry.to_square`.

    Returns:
        int64 (B, h, w); ``ABSENT`` where there is no token (no valid depth).
    """
    image = to_square(streams[modality], square)
    if modality == Modality.SEG:
        ids, there = tokenizer.encode(resize_ids(image, image_size))
    elif modality == Modality.DEPTH:
        valid = streams.get("depth_valid")
        valid = torch.ones_like(image, dtype=torch.bool) if valid is None else to_square(valid, square)
        ids, there = tokenizer.encode(*resize_depth(image, valid, image_size))
    else:
        ids, there = tokenizer.encode(resize_continuous(image, image_size))
    return torch.where(there, ids, ABSENT)


def _spread(x: Tensor, having: list[int], num_views: int) -> Tensor:
    """(B, V', ...) -> (B, V, ...), zeros (False) for the views that lack the stream."""
    full = x.new_zeros(x.shape[0], num_views, *x.shape[2:])
    full[:, having] = x
    return full

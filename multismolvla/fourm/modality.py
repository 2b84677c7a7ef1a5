"""What 4M calls a modality: its kind of input, vocabulary, token grid and position table.

The official nineteen are listed in `MODALITY_INFO`. Pictures of other sizes need domains of their own; they are
declared in `FourMConfig.custom_domains` and parsed here. An official name always keeps its official meaning, so that
a checkpoint and a name never disagree silently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KINDS = ("pixels", "tokens", "text", "vectors", "features")
POSITIONS = ("sincos", "learned")

#: Rows of the 1-D position table of text-like modalities, whatever their maximal length.
TEXT_POSITIONS = 512


@dataclass(frozen=True)
class FourMModality:
    """One 4M modality.

    Attributes:
        name: official or custom domain name; the sub-module and checkpoint key carry it verbatim.
        kind: ``"pixels"`` (picture cut into patches), ``"tokens"`` (ids on a grid or a fixed number of ids),
            ``"text"`` (ids, position = rank among the valid tokens), ``"vectors"`` (text-like rows of floats) or
            ``"features"`` (rows of floats on a grid; no official modality, see `multismolvla.fourm.soft`).
        positions: ``"sincos"`` (fixed: 2-D on a grid, 1-D otherwise) or ``"learned"``.
        num_tokens: number of tokens N; for text-like kinds the greatest length.
        grid: (rows, columns) of the token grid, row-major; ``None`` for global and text-like modalities.
        vocab: number of ids; ``None`` for pixels and vectors.
        patch_size: side of a patch in pixels; ``None`` unless pixels.
        width: length of a row; ``None`` unless vectors or features.
    """

    name: str
    kind: str
    positions: str
    num_tokens: int
    grid: tuple[int, int] | None = None
    vocab: int | None = None
    patch_size: int | None = None
    width: int | None = None

    @property
    def num_positions(self) -> int:
        """Number of rows of the position table."""
        return TEXT_POSITIONS if self.text_like else self.num_tokens

    @property
    def text_like(self) -> bool:
        """Whether a token's position is its rank among the valid tokens of its sample."""
        return self.kind in ("text", "vectors")

    @property
    def mod_id(self) -> int:
        """Label of the modality's rows in the reference code: sha256(name) modulo 2^15. No input of the network."""
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % 2**15

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) in pixels that a ``"pixels"`` modality takes; ``None`` for the other kinds."""
        if self.grid is None or self.patch_size is None:
            return None
        return self.grid[0] * self.patch_size, self.grid[1] * self.patch_size

    @classmethod
    def from_dict(
        cls, name: str, fields: Mapping[str, Any], image_size: int, patch_size: int
    ) -> FourMModality:
        """Parse one entry of ``custom_domains``.

        Args:
            name: the domain's name; must not be an official one.
            fields: ``kind`` (``"pixels"`` or ``"tokens"``), ``vocab`` (tokens), ``grid`` (h, w) or ``num_tokens``,
                ``positions`` (default ``"sincos"``), ``patch_size`` (pixels; default: the config's).
            image_size: side of the config's picture in pixels; gives a pixel domain's grid where it is left out.
            patch_size: side of the config's patch in pixels.

        Raises:
            ValueError: official name, unknown or missing field, or a value out of range.
        """
        if name in MODALITY_INFO:
            raise ValueError(
                f"custom_domains names {name!r}, which is official and keeps its meaning. Rename it."
            )
        unknown = sorted(set(fields) - {"kind", "vocab", "grid", "num_tokens", "positions", "patch_size"})
        if unknown:
            raise ValueError(f"custom_domains[{name!r}] has the unknown field {unknown[0]!r}. Remove it.")
        kind, positions = fields.get("kind"), fields.get("positions", "sincos")
        if kind not in ("pixels", "tokens"):
            raise ValueError(f"custom_domains[{name!r}].kind is {kind!r}; expected 'pixels' or 'tokens'.")
        if positions not in POSITIONS:
            raise ValueError(
                f"custom_domains[{name!r}].positions is {positions!r}; expected one of {POSITIONS}."
            )
        patch = (
            _positive(name, "patch_size", fields.get("patch_size", patch_size)) if kind == "pixels" else None
        )
        vocab = _positive(name, "vocab", fields.get("vocab")) if kind == "tokens" else None
        grid = _grid(name, fields.get("grid"))
        if kind == "pixels" and grid is None:
            assert patch is not None
            if image_size % patch:
                raise ValueError(
                    f"custom_domains[{name!r}]: image_size {image_size} is no multiple of the patch size {patch}."
                )
            grid = (image_size // patch, image_size // patch)
        num_tokens = grid[0] * grid[1] if grid else _positive(name, "num_tokens", fields.get("num_tokens"))
        if fields.get("num_tokens", num_tokens) != num_tokens:
            raise ValueError(
                f"custom_domains[{name!r}]: num_tokens {fields['num_tokens']} contradicts grid {grid}. Give one of them."
            )
        return cls(name, kind, positions, num_tokens, grid, vocab, patch)

    def to_dict(self) -> dict[str, Any]:
        """The entry of ``custom_domains`` that `from_dict` reads back; JSON types only."""
        fields: dict[str, Any] = {"kind": self.kind, "positions": self.positions}
        if self.grid is not None:
            fields["grid"] = list(self.grid)
        else:
            fields["num_tokens"] = self.num_tokens
        if self.vocab is not None:
            fields["vocab"] = self.vocab
        if self.patch_size is not None:
            fields["patch_size"] = self.patch_size
        return fields


def _positive(name: str, field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"custom_domains[{name!r}].{field} is {value!r}; expected a positive integer.")
    return value


def _grid(name: str, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    sides = tuple(value) if isinstance(value, list | tuple) else ()
    if len(sides) != 2:
        raise ValueError(f"custom_domains[{name!r}].grid is {value!r}; expected [rows, columns].")
    return _positive(name, "grid", sides[0]), _positive(name, "grid", sides[1])


def _tokens(name: str, vocab: int, side: int = 14) -> FourMModality:
    return FourMModality(name, "tokens", "sincos", side * side, (side, side), vocab)


def _text(name: str, length: int) -> FourMModality:
    return FourMModality(name, "text", "sincos", length, vocab=30000)


#: The nineteen encoder modalities of 4M-21 (``domains_in`` of the official config, in its order).
MODALITY_INFO: dict[str, FourMModality] = {
    m.name: m
    for m in (
        _text("caption", 256),
        FourMModality("t5_caption", "vectors", "sincos", 77, width=4096),
        _text("det", 256),
        _text("metadata", 40),
        _text("human_poses", 275),
        _text("color_palette", 23),
        _text("sam_instance", 290),
        FourMModality("rgb@224", "pixels", "sincos", 196, (14, 14), patch_size=16),
        _tokens("tok_rgb@224", 16384),
        _tokens("tok_normal@224", 8192),
        _tokens("tok_depth@224", 8192),
        _tokens("tok_semseg@224", 4096),
        _tokens("tok_clip@224", 8192),
        _tokens("tok_dinov2@224", 8192, 16),
        FourMModality("tok_dinov2_global", "tokens", "learned", 16, vocab=8192),
        _tokens("tok_imagebind@224", 8192, 16),
        FourMModality("tok_imagebind_global", "tokens", "learned", 16, vocab=8192),
        _tokens("tok_sam_edge@224", 8192),
        _tokens("tok_canny_edge@224", 8192),
    )
}

#: Custom domains of the mini preset: 64x64 pictures and the weight-free tokenizers of `multismolvla.tokenizers`.
MINI_DOMAINS: dict[str, dict[str, Any]] = {
    "rgb@64": {"kind": "pixels", "patch_size": 8, "grid": [8, 8]},
    "tok_depth@64": {"kind": "tokens", "vocab": 1024, "grid": [8, 8]},
    "tok_semseg@64": {"kind": "tokens", "vocab": 4096, "grid": [8, 8]},
    "tok_thermal@64": {"kind": "tokens", "vocab": 256, "grid": [4, 4]},
}

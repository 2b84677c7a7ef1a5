"""What 4M calls a modality: its kind of input, vocabulary, token grid and position table.

The official nineteen are listed in `MODALITY_INFO`. Pictures of other sizes need domains of their own; they
are declared in `FourMConfig.custom_domains` and parsed here. An official name always keeps its official
meaning, so that a checkpoint and a name never disagree silently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

POSITIONS = ("sincos", "learned")

#: Rows of the 1-D position table of text-like modalities, whatever their maximal length.
TEXT_POSITIONS = 512


@dataclass(frozen=True)
class FourMModality:
    """One 4M modality.

    Attributes:
        name: official or custom domain name; the sub-module and checkpoint key carry it verbatim.
        kind: ``"pixels"`` (picture cut into patches), ``"tokens"`` (ids on a grid or a fixed number of ids),
            ``"text"`` (ids, position = rank among the valid tokens), ``"vectors"`` (text-like rows of floats)
            or ``"features"`` (rows of floats on a grid; no official modality, see `multismolvla.fourm.soft`).
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
        """The reference code's label of the modality's rows: sha256(name) modulo 2^15."""
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % 2**15

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) in pixels that a ``"pixels"`` modality takes; ``None`` for the other kinds."""
        if self.grid is None or self.patch_size is None:
            return None
        return self.grid[0] * self.patch_size, self.grid[1] * self.patch_size

    @classmethod
    def from_dict(
        cls, name: str, fields: Mapping[str, object], image_size: int, patch_size: int
    ) -> FourMModality:
        """Parse one entry of ``custom_domains``.

        Args:
            name: the domain's name; must not be an official one.
            fields: ``kind`` (``"pixels"`` or ``"tokens"``), ``vocab`` (tokens), ``grid`` (h, w) or
                ``num_tokens``, ``positions`` (default ``"sincos"``), ``patch_size`` (pixels; default: the
                config's).
            image_size: side of the config's picture in pixels; gives a pixel domain's grid where it is left
                out.
            patch_size: side of the config's patch in pixels.

        Raises:
            ValueError: official name, unknown or missing field, or a value out of range.
        """
        where = f"custom_domains[{name!r}]"
        if name in MODALITY_INFO:
            raise ValueError(f"{where}: the name is official and keeps its meaning. Rename it.")
        unknown = sorted(set(fields) - {"kind", "vocab", "grid", "num_tokens", "positions", "patch_size"})
        if unknown:
            raise ValueError(f"{where} has the unknown field {unknown[0]!r}. Remove it.")
        kind, positions = fields.get("kind"), fields.get("positions", "sincos")
        if kind not in ("pixels", "tokens"):
            raise ValueError(f"{where}.kind is {kind!r}; expected 'pixels' or 'tokens'.")
        if positions not in POSITIONS:
            raise ValueError(f"{where}.positions is {positions!r}; expected one of {POSITIONS}.")
        patch = vocab = None
        grid = _grid(where, fields.get("grid"))
        if kind == "tokens":
            vocab = _positive(f"{where}.vocab", fields.get("vocab"))
        else:
            patch = _positive(f"{where}.patch_size", fields.get("patch_size", patch_size))
            if grid is None and image_size % patch:
                raise ValueError(f"{where}: image_size {image_size} is no multiple of patch size {patch}.")
            grid = grid or (image_size // patch, image_size // patch)
        named = fields.get("num_tokens")
        num_tokens = grid[0] * grid[1] if grid else _positive(f"{where}.num_tokens", named)
        if named not in (None, num_tokens):
            raise ValueError(f"{where}: num_tokens {named} contradicts grid {grid}. Give one of them.")
        return cls(name, str(kind), str(positions), num_tokens, grid, vocab, patch)

    def to_dict(self) -> dict[str, object]:
        """The entry of ``custom_domains`` that `from_dict` reads back; JSON types only."""
        fields: dict[str, object] = {"kind": self.kind, "positions": self.positions}
        if self.grid is not None:
            fields["grid"] = list(self.grid)
        else:
            fields["num_tokens"] = self.num_tokens
        if self.vocab is not None:
            fields["vocab"] = self.vocab
        if self.patch_size is not None:
            fields["patch_size"] = self.patch_size
        return fields


def _positive(where: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{where} is {value!r}; expected a positive integer.")
    return value


def _grid(where: str, value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"{where}.grid is {value!r}; expected [rows, columns].")
    return _positive(f"{where}.grid", value[0]), _positive(f"{where}.grid", value[1])


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


def small_domains(image_size: int = 64, seg_vocab: int = 4096, seg_grid: int = 8) -> dict[str, FourMModality]:
    """Domains of encoders that are made here, in an 8 x 8 grid: pictures, and ids of weight-free tokenizers.

    Args:
        image_size: side of the pictures in pixels.
        seg_vocab: number of segmentation ids.
        seg_grid: segmentation tokens in a row; a finer grid for things that are smaller than a patch.

    Returns:
        Modality -> domain, named by the picture's side, e.g. ``rgb@64``.

    Raises:
        ValueError: a side that is no multiple of 8.
    """
    if image_size < 8 or image_size % 8:
        raise ValueError(f"image_size {image_size}: the 8 x 8 patches of a picture need a multiple of 8.")
    side = f"@{image_size}"
    return {
        "rgb": FourMModality(f"rgb{side}", "pixels", "sincos", 64, (8, 8), patch_size=image_size // 8),
        "depth": _tokens(f"tok_depth{side}", 1024, 8),
        "seg": _tokens(f"tok_semseg{side}", seg_vocab, seg_grid),
        "thermal": _tokens(f"tok_thermal{side}", 256, 4),
    }


#: Modality -> the mini preset's domain for it.
MINI_DOMAINS: dict[str, str] = {modality: info.name for modality, info in small_domains().items()}
#: What these domains are.
MINI_INFO: dict[str, FourMModality] = {info.name: info for info in small_domains().values()}

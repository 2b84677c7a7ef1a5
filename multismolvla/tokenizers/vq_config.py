"""Configuration of an official 4M tokenizer's encoder half in the terms of its ``config.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from multismolvla.pretrained import TOKENIZER_SOURCES

_VIT_SIZES = {"vit_s_enc": (512, 8, 8), "vit_b_enc": (768, 12, 12), "vit_l_enc": (1024, 24, 16)}
_MLP = re.compile(r"BottleneckMLP/B_(\d+)-Wi_(\d+)")
# Fields of which only this value is implemented; another one would load and compute something else.
_ONLY = {
    "image_size_enc": None,
    "post_mlp": True,
    "norm_codes": True,
    "undo_std": False,
    "sync_codebook": False,
}
_SIZES = ("image_size", "n_channels", "patch_size", "codebook_size", "latent_dim", "num_codebooks")


@dataclass(frozen=True)
class VQConfig:
    """Sizes of a 4M tokenizer's encoder half; field names as in the official ``config.json``.

    Attributes:
        image_size: side in pixels that the stored position table belongs to (448); inputs may have other
            sizes.
        n_channels: channels of the input; width of the class embedding where there are ``n_labels``.
        enc_type: ``vit_b_enc``, ``BottleneckMLP/B_<blocks>-Wi_<width>``, or any name that says ``vit`` with
            its sizes in ``encoder``.
        patch_size: side of a patch in pixels.
        quant_type: ``lucid`` (cosine codebook) or ``memcodes``.
        codebook_size: codes per codebook.
        latent_dim: width of the latent.
        n_labels: size of the label set; ``None`` = the input is continuous.
        patch_proj: whether patches are cut here; ``False`` = the input is a feature map already.
        num_codebooks: codebooks side by side.
        encoder: ``{"dim", "depth", "num_heads"}`` of a transformer that is not an official one.
        image_size_enc, post_mlp, norm_codes, undo_std, sync_codebook: only the official values are
            implemented.

    Raises:
        ValueError: a value is missing, out of range or not implemented.
    """

    image_size: int
    n_channels: int
    enc_type: str
    patch_size: int
    quant_type: str
    codebook_size: int
    latent_dim: int
    n_labels: int | None = None
    patch_proj: bool = True
    num_codebooks: int = 1
    encoder: dict[str, int] = field(default_factory=dict)
    image_size_enc: int | None = None
    post_mlp: bool = True
    norm_codes: bool = True
    undo_std: bool = False
    sync_codebook: bool = False

    def __post_init__(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"4M tokenizer config: {name} is {value!r}; expected a positive integer.")
        for name, only in _ONLY.items():
            if getattr(self, name) != only:
                self._reject(name, f"{only!r}")
        if not self.is_mlp and "vit" not in self.enc_type:
            self._reject("enc_type", f"one of {[*_VIT_SIZES, 'BottleneckMLP/B_<blocks>-Wi_<width>']}")
        wanted = "memcodes" if self.is_mlp else "lucid"
        if self.quant_type != wanted:
            self._reject("quant_type", f"{wanted!r} with enc_type {self.enc_type!r}")
        if not self.is_mlp:
            if self.num_codebooks != 1:
                self._reject("num_codebooks", "1 with a cosine codebook")
            dim, _, heads = self.vit_sizes
            if dim % heads or self.image_size % self.patch_size:
                raise ValueError(
                    f"4M tokenizer config: dim {dim} must be a multiple of num_heads {heads}, image_size "
                    f"{self.image_size} of patch_size {self.patch_size}."
                )
        if self.latent_dim % self.num_codebooks:
            self._reject("latent_dim", f"a multiple of num_codebooks ({self.num_codebooks})")

    def _reject(self, name: str, expected: str) -> None:
        raise ValueError(
            f"4M tokenizer config: {name} = {getattr(self, name)!r} is not implemented; expected {expected}, "
            f"as in the official tokenizers {list(TOKENIZER_SOURCES.values())}."
        )

    @property
    def is_mlp(self) -> bool:
        """Whether it takes single vectors instead of maps."""
        return _MLP.fullmatch(self.enc_type) is not None

    @property
    def mlp_sizes(self) -> tuple[int, int]:
        """Blocks and width of a bottleneck MLP."""
        found = _MLP.fullmatch(self.enc_type)
        assert found is not None, self.enc_type
        return int(found[1]), int(found[2])

    @property
    def vit_sizes(self) -> tuple[int, int, int]:
        """Width, blocks and heads of a transformer."""
        if self.encoder:
            try:
                return self.encoder["dim"], self.encoder["depth"], self.encoder["num_heads"]
            except KeyError as error:
                raise ValueError(f"4M tokenizer config: encoder = {self.encoder} lacks {error}.") from error
        if self.enc_type not in _VIT_SIZES:
            self._reject("enc_type", f"one of {list(_VIT_SIZES)} where the config has no field 'encoder'")
        return _VIT_SIZES[self.enc_type]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "4M tokenizer config") -> VQConfig:
        """Build from the fields of an official ``config.json``; those of decoder and training are ignored.

        Args:
            values: the parsed JSON object.
            source: name of the file for error messages.

        Raises:
            ValueError: a needed field is missing, or a value is not implemented.
        """
        for own in fields(cls):
            needed = own.default is MISSING and own.default_factory is MISSING
            if needed and own.name not in values:
                raise ValueError(
                    f"{source}: the field {own.name!r} is missing. Take config.json from the same repository "
                    "as the weights."
                )
        # The reference's own default of post_mlp is not the implemented value, so its absence must not pass.
        known = {"post_mlp": False} | {f.name: values[f.name] for f in fields(cls) if f.name in values}
        try:
            return cls(**known)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error

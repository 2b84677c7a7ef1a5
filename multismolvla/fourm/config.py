"""Configuration of a 4M encoder in the terms of the official ``config.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multismolvla.fourm.modality import MODALITY_INFO, FourMModality, small_domains
from multismolvla.weights import read_json

_SIZES = {"B": (768, 12, 12), "L": (1024, 24, 16), "XL": (2048, 24, 32)}  # dim, depth, heads

# Fields that change the encoder and of which only this value is implemented. A checkpoint that sets another
# one would load and compute something else, hence the check even for fields that official configs do not
# have.
_ONLY: dict[str, object] = {
    "act_layer": "SiLU",
    "gated_mlp": True,
    "qkv_bias": False,
    "proj_bias": False,
    "mlp_bias": False,
    "norm_bias": False,
    "share_modality_embeddings": False,
    "qk_norm": False,
    "num_register_tokens": 0,
    "drop_path_rate": 0,
    "drop_path_rate_encoder": 0,
    "attn_drop": 0,
    "proj_drop": 0,
}
# Fields that concern the decoder or the training loop alone.
_IGNORED = (
    "drop_path_rate_decoder",
    "shared_drop_path",
    "decoder_causal_mask",
    "decoder_sep_mask",
    "use_act_checkpoint",
)
_OPTIONAL = ("domains_out", "decoder_depth", "custom_domains")


@dataclass(frozen=True)
class FourMConfig:
    """Sizes and modalities of a 4M model; field names as in the official ``config.json``.

    Attributes:
        dim: width D; a multiple of 4 (sin-cos positions) and of ``num_heads``.
        encoder_depth: number of encoder blocks.
        num_heads: attention heads.
        domains_in: names of the modalities the checkpoint has encoder embeddings for.
        mlp_ratio: hidden width before the gated MLP's reduction by 2/3.
        image_size: side of the picture in pixels; 224 for all official names.
        patch_size: side of a patch in pixels; 16 for all official names.
        domains_out: decoder modalities (kept for the round trip, not used).
        decoder_depth: decoder blocks (kept for the round trip, not used).
        act_layer, gated_mlp, qkv_bias, proj_bias, mlp_bias, norm_bias, share_modality_embeddings: only the
            values of the official 4M-21 configs are implemented; others raise.
        custom_domains: further modalities, ``{name: fields}`` as `FourMModality.from_dict` reads them.

    Raises:
        ValueError: a value is out of range or not implemented, or a domain is unknown.
    """

    dim: int
    encoder_depth: int
    num_heads: int
    domains_in: tuple[str, ...]
    mlp_ratio: float = 4
    image_size: int = 224
    patch_size: int = 16
    domains_out: tuple[str, ...] = ()
    decoder_depth: int = 0
    act_layer: str = "SiLU"
    gated_mlp: bool = True
    qkv_bias: bool = False
    proj_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False
    share_modality_embeddings: bool = False
    custom_domains: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "domains_in", tuple(self.domains_in))
        object.__setattr__(self, "domains_out", tuple(self.domains_out))
        for name in ("dim", "encoder_depth", "num_heads", "image_size", "patch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"4M config: {name} is {value!r}; expected a positive integer.")
        if self.dim % self.num_heads or self.dim % 4:
            raise ValueError(
                f"4M config: dim {self.dim} must be a multiple of num_heads ({self.num_heads}) and of 4 "
                "(positions)."
            )
        if not isinstance(self.mlp_ratio, int | float) or self.mlp_hidden < 1:
            raise ValueError(f"4M config: mlp_ratio is {self.mlp_ratio!r}; expected a positive number.")
        for name, only in _ONLY.items():
            _check_only(name, getattr(self, name, only))
        if not self.domains_in:
            raise ValueError("4M config: domains_in is empty. Name at least one modality, e.g. 'rgb@224'.")
        for name in self.domains_in:
            self.modality(name)

    @property
    def mlp_hidden(self) -> int:
        """Hidden width of the gated MLP: floor(2/3 * floor(dim * mlp_ratio)), e.g. 2730 for L."""
        return 2 * int(self.dim * self.mlp_ratio) // 3

    def modality(self, name: str) -> FourMModality:
        """Look up a modality of ``domains_in``.

        Raises:
            ValueError: the config does not have it, or it is neither official nor in ``custom_domains``.
        """
        if name not in self.domains_in:
            raise ValueError(
                f"This 4M model has no modality {name!r}. It has {list(self.domains_in)} (official spelling, "
                "e.g. 'rgb@224', 'tok_depth@224')."
            )
        if name in self.custom_domains:
            return FourMModality.from_dict(name, self.custom_domains[name], self.image_size, self.patch_size)
        if name not in MODALITY_INFO:
            raise ValueError(
                f"4M config: domain {name!r} is neither official ({list(MODALITY_INFO)}) nor declared in "
                "custom_domains. Declare it there with kind, grid and vocab."
            )
        info = MODALITY_INFO[name]
        official = (info.image_size, info.patch_size)
        if info.kind == "pixels" and ((self.image_size,) * 2, self.patch_size) != official:
            raise ValueError(
                f"4M config: {name!r} means pictures of {info.image_size} pixels in patches of "
                f"{info.patch_size}, but image_size is {self.image_size} and patch_size {self.patch_size}. "
                f"Declare a custom domain, e.g. 'rgb@{self.image_size}', in custom_domains."
            )
        return info

    @classmethod
    def official(cls, size: str) -> FourMConfig:
        """The config of 4M-21 ``"B"``, ``"L"`` or ``"XL"`` with all encoder modalities (for random weights).

        Raises:
            ValueError: unknown size.
        """
        if size not in _SIZES:
            raise ValueError(f"4M-21 has no size {size!r}; expected one of {sorted(_SIZES)}.")
        dim, depth, heads = _SIZES[size]
        names = tuple(MODALITY_INFO)
        out = tuple(n for n in names if n != "rgb@224")
        return cls(dim, depth, heads, names, domains_out=out, decoder_depth=depth)

    @classmethod
    def mini(
        cls,
        dim: int,
        depth: int,
        heads: int,
        image_size: int = 64,
        seg_vocab: int = 4096,
        seg_grid: int = 8,
    ) -> FourMConfig:
        """An encoder of any size for `small_domains`; by default those of the mini preset."""
        domains = small_domains(image_size, seg_vocab, seg_grid)
        custom = {info.name: info.to_dict() for info in domains.values()}
        patch = image_size // 8
        return cls(
            dim, depth, heads, tuple(custom), image_size=image_size, patch_size=patch, custom_domains=custom
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "4M config") -> FourMConfig:
        """Build from the fields of an official ``config.json``.

        Args:
            values: the parsed JSON object.
            source: name of the file for error messages.

        Raises:
            ValueError: a field is missing, unknown, or set to something that is not implemented.
        """
        own = {f.name for f in dataclasses.fields(cls)}
        missing = sorted(own - set(values) - set(_OPTIONAL))
        if missing:
            raise ValueError(
                f"{source}: the field {missing[0]!r} is missing. Take config.json from the same repository "
                "as the weights."
            )
        for name, value in values.items():
            if name in _ONLY:
                _check_only(name, value)
            elif name not in own and name not in _IGNORED:
                raise ValueError(
                    f"{source}: unknown field {name!r} = {value!r}. It may change the network, so it is not "
                    "ignored; remove it if it is known to be harmless."
                )
        for name in ("domains_in", "domains_out"):
            listed = values.get(name, [])
            if not isinstance(listed, list | tuple) or not all(isinstance(n, str) for n in listed):
                raise ValueError(f"{source}: {name} is {listed!r}; expected a list of modality names.")
        return cls(**{name: value for name, value in values.items() if name in own})

    @classmethod
    def from_json(cls, path: str | Path) -> FourMConfig:
        """Read an official ``config.json``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: no JSON object, or `from_dict` refuses it.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"No 4M config at {path}. Expected the official layout: config.json + model.safetensors."
            )
        return cls.from_dict(read_json(path), str(path))

    def to_dict(self) -> dict[str, Any]:
        """Fields as in the official ``config.json``; ``custom_domains`` only where there are any."""
        values = dataclasses.asdict(self)
        values["domains_in"], values["domains_out"] = list(self.domains_in), list(self.domains_out)
        if not self.custom_domains:
            del values["custom_domains"]
        return dict(sorted(values.items()))

    def restricted_to(self, modalities: tuple[str, ...]) -> FourMConfig:
        """The config of an encoder-only checkpoint that holds just ``modalities``."""
        custom = {n: fields for n, fields in self.custom_domains.items() if n in modalities}
        return dataclasses.replace(
            self, domains_in=modalities, domains_out=(), decoder_depth=0, custom_domains=custom
        )


def _check_only(name: str, value: object) -> None:
    only = _ONLY[name]
    if value != only:
        raise ValueError(
            f"4M config: {name} = {value!r} is not implemented; this encoder supports {name} = {only!r} as "
            "in all official 4M-21 checkpoints. Use such a checkpoint."
        )

"""The ``config.json`` of ThermalGen: what is read, what is refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multismolvla import weights
from multismolvla.thermal.sit import ARCHITECTURES, SiTConfig

logger = logging.getLogger(__name__)

#: The published thermal autoencoder; the RGB one differs in its three channels (Stable Diffusion's).
OFFICIAL_VAE: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 256,
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}

#: Labels with trained rows: the data sets whose style they stand for. All are outdoor driving, surveillance or aerial scenes;
#: for anything else "no label" (1000) is the sensible choice. All other rows below 1000 are untrained.
TRAINED_LABELS = {
    0: "Boson, night (satellite and aerial)",
    1: "BosonPlus, day (satellite and aerial)",
    2: "BosonPlus, night (satellite and aerial)",
    3: "DJI, day (satellite and aerial)",
    4: "Caltech aerial",
    5: "LLVIP",
    6: "NII-CU",
    7: "M3FD",
    8: "Freiburg, day",
    9: "Freiburg, night",
    10: "MSRS",
    14: "KAIST",
    18: "SMOD, day",
    19: "SMOD, night",
    21: "FLIR",
    22: "AVIID",
}

# Option -> the values that are implemented. Options absent from a config have the first one.
_INJECTION: dict[str, dict[str, tuple[Any, ...]]] = {
    "cross": {
        "injection_position": ("q",),
        "self_attn": (True,),
        "first_cross": (False, None),
        "rgb_dropout_prob": (0, None),
        "bn_momentum": (None,),
    },
    "concat": {"replace_RGB": (False,), "rgb_dropout_prob": (0, None)},
}
_TRANSPORT = {"path_type": ("Linear",), "prediction": ("velocity",)}
# Of training or of the reference's own loading; without effect here.
_IGNORED = {"vae", "cache_rate", "cfg_scale"}
_IGNORED_TRANSPORT = {"loss_weight"}


@dataclass(frozen=True)
class ThermalGenConfig:
    """What a checkpoint is.

    Attributes:
        arch: name in `multismolvla.thermal.sit.ARCHITECTURES`.
        injection: ``cross`` or ``concat``.
        patch_size: of the denoiser, in latent pixels.
        vae: arguments of diffusers' AutoencoderKL for the thermal autoencoder.
        rgb_normalizer: factor from the RGB autoencoder's latent to the denoiser's.
        thermal_normalizer: the same for thermal.
        divisible: sides of pictures must be multiples of it.

    Raises:
        ValueError: unknown ``arch``.
    """

    arch: str = "XL"
    injection: str = "cross"
    patch_size: int = 2
    vae: dict[str, Any] = field(default_factory=lambda: dict(OFFICIAL_VAE))
    rgb_normalizer: float = 0.18215
    thermal_normalizer: float = 0.95941
    divisible: int = 16

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch = {self.arch!r} is unknown; expected one of {list(ARCHITECTURES)}.")

    @property
    def denoiser(self) -> SiTConfig:
        """Sizes of the denoiser."""
        return SiTConfig(
            *ARCHITECTURES[self.arch],
            patch_size=self.patch_size,
            channels=int(self.vae["latent_channels"]),
            injection=self.injection,
        )

    @classmethod
    def from_json(cls, path: Path) -> ThermalGenConfig:
        """Read ``config.json``: one key ``model_config``.

        Raises:
            ValueError: no such key, or a setting that is not implemented.
        """
        content = weights.read_json(path)
        if not isinstance(content.get("model_config"), dict):
            raise ValueError(
                f"{path} has no object 'model_config'; found {sorted(content)}. Is it a ThermalGen config?"
            )
        try:
            return cls.from_dict(content["model_config"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, model_config: Mapping[str, Any]) -> ThermalGenConfig:
        """From the official ``model_config``.

        Raises:
            ValueError: a field missing, or a setting that is not implemented; it is named.
        """
        known = {
            *("arch", "patch_size", "RGB_normalizer", "thermal_normalizer", "divisible", "vae_model"),
            *("injection_args", "transport_config", "vae_config"),
        }
        for name in sorted(known - {"vae_model"} - set(model_config)):
            raise ValueError(f"the field {name!r} is missing from model_config.")
        for name in sorted(set(model_config) - known - _IGNORED):
            logger.warning(
                "ThermalGen config: %s = %r is not known here and has no effect.", name, model_config[name]
            )
        if model_config.get("vae_model", "klvae") != "klvae":
            raise ValueError(
                f"vae_model = {model_config['vae_model']!r} is not implemented; expected 'klvae'."
            )
        injection = dict(model_config["injection_args"])
        method = injection.pop("injection_method", None)
        if method not in _INJECTION:
            raise ValueError(
                f"injection_method = {method!r} is not implemented; expected one of {list(_INJECTION)}."
            )
        _refuse("injection_args", injection, _INJECTION[method])
        _refuse("transport_config", dict(model_config["transport_config"]), _TRANSPORT, _IGNORED_TRANSPORT)
        return cls(
            arch=str(model_config["arch"]),
            injection=method,
            patch_size=int(model_config["patch_size"]),
            vae=_vae(model_config["vae_config"]),
            rgb_normalizer=float(model_config["RGB_normalizer"]),
            thermal_normalizer=float(model_config["thermal_normalizer"]),
            divisible=int(model_config["divisible"]),
        )

    @classmethod
    def from_shapes(cls, stored: Mapping[str, tuple[int, ...]], path: Path) -> ThermalGenConfig:
        """The published settings of the size and variant that a file's tensors have (a checkpoint without config).

        Raises:
            ValueError: a size that was not published.
        """
        for prefix in ("ema.", "model."):
            key = f"{prefix}x_embedder.proj.weight"
            if key in stored:
                blocks = {k.split(".")[2] for k in stored if k.startswith(f"{prefix}blocks.")}
                size = (stored[key][0], len(blocks))
                for arch, sizes in ARCHITECTURES.items():
                    if size == sizes[:2] and arch != "tiny":
                        cross = f"{prefix}blocks.0.cross_attn.qkv.weight" in stored
                        return cls(arch=arch, injection="cross" if cross else "concat")
                raise ValueError(
                    f"{path}: a denoiser of hidden size {size[0]} with {size[1]} blocks is none of "
                    f"{[a for a in ARCHITECTURES if a != 'tiny']}. Put its {weights.CONFIG_FILE} beside it."
                )
        raise ValueError(
            f"{path}: neither 'ema.x_embedder.proj.weight' nor 'model.x_embedder.proj.weight' is there; no ThermalGen checkpoint."
        )

    def to_dict(self) -> dict[str, Any]:
        """Content of an official ``config.json``."""
        injection: dict[str, Any] = {"injection_method": self.injection}
        injection |= {
            name: values[0] for name, values in _INJECTION[self.injection].items() if values[0] is not None
        }
        injection.pop("first_cross", None)
        injection.pop("rgb_dropout_prob", None)
        return {
            "model_config": {
                "vae": "ema",
                "arch": self.arch,
                "patch_size": self.patch_size,
                "cfg_scale": 1.0,
                "thermal_normalizer": self.thermal_normalizer,
                "RGB_normalizer": self.rgb_normalizer,
                "divisible": self.divisible,
                "vae_model": "klvae",
                "injection_args": injection,
                "transport_config": {"path_type": "Linear", "prediction": "velocity", "loss_weight": None},
                "vae_config": dict(self.vae),
            }
        }


def _refuse(
    where: str,
    options: Mapping[str, Any],
    implemented: Mapping[str, tuple[Any, ...]],
    ignored: set[str] | frozenset[str] = frozenset(),
) -> None:
    for name, value in options.items():
        if name in ignored:
            continue
        if name not in implemented:
            raise ValueError(
                f"{where} has the unknown option {name} = {value!r}; known are {sorted(implemented)}."
            )
        if value not in implemented[name]:
            raise ValueError(
                f"{where}: {name} = {value!r} is not implemented; expected {' or '.join(map(repr, implemented[name]))}."
            )


def _vae(vae_config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for AutoencoderKL, without diffusers' own notes (``_class_name`` and the like)."""
    from inspect import signature

    from diffusers import AutoencoderKL

    known = set(signature(AutoencoderKL.__init__).parameters) - {"self"}
    vae = {name: value for name, value in vae_config.items() if not name.startswith("_")}
    for name in vae:
        if name not in known:
            raise ValueError(
                f"vae_config has the unknown option {name!r}; diffusers' AutoencoderKL has {sorted(known)}."
            )
    for name in ("block_out_channels", "latent_channels"):
        if name not in vae:
            raise ValueError(f"the field {name!r} is missing from vae_config.")
    return vae

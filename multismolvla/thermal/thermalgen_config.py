"""The ``config.json`` of ThermalGen: what is read, what is refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

from multismolvla import weights
from multismolvla.thermal.sit import ARCHITECTURES, SiTConfig

logger = logging.getLogger(__name__)

#: The published thermal autoencoder (arguments of diffusers' AutoencoderKL); the RGB one has three channels.
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

#: Labels with trained rows: the data sets whose style they stand for. All are outdoor driving, surveillance
#: or aerial scenes; for anything else "no label" (1000) is the sensible choice. All other rows below 1000 are
#: untrained.
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

type _Implemented = Mapping[str, tuple[object, ...]]
# Option -> the values that are implemented.
_INJECTION: dict[str, _Implemented] = {
    "cross": {
        "injection_position": ("q",),
        "self_attn": (True,),
        "first_cross": (False, None),
        "rgb_dropout_prob": (0, None),
        "bn_momentum": (None,),
    },
    "concat": {"replace_RGB": (False,), "rgb_dropout_prob": (0, None)},
}
_TRANSPORT: _Implemented = {"path_type": ("Linear",), "prediction": ("velocity",)}
_NEEDED = {
    *("arch", "patch_size", "RGB_normalizer", "thermal_normalizer", "divisible"),
    *("injection_args", "transport_config", "vae_config"),
}
# Fields of training or of the reference's own loading; without effect here.
_IGNORED = {"vae", "cache_rate", "cfg_scale"}


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
            ValueError: no such key, a field missing, or a setting that is not implemented; it is named.
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
        """From the official ``model_config``; errors as `from_json`."""
        missing = sorted(_NEEDED - set(model_config))
        if missing:
            raise ValueError(f"the field {missing[0]!r} is missing from model_config.")
        for name in sorted(set(model_config) - _NEEDED - _IGNORED - {"vae_model"}):
            value = model_config[name]
            logger.warning("ThermalGen config: %s = %r is not known here and has no effect.", name, value)
        if model_config.get("vae_model", "klvae") != "klvae":
            raise ValueError(
                f"vae_model = {model_config['vae_model']!r} is not implemented; expected 'klvae'."
            )
        injection = dict(model_config["injection_args"])
        method = injection.pop("injection_method", None)
        if method not in _INJECTION:
            expected = list(_INJECTION)
            raise ValueError(f"injection_method = {method!r} is not implemented; expected one of {expected}.")
        _refuse("injection_args", injection, _INJECTION[method])
        transport = {k: v for k, v in model_config["transport_config"].items() if k != "loss_weight"}
        _refuse("transport_config", transport, _TRANSPORT)
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
        """The published settings that fit a file's tensors, for a checkpoint without config.

        Raises:
            ValueError: a size that was not published.
        """
        for prefix in ("ema.", "model."):
            width = stored.get(f"{prefix}x_embedder.proj.weight", (0,))[0]
            if not width:
                continue
            blocks = {key.split(".")[2] for key in stored if key.startswith(f"{prefix}blocks.")}
            published = {sizes[:2]: arch for arch, sizes in ARCHITECTURES.items() if arch != "tiny"}
            arch = published.get((width, len(blocks)))
            if arch is None:
                raise ValueError(
                    f"{path}: a denoiser of hidden size {width} with {len(blocks)} blocks is none of "
                    f"{list(published.values())}. Put its {weights.CONFIG_FILE} beside it."
                )
            cross = f"{prefix}blocks.0.cross_attn.qkv.weight" in stored
            return cls(arch=arch, injection="cross" if cross else "concat")
        raise ValueError(
            f"{path}: neither 'ema.x_embedder.proj.weight' nor 'model.x_embedder.proj.weight' is there; no "
            "ThermalGen checkpoint."
        )


def _refuse(where: str, options: Mapping[str, object], implemented: _Implemented) -> None:
    for name, value in options.items():
        if name not in implemented:
            known = sorted(implemented)
            raise ValueError(f"{where} has the unknown option {name} = {value!r}; known are {known}.")
        if value not in implemented[name]:
            expected = " or ".join(map(repr, implemented[name]))
            raise ValueError(f"{where}: {name} = {value!r} is not implemented; expected {expected}.")


def _vae(vae_config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for AutoencoderKL, without diffusers' own notes (``_class_name`` and the like)."""
    from diffusers import AutoencoderKL

    known = set(signature(AutoencoderKL.__init__).parameters) - {"self"}
    vae = {name: value for name, value in vae_config.items() if not name.startswith("_")}
    unknown = sorted(set(vae) - known)
    if unknown:
        raise ValueError(f"vae_config has the unknown option {unknown[0]!r}; known are {sorted(known)}.")
    missing = sorted({"block_out_channels", "latent_channels"} - set(vae))
    if missing:
        raise ValueError(f"the field {missing[0]!r} is missing from vae_config.")
    return vae

"""ThermalGen: thermal pictures synthesised from RGB, official checkpoints.

RGB is encoded by an autoencoder, a denoiser (`multismolvla.thermal.sit`) turns noise into a thermal latent
beside it (`multismolvla.thermal.sampler`), and another autoencoder decodes that. Only the halves of the
autoencoders that are used are read. Licence: the code is MIT; nothing is stated beside the weights, so read
the model card.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multismolvla import weights
from multismolvla.checks import shape_and_dtype
from multismolvla.thermal.sampler import Sampler, noise_for
from multismolvla.thermal.sit import SiT
from multismolvla.thermal.thermalgen_config import ThermalGenConfig

logger = logging.getLogger(__name__)

#: Where the denoiser may be in a file. The hub files keep the averaged weights under ``ema.``; Lightning
#: checkpoints hold the raw ones under ``model.``, too.
DENOISER_PREFIXES = ("ema.", "model.")


class ThermalGen(nn.Module):
    """RGB to thermal, for inference: frozen, without gradients.

    Example:
        >>> model = ThermalGen.from_pretrained("xjh19972/ThermalGen-B-2")  # doctest: +SKIP
        >>> thermal = model.generate(rgb, frames=[(3, 0), (3, 1)], noise_mode="episode")  # doctest: +SKIP

    Args:
        config: sizes and scales.
    """

    def __init__(self, config: ThermalGenConfig) -> None:
        super().__init__()
        self.config = config
        self.ema = SiT(config.denoiser)
        self.RGB_vae, self.thermal_vae = _autoencoder_halves(config)
        self.sampler = Sampler(self.ema)
        self.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls,
        repo_or_dir: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> ThermalGen:
        """Load the official files, strictly.

        Args:
            repo_or_dir: hub id such as ``"xjh19972/ThermalGen-B-2"``, folder with ``config.json`` and
                ``model.safetensors``, or a Lightning checkpoint (``.ckpt``), which takes a ``config.json``
                beside it or else the published settings of its size.
            dtype: of the weights and the computation; ``None`` = as stored (float32). In bfloat16 everything
                runs in bfloat16, whose range is float32's; in float16, which overflows in these autoencoders,
                they stay float32 as their ``force_upcast`` asks. The sampler's state is float32 always.
            device: where to put the weights; ``None`` = CPU.

        Raises:
            FileNotFoundError: files not found; says where to get them.
            ValueError: a setting that is not implemented, or a tensor missing, left over, or of another
                shape; the first one is named.
        """
        path = Path(repo_or_dir)
        if path.suffix == ".ckpt":
            path = weights.find_weights(path)
            config_path = path.parent / weights.CONFIG_FILE
        else:
            config_path, path = weights.locate(repo_or_dir)
        stored = weights.stored_keys(path)
        if config_path.is_file():
            config = ThermalGenConfig.from_json(config_path)
        else:
            config = ThermalGenConfig.from_shapes(stored, path)
        with torch.device("meta"):
            model = cls(config)
        keep_float32 = dtype == torch.float16 and config.vae.get("force_upcast", True)
        vae_dtype = torch.float32 if keep_float32 else dtype
        for part, prefix, own in (
            (model.ema, _denoiser_prefix(path, stored, model.ema), dtype),
            (model.RGB_vae, "RGB_vae.", vae_dtype),
            (model.thermal_vae, "thermal_vae.", vae_dtype),
        ):
            state = weights.read_weights(path, part.state_dict(), prefix=prefix, dtype=own, device=device)
            part.load_state_dict(state, strict=True, assign=True)
        return model.eval().requires_grad_(False)

    def latent_shape(self, size: int = 256) -> tuple[int, int, int]:
        """(channels, height, width) of the noise of one picture of ``size`` pixels.

        Raises:
            ValueError: ``size`` is no multiple of the config's ``divisible``.
        """
        by = self.config.divisible
        if size < by or size % by:
            raise ValueError(f"size = {size}: expected a multiple of {by} (officially trained at 256).")
        side = size // 2 ** (len(self.config.vae["block_out_channels"]) - 1)
        return self.config.denoiser.channels, side, side

    def preprocess(self, rgb: Tensor, size: int = 256) -> Tensor:
        """Resize as the reference does: 8-bit values, bilinear with antialiasing, the aspect ratio not kept.

        Args:
            rgb: float (B, 3, H, W) in [0, 1].
            size: side in pixels.

        Returns:
            (B, 3, size, size) in [-1, 1], dtype and device of the RGB autoencoder.

        Raises:
            ValueError: another shape, dtype or range, or NaN.
        """
        if rgb.ndim != 4 or rgb.shape[1] != 3 or not rgb.is_floating_point():
            raise ValueError(f"rgb is {shape_and_dtype(rgb)}; expected float (B, 3, H, W) in [0, 1].")
        low, high = (float(v) for v in rgb.aminmax()) if rgb.numel() else (0.0, 1.0)
        if not (low >= 0 and high <= 1):  # also true for NaN
            raise ValueError(
                f"rgb is in [{low:g}, {high:g}]; expected [0, 1], finite (8-bit pictures: divide by 255)."
            )
        # On the CPU always: PyTorch resizes 8-bit pictures only there, and so the pixels are the same
        # everywhere.
        pixels = (rgb.detach().cpu().float() * 255).round().to(torch.uint8)
        if pixels.shape[-2:] != (size, size):
            pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
        return (pixels.float() / 255 * 2 - 1).to(_first_parameter(self.RGB_vae))

    @torch.no_grad()
    def encode_rgb(self, pixels: Tensor, posterior_noise: Tensor | None = None) -> Tensor:
        """Scaled RGB latent of `preprocess`'s pictures.

        Args:
            pixels: (B, 3, H, W) in [-1, 1].
            posterior_noise: (B, channels, H / 8, W / 8) to sample the posterior with, as the reference does;
                ``None`` = its mean.

        Returns:
            float32 (B, channels, H / 8, W / 8).
        """
        posterior = self.RGB_vae.encode(pixels).latent_dist
        latent = posterior.mean.float()
        if posterior_noise is not None:
            latent = latent + posterior.std.float() * posterior_noise.to(latent)
        return latent * self.config.rgb_normalizer

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Thermal picture, float32 (B, 1, H, W) in [0, 1], white hot; latent: (B, channels, H / 8, W / 8)."""
        scaled = (latent / self.config.thermal_normalizer).to(_first_parameter(self.thermal_vae))
        decoded: Tensor = self.thermal_vae.decode(scaled).sample
        return (decoded.float() * 0.5 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def generate(
        self,
        rgb: Tensor,
        *,
        frames: Sequence[tuple[int | str, int]] | None = None,
        noise: Tensor | None = None,
        noise_mode: str = "frame",
        seed: int = 0,
        steps: int = 4,
        method: str = "euler",
        label: int | Tensor | None = None,
        cfg_scale: float = 1.0,
        size: int = 256,
        output_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Thermal pictures of RGB pictures.

        Either ``frames`` or ``noise`` says where the noise comes from; nothing is drawn from global random
        numbers. With ``frames`` a picture is independent of the batch it is in.

        Args:
            rgb: float (B, 3, H, W) in [0, 1].
            frames: (episode, frame) of each picture; see `multismolvla.thermal.sampler.noise_for`.
            noise: (B, *`latent_shape`).
            noise_mode: with ``frames``: ``frame``, ``episode`` (less flicker) or ``fixed``.
            seed: with ``frames``: another number gives other noise.
            steps: of the fixed-step methods, see `Sampler.sample`.
            method: ``euler``, ``midpoint``, ``heun``, ``rk4`` or ``dopri5`` (the reference's).
            label: training set whose style is wanted
                (`multismolvla.thermal.thermalgen_config.TRAINED_LABELS`), int or int64 (B,); ``None`` = no
                label (1000 officially).
            cfg_scale: guidance towards the label; 1 = none.
            size: side at which the networks run; pictures are resized to it. Officially 256.
            output_size: (height, width) of the result; ``None`` = that of ``rgb``.

        Returns:
            float32 (B, 1, height, width) in [0, 1] on the model's device.

        Raises:
            ValueError: an argument out of its range, or not exactly one source of noise.
        """
        shape = (len(rgb), *self.latent_shape(size))
        x_rgb = self.encode_rgb(self.preprocess(rgb, size))
        if (noise is None) == (frames is None):
            raise ValueError("Give exactly one source of noise: frames=[(episode, frame), ...] or noise.")
        if frames is not None:
            if len(frames) != len(rgb):
                raise ValueError(f"frames names {len(frames)} pictures, but rgb holds {len(rgb)}.")
            noise = noise_for(frames, noise_mode, shape[1:], seed=seed)
        assert noise is not None
        if tuple(noise.shape) != shape or not noise.is_floating_point() or not bool(noise.isfinite().all()):
            raise ValueError(f"noise is {shape_and_dtype(noise)}; expected float {shape}, finite.")
        solution = self.sampler.sample(noise, x_rgb, label, steps=steps, method=method, cfg_scale=cfg_scale)
        thermal = self.decode(solution.latent)
        target = tuple(rgb.shape[-2:]) if output_size is None else tuple(output_size)
        if thermal.shape[-2:] != target:
            thermal = F.interpolate(thermal, target, mode="bilinear", antialias=True).clamp(0, 1)
        return thermal


def _first_parameter(module: nn.Module) -> Tensor:
    return next(module.parameters())


def _autoencoder_halves(config: ThermalGenConfig) -> tuple[Any, Any]:
    """RGB encoder and thermal decoder; the other halves (83 M parameters officially) are never used."""
    import diffusers

    make: Any = diffusers.AutoencoderKL
    rgb = make(**config.vae | {"in_channels": 3, "out_channels": 3})
    del rgb.decoder, rgb.post_quant_conv
    thermal = make(**config.vae)
    del thermal.encoder, thermal.quant_conv
    return rgb, thermal


def _denoiser_prefix(path: Path, stored: dict[str, tuple[int, ...]], net: SiT) -> str:
    """The prefix under which the denoiser is complete; averaged weights go before raw ones.

    Raises:
        ValueError: under none, naming the first missing tensor; or more tensors than the network has.
    """
    expected = set(net.state_dict())
    found = {
        prefix: {key.removeprefix(prefix) for key in stored if key.startswith(prefix)}
        for prefix in DENOISER_PREFIXES
    }
    for prefix in DENOISER_PREFIXES:
        if expected <= found[prefix]:
            surplus = sorted(found[prefix] - expected)
            if surplus:
                raise ValueError(
                    f"{path}: the tensor {prefix + surplus[0]!r} belongs to no part of the denoiser that the "
                    "config describes. Is it another version or variant?"
                )
            averaged = DENOISER_PREFIXES[0]
            if prefix != averaged and found[averaged]:
                logger.warning("%s: %r is not complete; taking %r.", path, averaged, prefix)
            return prefix
    prefix = max(DENOISER_PREFIXES, key=lambda p: len(found[p]))
    missing = next(key for key in net.state_dict() if key not in found[prefix])
    counts = ", ".join(f"{len(expected & found[p])} under {p!r}" for p in DENOISER_PREFIXES)
    raise ValueError(
        f"{path}: the tensor {prefix + missing!r} is missing. Of the denoiser's {len(expected)} tensors the "
        f"file has {counts}; one of the prefixes must be complete."
    )

"""ThermalGen: thermal pictures synthesised from RGB, official checkpoints.

RGB is encoded by an autoencoder, a denoiser (`multismolvla.thermal.sit`) turns noise into a thermal latent beside it
(`multismolvla.thermal.sampler`), and another autoencoder decodes that. Only the halves of the autoencoders that are used are
read. Licence: the code is MIT; nothing is stated beside the weights, so read the model card.
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
from multismolvla.thermal.sampler import Sampler, Solution, noise_for
from multismolvla.thermal.sit import SiT
from multismolvla.thermal.thermalgen_config import ThermalGenConfig

logger = logging.getLogger(__name__)

#: Where the denoiser may be in a file. The hub files keep the averaged weights under ``ema.``; Lightning checkpoints hold
#: the raw ones under ``model.``, too.
DENOISER_PREFIXES = ("ema.", "model.")

POSTERIORS = ("mean", "sample")


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
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        local_files_only: bool = False,
    ) -> ThermalGen:
        """Load the official files, strictly.

        Args:
            repo_or_dir: hub id such as ``"xjh19972/ThermalGen-B-2"``, folder with ``config.json`` and
                ``model.safetensors``, or a Lightning checkpoint (``.ckpt``), which takes a ``config.json`` beside it or
                else the published settings of its size.
            revision: commit, branch or tag on the hub.
            dtype: of the weights and the computation; ``None`` = as stored (float32). In bfloat16 everything runs in
                bfloat16, whose range is float32's; in float16, which overflows in these autoencoders, they stay float32
                as their ``force_upcast`` asks. The sampler's state is float32 always.
            device: where to put the weights; ``None`` = CPU.
            local_files_only: never ask the network, only the hub cache.

        Raises:
            FileNotFoundError: files not found; says where to get them.
            ValueError: a setting that is not implemented, or a tensor missing, left over, or of another shape; the first
                one is named.
        """
        path = Path(repo_or_dir)
        if path.suffix == ".ckpt":
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such Lightning checkpoint.")
            stored = _stored_keys(path)
            beside = path.parent / weights.CONFIG_FILE
            config = (
                ThermalGenConfig.from_json(beside)
                if beside.is_file()
                else ThermalGenConfig.from_shapes(stored, path)
            )
        else:
            config_path, path = weights.locate(
                repo_or_dir, revision=revision, local_files_only=local_files_only
            )
            config = ThermalGenConfig.from_json(config_path)
            stored = _stored_keys(path)
        with torch.device("meta"):
            model = cls(config)
        prefix = _denoiser_prefix(path, stored, model.ema)
        for part, name in (
            (model.ema, prefix),
            (model.RGB_vae, "RGB_vae."),
            (model.thermal_vae, "thermal_vae."),
        ):
            own = dtype
            if part is not model.ema and dtype == torch.float16 and config.vae.get("force_upcast", True):
                own = torch.float32
            state = weights.read_weights(path, part.state_dict(), prefix=name, dtype=own, device=device)
            part.load_state_dict(state, strict=True, assign=True)
        return model.eval().requires_grad_(False)

    def latent_shape(self, size: int | tuple[int, int] = 256) -> tuple[int, int, int]:
        """(channels, height, width) of the noise of one picture of ``size`` pixels.

        Raises:
            ValueError: ``size`` is no multiple of the config's ``divisible``.
        """
        height, width = (size, size) if isinstance(size, int) else size
        by = self.config.divisible
        if min(height, width) < by or height % by or width % by:
            raise ValueError(
                f"size = {size}: height and width must be multiples of {by} (officially trained at 256)."
            )
        return self.config.denoiser.channels, height // self._factor, width // self._factor

    def preprocess(self, rgb: Tensor, size: int | tuple[int, int] = 256) -> Tensor:
        """Resize as the reference does: on the picture's 8-bit values, bilinear with antialiasing, the aspect not kept.

        Args:
            rgb: float (B, 3, H, W) in [0, 1].
            size: side in pixels, or (height, width).

        Returns:
            (B, 3, size, size) in [-1, 1], dtype and device of the RGB autoencoder.

        Raises:
            ValueError: another shape, dtype or range, or NaN.
        """
        _check_rgb(rgb)
        height, width = (size, size) if isinstance(size, int) else size
        # On the CPU on every device: PyTorch resizes 8-bit pictures only there, and so the pixels are the same everywhere.
        pixels = (rgb.detach().cpu().float() * 255).round().to(torch.uint8)
        if pixels.shape[-2:] != (height, width):
            pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
        return (pixels.float() / 255 * 2 - 1).to(self._vae_like(self.RGB_vae))

    @torch.no_grad()
    def encode_rgb(self, pixels: Tensor, posterior_noise: Tensor | None = None) -> Tensor:
        """Scaled RGB latent of `preprocess`'s pictures.

        Args:
            pixels: (B, 3, H, W) in [-1, 1].
            posterior_noise: (B, channels, H / 8, W / 8) to sample the posterior with, as the reference does; ``None`` = its mean.

        Returns:
            float32 (B, channels, H / 8, W / 8).
        """
        posterior = self.RGB_vae.encode(pixels).latent_dist
        latent = posterior.mean.float()
        if posterior_noise is not None:
            _check_noise("posterior_noise", posterior_noise, latent.shape)
            latent = latent + posterior.std.float() * posterior_noise.to(latent)
        return latent * self.config.rgb_normalizer

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Thermal picture, float32 (B, 1, H, W) in [0, 1], white hot, of a sampled latent (B, channels, H / 8, W / 8)."""
        scaled = (latent / self.config.thermal_normalizer).to(self._vae_like(self.thermal_vae))
        decoded: Tensor = self.thermal_vae.decode(scaled).sample
        return (decoded.float() * 0.5 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def generate(
        self,
        rgb: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        frames: Sequence[tuple[int | str, int]] | None = None,
        noise_mode: str = "frame",
        seed: int = 0,
        steps: int = 4,
        method: str = "euler",
        label: int | Tensor | None = None,
        cfg_scale: float = 1.0,
        size: int | tuple[int, int] = 256,
        output_size: tuple[int, int] | None = None,
        posterior: str = "mean",
        posterior_noise: Tensor | None = None,
        cache: bool = True,
    ) -> Tensor:
        """Thermal pictures of RGB pictures.

        Exactly one of ``noise``, ``frames`` and ``generator`` says where the noise comes from; nothing is drawn from
        global random numbers. Only ``frames`` makes a picture independent of the batch it is in.

        Args:
            rgb: float (B, 3, H, W) in [0, 1].
            noise: (B, *`latent_shape`).
            generator: draws the noise of the batch in order; a CPU generator.
            frames: (episode, frame) of each picture; see `multismolvla.thermal.sampler.noise_for`.
            noise_mode: with ``frames``: ``frame``, ``episode`` (less flicker) or ``fixed``.
            seed: with ``frames``: another number gives other noise.
            steps: of the fixed-step methods, see `Sampler.sample`.
            method: ``euler``, ``midpoint``, ``heun``, ``rk4`` or ``dopri5`` (the reference's).
            label: training set whose style is wanted (`multismolvla.thermal.thermalgen_config.TRAINED_LABELS`), int or
                int64 (B,); ``None`` = no label (1000 officially).
            cfg_scale: guidance towards the label; 1 = none.
            size: at which the networks run: pictures are resized to it, aspect not kept. Officially 256.
            output_size: (height, width) of the result; ``None`` = that of ``rgb``.
            posterior: ``mean`` of the RGB latent, or a ``sample`` as in the reference.
            posterior_noise: for ``sample``; ``None`` = from ``generator`` or ``frames``.
            cache: see `Sampler.sample`.

        Returns:
            float32 (B, 1, height, width) in [0, 1] on the model's device.

        Raises:
            ValueError: an argument out of its range, or not exactly one source of noise.
        """
        shape = (len(rgb), *self.latent_shape(size))
        pixels = self.preprocess(rgb, size)
        if posterior not in POSTERIORS:
            raise ValueError(f"posterior = {posterior!r}; expected one of {list(POSTERIORS)}.")
        noise = _noise("noise", noise, generator, frames, noise_mode, seed, shape, "start")
        if posterior == "sample":
            if posterior_noise is not None:
                generator = frames = None
            posterior_noise = _noise(
                "posterior_noise", posterior_noise, generator, frames, noise_mode, seed, shape, "posterior"
            )
        elif posterior_noise is not None:
            raise ValueError(
                "posterior_noise is given, but posterior = 'mean' does not use it; say 'sample'."
            )
        x_rgb = self.encode_rgb(pixels, posterior_noise)
        solution = self.sample(
            noise, x_rgb, label=label, steps=steps, method=method, cfg_scale=cfg_scale, cache=cache
        )
        thermal = self.decode(solution.latent)
        target = tuple(rgb.shape[-2:]) if output_size is None else tuple(output_size)
        if thermal.shape[-2:] != target:
            thermal = F.interpolate(thermal, target, mode="bilinear", antialias=True).clamp(0, 1)
        return thermal

    def sample(
        self, noise: Tensor, x_rgb: Tensor, *, label: int | Tensor | None = None, **options: Any
    ) -> Solution:
        """`Sampler.sample` with one label for all (``None`` = none); other arguments there."""
        labels = self.config.denoiser.null_label if label is None else label
        if isinstance(labels, int):
            labels = torch.full((len(noise),), labels, dtype=torch.int64)
        return self.sampler.sample(noise, x_rgb, labels, **options)

    @property
    def _factor(self) -> int:
        return int(2 ** (len(self.config.vae["block_out_channels"]) - 1))

    @staticmethod
    def _vae_like(vae: nn.Module) -> Tensor:
        return next(vae.parameters())


def _autoencoder_halves(config: ThermalGenConfig) -> tuple[Any, Any]:
    """RGB encoder and thermal decoder; the other halves (83 M parameters officially) are never used."""
    import diffusers

    make: Any = diffusers.AutoencoderKL
    rgb = make(**config.vae | {"in_channels": 3, "out_channels": 3})
    del rgb.decoder, rgb.post_quant_conv
    thermal = make(**config.vae)
    del thermal.encoder, thermal.quant_conv
    return rgb, thermal


def _stored_keys(path: Path) -> dict[str, tuple[int, ...]]:
    """`weights.stored_keys`, also for a pickled state dict."""
    if path.suffix != ".ckpt":
        return weights.stored_keys(path)
    weights.read_pickled(path, {})  # refuses what is no plain state dict, with a reason
    stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    state = stored.get("state_dict", stored)
    return {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}


def _denoiser_prefix(path: Path, stored: dict[str, tuple[int, ...]], net: SiT) -> str:
    """The prefix under which the denoiser is complete; averaged weights go before raw ones.

    Raises:
        ValueError: under none, naming the first missing tensor; or more tensors than the network has.
    """
    expected = set(net.state_dict())
    found = {
        prefix: {k.removeprefix(prefix) for k in stored if k.startswith(prefix)}
        for prefix in DENOISER_PREFIXES
    }
    for prefix in DENOISER_PREFIXES:
        if expected <= found[prefix]:
            surplus = sorted(found[prefix] - expected)
            if surplus:
                raise ValueError(
                    f"{path}: the tensor {prefix + surplus[0]!r} belongs to no part of the denoiser that the config "
                    "describes. Is it another version or variant?"
                )
            if prefix != DENOISER_PREFIXES[0] and found[DENOISER_PREFIXES[0]]:
                logger.warning("%s: %r is not complete; taking %r.", path, DENOISER_PREFIXES[0], prefix)
            return prefix
    prefix = max(DENOISER_PREFIXES, key=lambda p: len(found[p]))
    missing = next(key for key in net.state_dict() if key not in found[prefix])
    counts = ", ".join(f"{len(expected & found[p])} under {p!r}" for p in DENOISER_PREFIXES)
    raise ValueError(
        f"{path}: the tensor {prefix + missing!r} is missing. Of the denoiser's {len(expected)} tensors the file has {counts}; "
        "one of the prefixes must be complete."
    )


def _noise(
    name: str,
    noise: Tensor | None,
    generator: torch.Generator | None,
    frames: Sequence[tuple[int | str, int]] | None,
    mode: str,
    seed: int,
    shape: tuple[int, ...],
    purpose: str,
) -> Tensor:
    if sum(source is not None for source in (noise, generator, frames)) != 1:
        raise ValueError(
            f"Give exactly one source of {name}: {name}, frames=[(episode, frame), ...] or generator."
        )
    if noise is not None:
        return _check_noise(name, noise, shape)
    if frames is not None:
        if len(frames) != shape[0]:
            raise ValueError(f"frames names {len(frames)} pictures, but rgb holds {shape[0]}.")
        return noise_for(frames, mode, shape[1:], seed=seed, purpose=purpose)
    return torch.randn(shape, generator=generator)


def _check_noise(name: str, noise: Tensor, shape: Sequence[int]) -> Tensor:
    if tuple(noise.shape) != tuple(shape) or not noise.is_floating_point():
        raise ValueError(f"{name} is {noise.dtype} {tuple(noise.shape)}; expected float {tuple(shape)}.")
    if not bool(torch.isfinite(noise).all()):
        raise ValueError(f"{name} holds NaN or infinite values.")
    return noise


def _check_rgb(rgb: Tensor) -> None:
    if rgb.ndim != 4 or rgb.shape[1] != 3 or not rgb.is_floating_point():
        raise ValueError(f"rgb is {rgb.dtype} {tuple(rgb.shape)}; expected float (B, 3, H, W) in [0, 1].")
    if not bool(torch.isfinite(rgb).all()):
        raise ValueError("rgb holds NaN or infinite values; expected [0, 1].")
    if rgb.numel() and (rgb.min() < 0 or rgb.max() > 1):
        raise ValueError(
            f"rgb is in [{float(rgb.min()):g}, {float(rgb.max()):g}]; expected [0, 1] (8-bit pictures: divide by 255)."
        )

"""A tiny random ThermalGen in the official layout, for tests and dry runs without downloads."""

from __future__ import annotations

from pathlib import Path

import torch

from multismolvla import weights
from multismolvla.thermal.thermalgen import ThermalGen
from multismolvla.thermal.thermalgen_config import OFFICIAL_VAE, ThermalGenConfig

TINY_VAE = OFFICIAL_VAE | {
    "block_out_channels": [8, 8, 16, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 64,
}


def write_tiny_thermalgen(
    folder: str | Path, *, injection: str = "cross", prefix: str = "ema.", seed: int = 0
) -> Path:
    """Write a ThermalGen checkpoint with random weights under the official names, for pictures of any multiple of 16.

    No gate, norm or bias is left at zero or one, so that the thermal picture depends on RGB, noise, label and steps. Only the
    halves of the autoencoders that are read are there.

    Args:
        folder: made where missing; gets ``config.json`` and ``model.safetensors`` (about 1 MB).
        injection: ``cross`` or ``concat``.
        prefix: of the denoiser's tensors: ``ema.`` as on the hub, or ``model.``.
        seed: of the weights.

    Returns:
        The folder.
    """
    config = ThermalGenConfig(arch="tiny", injection=injection, vae=dict(TINY_VAE))
    with torch.device("meta"):
        model = ThermalGen(config)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        name = prefix + key.removeprefix("ema.") if key.startswith("ema.") else key
        if tensor.ndim == 1:  # scales of norms, and biases
            state[name] = 0.1 * noise + (1.0 if "norm" in key and key.endswith("weight") else 0.0)
        else:
            state[name] = noise * tensor[0].numel() ** -0.5
    weights.write(folder, config.to_dict(), state)
    return Path(folder)

"""Tiny random checkpoints in the official layouts, for tests and dry runs without downloads."""

from __future__ import annotations

from pathlib import Path

import torch

from multismolvla import weights
from multismolvla.thermal.imagebind import ImageBindThermal, ImageBindVision


def write_tiny_imagebind(
    path: str | Path,
    *,
    vision_width: int = 40,
    thermal_width: int = 32,
    num_blocks: int = 2,
    num_heads: int = 4,
    joint_dim: int = 24,
    seed: int = 0,
) -> Path:
    """Write an ImageBind checkpoint with both branches and random weights, under the official names.

    No parameter is left at zero or one, so that a forgotten one changes the output, and neighbouring rows differ enough
    for different tokens.

    Args:
        path: folder, made where missing; gets ``config.json`` and ``model.safetensors`` (about 0.6 MB).
        vision_width: width of the vision rows; the ImageBind tokenizers beside it must expect it.
        thermal_width: width of the thermal rows.
        num_blocks: transformer blocks of each branch.
        num_heads: attention heads of each branch.
        joint_dim: width of the joint space.
        seed: of the weights.

    Returns:
        The folder.
    """
    with torch.device("meta"):
        branches = (
            ImageBindVision(vision_width, num_blocks, num_heads, joint_dim),
            ImageBindThermal(thermal_width, num_blocks, num_heads, joint_dim),
        )
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for branch in branches:
        for key, tensor in branch.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim == 1 and key.endswith("weight"):  # scale of a norm
                state[key] = 1 + 0.1 * noise
            elif tensor.ndim == 0:
                state[key] = torch.tensor(10.0).log()
            elif key.endswith("thermal.rgbt_stem.proj.weight"):
                # Small, so that the epsilon of the norm behind lets the level of a uniform patch through.
                state[key] = 0.01 * noise * tensor[0].numel() ** -0.5
            elif key.endswith("weight"):
                state[key] = noise * tensor[0].numel() ** -0.5
            else:
                state[key] = 0.2 * noise
    config = {
        "vision_embed_dim": vision_width,
        "vision_num_blocks": num_blocks,
        "vision_num_heads": num_heads,
        "thermal_embed_dim": thermal_width,
        "thermal_num_blocks": num_blocks,
        "thermal_num_heads": num_heads,
        "out_embed_dim": joint_dim,
    }
    weights.write(path, config, state)
    return Path(path)

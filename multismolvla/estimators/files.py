"""Reading a network of transformers from a hub id or folder, and saying which one it is."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from multismolvla import weights
from multismolvla.estimators.interface import EstimatorRecipe, Setting
from multismolvla.tokenizers.recipe import file_fingerprint

_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")

#: Tables in published files that hold nothing learned: computed from the configuration, the last of a loss.
_NOT_LEARNED = (
    "relative_position_index", "position_ids", "attn_mask", "num_batches_tracked", "criterion.empty_weight",
)  # fmt: skip


def load_network(
    auto: Any, source: str, task: str, device: str, revision: str | None = None
) -> tuple[Any, Any, Path]:
    """Network, image processor and file of weights; every learned weight must be in the file and be used."""
    from safetensors import SafetensorError
    from transformers import AutoImageProcessor
    from transformers.utils import logging as transformers_logging

    config, _, tensors = weights.locate(source, _FILES, revision=revision)
    weights.stored_keys(tensors)  # names a truncated file before transformers stumbles over it
    transformers_logging.disable_progress_bar()
    try:
        model, found = auto.from_pretrained(
            config.parent, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (ValueError, RuntimeError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{source} cannot be read as a network for {task}: {first}") from error
    # A surplus table is left out without harm; of missing ones, only the loss's is never read here.
    tolerated = {"missing_keys": _NOT_LEARNED[-1:], "mismatched_keys": (), "unexpected_keys": _NOT_LEARNED}
    for kind, harmless in tolerated.items():
        keys = sorted(key for key in map(str, found[kind]) if not key.endswith(harmless))
        if keys:
            raise ValueError(
                f"{tensors}: {len(keys)} {kind.replace('_', ' ')}, first {keys[0]}. Config and weights do "
                f"not belong together, or it is no network for {task}."
            )
    processor = AutoImageProcessor.from_pretrained(config.parent, local_files_only=True)
    return model.eval().requires_grad_(False).to(device), processor, tensors


def recipe_of(source: str, tensors: Path, dtype: torch.dtype | None, **settings: Setting) -> EstimatorRecipe:
    """The recipe of the network whose weights lie in ``tensors``; ``None`` = it computes in float32."""
    cached = _cached(tensors)
    name, revision = cached or (Path(source).name, None)  # a folder's place says nothing on another machine
    number = str(dtype or torch.float32).removeprefix("torch.")
    beside = (tensors.parent / file for file in _FILES if file.endswith(".json"))
    files = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in beside if f.is_file()}
    return EstimatorRecipe(name, revision, file_fingerprint(tensors), number, settings, files)


def _cached(file: Path) -> tuple[str, str] | None:
    """Hub id and commit of a file in the hub's cache: …/models--owner--name/snapshots/<commit>/<file>."""
    repo, snapshots, commit = (file.parts[-4:-1] + ("", "", ""))[:3]
    if snapshots != "snapshots" or not repo.startswith("models--"):
        return None
    return repo.removeprefix("models--").replace("--", "/", 1), commit

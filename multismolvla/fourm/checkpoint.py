"""Reading and writing 4M checkpoints in the official layout: ``config.json`` + ``model.safetensors``.

Reading is lazy (an encoder with four modalities needs a tenth of the official file) and strict: names and shapes of
*all* needed tensors are checked before the first one is read, because the reference loader's non-strict default turns
a wrong prefix into silently random weights.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
LICENCE = "weights: EPFL / Apple 'Sample Code License', non-commercial use only"

_FLOATS = {"F32", "F16", "BF16", "F64"}


class CheckpointFiles(NamedTuple):
    """Local paths of a checkpoint's two files."""

    config: Path
    weights: Path


def locate(
    repo_or_dir: str | Path, *, revision: str | None = None, local_files_only: bool = False
) -> CheckpointFiles:
    """Find a checkpoint in a folder, in the hub cache or on the hub.

    Raises:
        FileNotFoundError: it is in none of them; the message names what to fetch and where to put it.
    """
    folder = Path(repo_or_dir)
    if folder.is_dir():
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} has no {name}. Expected the official layout: {CONFIG_FILE} + {WEIGHTS_FILE}."
                )
        return CheckpointFiles(folder / CONFIG_FILE, folder / WEIGHTS_FILE)
    repo = str(repo_or_dir)
    if repo.count("/") != 1 or repo.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"{repo!r} is neither a folder nor a hub id of the form 'owner/name' (e.g. 'EPFL-VILAB/4M-21_B')."
        )
    # Imported here: the core works from local folders without huggingface_hub.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    paths = []
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        try:
            path = hf_hub_download(repo, name, revision=revision, local_files_only=local_files_only)
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            at = f" at revision {revision!r}" if revision else ""
            raise FileNotFoundError(
                f"Cannot get {name} of {repo!r}{at}: {type(error).__name__}: {_first_line(error)}\n"
                f"With network access: `hf download {repo} {CONFIG_FILE} {WEIGHTS_FILE}` ({LICENCE}), then unset "
                f"HF_HUB_OFFLINE or keep it set and use the cache. By hand: put {CONFIG_FILE} and {WEIGHTS_FILE} of "
                f"https://huggingface.co/{repo} into one folder and give that folder instead of the hub id."
            ) from error
        paths.append(Path(path))
    return CheckpointFiles(*paths)


def read_tensors(
    path: Path,
    expected: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> dict[str, Tensor]:
    """Read exactly the expected tensors of a safetensors file.

    Args:
        path: the file; it may hold any other tensors (decoder, other modalities), which are not read.
        expected: {key: tensor of the wanted shape} (meta tensors will do).
        dtype: convert to it; ``None`` = keep the stored dtype.
        device: where to put them; ``None`` = CPU.

    Returns:
        {key: tensor} with the keys of ``expected``.

    Raises:
        ValueError: no or truncated safetensors file, a key missing, a shape or dtype different, a norm bias not zero,
            or a value not finite. The first bad key is named.
    """
    try:
        with safe_open(path, framework="pt", device=str(device or "cpu")) as file:
            stored = set(file.keys())
            for key, tensor in expected.items():
                _check_header(path, file, stored, key, tensor)
            state = {}
            for key in expected:
                state[key] = _check_values(path, key, file.get_tensor(key).to(dtype=dtype))
    except SafetensorError as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is truncated or no safetensors file: {error}. Fetch it again."
        ) from error
    return state


def _check_header(path: Path, file: Any, stored: set[str], key: str, tensor: Tensor) -> None:
    if key not in stored:
        alike = sorted(k for k in stored if k.endswith("." + key))
        if alike:
            prefix = alike[0].removesuffix(key)
            hint = f"The file has {alike[0]!r}: strip the prefix {prefix!r} from its keys."
        else:
            hint = "Is it another model, or a checkpoint slimmed to other modalities?"
        raise ValueError(f"{path}: the tensor {key!r} is missing ({len(stored)} tensors in the file). {hint}")
    header = file.get_slice(key)
    shape = tuple(header.get_shape())
    if shape != tuple(tensor.shape):
        raise ValueError(
            f"{path}: the tensor {key!r} has shape {shape}; the config asks for {tuple(tensor.shape)}. "
            "Do config.json and model.safetensors belong together?"
        )
    if header.get_dtype() not in _FLOATS:
        raise ValueError(
            f"{path}: the tensor {key!r} is {header.get_dtype()}; expected one of {sorted(_FLOATS)}."
        )


def _check_values(path: Path, key: str, tensor: Tensor) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(
            f"{path}: the tensor {key!r} holds NaN or infinite values. The file is damaged; fetch it again."
        )
    if key.endswith(("norm.bias", "norm1.bias", "norm2.bias")) and bool(tensor.any()):
        raise ValueError(
            f"{path}: {key!r} is not zero, although norm_bias is false. The file is no official 4M-21 one."
        )
    return tensor


def write(directory: str | Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write a checkpoint; each file is written beside its place and moved there when complete.

    Args:
        directory: folder, made where missing.
        config: content of ``config.json``.
        state: content of ``model.safetensors``.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as scratch:
        weights, text = Path(scratch) / WEIGHTS_FILE, Path(scratch) / CONFIG_FILE
        save_file(tensors, weights, metadata={"format": "pt"})
        text.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        os.replace(weights, folder / WEIGHTS_FILE)
        os.replace(text, folder / CONFIG_FILE)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]

"""Finding, reading and writing checkpoints in the official layouts, for every frozen network of the package.

Reading is lazy (a tenth of 4M-21, a seventh of ImageBind is needed) and strict: names and shapes of *all*
needed tensors are checked before the first one is read, because the reference loaders' non-strict defaults
turn a wrong prefix into silently random weights.
"""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from multismolvla.pretrained import licence_of, size_of

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_FLOATS = ("F64", "F32", "F16", "BF16", "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16")
_MAPPED_BYTES = 256 * 2**20  # of a pickle that may be mapped before it is opened anew
_PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")  # torch.save's zip, and plain pickles


def locate(
    repo_or_dir: str | Path,
    files: Sequence[str] = (CONFIG_FILE, WEIGHTS_FILE),
    *,
    revision: str | None = None,
    local_files_only: bool = False,
) -> list[Path]:
    """Find a checkpoint's files in a folder, in the hub cache or on the hub.

    Args:
        repo_or_dir: folder in the official layout, or hub id ``owner/name``.
        files: their names.
        revision: commit, branch or tag on the hub.
        local_files_only: never ask the network, only the hub cache.

    Returns:
        Paths in the order of ``files``.

    Raises:
        FileNotFoundError: it is in none of them; the message names repository, licence, how to accept it and
            where to put the files by hand.
    """
    folder = Path(repo_or_dir)
    if folder.is_dir():
        for name in files:
            if not (folder / name).is_file():
                expected = " + ".join(files)
                raise FileNotFoundError(f"{folder} has no {name}. Expected the official layout: {expected}.")
        return [folder / name for name in files]
    repo = str(repo_or_dir)
    if repo.count("/") != 1 or repo.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"{repo!r} is neither a folder nor a hub id of the form 'owner/name' (e.g. 'EPFL-VILAB/4M-21_B')."
        )
    # Imported here: the core works from local folders without huggingface_hub.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    paths = []
    for name in files:
        try:
            path = hf_hub_download(repo, name, revision=revision, local_files_only=local_files_only)
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            at = f" at revision {revision!r}" if revision else ""
            raise FileNotFoundError(
                f"Cannot get {name} of {repo!r}{at} (no folder here has that name): {type(error).__name__}: "
                f"{_first_line(error)}\nLicence of {repo}: {licence_of(repo)}. Size: {size_of(repo)}. "
                f"If the page https://huggingface.co/{repo} asks for it, accept it there and log in with `hf "
                f"auth login`.\nWith network access: `hf download {repo} {' '.join(files)}`, then unset "
                f"HF_HUB_OFFLINE or keep it set and use the cache. By hand: put {' and '.join(files)} of "
                "that page into one folder and give that folder instead of the hub id."
            ) from error
        paths.append(Path(path))
    return paths


def find_weights(source: str | Path, *, local_files_only: bool = False) -> Path:
    """The weight file of a hub id or of a folder in the official layout, or the file itself.

    Raises:
        FileNotFoundError: there is none, see `locate`.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.suffix == ".safetensors" or is_pickled(path):
        raise FileNotFoundError(
            f"There is no file {path}. Give one that exists, a folder with {WEIGHTS_FILE}, or a hub id."
        )
    return locate(source, (WEIGHTS_FILE,), local_files_only=local_files_only)[0]


def read_json(path: Path) -> dict[str, Any]:
    """Content of a ``config.json``.

    Raises:
        ValueError: no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON file: {error}. Fetch it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a JSON object.")
    return content


def is_pickled(path: Path) -> bool:
    """Whether a file is named like what ``torch.save`` writes."""
    return path.suffix in _PICKLE_SUFFIXES


def stored_keys(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a file, without reading them.

    Raises:
        ValueError: damaged, or a pickle that holds more than tensors and plain containers.
    """
    return {key: shape for key, (shape, kind) in _headers(path).items() if kind is not None}


def read_weights(
    path: Path,
    expected: Mapping[str, Tensor],
    *,
    prefix: str = "",
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    check: Callable[[str, Tensor], str | None] | None = None,
) -> dict[str, Tensor]:
    """Read exactly the expected tensors of a safetensors file, or of a state dict saved by ``torch.save``.

    No code is run from a pickle. Files are memory-mapped and opened anew now and then: other tensors
    (decoder, other modalities) cost nothing, and those that are wanted are hardly in memory twice.

    Args:
        path: the file; named like a pickle or, with any other name, safetensors.
        expected: {key: tensor of the wanted shape} (meta tensors will do).
        prefix: what stands before each key in the file, e.g. ``"ema."``.
        dtype: convert to it; ``None`` = keep the stored dtype.
        device: where to put them; ``None`` = CPU.
        check: called with key and value; returns what is wrong with the value, or ``None``.

    Returns:
        {key: tensor} with the keys of ``expected``.

    Raises:
        ValueError: a damaged file, a pickle that holds more than tensors and plain containers, a key missing,
            a shape or dtype different, or a value not finite or refused by ``check``. The first bad key is
            named.
    """
    stored = _headers(path)
    for key, tensor in expected.items():
        name = prefix + key
        if name not in stored:
            raise ValueError(_missing(path, name, stored))
        shape, kind = stored[name]
        if kind not in _FLOATS:
            raise ValueError(f"{path}: {name!r} is {kind or 'no tensor'}; expected a tensor of floats.")
        if shape != tensor.shape:
            raise ValueError(
                f"{path}: the tensor {name!r} has shape {shape}; the config asks for {tuple(tensor.shape)}. "
                f"Do {CONFIG_FILE} and {path.name} belong together?"
            )
    state = {}
    for key, value in zip(expected, _values(path, [prefix + key for key in expected]), strict=True):
        state[key] = value.to(dtype=dtype, device=device, copy=True)
        # Extremes instead of isfinite(): NaN and infinity survive in them, and no copy is made of a large
        # table.
        if value.numel() and not all(bool(torch.isfinite(extreme)) for extreme in state[key].aminmax()):
            raise ValueError(
                f"{path}: the tensor {prefix + key!r} holds NaN or infinite values. The file is damaged; "
                "fetch it again."
            )
        wrong = check(prefix + key, state[key]) if check else None
        if wrong:
            raise ValueError(f"{path}: {prefix + key!r} {wrong}")
    return state


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], str | None]]:
    """Name -> shape and name of the dtype; that of what is no tensor is ``None``."""
    if is_pickled(path):
        return {
            key: (tuple(value.shape), str(value.dtype)) if isinstance(value, Tensor) else ((), None)
            for key, value in _unpickle(path).items()
        }
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            return {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _values(path: Path, names: Sequence[str]) -> Iterator[Tensor]:
    """The mapped tensors one after the other.

    The file's pages count as this process's until it is closed. A safetensors file is opened anew for each
    tensor, so that no more than one is ever there twice; for a pickle that would take minutes, so it is less
    often.
    """
    if not is_pickled(path):
        for name in names:
            with safe_open(path, framework="pt") as file:
                yield file.get_tensor(name)
        return
    stored, mapped = _unpickle(path), 0
    for name in names:
        if mapped > _MAPPED_BYTES:
            stored, mapped = _unpickle(path), 0
        mapped += stored[name].nbytes
        yield stored[name]


def _unpickle(path: Path) -> dict[str, Any]:
    """The mapped state dict of a file by ``torch.save``; errors as `read_weights`."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as plain weights: {_first_line(error)} "
            "Expected a state dict saved by torch.save; other pickles can run code and are not opened."
        ) from error
    found = stored.get("state_dict", stored) if isinstance(stored, dict) else stored
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}; expected a state dict.")
    return found


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


def _missing(path: Path, key: str, stored: Collection[str]) -> str:
    alike = sorted(k for k in stored if k.endswith("." + key))
    if alike:
        hint = f"The file has {alike[0]!r}: strip the prefix {alike[0].removesuffix(key)!r} from its keys."
    else:
        hint = "Is it another model, or a checkpoint slimmed to other modalities?"
    return f"{path}: the tensor {key!r} is missing ({len(stored)} tensors in the file). {hint}"


def _damaged(path: Path, error: Exception) -> ValueError:
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(_PICKLE_STARTS):
        return ValueError(
            f"{path} looks like a pickle saved by torch.save, but safetensors is expected here. Pickles can "
            "run code and are not opened under this name. Take the repository's model.safetensors, or "
            "convert the file where you trust it."
        )
    return ValueError(
        f"{path} ({path.stat().st_size} bytes) is truncated or no safetensors file: {error}. Fetch it again."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]

"""Checkpoints on disk: which folder a path means, and what it holds. Standard library only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from multismolvla_eval.identity import builtin_identity


def checkpoint_path(path: str) -> str | None:
    """The checkpoint in a policy's path as it stands in ``--policies``; ``None`` for a built-in policy."""
    return None if path.startswith("builtin:") else path.removeprefix("blind:")


def resolve_checkpoint(path: str) -> str:
    """The folder with ``config.json`` that a path means.

    Accepts the folder itself, LeRobot's checkpoint folder around it, and a training run's output folder (its last
    checkpoint). Anything that is no local folder is taken for a hub id.

    Raises:
        FileNotFoundError: the folder exists and holds no policy, or the path looks like a file path and does not exist.
    """
    folder = Path(path).expanduser()
    candidates = (folder, folder / "pretrained_model", folder / "checkpoints" / "last" / "pretrained_model")
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return str(candidate)
    if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise FileNotFoundError(
            f"No policy under {path!r}: none of {[str(c / 'config.json') for c in candidates]} exists. Train first, or "
            "give the folder that holds config.json, or a hub id like user/name."
        )
    return path


def checkpoint_hash(folder: str) -> str:
    """Hash of a local checkpoint's weights and JSON files; the hub id itself for a hub checkpoint.

    An adapter's hash includes the checkpoint that it stands on: other weights below it make another policy.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        return f"hub:{folder}"
    digest = hashlib.sha256()
    for path in sorted(p for p in root.iterdir() if p.suffix in (".json", ".safetensors")):
        digest.update(path.name.encode())
        with open(path, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    adapter = root / "adapter_config.json"
    if adapter.is_file():
        digest.update(_adapter_base(adapter).encode())
    return digest.hexdigest()[:16]


def policy_hash(path: str) -> str:
    """What identifies the policy behind a path as it stands in ``--policies``.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    checkpoint = checkpoint_path(path)
    if checkpoint is None:
        return builtin_identity(path)
    prefix = "blind:" if path.startswith("blind:") else ""
    return prefix + checkpoint_hash(resolve_checkpoint(checkpoint))


def _adapter_base(path: Path) -> str:
    """Hash of the local checkpoint that an adapter names, or the hub's name and revision of it."""
    adapter = json.loads(path.read_text())
    base = str(adapter.get("base_model_name_or_path") or "")
    folder = Path(base).expanduser()
    if base and folder.is_dir() and folder.resolve() != path.parent.resolve():
        return checkpoint_hash(str(folder))
    return f"hub:{base}@{adapter.get('revision') or 'main'}"

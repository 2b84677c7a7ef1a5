"""Which checkpoint a policy's path means, and what identifies what it holds. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from functools import cache
from pathlib import Path

#: Prefix of a checkpoint's path: the same policy without pictures.
NO_VISION = "no_vision:"
#: The same for a MultiSmolVLA policy that takes every picture for what it is (``--policy.health=off``).
NO_HEALTH = "no_health:"
#: The scripted experts as ``--policies`` names them.
EXPERT = "builtin:expert"
#: Prefix of a recording's folder: its demonstrations, played back without looking.
REPLAY = "builtin:replay:"


def checkpoint_path(path: str) -> str | None:
    """The checkpoint in a policy's path as it stands in ``--policies``; ``None`` for a built-in policy."""
    loaded = loaded_path(path)
    return None if loaded is None else loaded.removeprefix(NO_HEALTH)


def loaded_path(path: str) -> str | None:
    """What is loaded for a policy: its path without ``no_vision:``; ``None`` for a built-in policy."""
    return None if path.startswith("builtin:") else path.removeprefix(NO_VISION)


def resolve_checkpoint(path: str) -> str:
    """The folder with ``config.json`` that a path means.

    Accepts the folder itself, LeRobot's checkpoint folder around it, and a training run's output folder (its
    last checkpoint). Any other ``user/name`` is taken for a hub id, unless its first part is a folder here.

    Raises:
        FileNotFoundError: the folder exists and holds no policy, or the path looks like a file path and does
            not exist.
    """
    folder = Path(path).expanduser()
    candidates = (folder, folder / "pretrained_model", folder / "checkpoints" / "last" / "pretrained_model")
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return str(candidate)
    if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise FileNotFoundError(
            f"No policy under {path!r}: none of {[str(c / 'config.json') for c in candidates]} exists. Train "
            "first, or give the folder that holds config.json, or a hub id like user/name."
        )
    if folder.parent.is_dir():
        raise FileNotFoundError(
            f"There is no {path!r}, but a folder {str(folder.parent)!r}: that is taken for a path and not "
            "for a hub id. Train first, or correct the path; if a hub id is meant, run in another folder."
        )
    return path


def policy_hash(path: str) -> str:
    """What identifies the policy behind a path as it stands in ``--policies``.

    Raises:
        FileNotFoundError: there is no checkpoint, or it has not been downloaded.
    """
    checkpoint = checkpoint_path(path)
    if checkpoint is None:
        return builtin_identity(path)
    return path.removesuffix(checkpoint) + checkpoint_hash(resolve_checkpoint(checkpoint))


def checkpoint_hash(folder: str) -> str:
    """Hash of a local checkpoint's weights and JSON files; hub id and commit of a hub checkpoint.

    An adapter's hash includes the checkpoint that it stands on: other weights below it make another policy.

    Raises:
        FileNotFoundError: a hub checkpoint has not been downloaded, so nobody knows which commit it would be.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        snapshot = _hub_snapshot(folder)
        below = _adapter_base(snapshot / "adapter_config.json")
        return f"hub:{folder}@{snapshot.name[:12]}" + (f"+{below}" if below else "")
    digest = hashlib.sha256()
    for path in sorted(p for p in root.iterdir() if p.suffix in (".json", ".safetensors")):
        digest.update(path.name.encode())
        with open(path, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    digest.update(_adapter_base(root / "adapter_config.json").encode())
    return digest.hexdigest()[:16]


def training_samples(folder: str) -> int | None:
    """Samples that a local checkpoint has seen in training, those of the runs before it included.

    Read from what LeRobot stores beside its checkpoints. Weights without such a record (published ones, the
    mini preset's) are where counting begins. ``None`` where it is not known.
    """
    root = Path(folder)
    try:
        step = json.loads((root.parent / "training_state/training_step.json").read_text())
        own = int(step["step"]) * int(step["batch_size"]) * int(step["num_processes"])
        before = _began_from(root)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if before is None:
        return own
    if not before.is_dir():
        return own if len(before.parts) == 2 else None  # a hub id, or a folder that is not here
    if not (before.parent / "training_state").is_dir():
        return own
    earlier = training_samples(str(before))
    return None if earlier is None else own + earlier


def _began_from(root: Path) -> Path | None:
    """The checkpoint with which a run began: folder or hub id; a resumed run's own are passed over."""
    policy = json.loads((root / "train_config.json").read_text())["policy"]
    before = policy.get("pretrained_path") or policy.get("base_checkpoint")
    if not before:
        return None
    found = Path(before)
    same_run = found.resolve().parent.parent == root.resolve().parent.parent
    return _began_from(found) if same_run and found.resolve() != root.resolve() else found


def _adapter_base(path: Path) -> str:
    """Hash of the local checkpoint that an adapter stands on, or its hub id and commit; "" without one."""
    if not path.is_file():
        return ""
    adapter = json.loads(path.read_text())
    base = str(adapter.get("base_model_name_or_path") or "")
    folder = Path(base).expanduser()
    if not base or folder.resolve() == path.parent.resolve():
        return ""
    if folder.is_dir():
        return checkpoint_hash(str(folder))
    return f"hub:{base}@{_hub_snapshot(base, adapter.get('revision')).name[:12]}"


def _hub_snapshot(name: str, revision: str | None = None) -> Path:
    """Folder of a downloaded hub checkpoint; it is called after the commit."""
    from huggingface_hub import try_to_load_from_cache

    # of what an adapter stands on, LeRobot reads the weights only
    for file in ("config.json", "model.safetensors"):
        found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    raise FileNotFoundError(
        f"The hub checkpoint {name!r} ({revision or 'main'}) is not in the hub's cache on this machine: what "
        f"it holds is not known. Download it: hf download {name}."
    )


def builtin_identity(path: str) -> str:
    """What a row's ``checkpoint`` says of a built-in policy: its name, the expert's with its code's hash.

    A replay's comes with the hash of what the recording keeps of the simulation.

    Args:
        path: as in ``--policies``, e.g. ``builtin:zero``.

    Raises:
        FileNotFoundError: there is no such recording.
    """
    if path.startswith(REPLAY):
        files = recorded_simulation(Path(path.removeprefix(REPLAY)))
        return f"{REPLAY.removesuffix(':')}@{_content_hash(tuple(files))}"
    if path != EXPERT:
        return path
    spec = importlib.util.find_spec("lerobot_env_multismolvla")  # importing it would import LeRobot
    assert spec is not None
    assert spec.origin is not None
    return f"{path}@{_expert_hash(Path(spec.origin).parent)}"


def recorded_simulation(folder: Path) -> list[Path]:
    """The files in which ``multismolvla-record`` keeps states and executed actions, one for each episode.

    Args:
        folder: of the LeRobotDataset.

    Raises:
        FileNotFoundError: there are none.
    """
    files = sorted(folder.glob("meta/simulation/episode_*.npz"))
    if not files:
        raise FileNotFoundError(
            f"{REPLAY}{folder}: no executed actions there ({folder}/meta/simulation). Name a data set that "
            "multismolvla-record made of one of LIBERO's suites."
        )
    return files


@cache
def _content_hash(files: tuple[Path, ...]) -> str:
    """12 hexadecimal digits over names and content of files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


@cache
def _expert_hash(package: Path) -> str:
    """12 hexadecimal digits over the source of LIBERO's expert and of the mini suite's.

    Args:
        package: folder of the environment package.
    """
    digest = hashlib.sha256()
    for file in (*sorted((package / "libero_expert").glob("*.py")), package / "mini" / "expert.py"):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]

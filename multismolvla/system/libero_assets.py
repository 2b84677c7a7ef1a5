"""LIBERO's meshes, textures and scenes: where they lie here, whether they are whole, whose they are.

Standard library only: the doctor uses it on machines where neither the simulator nor LeRobot loads.
``libero_assets.json`` lists the 154 files that the four public suites read, with the beginning of each one's
SHA-256: 139 as in LIBERO's repository (commit 8f1084e), and 15 as this project's visual stand-ins for files
that its mirror lacked. What LIBERO itself has in the place of those 15 was never seen here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

#: Folder of LIBERO's assets, for the four public suites and libero_90. The mini suite needs none.
ASSETS_VARIABLE = "MULTISMOLVLA_LIBERO_ASSETS"
#: How a user names it, for messages.
NAME_ASSETS = (
    f"variable {ASSETS_VARIABLE}; multismolvla-eval: --env.options='{{libero_assets: FOLDER}}'; "
    "lerobot-eval: --env.libero_assets; recording and replay: --libero_assets"
)
#: Hub data set from which hf-libero and ``multismolvla-doctor --fetch-assets`` take them.
HUB_DATASET = "lerobot/libero-assets"
FOLDERS = (
    "articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects", "turbosquid_objects",
)  # fmt: skip

_LIST = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class AssetIdentity:
    """Which assets a picture was rendered with.

    Attributes:
        hash: over names and contents of the four suites' files, 16 hexadecimal digits.
        standins: True = some files are this project's stand-ins, so that figures are not comparable with
            published ones; False = every file known by content is LIBERO's own and no stand-in is among the
            others; None = unknown, some file is missing or was changed.
        differing: files that are missing, or that are neither LIBERO's (as far as known) nor a stand-in.
    """

    hash: str
    standins: bool | None
    differing: tuple[str, ...]


def own_folder() -> Path:
    """Where ``multismolvla-doctor --fetch-assets`` puts them when no folder is named."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "multismolvla" / "libero-assets"


def missing_folders(folder: Path) -> list[str]:
    """Folders that are absent, or empty as an interrupted download leaves them."""
    return [name for name in FOLDERS if not any((folder / name).glob("*"))]


def missing_files(folder: Path) -> list[str]:
    """Files of the four suites that are not in ``folder``; libero_90 needs more than these."""
    return [name for name in _suite_files() if not (folder / name).is_file()]


def find_libero_assets(explicit: str | None = None) -> Path | None:
    """The folder with LIBERO's own assets, or ``None`` when this machine has none.

    Args:
        explicit: a folder named by the user; ``None`` looks at ``MULTISMOLVLA_LIBERO_ASSETS``, then where
            ``multismolvla-doctor --fetch-assets`` puts them, then where hf-libero itself looks (its package
            folder and ``~/.cache/libero/assets``).

    Raises:
        FileNotFoundError: the user named a folder (option or variable) that is not an asset folder.
    """
    named = explicit or os.environ.get(ASSETS_VARIABLE)
    if named:
        folder = Path(named).expanduser()
        missing = missing_folders(folder)
        if missing:
            raise FileNotFoundError(
                f"{folder} is not a LIBERO asset folder: it lacks {missing}. Name the folder that contains "
                f"'scenes' and the object folders ({NAME_ASSETS}), or fetch them: "
                "multismolvla-doctor --fetch-assets."
            )
        return folder
    return next((place for place in _places() if not missing_folders(place)), None)


def identify(folder: Path) -> AssetIdentity:
    """Hash the four suites' files (100 MB, a fraction of a second; once per process) and compare them."""
    return _identify(folder.resolve())


@cache
def _identify(folder: Path) -> AssetIdentity:
    known = json.loads(_LIST.read_text())
    whole = hashlib.sha256()
    differing, standins = [], False
    for name in _suite_files():
        whole.update(name.encode() + b"\0")
        if not (folder / name).is_file():
            differing.append(name)
            continue
        with open(folder / name, "rb") as content:
            digest = hashlib.file_digest(content, "sha256")
        whole.update(digest.digest())
        if known["stand_in"].get(name, "") == digest.hexdigest()[:32]:
            standins = True
        elif name in known["original"] and known["original"][name] != digest.hexdigest()[:32]:
            differing.append(name)
    verdict = True if standins else None if differing else False
    return AssetIdentity(whole.hexdigest()[:16], verdict, tuple(differing))


@cache
def _suite_files() -> tuple[str, ...]:
    known = json.loads(_LIST.read_text())
    # By path, not by text: recorded hashes depend on this order.
    return tuple(sorted([*known["original"], *known["stand_in"]], key=PurePosixPath))


def _places() -> list[Path]:
    """Where to look without being told, best first."""
    spec = importlib.util.find_spec("libero")
    packages = (spec.submodule_search_locations or []) if spec else []
    return [
        own_folder(),
        *[Path(p) / "libero" / "assets" for p in packages],
        Path.home() / ".cache" / "libero" / "assets",
    ]

"""Makes LIBERO importable and offline: its configuration file, its asset root, the GL back end.

``import libero.libero`` asks a question on stdin when it finds no configuration file, and hf-libero 0.1.4 looks for
assets on the hub although a simulation may need none of them. Both are answered here, before the first import, with
files of our own cache folder. Nothing here imports the simulator at module level.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from multismolvla.libero_assets import ASSETS_VARIABLE, find_libero_assets, own_folder

__all__ = [
    "ASSETS_VARIABLE",
    "asset_root",
    "ensure_libero_config",
    "find_libero_assets",
    "libero_package_folder",
]

logger = logging.getLogger(__name__)


def _cache_folder() -> Path:
    """Our own cache folder, or a temporary one where the home folder is not writable."""
    root = own_folder().parent
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir()) / f"multismolvla-{os.getuid()}"
    return root if os.access(root, os.W_OK) else Path(tempfile.gettempdir()) / f"multismolvla-{os.getuid()}"


def libero_package_folder() -> Path:
    """Folder ``libero/libero`` of the installed hf-libero, found without importing it.

    Raises:
        ModuleNotFoundError: hf-libero is not installed.
    """
    spec = importlib.util.find_spec("libero")
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / "libero"
        if (folder / "bddl_files").is_dir():
            return folder
    raise ModuleNotFoundError(
        "The LIBERO simulator (distribution 'hf-libero') is not installed. Install it with: "
        "pip install 'lerobot[libero]'"
    )


def ensure_libero_config() -> Path:
    """Make sure that importing ``libero.libero`` asks nothing; call it before the first import.

    An existing configuration (``LIBERO_CONFIG_PATH`` or ``~/.libero``) is respected. Otherwise one is written to our
    cache folder, and ``LIBERO_CONFIG_PATH`` is set so that child processes find it, too.

    Returns:
        The configuration file in use.

    Raises:
        ModuleNotFoundError: hf-libero is not installed.
    """
    os.environ.setdefault(
        "MUJOCO_GL", "egl"
    )  # robosuite reads it at import; without a display only egl/osmesa work
    named = os.environ.get("LIBERO_CONFIG_PATH")
    existing = Path(named) if named else Path.home() / ".libero"
    if (existing / "config.yaml").is_file():
        return existing / "config.yaml"
    package = libero_package_folder()
    text = "".join(
        f"{key}: {value}\n"
        for key, value in {
            "benchmark_root": package,
            "bddl_files": package / "bddl_files",
            "init_states": package / "init_files",
            "datasets": package.parent / "datasets",
            "assets": package / "assets",
        }.items()
    )
    # One folder per installation: two virtual environments of one user must not share package paths.
    digest = hashlib.sha256(str(package).encode()).hexdigest()[:12]
    folder = Path(named) if named else _cache_folder() / f"libero-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "config.yaml"
    if not target.is_file() or target.read_text() != text:
        partial = folder / f".config-{os.getpid()}.yaml"
        partial.write_text(text)
        os.replace(partial, target)  # several workers start at once; each must see a whole file
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)
    return target


@contextlib.contextmanager
def asset_root(folder: Path) -> Iterator[None]:
    """Let LIBERO load models from ``folder`` inside the block.

    hf-libero 0.1.4 ignores its configuration key ``assets``; the module attribute is the only hook that neither
    touches the user's home folder nor the installed package, and it must be set again in every process.
    """
    import libero.libero as libero_module

    before = libero_module._assets_path_cache
    libero_module._assets_path_cache = str(folder)
    try:
        yield
    finally:
        libero_module._assets_path_cache = before

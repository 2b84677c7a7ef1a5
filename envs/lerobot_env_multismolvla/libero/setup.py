"""Makes LIBERO importable and offline: its configuration, assets, GL back end, and where things are written.

``import libero.libero`` asks a question on stdin when it finds no configuration file, and hf-libero 0.1.4
looks for assets on the hub although a simulation may need none. Both are answered here, before the first
import.

All that an environment writes goes to our cache folder (``$XDG_CACHE_HOME/multismolvla``, else
``~/.cache/multismolvla``): LIBERO's ``config.yaml``, Mesa's shaders, and matplotlib's and numba's caches. By
themselves the libraries would write to ``/tmp/robosuite.log`` (which a second user of the machine cannot
open, so that robosuite does not import), ``~/.config``, ``~/.cache`` and the installed robosuite package.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from multismolvla.system.files import whole_file
from multismolvla.system.libero_assets import NAME_ASSETS, find_libero_assets, own_folder

#: Environment variables by which libraries are told where to write, with the folder inside our cache.
_CACHES = {"MESA_SHADER_CACHE_DIR": "", "MPLCONFIGDIR": "matplotlib", "NUMBA_CACHE_DIR": "numba"}


def _cache_folder() -> Path:
    """Our own cache folder, or a temporary one where the home folder is not writable."""
    root = own_folder().parent
    with contextlib.suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
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
        "The LIBERO simulator (distribution 'hf-libero') is not installed: pip install 'lerobot[libero]'"
    )


def ensure_libero_config() -> Path:
    """See to it that importing ``libero.libero`` asks nothing; to be called before the first import.

    An existing configuration (``LIBERO_CONFIG_PATH`` or ``~/.libero``) is respected. Otherwise one is written
    to our cache folder, and ``LIBERO_CONFIG_PATH`` is set so that child processes find it, too.

    Returns:
        The configuration file in use.

    Raises:
        ModuleNotFoundError: hf-libero is not installed.
    """
    # robosuite reads it when it is imported; without a display only egl and osmesa work
    os.environ.setdefault("MUJOCO_GL", "egl")
    _keep_writes_in_the_cache()
    named = os.environ.get("LIBERO_CONFIG_PATH")
    existing = Path(named) if named else Path.home() / ".libero"
    if (existing / "config.yaml").is_file():
        return existing / "config.yaml"
    package = libero_package_folder()
    folders = {
        "benchmark_root": package,
        "bddl_files": package / "bddl_files",
        "init_states": package / "init_files",
        "datasets": package.parent / "datasets",
        "assets": package / "assets",
    }
    text = "".join(f"{key}: {folder}\n" for key, folder in folders.items())
    # One folder per installation: two virtual environments of one user must not share package paths.
    digest = hashlib.sha256(str(package).encode()).hexdigest()[:12]
    folder = Path(named) if named else _cache_folder() / f"libero-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "config.yaml"
    if not target.is_file() or target.read_text() != text:
        with whole_file(target) as partial:  # several workers start at once; each must see a whole file
            partial.write_text(text)
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)
    return target


def _keep_writes_in_the_cache() -> None:
    """Point the caches of the simulator's libraries into ours; what the user has set or has already stays."""
    matplotlib_config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "matplotlib"
    for variable, name in _CACHES.items():
        if variable == "MPLCONFIGDIR" and matplotlib_config.is_dir():
            continue  # it may hold the user's own settings
        os.environ.setdefault(variable, str(_cache_folder() / name))
    if "robosuite" not in sys.modules and importlib.util.find_spec("robosuite") is not None:
        _silence_robosuite()


def _silence_robosuite() -> None:
    """Load robosuite's settings before robosuite does, and switch its log file off.

    robosuite 1.4 opens ``/tmp/robosuite.log`` while it is imported, so there is no later moment. An empty
    module of private settings, unless the user has one, spares its three warnings that there is none.
    """
    package = Path(importlib.util.find_spec("robosuite").origin).parent  # type: ignore[union-attr, arg-type]
    spec = importlib.util.spec_from_file_location("robosuite.macros", package / "macros.py")
    assert spec is not None
    assert spec.loader is not None
    macros = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    sys.modules["robosuite.macros"] = macros
    if not (package / "macros_private.py").is_file():
        sys.modules["robosuite.macros_private"] = ModuleType("robosuite.macros_private")


def require_libero_assets(suite: str, explicit: str | None = None) -> Path:
    """LIBERO's assets, in a folder that the user named or in the usual places, for a suite that needs them.

    Raises:
        FileNotFoundError: there are none; names the remedies.
    """
    folder = find_libero_assets(explicit)
    if folder is None:
        raise FileNotFoundError(
            f"Suite {suite!r} needs LIBERO's assets and none were found. Name their folder "
            f"({NAME_ASSETS}), fetch them with `multismolvla-doctor --fetch-assets`, or use the mini suite, "
            "which needs none."
        )
    return folder


@contextlib.contextmanager
def asset_root(folder: Path) -> Iterator[None]:
    """Let LIBERO load models from ``folder`` inside the block.

    hf-libero 0.1.4 ignores its configuration key ``assets``. Its module attribute is the only hook that
    touches neither the user's home folder nor the installed package, and it must be set in every process.
    """
    import libero.libero as libero_module

    before = libero_module._assets_path_cache
    set_asset_root(folder)
    try:
        yield
    finally:
        libero_module._assets_path_cache = before


def set_asset_root(folder: Path) -> None:
    """Let LIBERO load models from ``folder`` from now on, also in LeRobot's own environments."""
    import libero.libero as libero_module

    libero_module._assets_path_cache = str(folder)

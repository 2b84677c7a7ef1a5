"""What lies in the model hub's cache, looked up on the disk alone: no network, and nothing imported that takes a second."""

from __future__ import annotations

import os
from pathlib import Path

from multismolvla.pretrained import SOURCES


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it fetched."""
    home = os.environ.get("HF_HOME")
    if home is None:
        home = str(Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", Path(home) / "hub")).expanduser()


def is_cached(repo: str, files: tuple[str, ...] = ()) -> bool:
    """Whether some revision of a repository is in the cache with all these files (default: those of its `Source`)."""
    wanted = files or (SOURCES[repo].files if repo in SOURCES else ("config.json",))
    snapshots = cache_folder() / f"models--{repo.replace('/', '--')}" / "snapshots"
    return any(all((revision / name).is_file() for name in wanted) for revision in snapshots.glob("*"))

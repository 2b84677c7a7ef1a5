"""What lies in the model hub's cache, looked up on the disk: no network, no slow import."""

from __future__ import annotations

import os
from pathlib import Path

from multismolvla.pretrained import SOURCES


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it fetched."""
    caches = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    home = os.environ.get("HF_HOME", Path(caches) / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", Path(home) / "hub")).expanduser()


def is_cached(repo: str, revision: str | None = None) -> bool:
    """Whether a commit of a repository, or any, is in the cache with all the files that we read of it."""
    wanted = SOURCES[repo].files if repo in SOURCES else ("config.json",)
    snapshots = cache_folder() / f"models--{repo.replace('/', '--')}" / "snapshots"
    return any(
        all((commit / name).is_file() for name in wanted) for commit in snapshots.glob(revision or "*")
    )

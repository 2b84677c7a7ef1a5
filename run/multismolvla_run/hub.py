"""What lies in the model hub's cache, looked up on the disk: no network, no slow import."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from multismolvla.pretrained import SOURCES


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it fetched."""
    caches = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    home = os.environ.get("HF_HOME", Path(caches) / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", Path(home) / "hub")).expanduser()


def is_cached(repo: str) -> bool:
    """Whether some commit of a repository is in the cache with all the files that we read of it."""
    return cached_commit(repo) is not None


def cached_commit(
    repo: str, revision: str | None = None, files: Sequence[str] = ("config.json",)
) -> Path | None:
    """Folder of a commit that is in the cache with all the files that we read of it; ``None`` = of none.

    Args:
        repo: hub id.
        revision: the commit; ``None`` = any.
        files: that are read of a repository that this package does not know.
    """
    wanted = SOURCES[repo].files if repo in SOURCES else files
    snapshots = cache_folder() / f"models--{repo.replace('/', '--')}" / "snapshots"
    commits = sorted(snapshots.glob(revision or "*"))
    return next((c for c in commits if all((c / name).is_file() for name in wanted)), None)

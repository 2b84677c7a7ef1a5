"""Which assets a result was made with."""

import hashlib
from functools import cache
from pathlib import Path


@cache
def assets_hash(folder: Path) -> str:
    """Hash over names and contents of LIBERO's asset files (100 MB, a fraction of a second), 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:16]

"""Files that are whole or not there: no reader sees half of one, whatever ended its writing."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Write a file beside its place, in which it appears when it is complete.

    Args:
        target: the file's place, in a folder that exists. What is there stays until then.

    Yields:
        Where to write: a hidden file of the same folder with the target's suffix, which tells writers the
            format.
    """
    partial = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        yield partial
        _sync(partial)
        partial.replace(target)
        _sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk.

    After a power cut a new name could otherwise be there without its content.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(target: Path, content: object) -> None:
    """Write a JSON file, indented by one space, as a `whole_file`."""
    text = json.dumps(content, indent=1) + "\n"
    with whole_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


def front_matter(values: Mapping[str, object]) -> list[str]:
    """First lines of a hub card: YAML, written as JSON, which needs no further rules about quoting."""
    return ["---", *(f"{key}: {json.dumps(value)}" for key, value in values.items()), "---", ""]

"""Files of a report."""

from __future__ import annotations

from pathlib import Path

import msgspec

from multismolvla.system.files import whole_file


def write_text(path: Path, text: str) -> None:
    """Write a text so that readers see the old file or the new one, never half of it."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_figures(path: Path, figures: object) -> None:
    """Write typed figures as JSON, indented, so that diff and grep can use it."""
    content = rounded(msgspec.to_builtins(figures, str_keys=True))
    write_text(path, msgspec.json.format(msgspec.json.encode(content), indent=1).decode() + "\n")


def rounded(value: object) -> object:
    """Data with six significant digits: the seventh differs between machines."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value

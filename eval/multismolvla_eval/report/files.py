"""Files of a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla.system.files import whole_file

if TYPE_CHECKING:
    pass


def json_text(content: dict[str, Any]) -> str:
    """JSON with one line per top-level key: long lists of numbers, and still something that diff and grep can use."""
    lines = (
        f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'), allow_nan=False)}"
        for k, v in content.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_text(path: Path, text: str) -> None:
    """Write a text so that readers see the old file or the new one, never half of it."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")

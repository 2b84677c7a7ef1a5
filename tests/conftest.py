"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with the reference implementations' recorded outputs; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("MULTISMOLVLA_GOLDEN", REPO.parent / "shared" / "golden"))
    if not folder.is_dir():
        pytest.skip(f"no golden vectors at {folder} (set MULTISMOLVLA_GOLDEN)")
    return folder

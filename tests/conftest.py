"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs pictures on a machine without OpenGL."""
    reason = missing_gl() if item.get_closest_marker("sim") else ""
    if reason:
        pytest.skip(reason)


@cache
def missing_gl() -> str:
    """Why nothing can be rendered here; empty when it can. A missing simulator is an error: it is a dependency."""
    try:
        from lerobot_env_multismolvla.rendering import _gl_context

        _gl_context(8, 8).free()
    except ModuleNotFoundError:
        raise
    except (
        ImportError,
        AttributeError,
        RuntimeError,
    ) as error:  # mujoco's import fails with any of the three
        return f"no OpenGL: {error}"
    return ""


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with the reference implementations' recorded outputs; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("MULTISMOLVLA_GOLDEN", REPO.parent / "shared" / "golden"))
    if not folder.is_dir():
        pytest.skip(f"no golden vectors at {folder} (set MULTISMOLVLA_GOLDEN)")
    return folder

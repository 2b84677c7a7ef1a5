"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
FIXTURES = REPO / "tests" / "fixtures"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs pictures on a machine without OpenGL."""
    reason = missing_gl() if item.get_closest_marker("sim") else ""
    if reason:
        pytest.skip(reason)


@cache
def missing_gl() -> str:
    """Why nothing can be rendered here; empty when it can. The simulator itself must be there."""
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


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what commands that run inside a test do to logging, which is the process's own."""
    root, ours = logging.getLogger(), ("multismolvla", "lerobot_policy_multismolvla")
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in ("", *ours)}
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with the reference implementations' recorded outputs; its README says how they were made."""
    return FIXTURES / "golden"


@pytest.fixture(scope="session")
def libero_assets() -> Path:
    """LIBERO's assets, in their usual places or beside the checkout; tests that need them skip without."""
    from multismolvla.system.libero_assets import find_libero_assets

    beside = REPO.parent / "shared" / "libero" / "assets"
    assets = find_libero_assets(str(beside) if beside.is_dir() else None)
    if assets is None:
        pytest.skip("no LIBERO assets (multismolvla-doctor --fetch-assets, or MULTISMOLVLA_LIBERO_ASSETS)")
    return assets

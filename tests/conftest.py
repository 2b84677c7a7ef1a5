"""Fixtures shared by all tests."""

from __future__ import annotations

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

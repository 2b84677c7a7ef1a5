"""LIBERO's assets are found where they may lie, checked for wholeness, and known by content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multismolvla.system import libero_assets as module
from multismolvla.system.libero_assets import (
    FOLDERS,
    find_libero_assets,
    identify,
    missing_files,
    missing_folders,
)

KNOWN = json.loads(Path(module.__file__).with_suffix(".json").read_text())


def skeleton(folder: Path) -> Path:
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
        (folder / name / "x").touch()
    return folder


def test_the_list_names_what_the_four_suites_read() -> None:
    assert (len(KNOWN["original"]), len(KNOWN["stand_in"])) == (139, 15)
    assert not set(KNOWN["original"]) & set(KNOWN["stand_in"])
    assert {name.split("/")[0] for part in KNOWN.values() for name in part} == {*FOLDERS, "textures"}


@pytest.mark.libero
def test_the_stand_ins_are_recognised_and_changes_noticed(libero_assets: Path, tmp_path: Path) -> None:
    found = identify(libero_assets)
    if not found.standins:
        pytest.skip("these are LIBERO's own assets, not the visual stand-ins")
    assert (found.standins, found.differing, found.hash) == (True, (), "5e4ea9dbd7d246ea")
    for name in (*KNOWN["original"], *KNOWN["stand_in"]):  # the same files, without the stand-ins' contents
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        if name in KNOWN["original"]:
            (tmp_path / "a" / name).symlink_to(libero_assets / name)
        else:
            (tmp_path / "a" / name).write_bytes(b"somebody else's")
    assert identify(tmp_path / "a").standins is False
    assert identify(tmp_path / "a").hash != found.hash
    one = next(iter(KNOWN["original"]))
    (tmp_path / "a" / one).unlink()
    assert missing_files(tmp_path / "a") == [one]
    (tmp_path / "a").rename(tmp_path / "b")  # identities are remembered by folder
    changed = identify(tmp_path / "b")
    assert (changed.standins, changed.differing) == (None, (one,))


def test_places_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MULTISMOLVLA_LIBERO_ASSETS", raising=False)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert find_libero_assets() is None
    upstream = skeleton(tmp_path / "home" / ".cache" / "libero" / "assets")
    assert find_libero_assets() == upstream
    fetched = skeleton(tmp_path / "cache" / "multismolvla" / "libero-assets")
    assert find_libero_assets() == fetched
    named = skeleton(tmp_path / "named")
    monkeypatch.setenv("MULTISMOLVLA_LIBERO_ASSETS", str(named))
    assert find_libero_assets() == named
    assert find_libero_assets(str(upstream)) == upstream


def test_an_empty_folder_counts_as_missing_and_is_named(tmp_path: Path) -> None:
    folder = skeleton(tmp_path / "assets")
    (folder / "scenes" / "x").unlink()  # what a failed download leaves
    assert missing_folders(folder) == ["scenes"]
    with pytest.raises(FileNotFoundError, match=r"lacks \['scenes'\].*--fetch-assets"):
        find_libero_assets(str(folder))

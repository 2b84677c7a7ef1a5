"""``multismolvla-doctor --fetch-assets`` downloads, continues, checks, and helps without a network."""

import json
from pathlib import Path

import pytest

from multismolvla.system import libero_assets
from multismolvla.system.libero_assets import FOLDERS, own_folder
from multismolvla_run import doctor

NAMES = [
    name
    for part in json.loads(Path(libero_assets.__file__).with_suffix(".json").read_text()).values()
    for name in part
]


class Hub:
    """Stands in for the hub: each call brings ``batch`` more files, as a connection that breaks does."""

    def __init__(self, batch: int = 10_000, error: Exception | None = None) -> None:
        self.batch, self.error, self.calls = batch, error, []

    def __call__(self, repo, *, repo_type, local_dir):
        self.calls.append((repo, repo_type, Path(local_dir)))
        missing = [n for n in NAMES if not (Path(local_dir) / n).is_file()]
        for name in missing[: self.batch]:
            file = Path(local_dir) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(name)
        if self.error is not None:
            raise self.error


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """``hub(batch, error)`` replaces the download; the cache folder is a temporary one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MULTISMOLVLA_LIBERO_ASSETS", raising=False)

    def install(*args, **kwargs):
        replaced = Hub(*args, **kwargs)
        monkeypatch.setattr("huggingface_hub.snapshot_download", replaced)
        return replaced

    return install


def test_a_whole_download_is_described_and_not_repeated(hub, capsys):
    fake = hub()
    assert doctor.main(["--fetch-assets"]) == 0
    out = capsys.readouterr()
    assert fake.calls == [("lerobot/libero-assets", "dataset", own_folder())]
    assert f"Fetched: {own_folder()}" in out.out
    assert "154 files" in out.out
    assert "unknown: 139 files differ" in out.out  # these are not LIBERO's contents
    assert "HOPE" in out.out
    assert "export" not in out.out  # found without being told
    assert libero_assets.find_libero_assets() == own_folder()
    assert doctor.main(["--fetch-assets"]) == 0
    assert "Already complete" in capsys.readouterr().out
    assert len(fake.calls) == 1


def test_a_cut_download_is_named_and_continued(hub, tmp_path, capsys):
    folder = tmp_path / "assets"
    hub(100, ConnectionError("the line broke"))
    assert doctor.main(["--fetch-assets", f"--assets={folder}"]) == 1
    error = capsys.readouterr().err
    assert "the line broke" in error
    assert "continues where it stopped" in error
    hub(20)
    assert doctor.main(["--fetch-assets", f"--assets={folder}"]) == 1
    assert "34 missing" in capsys.readouterr().err
    hub()
    assert doctor.main(["--fetch-assets", f"--assets={folder}"]) == 0
    assert f"export MULTISMOLVLA_LIBERO_ASSETS={folder}" in capsys.readouterr().out


def test_without_a_network_the_steps_by_hand_are_told(hub, capsys, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub(0, LocalEntryNotFoundError("outgoing traffic has been disabled"))
    assert doctor.main(["--fetch-assets"]) == 1
    error = capsys.readouterr().err
    for words in (
        "outgoing traffic",
        "hf download lerobot/libero-assets --repo-type dataset",
        "HF_HUB_OFFLINE",
    ):
        assert words in error


def test_ctrl_c_keeps_what_came(hub, capsys):
    hub(5, KeyboardInterrupt())
    assert doctor.main(["--fetch-assets"]) == 130
    assert "continues" in capsys.readouterr().err


def test_the_check_tells_absent_incomplete_and_whole(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(libero_assets, "_places", lambda: [own_folder()])
    assert (doctor.check_libero_assets().status, doctor.check_libero_assets().found) == ("note", "absent")
    for name in FOLDERS:
        (own_folder() / name).mkdir(parents=True)
        (own_folder() / name / "x").touch()
    check = doctor.check_libero_assets()
    assert "lacks 154 files" in check.found
    assert "--fetch-assets" in check.remedy
    hub()
    doctor.main(["--fetch-assets"])
    assert doctor.check_libero_assets().status == "ok"
    monkeypatch.setenv("MULTISMOLVLA_LIBERO_ASSETS", str(tmp_path / "nowhere"))
    assert "is not a LIBERO asset folder" in doctor.check_libero_assets().found

"""The doctor names what is missing and how to mend it, and fails only for what is required."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from multismolvla.pretrained import LANGUAGE_MODEL, SOURCES
from multismolvla_run import doctor

REPO = Path(__file__).resolve().parents[2]
EGL, NOTHING = {"egl": (0.001, ""), "osmesa": (None, "no")}, (None, "libEGL.so.1 not found")


@pytest.fixture
def examine(monkeypatch, capsys):
    """``examine(*options)`` -> exit code and report; nothing is rendered and no process started."""
    monkeypatch.setattr(doctor, "render_works", EGL.__getitem__)
    monkeypatch.setattr(doctor, "run_python", lambda code: (True, "none"))

    def run(*options: str) -> tuple[int, dict]:
        code = doctor.main(["--json", *options])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_doctor_and_make_install_the_same_system_packages():
    script = (REPO / "scripts/system-packages.sh").read_text()
    listed = re.search(r'packages="([^"]+)"', script)
    assert listed is not None
    others = {"make", "g++", "$*"}  # a compiler; further ones may be named
    assert set(doctor.APT_PACKAGES) == set(listed[1].split()) - others


def test_healthy_machine(examine, tmp_path):
    code, report = examine(f"--output={tmp_path}", f"--report={tmp_path / 'a/r.json'}")
    assert code == 0
    assert report["healthy"]
    assert report["env"] == {"MUJOCO_GL": "egl"}
    assert json.loads((tmp_path / "a/r.json").read_text()) == report


def test_no_renderer_names_the_packages(examine, monkeypatch):
    monkeypatch.setattr(doctor, "render_works", lambda backend: NOTHING)
    code, report = examine()
    assert code == 1
    check = next(c for c in report["checks"] if c["name"] == "Rendering")
    assert check["status"] == "fail"
    assert "libEGL.so.1 not found" in check["found"]
    assert "apt-get install -y --no-install-recommends libegl1" in check["remedy"]


def test_osmesa_is_the_second_choice(monkeypatch):
    works = {"egl": (None, "broken"), "osmesa": (0.002, "")}
    monkeypatch.setattr(doctor, "render_works", works.__getitem__)
    assert doctor.check_rendering().env == {"MUJOCO_GL": "osmesa"}


def test_a_process_that_fails_or_hangs_is_told_in_one_line():
    assert doctor.run_python("print('a\\nb')") == (True, "b")
    assert doctor.run_python("raise ValueError('no good')") == (False, "ValueError: no good")
    assert doctor.run_python("import time; time.sleep(60)", timeout_s=0.5) == (False, "no answer within 0 s")


def test_full_disk(examine, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=1e8))
    code, report = examine(f"--output={tmp_path / 'not/yet/there'}")
    assert code == 1
    check = next(c for c in report["checks"] if c["name"] == "Disk")
    assert "--output" in check["remedy"]


def test_missing_and_old_packages(monkeypatch):
    version = importlib.metadata.version

    def without(name):
        if name == "draccus":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    assert doctor.check_packages().status == "ok"
    monkeypatch.setattr(doctor.importlib.metadata, "version", without)
    assert "draccus" in doctor.check_packages().found
    old = {"lerobot": "0.5.9"}
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: old.get(name) or version(name))
    check = doctor.check_packages()
    assert check.status == "fail"
    assert check.found.startswith("lerobot 0.5.9, need ")


def test_another_setting_of_threads_is_named_only_where_it_is_clearly_faster(monkeypatch):
    monkeypatch.setattr(doctor, "training_threads", lambda: {"OMP_NUM_THREADS": "2"})
    times = {"OMP_NUM_THREADS=1": 0.09, "OMP_NUM_THREADS=2": 0.1}
    monkeypatch.setattr(doctor, "seconds_per_step", lambda: times)
    assert doctor.check_threads(measure=True).remedy == ""
    times["OMP_NUM_THREADS=1"] = 0.05
    assert doctor.check_threads(measure=True).remedy.startswith("OMP_NUM_THREADS=1 python train.py")
    assert "--measure_threads" in doctor.check_threads(measure=False).found


def test_half_downloaded_libero_assets(monkeypatch, tmp_path):
    monkeypatch.setenv("MULTISMOLVLA_LIBERO_ASSETS", str(tmp_path))
    for name in ("stable_hope_objects", "scenes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.xml").write_text("")
    found = doctor.check_libero_assets()
    assert found.status == "note"
    assert "lacks ['articulated_objects', 'stable_scanned_objects', 'turbosquid_objects']" in found.found


def test_offline_hub_is_a_note(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--a--b").mkdir()
    check = doctor.check_hub()
    assert check.status == "note"
    assert "1 repositories cached" in check.found


def test_what_a_policy_reads_and_what_of_it_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for repo, commit in (
        ("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "01"),
        ("xjh19972/ThermalGen-B-2", "02"),
    ):
        for name in SOURCES[repo].files:
            file = tmp_path / f"models--{repo.replace('/', '--')}" / "snapshots" / commit / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("x")
    folder, depth = tmp_path / "policy", tmp_path / "depth"
    folder.mkdir()
    depth.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(3_000_000))
    (depth / "model.safetensors").write_bytes(bytes(2_000_000))
    recipe = {
        "model": "xjh19972/ThermalGen-B-2", "revision": "03", "fingerprint": "f", "dtype": "float32",
        "settings": {},
    }  # fmt: skip
    options = {
        "base_checkpoint": "lerobot/smolvla_base",
        "estimators": {"thermal": recipe, "depth": recipe | {"model": "depth", "revision": None}},
        "estimator_sources": {"depth": str(depth)},
    }
    (folder / "config.json").write_text(json.dumps(options))
    assert doctor.main([f"--policy={folder}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    here = {line.split()[1]: line.split()[0] for line in lines[1:5]}
    assert here == {
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": "yes",
        "EPFL-VILAB/4M-21_B": "no",
        "xjh19972/ThermalGen-B-2": "no",
        str(depth): "yes",
    }
    assert re.search(r"1\.39 GB +thermal from RGB", lines[3])
    assert "2.0 MB" in lines[4]
    assert "4.77 GB. In memory they take at most" in lines[5]  # 3.37 + 1.39 + 0.005, and the small ones
    assert lines[6].startswith("Not here: EPFL-VILAB/4M-21_B, xjh19972/ThermalGen-B-2 at revision 03.")
    (depth / "model.safetensors").unlink()
    depth.rmdir()
    assert doctor.main([f"--policy={folder}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "4.77 GB, 1 of unknown size not counted." in lines[5]
    assert "depth" not in lines[6]  # the hub has no folder of this machine
    assert lines[7].startswith(f"Folders or files that are not here: {depth}. Copy them from where")
    depth.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "gone/connector/x"}))
    doctor.main([f"--policy={folder}"])
    assert "no    gone/connector/x" in capsys.readouterr().out
    assert doctor.main([f"--policy={depth}"]) == 1
    assert "has no config.json" in capsys.readouterr().err


def test_an_estimator_that_this_package_does_not_list_is_here_with_its_weights_and_has_their_size(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    recipe = {"model": "lab/metric-depth", "revision": "01", "fingerprint": "f", "dtype": "float32"}
    options = {"vision_tower": "fourm", "estimators": {"depth": recipe}, "vlm_model_name": "lab/words"}
    (tmp_path / "config.json").write_text(json.dumps(options))
    commit = tmp_path / "models--lab--metric-depth/snapshots/01"
    words = tmp_path / "models--lab--words/snapshots/02"
    for folder, names in ((commit, ["config.json"]), (words, SOURCES[LANGUAGE_MODEL].files)):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text("{}")

    def rows() -> dict[str, tuple[str, str]]:
        assert doctor.main([f"--policy={tmp_path}"]) == 1  # the tower is not here
        found = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()[1:4]]
        return {where: (here, size) for here, where, size, *_ in found}

    assert rows()["lab/metric-depth"] == ("no", "unknown")  # fetched by half
    assert rows()["lab/words"][0] == "yes"  # of which no weights are read
    (commit / "model.safetensors").write_bytes(bytes(2_000_000))
    assert rows()["lab/metric-depth"] == ("yes", "2.0 MB")


def test_published_weights_with_cache_and_licence(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert doctor.check_weights().found.startswith("0 of ")
    folder = tmp_path / "models--EPFL-VILAB--4M-21_B/snapshots/0123"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("x")
    check = doctor.check_weights()
    assert check.status == "note"
    assert check.found.endswith("cached: EPFL-VILAB/4M-21_B")
    assert doctor.main(["--weights"]) == 0
    rows = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert rows["EPFL-VILAB/4M-21_B"].startswith("yes")
    assert rows["EPFL-VILAB/4M-21_L"].startswith("no")
    assert all(source.licence in rows[repo] for repo, source in SOURCES.items())

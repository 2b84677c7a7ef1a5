"""What an installation must offer: commands that answer at once, a plugin that LeRobot finds, clean tracked files."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from multismolvla.pretrained import SOURCES
from multismolvla_run import doctor

REPO = Path(__file__).resolve().parents[1]
DISTRIBUTION = "lerobot_policy_multismolvla"
PACKAGES = (
    "multismolvla",
    "lerobot_policy_multismolvla",
    "lerobot_env_multismolvla",
    "multismolvla_data",
    "multismolvla_eval",
    "multismolvla_run",
)
COMMANDS = (
    "multismolvla-doctor",
    "multismolvla-record",
    "multismolvla-tokens",
    "multismolvla-annotate",
    "multismolvla-replay",
    "multismolvla-export",
    "multismolvla-eval",
    "multismolvla-report",
)


def project() -> dict:
    return tomllib.loads((REPO / "pyproject.toml").read_text())


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, timeout=120
    )


def test_metadata_keeps_the_underscores():
    assert importlib.metadata.distribution(DISTRIBUTION).metadata["Name"] == DISTRIBUTION


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_come_from_their_source_roots(name):
    folder = Path(importlib.import_module(name).__path__[0]).resolve()
    assert folder.name == name
    assert REPO in folder.parents


def test_lerobot_discovers_policy_and_environment():
    code = (
        "from lerobot.utils.import_utils import register_third_party_plugins as r; r()\n"
        "from lerobot.configs.policies import PreTrainedConfig as P\n"
        "from lerobot.envs.configs import EnvConfig as E\n"
        "import sys\n"
        "assert 'multismolvla' in P.get_known_choices(), P.get_known_choices().keys()\n"
        "assert 'multismolvla_libero' in E.get_known_choices(), E.get_known_choices().keys()\n"
        "heavy = {'mujoco', 'robosuite', 'libero', 'imagecorruptions'} & set(sys.modules)\n"
        "assert not heavy, f'importing the plugin imports {heavy}'"
    )
    done = run_python(code, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr


def test_commands_are_installed_and_importable():
    scripts = {e.name: e for e in importlib.metadata.entry_points(group="console_scripts")}
    declared = project()["project"]["scripts"]
    assert set(COMMANDS) == set(declared)
    for name, target in declared.items():
        assert scripts[name].value == target
        assert callable(scripts[name].load())


@pytest.mark.parametrize("command", [*COMMANDS, "train.py", "demo"])
def test_help_answers_at_once(command):
    programs = {
        "train.py": [sys.executable, "train.py"],
        "demo": [sys.executable, "-m", "multismolvla_run.demo"],
    }
    program = programs.get(command, [str(Path(sys.executable).with_name(command))])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*program, "--help"], cwd=REPO, capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    # Processor time, so that neighbours do not matter; importing torch (1.5 s) or LeRobot (5 s) is what this catches.
    assert seconds < 1.3, f"{command} --help took {seconds:.1f} s"


def test_core_imports_neither_lerobot_nor_simulator():
    code = (
        "import pkgutil, importlib, sys, multismolvla\n"
        "for m in pkgutil.walk_packages(multismolvla.__path__, 'multismolvla.'): importlib.import_module(m.name)\n"
        "bad = {'lerobot', 'mujoco', 'robosuite', 'libero', 'transformers'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_constraints_are_names_and_versions_inside_the_ranges():
    from packaging.requirements import Requirement

    pins = {}
    for line in (REPO / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line), line
            name, version = line.split("==")
            pins[name.lower().replace("_", "-")] = version
    wanted = project()["project"]
    for text in [*wanted["dependencies"], *wanted["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        pin = pins.get(requirement.name.lower().replace("_", "-"))
        assert pin is not None, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(pin), f"{requirement} excludes the pinned {pin}"


def test_tracked_files_name_no_machine_and_no_registry():
    if not (REPO / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True)
    pattern = re.compile(
        r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)/\S|" + "index-" + r"url|find-" + "links"
    )
    for name in filter(None, tracked.stdout.split("\0")):
        path = REPO / name
        if not path.is_file():  # deleted, not yet committed
            continue
        assert path.stat().st_size < 1_000_000, f"{name} is over 1 MB"
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found = pattern.search(text)
        assert found is None, f"{name}: {found and found.group()}"


def test_doctor_and_make_install_the_same_system_packages():
    script = (REPO / "scripts/system-packages.sh").read_text()
    listed = re.search(r'packages="([^"]+)"', script)
    assert listed is not None
    assert set(doctor.APT_PACKAGES) == set(listed[1].split()) - {
        "make",
        "g++",
        "$*",
    }  # further ones may be named


class TestDoctor:
    """The doctor names what is missing and how to mend it, and fails only for what is required."""

    def run(self, monkeypatch, capsys, *args: str) -> tuple[int, dict]:
        code = doctor.main(["--skip-threads", "--json", *args])
        return code, json.loads(capsys.readouterr().out)

    @pytest.fixture(autouse=True)
    def no_graphics(self, monkeypatch):
        monkeypatch.setattr(
            doctor, "render_works", lambda backend: (0.001, "") if backend == "egl" else (None, "no")
        )

    def test_healthy_machine(self, monkeypatch, capsys, tmp_path):
        code, report = self.run(
            monkeypatch, capsys, "--output", str(tmp_path), "--report", str(tmp_path / "a/r.json")
        )
        assert code == 0
        assert report["healthy"]
        assert report["env"] == {"MUJOCO_GL": "egl"}
        assert json.loads((tmp_path / "a/r.json").read_text()) == report

    def test_no_renderer_names_the_packages(self, monkeypatch, capsys):
        monkeypatch.setattr(doctor, "render_works", lambda backend: (None, "libEGL.so.1 not found"))
        code, report = self.run(monkeypatch, capsys)
        assert code == 1
        check = next(c for c in report["checks"] if c["name"] == "Rendering")
        assert check["status"] == "fail"
        assert "libEGL.so.1 not found" in check["found"]
        assert "apt-get install -y --no-install-recommends libegl1" in check["remedy"]

    def test_osmesa_is_the_second_choice(self, monkeypatch):
        works = {"egl": (None, "broken"), "osmesa": (0.002, "")}
        monkeypatch.setattr(doctor, "render_works", works.__getitem__)
        assert doctor.check_rendering().env == {"MUJOCO_GL": "osmesa"}

    def test_full_disk(self, monkeypatch, capsys, tmp_path):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: _Usage(free=1e8))
        code, report = self.run(monkeypatch, capsys, "--output", str(tmp_path / "not/yet/there"))
        assert code == 1
        check = next(c for c in report["checks"] if c["name"] == "Disk")
        assert "--output" in check["remedy"]

    def test_missing_and_old_packages(self, monkeypatch):
        version = importlib.metadata.version

        def without(name):
            if name == "mujoco":
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr(doctor.importlib.metadata, "version", without)
        assert "mujoco" in doctor.check_packages().found
        monkeypatch.setattr(
            doctor.importlib.metadata, "version", lambda n: "0.5.9" if n == "lerobot" else version(n)
        )
        assert doctor.check_packages().status == "fail"

    def test_half_downloaded_libero_assets(self, monkeypatch, tmp_path):
        monkeypatch.setenv("MULTISMOLVLA_LIBERO_ASSETS", str(tmp_path))
        for name in ("stable_hope_objects", "scenes"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "x.xml").write_text("")
        found = doctor.check_libero_assets()
        assert found.status == "note"
        assert "lacks ['articulated_objects', 'stable_scanned_objects', 'turbosquid_objects']" in found.found

    def test_offline_hub_is_a_note(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        (tmp_path / "models--a--b").mkdir()
        check = doctor.check_hub()
        assert check.status == "note"
        assert "1 repositories cached" in check.found

    def test_published_weights_with_cache_and_licence(self, monkeypatch, tmp_path, capsys):
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


class _Usage:
    def __init__(self, free: float):
        self.free = free

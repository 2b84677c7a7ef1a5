"""C7 with a stand-in for LIBERO-Plus: hf-libero's own code and LIBERO's assets, in that package's place."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_policies import save_act

from lerobot_env_multismolvla.libero.setup import libero_package_folder
from multismolvla_eval.records.store import read_run
from multismolvla_run.process import installed_program

TASK = 3


@pytest.fixture
def stand_in(libero_assets, tmp_path) -> Path:
    """A folder for PYTHONPATH: before hf-libero, as a clone of LIBERO-Plus."""
    inner = tmp_path / "plus/libero/libero"
    shutil.copytree(libero_package_folder(), inner, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    (inner.parent / "__init__.py").touch()
    (inner / "benchmark/task_classification.json").write_text("{}")
    (inner / "assets").symlink_to(libero_assets)
    return tmp_path / "plus"


@pytest.mark.sim
@pytest.mark.libero
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_policies_are_compared_on_the_same_starts_with_cameras_of_other_names(stand_in, tmp_path):
    act = save_act(tmp_path / "act", ("top", "image2"))
    run = tmp_path / "run"
    command = [
        installed_program("multismolvla-eval"),
        f"--policies=[act={act}, zero=builtin:zero]",
        "--rename_map={act: {observation.images.image: observation.images.top}}",
        "--env.type=libero_plus",
        "--env.task=libero_spatial",
        f"--env.task_ids=[{TASK}]",
        "--env.options={episode_length: 4, observation_height: 64, observation_width: 64}",
        "--conditions=[]",
        "--clean_episodes=2",
        "--clips=0",
        "--workers=1",
        f"--output={run}",
    ]
    # no user's LIBERO configuration, no assets but those of the package
    own = {"PYTHONPATH": str(stand_in), "LIBERO_CONFIG_PATH": str(tmp_path / "config")}
    hidden = {"MULTISMOLVLA_LIBERO_ASSETS"}
    env = {k: v for k, v in os.environ.items() if k not in hidden} | own
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    manifest, rows = read_run(run)
    assert manifest.suites["libero_spatial"].type == "libero_plus"
    assert str(stand_in) in (tmp_path / "config/config.yaml").read_text()
    assert "observation.images.image" in manifest.policies["act"].reads
    starts = {(row.policy, row.episode): row.start for row in rows}
    assert len(starts) == 4
    assert None not in starts.values()
    for episode in (0, 1):
        assert starts["act", episode] == starts["zero", episode]
    assert starts["act", 0] != starts["act", 1]
    assert all(row.steps == 4 and not row.crashed for row in rows)

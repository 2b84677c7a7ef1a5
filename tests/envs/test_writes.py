"""An environment asks nothing on the terminal and writes nothing but our cache, from import to end."""

import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest

from multismolvla.system.libero_assets import find_libero_assets

EPISODE = """
import sys
import numpy as np
from lerobot_env_multismolvla import MultiSmolVLALiberoConfig
suite, assets = sys.argv[1], sys.argv[2] or None
config = MultiSmolVLALiberoConfig(
    task=suite, libero_assets=assets, observation_height=32, observation_width=32, num_steps_wait=1)
env = config.env_maker(suite, 0)()
env.reset(seed=0)
env.step(np.zeros(7, np.float32))
env.simulation.sim.data._data.qvel[:] = 1e30  # MuJoCo warns about this; by itself also in a file
env.step(np.zeros(7, np.float32))
env.close()
import logging, os
files = [h for h in logging.getLogger("robosuite_logs").handlers if isinstance(h, logging.FileHandler)]
assert not files, files  # /tmp/robosuite.log
import numba
assert numba.config.CACHE_DIR.startswith(os.environ["XDG_CACHE_HOME"]), numba.config.CACHE_DIR
left_open = config.env_maker(suite, 0)()
left_open.reset(seed=0)
print("done")
"""


def written(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*")}


@pytest.mark.sim
@pytest.mark.slow
def test_no_question_and_no_write_outside_the_cache(tmp_path):
    beside = Path(__file__).parents[3] / "shared" / "libero" / "assets"
    assets = find_libero_assets(str(beside) if beside.is_dir() else None)
    suite = "multismolvla_mini" if assets is None else "libero_goal"
    folders = {name: tmp_path / name for name in ("home", "work", "cache", "temp")}
    for folder in folders.values():
        folder.mkdir()
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folders["home"]),
        "XDG_CACHE_HOME": str(folders["cache"]),
        "TMPDIR": str(folders["temp"]),
        "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NUMBA_DISABLE_JIT": "1",  # filling an empty cache takes ten seconds
    }
    done = subprocess.run(
        [sys.executable, "-c", EPISODE, suite, str(assets or "")],
        env=env,
        cwd=folders["work"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.stdout.endswith("done\n"), done.stderr[-3000:]
    assert "Downloading" not in done.stdout
    assert "Exception ignored" not in done.stderr, (
        "an environment left open complains at the end of the process"
    )
    assert written(folders["home"]) == set()
    assert written(folders["work"]) == set()
    assert written(folders["temp"]) <= {
        f"torchinductor_{getpass.getuser()}"
    }  # an empty folder that torch makes
    ours = {name.split("/")[1] for name in written(folders["cache"]) if "/" in name}
    assert os.listdir(folders["cache"]) == ["multismolvla"]
    assert any(name.startswith("libero-") for name in ours)
    assert all(n.startswith(("libero-", "mesa_shader_cache", "matplotlib", "numba")) for n in ours), ours

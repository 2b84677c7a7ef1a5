"""LeRobot's commands as real processes: hub offline, one thread, output in a log file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tiny_dataset import REPO_ID

HERE = Path(__file__).parent


def environment() -> dict[str, str]:
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }
    sources = os.pathsep.join(
        [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    )  # finds the fake arm
    return os.environ | quiet | {"PYTHONPATH": sources}


def command(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start ``lerobot-train`` with its output in ``folder``'s log."""
    with folder.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [command("lerobot-train"), *options],
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )


def finish(process: subprocess.Popen[str], folder: Path) -> str:
    code = process.wait(timeout=200)
    log = folder.with_suffix(".log").read_text()
    assert code == 0, log[-4000:]
    return log


def common(data: Path, folder: Path, steps: int, save: int) -> list[str]:
    return [
        f"--dataset.repo_id={REPO_ID}", f"--dataset.root={data}", "--dataset.depth_output_unit=m",
        "--dataset.use_imagenet_stats=false", f"--steps={steps}", f"--save_freq={save}", "--batch_size=2",
        "--num_workers=0", "--log_freq=1", "--env_eval_freq=0", "--wandb.enable=false", "--seed=1", f"--output_dir={folder}",
    ]  # fmt: skip


def logged(name: str, log: str) -> list[float]:
    """The values of one quantity that the trainer logged, step by step."""
    return [float(word.removeprefix(f"{name}:")) for word in log.split() if word.startswith(f"{name}:")]

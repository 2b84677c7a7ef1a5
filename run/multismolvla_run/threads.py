"""Which number of threads trains fastest on this machine: measured, not guessed.

On a shared machine with few cores OpenMP threads that spin while they wait can make a training step several times
slower, and which setting wins depends on the neighbours. A small transformer is trained for a moment under each
candidate, in a process of its own because OpenMP reads its environment once.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from multismolvla.system.files import write_json

logger = logging.getLogger(__name__)

# About the shape of the mini preset's tower: many small matrix products, which is where waiting threads hurt.
_PROBE = """
import time, torch
torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(96, 4, 256, dropout=0.0, batch_first=True)
model = torch.nn.TransformerEncoder(layer, 4)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
x = torch.randn(32, 160, 96)
def step():
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
step()
times = []
stop = time.perf_counter() + 2.0
while len(times) < 3 or (time.perf_counter() < stop and len(times) < 20):
    start = time.perf_counter()
    step()
    times.append(time.perf_counter() - start)
print(sorted(times)[len(times) // 2])
"""

# What runs beside every training step: the data loader's worker, decoding pictures about two thirds of the time.
_NEIGHBOUR = """
import time
while True:
    stop = time.perf_counter() + 0.02
    while time.perf_counter() < stop:
        pass
    time.sleep(0.01)
"""


@dataclass(frozen=True)
class ThreadTrial:
    """One candidate.

    Attributes:
        env: the environment variables that set it.
        seconds: median duration of a small training step, ``None`` if it failed or took over a minute.
    """

    env: dict[str, str]
    seconds: float | None


def available_cores() -> int:
    """Number of cores this process may use (affinity, not what the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def candidates(cores: int) -> list[dict[str, str]]:
    """Environments to compare: one thread, one per core, one per core without spinning.

    Args:
        cores: number of usable cores; more than eight threads never helped a step this small.

    Returns:
        List of environment variable settings, the safest first.
    """
    single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    many = str(min(cores, 8))
    if many == "1":
        return [single]
    full = {"OMP_NUM_THREADS": many, "MKL_NUM_THREADS": many}
    return [single, {**full, "OMP_WAIT_POLICY": "PASSIVE"}, {**full, "OMP_WAIT_POLICY": "ACTIVE"}]


def measure(env: dict[str, str], timeout_s: float = 60.0) -> ThreadTrial:
    """Time a small training step under ``env`` in a process of its own, beside a stand-in for the data loader's worker.

    On an otherwise idle machine spinning threads look best; beside a loader they lose what they seemed to win.

    Args:
        env: environment variables to set on top of the present ones.
        timeout_s: give up after this many seconds.

    Returns:
        The trial; ``seconds`` is ``None`` when the process failed or took too long.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MKL_"))}
    neighbour = subprocess.Popen([sys.executable, "-c", _NEIGHBOUR])
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**inherited, **env, "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
        return ThreadTrial(env, float(done.stdout.strip().splitlines()[-1]))
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        logger.warning("The thread measurement failed under %s: %s", env, error)
        return ThreadTrial(env, None)
    finally:
        neighbour.kill()
        neighbour.wait()


def describe(env: dict[str, str]) -> str:
    """``{"OMP_NUM_THREADS": "2", ...}`` as ``"2 threads, passive"``."""
    n = env.get("OMP_NUM_THREADS", "default")
    policy = env.get("OMP_WAIT_POLICY")
    return f"{n} thread{'' if n == '1' else 's'}" + (f", {policy.lower()} waiting" if policy else "")


def measure_all() -> list[ThreadTrial]:
    """Measure every candidate for this machine, about four seconds each."""
    return [measure(env) for env in candidates(available_cores())]


def best_thread_env(cache_path: Path | str | None = None) -> dict[str, str]:
    """The thread setting under which a small training step is fastest, measured once and cached.

    Args:
        cache_path: JSON file that remembers the answer; read only if it was written on a machine with the same name
            and number of cores, replaced otherwise. ``None`` measures anew.

    Returns:
        Environment variables (``OMP_NUM_THREADS``, ``MKL_NUM_THREADS``, perhaps ``OMP_WAIT_POLICY``) for the child
        process. One thread when nothing could be measured.
    """
    machine = {"node": platform.node(), "cores": available_cores(), "python": platform.python_version()}
    path = Path(cache_path) if cache_path is not None else None
    if path is not None and path.is_file():
        try:
            cached = json.loads(path.read_text())
            if cached["machine"] == machine:
                return {str(k): str(v) for k, v in cached["env"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning("%s is not a thread measurement, measuring again.", path)
    trials = measure_all()
    best = fastest(trials)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "machine": machine,
            "env": best,
            "trials": [{"env": t.env, "seconds_per_step": t.seconds} for t in trials],
        }
        write_json(path, record)
    return best


def fastest(trials: list[ThreadTrial]) -> dict[str, str]:
    """Environment of the fastest trial, with a preference for those that neighbours cannot hurt.

    More threads must be 10 % faster than fewer, and spinning ones 25 % faster than waiting ones: an idle machine may
    get neighbours during the job, and then spinning threads were seen to take nine times as long.

    Args:
        trials: measured candidates, the safest first.

    Returns:
        Its environment variables; those of the first trial when nothing could be measured.
    """
    best = trials[0]
    for trial in trials[1:]:
        share = 0.75 if trial.env.get("OMP_WAIT_POLICY") == "ACTIVE" else 0.9
        if trial.seconds is not None and (best.seconds is None or trial.seconds < share * best.seconds):
            best = trial
    return best.env

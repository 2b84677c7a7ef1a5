"""How many threads a training process gets, and a measurement of the choice.

Passive waiting, because OpenMP threads that spin while they wait took up to nine times as long once the
machine had another job. With it all cores are the better default: two threads on two cores made a small
training step 25 % faster than one on an idle machine, and 10 % slower beside four other jobs. The mini preset
asks for two on every machine, because results depend on the number of threads.
"""

from __future__ import annotations

import os
import subprocess
import sys

#: More threads never made a step of the mini preset faster.
_MOST = 8

# About the shape of the mini preset's tower: many small matrix products, where threads wait for each other
# most.
_STEP = """
import time, torch
layer = torch.nn.TransformerEncoderLayer(96, 4, 256, dropout=0.0, batch_first=True)
model = torch.nn.TransformerEncoder(layer, 4)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
x = torch.randn(32, 160, 96)
times, stop = [], time.perf_counter() + 3.0
while len(times) < 4 or time.perf_counter() < stop:
    start = time.perf_counter()
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    times.append(time.perf_counter() - start)
print(sorted(times)[len(times) // 2])
"""

# Stands in for the data loader's worker beside it, which decodes pictures about two thirds of the time.
# Without such a neighbour spinning threads look better than they are.
_NEIGHBOUR = """
import time
while True:
    stop = time.perf_counter() + 0.02
    while time.perf_counter() < stop:
        pass
    time.sleep(0.01)
"""


def available_cores() -> int:
    """Number of cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def training_threads(threads: int | None = None) -> dict[str, str]:
    """Environment variables for one training process here: by default a thread per core; passive waiting."""
    count = str(threads or min(available_cores(), _MOST))
    return {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "OMP_WAIT_POLICY": "PASSIVE"}


def seconds_per_step() -> dict[str, float]:
    """Measure a small training step with one thread, with the default, and with spinning threads; 10 s each.

    Returns:
        Setting as typed before a command -> median seconds.

    Raises:
        subprocess.CalledProcessError: torch does not train.
    """
    default = training_threads()
    single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    measured = {}
    for setting in (single, default, {**default, "OMP_WAIT_POLICY": "ACTIVE"}):
        neighbour = subprocess.Popen([sys.executable, "-c", _NEIGHBOUR])
        try:
            done = subprocess.run(
                [sys.executable, "-c", _STEP],
                env={**os.environ, **setting, "CUDA_VISIBLE_DEVICES": ""},
                capture_output=True,
                text=True,
                check=True,
            )
        finally:
            neighbour.kill()
            neighbour.wait()
        shown = " ".join(f"{name}={value}" for name, value in setting.items() if name != "MKL_NUM_THREADS")
        measured[shown] = float(done.stdout)
    return measured

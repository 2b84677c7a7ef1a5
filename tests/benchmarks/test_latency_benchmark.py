"""The latency benchmark and the GPU's run on the smallest sizes; nothing is asserted about time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))  # the scripts import their neighbours, as when run by path


def test_each_second_belongs_to_the_innermost_watched_function(monkeypatch):
    import latency

    clock = iter([0.0, 1.0, 3.0, 6.0])  # outer begins, inner begins, inner ends, outer ends
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock))
    stages = latency.Stages(None)
    inner = stages.watched(lambda: None, "inner")
    stages.watched(inner, "outer")()
    assert stages.seconds[""] == {"outer": 4.0, "inner": 2.0}


def test_the_warm_up_does_not_count():
    import latency

    stages = latency.Stages(None)
    stages.begin("a", anew=True)
    stages.watched(lambda: None, "work")()
    stages.begin("a", anew=True)
    assert not stages.seconds["a"]


@pytest.mark.slow
def test_a_look_is_measured_by_stages_with_sensors_and_with_estimates(tmp_path: Path):
    from latency import LatencyBenchmark, run

    output, figure = tmp_path / "latency.json", tmp_path / "latency.png"
    run(
        LatencyBenchmark(
            preset="smallest",
            modalities=[1, 4],
            derived=[1, 2],
            rounds=1,
            warmup=0,
            threads=0,
            check=True,
            scratch=tmp_path,
            figure=figure,
            output=output,
        )
    )
    content = json.loads(output.read_text())
    stages = content["stages_s"]
    parts = {"prepare", "encoder", "prefix", "denoising", "post-processor", "rest"}
    assert set(stages["vanilla SmolVLA"]) >= parts
    assert not any("depth" in stage for stage in stages["B, rgb"])
    sensors, derived = stages["B, rgb+depth+seg+thermal"], stages["B, all of RGB, thermal every 2"]
    assert {"tokens of depth", "tokens of seg", "tokens of thermal"} <= set(sensors)
    assert {"estimate of depth", "estimate of seg", "estimate of thermal"} <= set(derived) - set(sensors)
    assert set(content["difference_to_cpu"].values()) == {0.0}  # the CPU's own chunk, from a second policy
    assert {path.name for path in tmp_path.iterdir()} == {"latency.json", "latency.png"}


def test_a_result_of_the_gpu_that_is_no_number_is_wrong():
    import gpu

    off = {"fp32": float("nan"), "fp32, compiled": 2e-3, "bf16": 0.5, "bf16, compiled": float("nan")}
    assert set(gpu.beyond(off, 1e-3)) == {"fp32", "fp32, compiled", "bf16, compiled"}
    assert gpu.beyond({"fp32": 1e-3, "bf16": 0.5}, 1e-3) == {}


def test_an_unknown_size_names_itself():
    from latency import LatencyBenchmark

    with pytest.raises(ValueError, match=r"--sizes=\['XL'\]"):
        LatencyBenchmark(sizes=["XL"])


def test_benchmarks_find_the_random_networks_when_they_are_run_by_path():
    command = [sys.executable, "-c", "import support.measuring, tiny_imagebind, tiny_estimators"]
    assert subprocess.run(command, cwd=FOLDER, check=False).returncode == 0


def test_the_whole_gpu_run_goes_on_after_a_failure_and_ends_in_time(tmp_path):
    """With a Python that only notes what it is asked for: fails the first, hangs in the second."""
    stub = tmp_path / "python"
    stub.write_text(
        f'#!/bin/sh\necho "$@" >> "{tmp_path}/calls"\ncase "$1$*" in\n  -c*) exit 0 ;;\n'
        "  *gpu.py*) exit 3 ;;\n  *float32*) exec sleep 3600 ;;\nesac\n"
    )
    stub.chmod(0o755)
    given = os.environ | {"PYTHON": str(stub), "LIMIT": "4", "DEVICE": "cpu", "TINY": "1"}
    command = ["sh", str(FOLDER / "gpu.sh")]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    calls = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls == ["benchmarks/gpu.py", "-c", *["benchmarks/latency.py"] * 2]
    lines = done.stdout.splitlines()
    assert [line.partition(", of")[0] for line in lines] == [
        "benchmarks/gpu.py: exit code 3", "benchmarks/latency.py: exit code 124",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("lacking", "networks"), [("diffusers", 5), ("nothing", 9)])
def test_the_gpu_run_needs_no_lerobot(lacking, networks):
    blocked = (
        "import sys, torch; sys.modules['lerobot'] = sys.modules['lerobot_policy_multismolvla'] = None; "
        f"sys.modules['{lacking}'] = None; torch.set_float32_matmul_precision('high'); "
        "torch.backends.cudnn.allow_tf32 = True; import gpu; measured = gpu.measure; "
        "tf32 = lambda: (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32); "
        "gpu.measure = lambda *a, **o: print('tf32', *tf32()) or measured(*a, **o); "
    )
    options = ["gpu.py", "--device=cpu", "--tiny", "--eager", "--rounds=1"]
    code = f"{blocked}sys.argv = {options}; gpu.main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("0.0e+00") == networks  # every network gives what the CPU gives
    assert done.stdout.count("tf32 highest False") == 2 * networks
    left_out = "diffusers is not installed: the estimator of thermal is left out."
    assert (left_out in done.stdout) == (lacking == "diffusers")

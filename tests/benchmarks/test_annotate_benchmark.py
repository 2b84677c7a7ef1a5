"""The annotation benchmark runs and reports what it promises; nothing is asserted about time."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import environment
from tiny_dataset import write_dataset

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))  # the scripts import their neighbours, as when run by path
    spec = importlib.util.spec_from_file_location("annotate_benchmark", FOLDER / "annotate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_it_reports_frames_memory_and_bytes(benchmark, tmp_path):
    options = {"episodes": [1], "frames": 4, "side": 48, "cases": ["depth alone"]}
    content = benchmark.run(benchmark.AnnotateBenchmark(**options, output=tmp_path / "annotate.json"))
    (result,) = content["results"].values()
    assert result["frames"] == 4
    assert result["peak_mib"] >= result["loaded_mib"] > 0
    assert result["id_bytes"] == 2 * 2 * 196


@pytest.mark.slow
def test_it_reports_the_share_of_ids_that_stay(tmp_path):
    write_dataset(tmp_path / "data")
    command = [
        sys.executable, str(FOLDER / "annotate.py"), f"--agreement={tmp_path / 'data'}", "--compared=4",
        "--batch_sizes=[3]", "--codecs=[h264]", f"--output={tmp_path / 'agreement.json'}",
    ]  # fmt: skip
    alone = environment() | {"PYTHONPATH": ""}  # as a user starts it
    done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    content = json.loads((tmp_path / "agreement.json").read_text())
    assert content["pictures"] == 4 * 2
    results = content["results"]
    assert list(results) == ["the same again", "batches of 3", "bfloat16", "RGB as h264 video"]
    assert set(results["the same again"]) == {"depth", "seg", "thermal"}
    assert set(results["the same again"].values()) == {1.0}
    assert all(0 < share < 1 for share in results["RGB as h264 video"].values())
    assert f"{results['bfloat16']['thermal']:.2%}" in done.stdout


def test_compared_frames_are_spread_over_the_episodes(benchmark):
    assert benchmark.spread([3, 5], 4) == [(0, 0), (0, 2), (1, 1), (1, 3)]
    assert benchmark.spread([1, 1], 9) == [(0, 0), (1, 0)]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("cases", ["all"]),
        ("episodes", [0]),
        ("frames", 0),
        ("compared", 0),
        ("batch_sizes", [1]),
        ("agreement", Path("nowhere")),
    ],
)
def test_wrong_options_name_themselves(benchmark, option, value):
    with pytest.raises(ValueError, match=f"--{option}="):
        benchmark.AnnotateBenchmark(**{option: value})

"""The annotation benchmark runs and reports what it promises; nothing is asserted about time."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(("option", "value"), [("cases", ["all"]), ("episodes", [0]), ("frames", 0)])
def test_wrong_options_name_themselves(benchmark, option, value):
    with pytest.raises(ValueError, match=f"--{option}="):
        benchmark.AnnotateBenchmark(**{option: value})

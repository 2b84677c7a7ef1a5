"""The ThermalGen benchmark runs and compares equal results; nothing is asserted about time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))  # the scripts import their neighbours, as when run by path


def _benchmark():
    # by path: data/ and benchmarks/ both have a module of this name
    import importlib.util

    spec = importlib.util.spec_from_file_location("thermalgen_benchmark", FOLDER / "thermalgen.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("options", [{}, {"injection": "concat", "cfg_scale": 2.0, "method": "heun"}])
def test_it_compares_equal_results(tmp_path: Path, options: dict):
    module = _benchmark()
    output = tmp_path / "thermalgen.json"
    module.run(
        module.ThermalGenBenchmark(
            arch="tiny", size=32, steps=2, rounds=1, warmup=0, threads=0, output=output, **options
        )
    )
    content = json.loads(output.read_text())
    assert content["largest_relative_difference"] < 1e-5
    assert content["evaluations"] == (4 if options else 2)
    assert set(content["ratios"]) == {module.CACHED, module.FRESH}


@pytest.mark.parametrize(
    ("option", "value"),
    [("arch", "XXL"), ("method", "dopri5"), ("size", 40), ("steps", 0), ("dtype", "int8")],
)
def test_wrong_options_name_themselves(option: str, value: object):
    with pytest.raises(ValueError, match=f"--{option}="):
        _benchmark().ThermalGenBenchmark(**{option: value})


def test_help_is_light():
    command = [sys.executable, "-X", "importtime", str(FOLDER / "thermalgen.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--cfg_scale" in done.stdout
    assert "| torch\n" not in done.stderr

"""The benchmarks parse their options and produce ratios on the smallest sizes; no time is asserted."""

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


@pytest.mark.parametrize(
    ("script", "option"),
    [("policy", "--towers"), ("simulator", "--variants"), ("tower", "--load"), ("activations", "--preset")],
)
def test_help_names_the_options_without_heavy_imports(script: str, option: str):
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{script}.py"), "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert option in done.stdout


def test_ratios_are_taken_within_rounds_and_the_order_alternates():
    from support.measuring import Case, Series, interleave, ratios, spread

    order: list[str] = []
    cases = {name: Case(lambda name=name: order.append(name), units=2) for name in ("a", "b")}
    timed = interleave(cases, rounds=3, warmup=1, title="test")
    assert order == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert [len(timed[name].wall) for name in cases] == [3, 3]
    # the second round ran on a machine three times as slow: no ratio shows it
    series = {"a": Series([1.0, 3.0, 1.0], [1.0] * 3), "b": Series([2.0, 6.0, 2.0], [3.0] * 3)}
    ratio = ratios(series, "a")["b"]
    assert (ratio["wall"]["min"], ratio["wall"]["max"], ratio["cpu"]["median"]) == (2.0, 2.0, 3.0)
    assert spread([5.0])["q75"] == 5.0


def test_policy_benchmark_on_the_smallest_sizes(tmp_path: Path):
    from policy import PolicyBenchmark, run

    output = tmp_path / "policy.json"
    run(PolicyBenchmark(preset="smallest", rounds=1, warmup=0, threads=0, scratch=tmp_path, output=output))
    content = json.loads(output.read_text())
    for quantity in ("train", "action", "vision"):
        assert content["ratios"][quantity]["fourm"]["wall"]["median"] > 0
        assert content["results"][quantity]["siglip"]["wall_s"]["n"] == 1
    assert content["parameters"]["fourm"]["fourm_tower"] > 0
    assert content["parameters"]["siglip"]["fourm_tower"] == 0
    assert list(tmp_path.iterdir()) == [output]  # the random weights are gone


def test_objectives_are_compared_with_the_step_without(tmp_path: Path):
    from policy import AIMS, PolicyBenchmark, run

    output = tmp_path / "policy.json"
    against = {tower: other for tower, (_, other) in AIMS.items()}
    towers = ["siglip", *dict.fromkeys(against.values()), *AIMS]
    options = {"quantities": ["train"], "rounds": 1, "threads": 0, "scratch": tmp_path, "output": output}
    run(PolicyBenchmark(preset="smallest", towers=towers, **options))
    content = json.loads(output.read_text())
    samples = {name: own["samples"]["wall_s"][0] for name, own in content["results"]["train"].items()}
    assert content["objectives"].keys() == AIMS.keys()
    for name, ratio in content["objectives"].items():
        assert ratio["wall"]["median"] == pytest.approx(samples[name] / samples[against[name]])


def test_tower_benchmark_on_one_block(tmp_path: Path):
    from tower import TowerBenchmark, run

    output = tmp_path / "tower.json"
    run(
        TowerBenchmark(
            sizes=["B"], load=[], depth=1, rounds=1, warmup=0, threads=0, scratch=tmp_path, output=output
        )
    )
    content = json.loads(output.read_text())
    assert [name for name in content["ratios"] if name.startswith("4M-21 B, rgb")] == list(content["ratios"])
    assert len(content["ratios"]) == 4
    assert all(row["wall"]["median"] > 0 for row in content["ratios"].values())
    assert content["loading"] == {}  # tests/multismolvla/fourm/test_fourm_official_size.py measures it
    assert list(tmp_path.iterdir()) == [output]


def test_saved_tensors_are_counted_once_and_without_parameters():
    import torch
    from activations import saved_bytes

    class Squares(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(100))

        def forward(self, batch):
            x = batch["x"] * self.weight  # keeps x; the weight is a parameter
            return (x * x).sum()  # keeps the product, twice the same

    assert saved_bytes(Squares(), {"x": torch.ones(100, requires_grad=True)}) == 2 * 400


@pytest.mark.sim
def test_simulator_benchmark_on_a_few_steps(tmp_path: Path):
    pytest.importorskip("libero", reason="the LIBERO simulator is not installed")
    from simulator import SimulatorBenchmark, run

    output = tmp_path / "simulator.json"
    run(SimulatorBenchmark(variants=["rgb+seg"], size=16, steps=1, rounds=1, warmup=0, output=output))
    content = json.loads(output.read_text())
    assert set(content["results"]) == {"physics only", "rgb", "rgb+seg"}
    assert content["ratios"]["rgb+seg"]["wall"]["median"] > 0
    assert content["physics_share_of_rgb"]["median"] > 0


@pytest.mark.parametrize(
    ("option", "value"),
    [("preset", "huge"), ("towers", []), ("stage", "both"), ("trained", "none"), ("quantities", ["loss"])],
)
def test_wrong_policy_options_name_themselves(option: str, value: object):
    from policy import PolicyBenchmark

    with pytest.raises(ValueError, match=f"--{option}="):
        PolicyBenchmark(**{option: value})


@pytest.mark.parametrize(("option", "value"), [("sizes", ["S"]), ("load", ["M"]), ("dtype", "float16")])
def test_wrong_tower_options_name_themselves(option: str, value: object):
    from tower import TowerBenchmark

    with pytest.raises(ValueError, match=f"--{option}="):
        TowerBenchmark(**{option: value})


def test_wrong_simulator_options_name_themselves():
    from simulator import SimulatorBenchmark

    with pytest.raises(ValueError, match="--steps=500"):
        SimulatorBenchmark(steps=500, rounds=2)

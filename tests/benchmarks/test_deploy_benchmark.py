"""The benchmark of what deployment adds runs on small pictures; nothing is asserted about time."""

from __future__ import annotations

import json
from pathlib import Path

import deploy
import pytest


@pytest.mark.parametrize("name", list(deploy.QUANTITIES))
def test_each_quantity_is_measured_against_lerobots_own(name: str, tmp_path: Path, capsys):
    output = tmp_path / "deploy.json"
    options = {"height": 32, "width": 48, "preset": "smallest", "rounds": 1, "warmup": 0}
    deploy.run(deploy.DeployBenchmark(quantities=[name], **options, output=output))
    (measured,) = json.loads(output.read_text())["quantities"].values()
    about = deploy.QUANTITIES[name]
    assert set(measured["results"]) == {about.baseline, *about.added}
    assert measured["reached"] > 0
    assert f"{name}: {measured['reached']:.2f} times LeRobot's own" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantities": ["speed"]}, "expected of"),
        ({"rounds": 0}, "at least one round"),
        ({"preset": "huge"}, "--preset='huge'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        deploy.DeployBenchmark(**options)

"""The benchmark of health runs on small pictures; nothing is asserted about time."""

from __future__ import annotations

import json
from pathlib import Path

import health
import pytest


def test_it_measures_marks_and_verdict_against_lerobots_preparation(tmp_path: Path):
    output = tmp_path / "health.json"
    health.run(health.HealthBenchmark(height=32, width=48, rounds=1, warmup=0, output=output))
    content = json.loads(output.read_text())
    assert set(content["results"]) == {health.BASELINE, health.MARKS, health.VERDICT}
    assert content["share"] > 0


def test_no_camera_is_named():
    with pytest.raises(ValueError, match="one camera"):
        health.HealthBenchmark(cameras=0)

"""The benchmark of samples runs on small pictures; nothing is asserted about time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import samples


def test_it_loads_all_three_kinds_of_data_set(tmp_path: Path):
    output = tmp_path / "samples.json"
    samples.run(
        samples.SamplesBenchmark(
            size=64,
            cameras=1,
            chunk=3,
            episodes=1,
            frames=20,
            samples=2,
            rounds=1,
            warmup=0,
            output=output,
        )
    )
    assert set(json.loads(output.read_text())["results"]) == {samples.PICTURES, samples.IDS, samples.VIDEO}


def test_episodes_shorter_than_a_chunk_are_named():
    with pytest.raises(ValueError, match="as long as a chunk"):
        samples.SamplesBenchmark(frames=20)

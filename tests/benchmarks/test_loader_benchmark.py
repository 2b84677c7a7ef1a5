"""The benchmark of the loader runs on small pictures; nothing is asserted about time."""

from __future__ import annotations

import json
from pathlib import Path

import loader
import pytest


def test_it_loads_all_three_kinds_of_data_set(tmp_path: Path):
    output = tmp_path / "loader.json"
    loader.run(
        loader.LoaderBenchmark(
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
    assert set(json.loads(output.read_text())["results"]) == {loader.PICTURES, loader.IDS, loader.VIDEO}


def test_episodes_shorter_than_a_chunk_are_named():
    with pytest.raises(ValueError, match="as long as a chunk"):
        loader.LoaderBenchmark(frames=20)

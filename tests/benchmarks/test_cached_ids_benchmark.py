"""The benchmark of cached ids runs on the smallest sizes; nothing is asserted about time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))  # the scripts import their neighbours, as when run by path


def test_it_measures_ids_against_pictures(tmp_path: Path):
    from cached_ids import CachedIdsBenchmark, run

    output = tmp_path / "cached_ids.json"
    run(CachedIdsBenchmark(preset="smallest", rounds=1, warmup=0, threads=0, scratch=tmp_path, output=output))
    content = json.loads(output.read_text())
    assert set(content["results"]) == {"ids of all", "ids, thermal live", "all live"}
    assert content["ids_per_view"] == {"depth": 196, "seg": 196, "thermal": 272}
    assert content["bytes_per_view"] <= 2000
    assert list(tmp_path.iterdir()) == [output]  # the random weights are gone


def test_a_wrong_preset_names_itself():
    from cached_ids import CachedIdsBenchmark

    with pytest.raises(ValueError, match="--preset='huge'"):
        CachedIdsBenchmark(preset="huge")

"""The agreement benchmark runs as it is documented, and what changes nothing changes no id."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import agreement
import pytest
from processes import environment
from tiny_dataset import write_dataset

SCRIPT = Path(agreement.__file__)


@pytest.mark.slow
def test_it_reports_the_share_of_ids_that_stay(tmp_path):
    write_dataset(tmp_path / "data")
    options = [f"--dataset={tmp_path / 'data'}", "--frames=4", "--batch_sizes=[3]", "--codecs=[h264]"]
    command = [sys.executable, str(SCRIPT), *options, f"--output={tmp_path / 'agreement.json'}"]
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


def test_frames_are_spread_over_the_episodes():
    assert agreement.spread([3, 5], 4) == [(0, 0), (0, 2), (1, 1), (1, 3)]
    assert agreement.spread([1, 1], 9) == [(0, 0), (1, 0)]


@pytest.mark.parametrize(("option", "value"), [("dataset", "nowhere"), ("frames", 0), ("batch_sizes", [1])])
def test_wrong_options_name_themselves(option, value, tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text("{}")
    with pytest.raises(ValueError, match=f"--{option}="):
        agreement.AgreementBenchmark(
            **({"dataset": tmp_path} | {option: Path(value) if option == "dataset" else value})
        )

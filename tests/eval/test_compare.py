"""The comparison of two runs, from synthetic rows that say so."""

from __future__ import annotations

import json
import re

import pytest
from report_readers import Page
from synthetic import manifest_of, synthetic_run

from multismolvla_eval.report import main


def test_compared_runs_pair_repeated_starts_once(tmp_path):
    a = synthetic_run(tmp_path / "a", texts=["C2:rgb=zero"], clean_seeds=3)
    b = synthetic_run(tmp_path / "b", texts=["C2:rgb=zero"], clean_seeds=3, seed=2)
    assert main([str(a), str(b), f"--output={tmp_path / 'out'}"]) == 0
    clean = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"][0]
    assert clean["condition"] == "C0"
    assert [r["n"] for r in clean["rates"]] == [60, 60]
    assert (clean["difference"]["n"], clean["difference"]["episodes"]) == (20, 60)


def test_compared_runs_are_paired_where_they_ran_the_same_episodes(tmp_path, capsys):
    a = synthetic_run(tmp_path / "a", (0.9, 0.7), texts=["C2:rgb=zero", "C4:all=delay@2"])
    b = synthetic_run(tmp_path / "b", (0.5, 0.7), texts=["C2:rgb=zero"], seed=2)
    output = tmp_path / "comparison"
    assert main([str(a), str(b), f"--output={output}"]) == 0
    assert "toy: paired on the same episodes" in capsys.readouterr().out
    content = json.loads((output / "comparison.json").read_text())
    assert [(c["policies"][0], c["condition"], c["paired"]) for c in content["cells"]] == [
        (p, c, True) for p in ("ours", "vanilla") for c in ("C0", "C2:rgb=zero")
    ]
    clean = content["cells"][0]
    assert clean["difference"]["n"] == 20
    assert clean["difference"]["difference"] == pytest.approx(
        clean["rates"][1]["rate"] - clean["rates"][0]["rate"]
    )

    assert main([str(b)]) == 0
    assert main([str(a), str(b / "results.json"), f"--output={output}"]) == 0
    assert json.loads((output / "comparison.json").read_text())["cells"] == content["cells"], (
        "from the file alone"
    )
    page = Page()
    page.feed((output / "comparison.html").read_text())
    assert all(u.startswith(("data:", "#")) for u in page.urls)


def test_compared_runs_withhold_what_the_gate_withholds_and_mark_it(tmp_path, capsys):
    names = ("expert", "weak", "sightless", "vanilla")
    usual = manifest_of(("libero_goal",), [])["suites"]
    sides = []
    for folder, weak in (("a", 0.9), ("b", 0.1)):
        side = synthetic_run(
            tmp_path / folder, (1.0, weak, 0.9, 0.9), usual, ["C2:rgb=zero"], names, privileged=("expert",)
        )
        manifest = json.loads((side / "run.json").read_text())
        manifest["policies"]["sightless"]["blind"] = True
        (side / "run.json").write_text(json.dumps(manifest))
        sides.append(str(side))
    output = tmp_path / "comparison"
    assert main([*sides, f"--output={output}"]) == 0
    told, page = capsys.readouterr().out, (output / "comparison.html").read_text().replace("&#39;", "'")
    cells = json.loads((output / "comparison.json").read_text())["cells"]
    known = {(c["policies"][0], c["condition"]): c["difference"] is not None for c in cells}
    assert known == {
        (n, c): c == "C0" or n in ("sightless", "vanilla") for n in names for c in ("C0", "C2:rgb=zero")
    }
    for part in (told, page):
        assert re.search(r"weak in \S+/b: its clean success of \d+% is below half of the baseline's", part)
        assert "expert in " + sides[0] + ": it reads the simulator's state" in part
        assert sides[0] + ": libero_goal: the assets were not hashed" in part
    assert "weak / weak (no robustness figures)  libero_goal  C2:rgb=zero" in told
    assert page.count('<span class="tag">expert (upper bound)</span>') == 2
    assert page.count('<span class="tag">sightless (blind)</span>') == 2
    assert page.count("<td>not reported: ") == 2


def test_runs_with_other_seeds_or_assets_are_compared_unpaired_and_say_why(tmp_path, capsys):
    a = synthetic_run(tmp_path / "a", texts=["C2:rgb=zero"])
    usual = manifest_of(("toy",), [])["comparable"]
    b = synthetic_run(tmp_path / "b", texts=["C2:rgb=zero"], comparable={**usual, "seed": 7}, seed=2)
    suite = {**manifest_of(("toy",), [])["suites"]["toy"], "assets": "other", "world": "another"}
    c = synthetic_run(tmp_path / "c", texts=["C2:rgb=zero"], suites={"toy": suite})
    for other, reason in ((b, "seed: 0 and 7"), (c, "assets of toy: '' and 'other'")):
        output = tmp_path / "comparison"
        assert main([str(a), str(other), f"--output={output}"]) == 0
        assert f"toy: unpaired, because the runs differ in {reason}" in capsys.readouterr().out
        cells = json.loads((output / "comparison.json").read_text())["cells"]
        assert not any(cell["paired"] for cell in cells)
        assert all("p_value" not in cell["difference"] for cell in cells)
        assert "<strong>unpaired</strong>" in (output / "comparison.html").read_text()


def test_runs_without_anything_in_common_are_refused(tmp_path, capsys):
    a = synthetic_run(tmp_path / "a", texts=["C2:rgb=zero"])
    b = synthetic_run(tmp_path / "b", texts=["C2:rgb=zero"], suites=("elsewhere",))
    c = synthetic_run(tmp_path / "c", texts=["C2:rgb=zero"], names=("other", "names"))
    (tmp_path / "old.json").write_text("{}")
    for other, message in (
        (b, "nothing is in common"),
        (c, "no name is in both"),
        (tmp_path / "old.json", "is no results.json of this version"),
        (tmp_path / "nowhere", "holds no run.json"),
    ):
        assert main([str(a), str(other), f"--output={tmp_path / 'comparison'}"]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "comparison").exists()

"""The comparison of two runs, from synthetic rows that say so."""

from __future__ import annotations

import html
import json
import re

import pytest
from msgspec.structs import replace
from report_readers import Page
from synthetic import COMPARABLE, facts, suite, synthetic_run

from multismolvla_eval.report.command import main


def test_compared_runs_pair_repeated_starts_once(tmp_path):
    a = synthetic_run(tmp_path / "a", texts=["C2:rgb=zero"], clean_repeats=3)
    b = synthetic_run(tmp_path / "b", texts=["C2:rgb=zero"], clean_repeats=3, seed=2)
    assert main([str(a), str(b), f"--output={tmp_path / 'out'}"]) == 0
    clean = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"][0]
    assert clean["condition"] == "C0"
    assert [s["success"]["n"] for s in clean["runs"]] == [60, 60]
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
    first, second = (side["success"]["rate"] for side in clean["runs"])
    assert clean["difference"]["difference"] == pytest.approx(second - first)
    page = Page()
    page.feed((output / "comparison.html").read_text())
    assert all(u.startswith(("data:", "#")) for u in page.urls)


def test_compared_runs_withhold_what_is_not_reportable_and_mark_it(tmp_path, capsys):
    names = ("expert", "weak", "sightless", "vanilla")
    policies = {"expert": facts("expert", privileged=True), "sightless": facts("sightless", no_vision="grey")}
    changes = {"suites": ("libero_goal",), "texts": ["C2:rgb=zero"], "names": names, "policies": policies}
    rates = {"a": (1.0, 0.9, 0.9, 0.9), "b": (1.0, 0.1, 0.9, 0.9)}
    sides = [str(synthetic_run(tmp_path / folder, clean, **changes)) for folder, clean in rates.items()]
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
        assert "both runs: libero_goal: the assets were not hashed" in part
    assert "weak / weak (no robustness figures)  libero_goal  C2:rgb=zero" in told
    assert page.count('<span class="tag">expert (upper bound)</span>') == 2
    assert page.count('<span class="tag">sightless (no vision)</span>') == 2
    assert page.count("<td>not reported: ") == 2


def test_runs_with_other_seeds_or_assets_are_compared_unpaired_and_say_why(tmp_path, capsys):
    a = synthetic_run(tmp_path / "a", texts=["C2:rgb=zero"])
    changes = {"texts": ["C2:rgb=zero"], "seed": 2}
    b = synthetic_run(tmp_path / "b", comparable=replace(COMPARABLE, seed=7), **changes)
    c = synthetic_run(tmp_path / "c", suites={"toy": suite(assets="other", suite_hash="another")}, **changes)
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
    for other, message in (
        (b, "nothing is in common"),
        (c, "no name is in both"),
        (tmp_path / "nowhere", "holds no run.json"),
    ):
        assert main([str(a), str(other), f"--output={tmp_path / 'comparison'}"]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "comparison").exists()


def test_a_comparison_says_what_each_runs_own_page_says(tmp_path, capsys):
    a = synthetic_run(tmp_path / "a", texts=["C2:rgb=zero"])
    b = synthetic_run(tmp_path / "b", texts=["C2:rgb=zero"], seed=2, synthetic=False, level="smoke")
    rows = (b / "episodes-0of1.jsonl").read_text().splitlines(keepends=True)
    (b / "episodes-0of1.jsonl").write_text("".join(rows[:-3]))
    for folder in (a, b):
        assert main([str(folder)]) == 0
    own = {f: json.loads((f / "results.json").read_text())["notes"] for f in (a, b)}
    capsys.readouterr()
    assert main([str(a), str(b), f"--output={tmp_path / 'out'}"]) == 0
    notes = json.loads((tmp_path / "out" / "comparison.json").read_text())["notes"]
    assert f"{a}: Synthetic rows: made up to test the report, not measured." in notes
    assert f"{b}: The run is not finished: 3 episodes are missing. Figures will change." in notes
    assert not any(f"{b}: Synthetic" in n or f"{a}: The run is not" in n for n in notes)
    for folder in (a, b):
        assert {n.removeprefix("both runs: ").removeprefix(f"{folder}: ") for n in notes} >= set(own[folder])
    assert any(n.startswith(f"{b}: These figures give a first look and may not be quoted") for n in notes)
    assert len(notes) == len(set(notes))
    told, page = capsys.readouterr().out, (tmp_path / "out" / "comparison.html").read_text()
    for note in notes:
        assert f"note: {note}" in told
        assert f"<li>{html.escape(note).replace('&quot;', '&#34;').replace('&#x27;', '&#39;')}</li>" in page


def test_what_only_one_run_has_is_named(tmp_path, capsys):
    common = {"clean": (0.8, 0.8, 0.8)}
    a = synthetic_run(
        tmp_path / "a", texts=["C2:rgb=zero", "C4:all=burst"], names=("ours", "third", "vanilla"), **common
    )
    b = synthetic_run(
        tmp_path / "b",
        texts=["C2:rgb=zero", "C4:all=delay@2"],
        suites=("toy", "other"),
        names=("ours", "vanilla"),
    )
    assert main([str(a), str(b), f"--output={tmp_path / 'out'}"]) == 0
    places = "conditions of ours in toy, conditions of vanilla in toy"
    expected = [
        {"run": str(a), "what": "policies", "names": ["third"]},
        {"run": str(a), "what": places, "names": ["C4:all=burst"]},
        {"run": str(b), "what": "suites", "names": ["other"]},
        {"run": str(b), "what": places, "names": ["C4:all=delay@2"]},
    ]  # fmt: skip
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["alone"] == expected
    told, page = capsys.readouterr().out, (tmp_path / "out" / "comparison.html").read_text()
    for part in expected:
        assert f"only in {part['run']}, not compared: {part['what']}: {part['names'][0]}" in told
        assert f"<li>{part['run']}: {part['what']}: <code>{part['names'][0]}</code></li>" in page


def test_a_comparison_knows_which_pictures_the_environment_derives(tmp_path):
    thermal = {"reads": ["observation.images.image_thermal"], "mask_reaches_policy": False}
    policies = {name: facts(name, **thermal) for name in ("ours", "vanilla")}
    toy = suite(provenance={"rgb": "sensor", "thermal": "derived"})
    a = synthetic_run(tmp_path / "a", texts=["C1:depth+seg+thermal"], policies=policies, suites={"toy": toy})
    assert main([str(a)]) == 0
    own = [c for c in json.loads((a / "results.json").read_text())["conditions"] if c["group"] == "C1"]
    assert [c["cells"]["ours"]["mask_reaches_policy"] for c in own] == [False]
    assert main([str(a), str(a), f"--output={tmp_path / 'out'}"]) == 0
    cells = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"]
    told = [[s["mask_reaches_policy"] for s in c["runs"]] for c in cells if c["condition"] != "C0"]
    assert told == [[False, False]] * 2

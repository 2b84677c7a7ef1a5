"""The comparison of two runs, from synthetic rows that say so."""

from __future__ import annotations

import html
import json
import re

import pytest
from report_readers import Page
from synthetic import manifest_of, synthetic_run

from multismolvla_eval.report.command import main


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
        assert "both runs: libero_goal: the assets were not hashed" in part
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


def twice(columns):
    for name, values in columns.items():
        if name != "names":
            values += values


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c["episodes"]["policy"].__setitem__(0, 99), "episodes.policy is no list of whole numbers from 0 to 1"),
        (lambda c: c["episodes"]["condition"].__setitem__(0, -1), "episodes.condition is no list of whole numbers"),
        (lambda c: c["episodes"]["success"].__setitem__(0, 7), "episodes.success is no list of whole numbers from 0 to 1"),
        (lambda c: c["episodes"]["success"].__setitem__(0, "x"), "episodes.success is no list"),
        (lambda c: c["episodes"]["success"].__setitem__(0, True), "episodes.success is no list"),
        (lambda c: c["episodes"]["task_id"].__setitem__(0, None), "episodes.task_id is no list"),
        (lambda c: c["episodes"]["task_id"].__setitem__(0, -1), "episodes.task_id is no list"),
        (lambda c: c["episodes"]["seed"].__setitem__(0, 2**40), "episodes.seed is no list"),
        (lambda c: c["episodes"]["seed"].pop(), "episodes.seed is no list of whole numbers"),
        (lambda c: c["episodes"].pop("steps"), "episodes.steps is no list"),
        (lambda c: c["episodes"].update(met=[1]), "episodes.met is no list of whole numbers from -1 to 1"),
        (lambda c: [c["episodes"][k].__setitem__(0, 2**31 - 1) for k in ("task_id", "seed", "episode")],
         "numbers its episodes beyond any run's"),
        (lambda c: [v.clear() for k, v in c["episodes"].items() if k != "names"], "episodes.policy is no list"),
        (lambda c: twice(c["episodes"]), "repeats 60 of its 120 episodes"),
        (lambda c: c["episodes"]["names"].update(policy=["ours", "ours"]), "repeats the names"),
        (lambda c: c["episodes"]["names"].update(policy=["ours", "theirs"]), "the policy ['ours', 'theirs'] and describes"),
        (lambda c: c["episodes"]["names"].update(suite=["other"]), "the suite ['other'] and describes ['toy']"),
        (lambda c: c["episodes"]["names"].update(condition=["C0", "C9:x"]), "a condition that is none: Cannot read"),
        (lambda c: c["episodes"].pop("names"), "episodes.names is None, expected an object"),
        (lambda c: c["run"].update(baseline="nobody"), "names the baseline 'nobody', and another one"),
        (lambda c: c["run"].update(suites=["toy"]), "run.suites is ['toy'], expected an object"),
        (lambda c: c["run"].update(comparable=None), "run.comparable is None, expected an object"),
        (lambda c: c["run"].update(finished=61), "has 60 episodes and says 61"),
        (lambda c: c["run"]["suites"]["toy"].update(init_states="x"), "run.suites.toy.init_states is 'x'"),
        (lambda c: c["policies"].append(c["policies"][0]), "describes ['ours', 'vanilla', 'ours']"),
        (lambda c: c["policies"][0].pop("name"), "policies[0].name is None, expected a text"),
        (lambda c: c["policies"][1].pop("checkpoint"), "policies[1].checkpoint is None, expected a text"),
        (lambda c: c.update(policies={}), "policies is {}, expected a list"),
        (lambda c: c.update(run=None), "run is None, expected an object"),
        (lambda c: c.update(episodes=[]), "episodes is [], expected an object"),
    ],
)  # fmt: skip
def test_a_damaged_results_file_is_refused_and_never_averaged_in(tmp_path, capsys, damage, message):
    a = synthetic_run(tmp_path / "a", texts=["C2:rgb=zero"])
    assert main([str(a)]) == 0
    content = json.loads((a / "results.json").read_text())
    damage(content)
    (tmp_path / "damaged.json").write_text(json.dumps(content))
    assert main([str(tmp_path / "damaged.json"), str(a), f"--output={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'damaged.json'}" in said
    assert message in said
    assert "Make it again" in said
    assert not (tmp_path / "out").exists()


def test_a_comparison_says_what_each_runs_own_page_says(tmp_path, capsys):
    a = synthetic_run(tmp_path / "a", texts=["C2:rgb=zero"])
    b = synthetic_run(tmp_path / "b", texts=["C2:rgb=zero"], seed=2, synthetic=False, level="smoke")
    rows = (b / "episodes-0of1.jsonl").read_text().splitlines(keepends=True)
    (b / "episodes-0of1.jsonl").write_text("".join(rows[:-3]))
    for folder in (a, b):
        assert main([str(folder)]) == 0
    own = {f: json.loads((f / "results.json").read_text())["notes"] for f in (a, b)}
    capsys.readouterr()
    for first, second in ((a, b), (a / "results.json", b / "results.json")):
        assert main([str(first), str(second), f"--output={tmp_path / 'out'}"]) == 0
        notes = json.loads((tmp_path / "out" / "comparison.json").read_text())["notes"]
        assert f"{first}: Synthetic rows: made up to test the report, not measured." in notes
        assert f"{second}: The run is not finished: 3 episodes are missing. Figures will change." in notes
        assert not any(f"{second}: Synthetic" in n or f"{first}: The run is not" in n for n in notes)
        for side, folder in ((first, a), (second, b)):
            assert {n.removeprefix("both runs: ").removeprefix(f"{side}: ") for n in notes} >= set(
                own[folder]
            )
        assert any(
            n.startswith(f"{second}: These figures give a first look and may not be quoted") for n in notes
        )
        assert len(notes) == len(set(notes))
        told, page = capsys.readouterr().out, (tmp_path / "out" / "comparison.html").read_text()
        for note in notes:
            assert f"note: {note}" in told
            assert (
                f"<li>{html.escape(note).replace('&quot;', '&#34;').replace('&#x27;', '&#39;')}</li>" in page
            )


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
    thermal = {"reads": ["observation.images.image_thermal"], "reads_masks": False}
    policies = {n: {**p, **thermal} for n, p in manifest_of(("toy",), [])["policies"].items()}
    env = {"type": "toy", "provenance": {"rgb": "sensor", "thermal": "derived"}}
    a = synthetic_run(tmp_path / "a", texts=["C1:depth+seg+thermal"], policies=policies, env=env)
    assert main([str(a)]) == 0
    (own,) = [
        c["results"]["ours"]["told"]
        for c in json.loads((a / "results.json").read_text())["cells"]
        if c["group"] == "C1"
    ]
    for side in (a, a / "results.json"):
        assert main([str(side), str(side), f"--output={tmp_path / 'out'}"]) == 0
        cells = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"]
        assert (
            [c["told"] for c in cells if c["condition"] != "C0"] == [[own, own]] * 2 == [[False, False]] * 2
        )

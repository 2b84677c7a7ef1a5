"""The report, from synthetic rows that say so."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from synthetic import synthetic_run

from multismolvla_eval.checks import fairness_checks
from multismolvla_eval.episodes import Cells, collect
from multismolvla_eval.report import main
from multismolvla_eval.results import ResultsError, read_manifest, read_rows
from multismolvla_eval.summary import summarise


class Page(HTMLParser):
    """Collects what a browser would fetch, pictures without text, and identifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.urls, self.images, self.ids, self.labelled = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.urls += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "poster")]
        if tag == "img":
            self.images.append(attributes)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.labelled += [attributes["aria-labelledby"]] if "aria-labelledby" in attributes else []


def test_report_from_synthetic_rows(tmp_path, capsys):
    folder = synthetic_run(tmp_path / "run")
    assert main([str(folder), f"--output={tmp_path / 'report'}"]) == 0
    text = capsys.readouterr().out
    assert "C2:rgb=zero" in text
    assert re.search(r"C0 +\d+ % \(\d+/20, \d+–\d+\)", text)

    page_text = (tmp_path / "report" / "report.html").read_text()
    page = Page()
    page.feed(page_text)
    assert all(u.startswith(("data:", "#")) for u in page.urls), "self-contained"
    assert "@import" not in page_text
    assert not re.search(r"url\((?!data:)", page_text)
    plots = len(
        ("C1 points", "C1 subsets", "C2 points", "C3 curves of rgb", "C4 points", "C5 points", "tasks")
    )
    assert len(page.images) == plots + 4
    assert all(i["alt"].strip() for i in page.images)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.labelled) <= set(page.ids)
    assert "Synthetic rows" in page_text
    assert "put &lt;it&gt; there" in page_text
    assert "mean corruption error" in page_text
    assert "severity area" in page_text
    assert "over 15 subsets" in page_text
    assert len(page_text) < 20_000_000

    summary = json.loads((tmp_path / "report" / "results.json").read_text())
    cell = next(c for c in summary["cells"] if c["condition"] == "C2:rgb=zero")
    ours = cell["results"]["ours"]
    assert ours["n"] == 10
    assert ours["versus_clean"]["n"] == ours["versus_baseline"]["n"] == 10
    assert ours["versus_clean"]["p_holm"] >= ours["versus_clean"]["p_value"]
    assert "--conditions=[C2:rgb=zero]" in cell["command"]
    assert summary["checks"]["starts"] == {"episodes": 20, "equal": 20}
    assert (
        next(c for c in summary["cells"] if c["condition"] == "C3:depth=holes@3")["results"]["ours"][
            "reads_fault"
        ]
        is False
    )
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "Synthetic rows" in markdown
    assert "| `C2:rgb=zero` |" in markdown

    first = page_text
    main([str(folder), f"--output={tmp_path / 'report'}"])
    assert (tmp_path / "report" / "report.html").read_text() == first, "the same results give the same page"


def checks_of(arms, manifest):
    """Fairness checks of one episode per arm: ``{(policy, condition): (hashes at the encoder, hashes at the door)}``."""
    policies = {
        name: {"checkpoint": "c", "reads": [], **facts} for name, facts in manifest["policies"].items()
    }
    rows = [
        {"policy": p, "checkpoint": "c", "suite": "toy", "task_id": 0, "condition": c, "episode": 0, "seed": 0,
         "init_state": 0, "success": True, "steps": 1, "start": "s", "encoder": encoder, "door": door}
        for (p, c), (encoder, door) in arms.items()
    ]  # fmt: skip
    conditions = list(dict.fromkeys(c for _, c in arms))
    manifest = {**manifest, "policies": policies}
    return fairness_checks(list(policies), conditions, Cells(collect(rows, policies)), manifest)["faults"]


def test_fairness_checks_prefer_the_encoder_and_skip_what_cannot_show():
    clean = {"rgb": "1", "depth": "2"}
    door = {
        "observation.images.image": "a",
        "observation.images.image_depth": "b",
        "observation.images.image_padding_mask": "m",
    }
    arms = {
        ("ours", "C0"): (clean, door),
        ("ours", "C1:depth+seg+thermal"): ({"depth": "2"}, door),
        ("ours", "C2:rgb=freeze"): (clean, door),
        ("ours", "C4:rgb=delay@2"): (clean, door),
        ("ours", "C2:rgb=zero"): ({"rgb": "9", "depth": "8"}, door),
        ("rgb", "C0"): (None, door),
        ("rgb", "C2:rgb=zero"): (None, door),
        ("rgb", "C3:depth=holes@3"): (None, door),
    }
    policies = {"ours": {"reads": []}, "rgb": {"reads": ["observation.images.image"]}}
    faults = checks_of(arms, {"cameras": ["image"], "policies": policies})
    assert [(f["policy"], f["condition"], f["where"], f["reached"], f["rest_equal"]) for f in faults] == [
        ("ours", "C1:depth+seg+thermal", "encoder", 1, 1),
        ("ours", "C2:rgb=zero", "encoder", 1, 0),
        ("rgb", "C2:rgb=zero", "input", 0, 1),
    ]
    assert [f["doubtful"] for f in faults] == [False, True, True]


def test_a_fault_that_arrives_in_part_is_not_taken_for_one_that_arrived():
    """C1:rgb loses depth, seg and thermal; here only depth is really gone, and the two others stay as they were."""
    streams = (
        "observation.images.image_depth",
        "observation.images.image_seg",
        "observation.images.image_thermal",
    )
    clean_door = dict.fromkeys(("observation.images.image", *streams), "clean")
    clean = {"rgb": "1", "depth": "2", "seg": "3", "thermal": "4"}
    manifest = {"cameras": ["image"], "policies": {"ours": {}}}
    for condition, encoder, door, reached in (
        ("C1:rgb", {"rgb": "1", "seg": "3", "thermal": "4"}, clean_door, 0),
        ("C1:rgb", {"rgb": "1"}, clean_door, 1),
        ("C1:rgb", None, {**clean_door, streams[0]: "black"}, 0),
        ("C1:rgb", None, {**clean_door, **dict.fromkeys(streams, "black")}, 1),
    ):
        arms = {
            ("ours", "C0"): (clean if encoder else None, clean_door),
            ("ours", condition): (encoder, door),
        }
        (fault,) = checks_of(arms, manifest)
        assert (fault["reached"], fault["rest_equal"]) == (reached, 1), (encoder, door)

    manifest["cameras"] = ["image", "image2"]
    both = {f"observation.images.{c}": "clean" for c in ("image", "image2")}
    one = {**both, "observation.images.image": "other"}
    for condition, reached in (("C2:rgb=zero", 0), ("C3:rgb=builtin_noise@1", 1)):
        (fault,) = checks_of({("ours", "C0"): (None, both), ("ours", condition): (None, one)}, manifest)
        assert fault["reached"] == reached, "a soft fault may find nothing to change in one of the cameras"


def test_faults_that_do_not_arrive_or_leak_are_named_everywhere(tmp_path, capsys):
    folder = synthetic_run(tmp_path / "run")
    shard = folder / "episodes-0of1.jsonl"
    rows = [json.loads(line) for line in shard.read_text().splitlines()]
    for r in rows:
        if (r["policy"], r["condition"], r["task_id"], r["episode"]) == ("ours", "C2:rgb=zero", 0, 0):
            r["door"]["observation.images.image"] = "clean"
        if (r["policy"], r["condition"], r["task_id"]) == ("vanilla", "C1:camera=image2", 1):
            r["door"]["observation.images.image"] = "leak"
    shard.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert main([str(folder)]) == 0
    lost = "not every faulted stream changed"
    leak = "something besides the faulted streams differs"
    texts = (
        capsys.readouterr().out,
        (folder / "report.md").read_text(),
        (folder / "report.html").read_text(),
    )
    for text in texts:
        assert text.count(lost) == text.count(leak) == 1
        assert re.search(rf"ours: {lost}.*C2:rgb=zero \(1 of 10\)", text)
        assert re.search(rf"vanilla: {leak}.*C1:camera=image2 \(5 of 10\)", text)
    assert "in the others it did not arrive in full" in texts[2]
    assert "more than the fault differs" in texts[2]


def test_notes_of_the_user_and_changes_of_commit_and_machine_are_shown(tmp_path, capsys):
    call = {"versions": {"python": "3"}, "commit": "c0ffee", "time": "2020-01-01T00:00:00+00:00",
            "hardware": {"processor": "abacus", "cores": 1, "memory_gb": 1, "system": "none", "renderer": "none"}}  # fmt: skip
    later = {**call, "commit": "decade", "time": "2020-01-02T00:00:00+00:00"}
    folder = synthetic_run(tmp_path / "run", provenance=[call, later], remarks=["ours saw 3 episodes"])
    assert main([str(folder)]) == 0
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for part in (capsys.readouterr().out, page, text):
        assert "ours saw 3 episodes" in part
        assert "The calls of this run differ in commit (" in part
    for part in (page, text):
        assert "c0ffee" in part
        assert "decade" in part


def summary_of(folder, change=None, **changes):
    synthetic_run(folder, **changes)
    manifest = read_manifest(folder)
    rows = read_rows(folder, manifest["fingerprint"])
    for row in rows:
        if change is not None:
            change(row)
    return summarise(collect(rows, manifest["policies"]), manifest)


def test_severity_area_compares_the_same_episodes(tmp_path):
    """The clean arm has further episodes, all of which fail; where both arms have episodes, nothing is lost."""

    def change(row):
        row["success"] = row["episode"] < 5

    area = summary_of(tmp_path / "run", change)["aggregates"]["ours"]["severity_area"]
    assert (area["mean"], area["low"], area["high"]) == pytest.approx((1, 1, 1))
    assert area["types"] == {"rgb=builtin_noise": pytest.approx(1)}
    assert (area["seen"], area["unseen"]) == (pytest.approx(1), None), (
        "noise is a type that training may meet"
    )


@pytest.mark.parametrize(("states", "warned"), [(None, False), (10, False), (5, True)])
def test_more_episodes_than_initial_states_are_named_as_repeats(tmp_path, states, warned):
    suite = {
        "tasks": {"0": "a", "1": "b"},
        "max_steps": 9,
        "assets": "",
        "world": "world of toy",
        "init_states": states,
    }
    notes = summary_of(tmp_path / "run", suites={"toy": suite})["notes"]
    assert (
        any("Up to 10 episodes per task of toy share 5 different initial states" in n for n in notes)
        == warned
    )


def test_gate_withholds_robustness_of_a_policy_that_fails_clean(tmp_path):
    folder = synthetic_run(tmp_path / "run", clean=(0.15, 0.9))
    assert main([str(folder)]) == 0
    summary = json.loads((folder / "results.json").read_text())
    ours = summary["policies"][0]
    assert not ours["gate"]["passed"]
    assert "below half of the baseline's" in ours["gate"]["reason"]
    assert "ours" not in summary["aggregates"]
    for cell in summary["cells"]:
        assert cell["results"]["ours"]["versus_clean"] is None
        assert (cell["results"]["ours"]["versus_baseline"] is None) == (cell["condition"] != "C0")
    assert any("No robustness figures for ours" in n for n in summary["notes"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "run.json").unlink(), "holds no run.json"),
        (lambda f: (f / "episodes-0of1.jsonl").write_text(""), "no finished episodes"),
        (lambda f: (f / "episodes-0of1.jsonl").write_text("{}\n"), "field 'run' is None"),
        (
            lambda f: (f / "episodes-0of1.jsonl").write_text(
                (f / "episodes-0of1.jsonl").read_text().replace("made-up-ours", "other", 1)
            ),
            "which the manifest does not know",
        ),
        (
            lambda f: (f / "episodes-1of2.jsonl").write_bytes((f / "episodes-0of1.jsonl").read_bytes()),
            "repeats the episode",
        ),
    ],
)
def test_damaged_and_foreign_results_are_refused(tmp_path, capsys, damage, message):
    folder = synthetic_run(tmp_path / "run")
    damage(folder)
    assert main([str(folder)]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "report.html").exists()


def test_unfinished_run_says_so(tmp_path):
    folder = synthetic_run(tmp_path / "run")
    shard = folder / "episodes-0of1.jsonl"
    shard.write_bytes(b"".join(shard.read_bytes().splitlines(keepends=True)[:30]))
    assert main([str(folder)]) == 0
    assert "The run is not finished" in (folder / "report.html").read_text()


def test_an_empty_run_is_an_error_not_an_empty_page(tmp_path):
    from multismolvla_eval.report import write_report

    with pytest.raises(ResultsError):
        write_report(tmp_path)

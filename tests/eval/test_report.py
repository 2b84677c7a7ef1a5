"""The report, from synthetic rows that say so."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from multismolvla_eval.checks import fairness_checks, faulted_keys
from multismolvla_eval.conditions import ALL_SUBSETS, resolve
from multismolvla_eval.plan import Counts, episodes
from multismolvla_eval.report import main
from multismolvla_eval.results import SCHEMA, ResultsError, ShardWriter, read_manifest, read_rows, write_json
from multismolvla_eval.summary import summarise

CONDITIONS = (
    *ALL_SUBSETS,
    "C1:camera=image2",
    "C2:rgb=zero",
    *(f"C3:rgb=builtin_noise@{s}" for s in range(1, 6)),
    "C3:depth=holes@3",
)


def synthetic_run(folder, clean=(0.8, 0.7), **changes):
    """A run folder whose successes are drawn at random around made-up rates."""
    folder.mkdir(parents=True, exist_ok=True)
    conditions = resolve(CONDITIONS, ("image", "image2"))
    policies = {
        name: {"checkpoint": f"made-up-{name}", "type": "synthetic", "parameters": 1234567, "path": f"outputs/{name}",
               "reads": ["observation.images.image", "observation.images.image2"], "origins": {"rgb": "sensor"}}
        for name in ("ours", "vanilla")
    }  # fmt: skip
    manifest = {
        "schema": SCHEMA, "fingerprint": "feedc0ffee00", "synthetic": True, "created": "2020-01-01T00:00:00+00:00",
        "comparable": {"env": {"type": "toy", "options": {}}, "corruption_version": "1"},
        "level": "quick",
        "suites": {"toy": {"tasks": {"0": "put <it> there", "1": "take it & go"}, "max_steps": 9, "assets": "", "world": "w"}},
        "cameras": ["image", "image2"], "env": {"type": "toy", "max_steps": 9, "assets": "", "origins": {}},
        "policies": policies, "baseline": "vanilla", "conditions": [c.id for c in conditions],
        "clean_episodes": 10, "clean_seeds": 1, "episodes": 5, "seed": 0, "workers": 1, "versions": {"python": "3"}, "commit": None,
        "hardware": {"processor": "abacus", "cores": 1, "memory_gb": 1, "system": "none", "renderer": "none",
                     "threads_per_worker": 1},
        "commands": [["--policies=[ours=outputs/ours]"]],
        **changes,
    }  # fmt: skip
    write_json(folder / "run.json", manifest)
    rng = np.random.default_rng(1)
    writer = ShardWriter(folder / "episodes-0of1.jsonl")
    for e in episodes(list(policies), {"toy": [0, 1]}, conditions, Counts(10, 5), clips=1):
        rate = clean[e.policy == "vanilla"] * (1 if e.condition == "C0" else 0.6)
        success = bool(rng.random() < rate)
        faulted = faulted_keys(e.condition, manifest)
        door = {k: e.condition if k in faulted else "clean" for k in policies[e.policy]["reads"]}
        row = {
            "run": "feedc0ffee00", "policy": e.policy, "checkpoint": policies[e.policy]["checkpoint"], "suite": "toy",
            "task_id": e.task_id, "condition": e.condition, "episode": e.episode, "seed": e.seed, "init_state": e.episode,
            "success": success, "steps": 5, "steps_to_success": 5 if success else None, "door": door,
            "cause": None if success else "time_out", "start": f"{e.task_id}/{e.episode}", "clip": None,
            "seconds": {"total": 1.0, "policy": 0.1, "env": 0.5}, "gripper": {"closed": 0.5, "switches": 1},
        }  # fmt: skip
        if e.clip and e.condition in ("C0", "C2:rgb=zero"):
            row["clip"] = f"clips/{e.policy}-{e.condition[:2]}.webp"
            path = folder / row["clip"]
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"RIFF not really a picture")
        writer.append(row)
    writer.close()
    return folder


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
    assert all(u.startswith("data:") for u in page.urls), "self-contained"
    assert "@import" not in page_text
    assert not re.search(r"url\((?!data:)", page_text)
    assert len(page.images) == 3 + 4
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


def test_fairness_checks_prefer_the_encoder_and_skip_what_cannot_show():
    def row(policy, condition, encoder, door):
        return {"policy": policy, "condition": condition, "start": "s", "encoder": encoder, "door": door}

    clean = {"rgb": "1", "depth": "2"}
    door = {
        "observation.images.image": "a",
        "observation.images.image_depth": "b",
        "observation.images.image_padding_mask": "m",
    }
    index = {
        ("ours", "C0"): {(0, 0): row("ours", "C0", clean, door)},
        ("ours", "C1:-rgb"): {(0, 0): row("ours", "C1:-rgb", {"depth": "2"}, door)},
        ("ours", "C2:rgb=freeze"): {(0, 0): row("ours", "C2:rgb=freeze", clean, door)},
        ("ours", "C2:rgb=zero"): {(0, 0): row("ours", "C2:rgb=zero", {"rgb": "9", "depth": "8"}, door)},
        ("rgb", "C0"): {(0, 0): row("rgb", "C0", None, door)},
        ("rgb", "C2:rgb=zero"): {(0, 0): row("rgb", "C2:rgb=zero", None, door)},
        ("rgb", "C3:depth=holes@3"): {(0, 0): row("rgb", "C3:depth=holes@3", None, door)},
    }
    manifest = {
        "cameras": ["image"],
        "policies": {"ours": {"reads": []}, "rgb": {"reads": ["observation.images.image"]}},
    }
    conditions = ["C0", "C1:-rgb", "C2:rgb=freeze", "C2:rgb=zero", "C3:depth=holes@3"]
    faults = fairness_checks(["ours", "rgb"], conditions, index, manifest)["faults"]
    assert [(f["policy"], f["condition"], f["where"], f["reached"], f["rest_equal"]) for f in faults] == [
        ("ours", "C1:-rgb", "encoder", 1, 1),
        ("ours", "C2:rgb=zero", "encoder", 1, 0),
        ("rgb", "C2:rgb=zero", "input", 0, 1),
    ]


def test_a_fault_that_arrives_in_part_is_not_taken_for_one_that_arrived():
    """C1:rgb loses depth, seg and thermal; here only depth is really gone, and the two others stay as they were."""
    streams = (
        "observation.images.image_depth",
        "observation.images.image_seg",
        "observation.images.image_thermal",
    )
    clean_door = dict.fromkeys(("observation.images.image", *streams), "clean")
    clean = {"rgb": "1", "depth": "2", "seg": "3", "thermal": "4"}

    def index(condition, encoder, door):
        arms = (("C0", clean if encoder else None, clean_door), (condition, encoder, door))
        return {("ours", c): {(0, 0): {"start": "s", "encoder": e, "door": d}} for c, e, d in arms}

    manifest = {"cameras": ["image"], "policies": {"ours": {"reads": []}}}
    for condition, encoder, door, reached in (
        ("C1:rgb", {"rgb": "1", "seg": "3", "thermal": "4"}, clean_door, 0),
        ("C1:rgb", {"rgb": "1"}, clean_door, 1),
        ("C1:rgb", None, {**clean_door, streams[0]: "black"}, 0),
        ("C1:rgb", None, {**clean_door, **dict.fromkeys(streams, "black")}, 1),
    ):
        (fault,) = fairness_checks(["ours"], [condition], index(condition, encoder, door), manifest)["faults"]
        assert (fault["reached"], fault["rest_equal"]) == (reached, 1), (encoder, door)

    manifest["cameras"] = ["image", "image2"]
    both = {k: "clean" for c in ("image", "image2") for k in (f"observation.images.{c}",)}
    one = {**both, "observation.images.image": "other"}
    for condition, reached in (("C2:rgb=zero", 0), ("C3:rgb=builtin_noise@1", 1)):
        arms = {("ours", "C0"): {(0, 0): {"door": both}}, ("ours", condition): {(0, 0): {"door": one}}}
        (fault,) = fairness_checks(["ours"], [condition], arms, manifest)["faults"]
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
    return summarise(rows, manifest)


def test_severity_area_compares_the_same_episodes(tmp_path):
    """The clean arm has further episodes, all of which fail; where both arms have episodes, nothing is lost."""

    def change(row):
        row["success"] = row["episode"] < 5

    area = summary_of(tmp_path / "run", change)["aggregates"]["ours"]["severity_area"]
    assert area == {"mean": 1.0, "types": {"rgb=builtin_noise": 1.0}}


@pytest.mark.parametrize(("states", "warned"), [(None, False), (10, False), (5, True)])
def test_more_episodes_than_initial_states_are_named_as_repeats(tmp_path, states, warned):
    suite = {"tasks": {"0": "a", "1": "b"}, "max_steps": 9, "assets": "", "world": "w", "init_states": states}
    notes = summary_of(tmp_path / "run", suites={"toy": suite})["notes"]
    assert any("Up to 10 episodes per task of toy share 5 different initial states" in n for n in notes) == warned


def test_gate_withholds_robustness_of_a_policy_that_fails_clean(tmp_path):
    folder = synthetic_run(tmp_path / "run", clean=(0.15, 0.9))
    assert main([str(folder)]) == 0
    summary = json.loads((folder / "results.json").read_text())
    ours = summary["policies"][0]
    assert not ours["gate"]["passed"]
    assert "below half of the baseline's" in ours["gate"]["reason"]
    assert "ours" not in summary["aggregates"]
    assert all(c["results"]["ours"]["relative"] is None for c in summary["cells"])
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

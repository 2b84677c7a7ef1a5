"""The report, from synthetic rows that say so."""

from __future__ import annotations

import csv
import html
import json
import re
import shlex
from html.parser import HTMLParser

import draccus
import numpy as np
import pytest
from synthetic import CONDITIONS, RUN, manifest_of, synthetic_run, write_rows

from multismolvla.corruption import parse_condition
from multismolvla_eval import plots
from multismolvla_eval.assets import assets_facts
from multismolvla_eval.checks import fairness_checks
from multismolvla_eval.conditions import LEVELS
from multismolvla_eval.config import EnvironmentArguments, EvalConfig
from multismolvla_eval.episodes import MEASURES, Cells, collect
from multismolvla_eval.manifest import build_manifest
from multismolvla_eval.plan import Counts
from multismolvla_eval.report import main
from multismolvla_eval.results import ResultsError, read_manifest, read_rows, write_json
from multismolvla_eval.statistics import wilson
from multismolvla_eval.summary import summarise
from multismolvla_eval.tables import rounded


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
    assert "Corruption error" in page_text
    assert "Severity area" in page_text
    assert "Worst subset" in page_text
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


def csv_of(folder):
    with open(folder / "results.csv") as handle:
        return list(csv.DictReader(handle))


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


def test_severity_area_compares_the_same_starts(tmp_path):
    """The clean arm has further episodes, all of which fail; where both arms have episodes, nothing is lost."""

    def change(row):
        row["success"] = row["episode"] < 5

    area = summary_of(tmp_path / "run", change)["aggregates"]["ours"]["severity_area"]
    (type_,) = area["types"]
    assert type_ == "rgb=builtin_noise"
    mean = area["mean"]
    assert (mean["value"], mean["n"], mean["types"]) == (pytest.approx(1), 10, 1)
    assert (mean["low"], mean["why"]) == (None, "all resamples are equal"), "no width is no interval"
    assert area["seen"] == mean, "noise is a type that training may meet"
    assert area["unseen"] is None


def test_severity_area_and_corruption_error_are_those_of_the_protocol(tmp_path):
    """Exact shares of ten starts per task; ours loses one more per severity than the baseline does."""

    def change(row):
        severity = int(row["condition"][-1]) if row["condition"].startswith("C3:rgb") else 0
        row["success"] = row["episode"] < 9 - severity - (1 if severity and row["policy"] == "ours" else 0)

    texts = [f"C3:rgb=builtin_noise@{s}" for s in range(1, 6)]
    figures = summary_of(tmp_path / "run", change, texts=texts, episodes=10)["aggregates"]["ours"]
    rates = [0.9, 0.7, 0.6, 0.5, 0.4, 0.3]
    area, error = figures["severity_area"]["mean"], figures["mce"]["mean"]
    assert area["value"] == pytest.approx(np.trapezoid(rates) / (5 * rates[0]))
    assert error["value"] == pytest.approx(100 * (5 - 2.5) / (5 - 3.0))
    for figure in (area, error):
        assert figure["n"] == 20
        assert figure["low"] < figure["value"] < figure["high"]


SOFT = [
    f"C3:{t}@{s}"
    for t in ("rgb=builtin_noise", "rgb.image=builtin_noise", "depth=holes")
    for s in range(1, 6)
]


def reading(folder, **modalities):
    """Let policies of a run read these modalities only."""
    manifest = json.loads((folder / "run.json").read_text())
    for name, read in modalities.items():
        manifest["policies"][name].update({"modalities": read, "views": ["image", "image2"]})
    (folder / "run.json").write_text(json.dumps(manifest))
    return folder


def test_types_of_single_cameras_stand_apart_from_the_mean(tmp_path, capsys):
    folder = synthetic_run(
        tmp_path / "run", texts=SOFT, rate=lambda e: 0.2 if ".image=" in e.condition else 0.9
    )
    assert main([str(folder)]) == 0
    figures = json.loads((folder / "results.json").read_text())["aggregates"]["ours"]
    for kind in ("severity_area", "mce"):
        assert set(figures[kind]["types"]) == {"rgb=builtin_noise"}
        assert figures[kind]["mean"]["types"] == 1
        (camera,) = figures[kind]["cameras"]
        assert camera == "image"
        assert set(figures[kind]["cameras"]["image"]["types"]) == {"rgb.image=builtin_noise"}
    area = figures["severity_area"]
    assert area["mean"]["value"] > 2 * area["cameras"]["image"]["mean"]["value"]
    told = "types in the camera image alone (not in the mean above)"
    assert told in capsys.readouterr().out
    assert told in (folder / "report.md").read_text()
    assert "camera image alone:" in (folder / "report.html").read_text()


def test_types_that_a_policy_does_not_read_are_left_out_and_named(tmp_path, capsys):
    folder = reading(
        synthetic_run(tmp_path / "run", texts=SOFT), ours=["rgb", "depth"], vanilla=["rgb", "seg"]
    )
    assert main([str(folder)]) == 0
    found = json.loads((folder / "results.json").read_text())["aggregates"]
    ours, vanilla = found["ours"], found["vanilla"]
    assert set(ours["severity_area"]["types"]) == {"rgb=builtin_noise", "depth=holes"}
    assert set(ours["severity_area"]["modalities"]) == {"rgb", "depth"}
    assert not ours["severity_area"]["left_out"]
    assert set(vanilla["severity_area"]["types"]) == set(ours["mce"]["types"]) == {"rgb=builtin_noise"}
    assert ours["mce"]["left_out"] == {"the baseline does not read them": ["depth"]}
    sentences = (
        "left out: depth types, which this policy does not read",
        "left out: depth types, which the baseline does not read",
    )
    for text in (
        capsys.readouterr().out,
        (folder / "report.md").read_text(),
        (folder / "report.html").read_text(),
    ):
        for sentence in sentences:
            assert sentence in text
    nothing = reading(synthetic_run(tmp_path / "other", texts=SOFT), ours=["thermal"], vanilla=["rgb"])
    manifest = read_manifest(nothing)
    summary = summarise(collect(read_rows(nothing, RUN), manifest["policies"]), manifest)
    assert summary["aggregates"]["ours"]["severity_area"]["mean"] is None
    assert summary["aggregates"]["ours"]["severity_area"]["left_out"] == {
        "this policy does not read them": ["rgb", "rgb.image", "depth"]
    }


def test_every_summary_number_has_n_and_an_interval_or_a_reason(tmp_path, capsys):
    folder = synthetic_run(tmp_path / "run", suites=("toy", "game"), clean_seeds=2)
    assert main([str(folder)]) == 0
    aggregates = json.loads((folder / "results.json").read_text())["aggregates"]
    figures = []

    def collect_figures(value):
        if isinstance(value, dict) and "value" in value:
            figures.append(value)
        elif isinstance(value, dict):
            for part in value.values():
                collect_figures(part)

    collect_figures(aggregates)
    assert len(figures) >= 2 * 3 * 5, "two policies, all and two suites, subsets and types"
    for figure in figures:
        assert figure["n"] in (10, 20)
        assert (figure["low"] is None) == bool(figure["why"])
        if figure["low"] is not None:
            assert figure["low"] < figure["high"]
    worst = aggregates["ours"]["suites"]["game"]["subset_profile"]["worst"]
    assert worst["low"] < worst["high"]
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    number = r"-?[−+]?\d+(\.\d+)?( %)? \((n = \d+; no interval: [a-z ]+|[−+]?\d+(\.\d+)?(–| to )[−+]?\d+(\.\d+)?, n = \d+)\)"
    for suite in ("", " in toy", " in game"):
        assert re.search(rf"ours{suite}: severity area \(1 = nothing lost\) {number}", text)
        assert re.search(rf"ours{suite}: mean corruption error .*? {number}", text)
        assert re.search(rf"ours{suite}: over 15 subsets .* worst \d+ % \(\d+/\d+, \d+–\d+\) with", text)
        assert re.search(rf"value of having a modality, in points: rgb {number}, depth {number}", text)
    assert re.search(rf"which is {number} of its clean success from the same starts", text)
    assert "in game</th>" in page
    assert capsys.readouterr().out.count("severity area") == 2


@pytest.mark.parametrize("most", [4, 5])
def test_corruption_error_and_severity_area_need_all_severities(tmp_path, most):
    folder = synthetic_run(tmp_path / "run", texts=[f"C3:rgb=builtin_noise@{s}" for s in range(1, most + 1)])
    assert main([str(folder)]) == 0
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for words in ("mean corruption error", "severity area"):
        assert (words in text) == (most == 5)
    for words in ("<dt>corruption error</dt>", "<dt>severity area</dt>"):
        assert (words in page) == (most == 5)


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


def test_gate_withholds_robustness_while_the_baseline_has_no_clean_episodes(tmp_path):
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"])
    kept = [r for r in read_rows(folder, RUN) if (r["policy"], r["condition"]) != ("vanilla", "C0")]
    write_rows(folder, kept)
    assert main([str(folder)]) == 0
    reason = "No robustness figures for ours: the baseline, by whose clean success it is judged, has no clean"
    assert reason in (folder / "report.html").read_text()
    assert reason in (folder / "report.md").read_text()
    faulted = [r for r in csv_of(folder) if (r["policy"], r["condition"]) == ("ours", "C2:rgb=zero")]
    assert [r["versus_clean_n"] for r in faulted] == [""]


def test_what_the_gate_withholds_is_drawn_and_told_nowhere_and_marked_in_every_row(tmp_path, capsys):
    """An upper bound and a policy that fails clean, beside a baseline that is fine."""
    names = ("expert", "weak", "vanilla")
    folder = synthetic_run(tmp_path / "run", (1.0, 0.15, 0.9), names=names, privileged=("expert",))
    assert main([str(folder)]) == 0
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    pictures = re.findall(r'alt="((?:Success per condition|Curves|Heat map of policies).*?)"', page)
    assert len(pictures) == 6
    for alt in pictures:
        assert "vanilla: best" in alt
        assert "expert" not in alt
        assert "weak" not in alt
    assert page.count("their robustness is not reported: expert, weak.") == len(pictures)
    cells = re.findall(r'<th scope="row" class="in">(\w+)(.*?)</th>', page, re.DOTALL)
    assert len(cells) >= 3 * len(CONDITIONS)
    for name, tags in cells:
        assert ("upper bound" in tags) == (name == "expert")
        assert ("no robustness figures" in tags) == (name == "weak")
    for told in (text, capsys.readouterr().out):
        assert re.search(r"weak: [^;]*; robustness not reported, because its clean success", told)
        assert re.search(r"vanilla: .* with RGB black and not announced", told)
    assert text.count("| expert (upper bound) | weak (no robustness figures) | vanilla |") == 6
    for row in csv_of(folder):
        assert row["checkpoint"] == f"made-up-{row['policy']}"
        assert (row["privileged"], row["blind"]) == (str(row["policy"] == "expert"), "False")
        assert row["gate_passed"] == str(row["policy"] == "vanilla")
        assert bool(row["gate_reason"]) == (row["policy"] != "vanilla")
    summary = json.loads((folder / "results.json").read_text())
    assert set(plots.reported(summary)) == {"vanilla"}
    summary["policies"] = summary["policies"][:2]
    assert plots.success_points(summary, ("C2",)) is plots.severity_curves(summary, "rgb") is None
    assert plots.subset_map(summary) is None


@pytest.mark.parametrize(
    ("lowered", "reason"),
    [
        ({}, None),
        ({"episodes": 1}, "1 episodes per task of each fault (level standard: 10)"),
        ({"clean_episodes": 5}, "5 clean episodes per task (level standard: 10)"),
        ({"clean_seeds": 1}, "1 repetitions of the clean condition (level standard: 3)"),
        ({"conditions": ["C0", "C2:rgb=zero"]}, "conditions of level standard are missing"),
        ({"complete": False}, "not all tasks of toy"),
    ],
)
def test_what_may_be_quoted_depends_on_what_ran_not_on_the_levels_name(tmp_path, lowered, reason):
    """A run is called with ``--level=standard``, and perhaps with an option that lowers it."""
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"], episodes=1, clean_episodes=1)
    manifest = json.loads((folder / "run.json").read_text())
    whole = {"clean_episodes": 10, "episodes": 10, "clean_seeds": 3}
    asked = [parse_condition(c).id for c in LEVELS["standard"].conditions]
    manifest.update({"level": "standard", "conditions": asked, **whole, **lowered})
    manifest["suites"]["toy"]["complete"] = manifest.pop("complete", True)
    (folder / "run.json").write_text(json.dumps(manifest))
    assert main([str(folder)]) == 0
    for text in ((folder / "report.html").read_text(), (folder / "report.md").read_text()):
        assert ("may not be quoted" in text) == (reason is not None)
        assert (reason or "") in text


def test_a_run_notes_whether_it_had_all_tasks(tmp_path):
    facts = {"suites": {"toy": {"tasks": {"0": "a"}}}, "cameras": ["image"], "policies": {}}

    def noted(ids, level="standard"):
        env = EnvironmentArguments("toy", "toy", ids)
        config = EvalConfig(["a=a"], env=env, level=level, output=tmp_path)
        return build_manifest(config, facts, [], Counts(1, 1), [])

    assert not noted([0])["suites"]["toy"]["complete"]
    assert not noted(None, "smoke")["suites"]["toy"]["complete"], "its first task only"
    write_json(tmp_path / "run.json", noted(None))
    assert noted([0])["suites"]["toy"]["complete"], "an earlier call had them all"


def test_the_command_of_a_cell_repeats_every_option_that_matters(tmp_path):
    usual = manifest_of(("toy",), [])["comparable"]
    names = {"observation.images.image": "observation.images.top"}
    changes = {
        "rename_map": {"ours": names},
        "clean_only": ["ours"],
        "comparable": {**usual, "batch_size": 4},
    }
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"], **changes)
    write_rows(folder, [r for r in read_rows(folder, RUN) if r["policy"] != "ours" or r["condition"] == "C0"])
    assert main([str(folder)]) == 0
    (cell,) = [c for c in json.loads((folder / "results.json").read_text())["cells"] if c["group"] == "C2"]
    given = shlex.split(cell["command"])[1:]
    config = draccus.parse(EvalConfig, args=given)
    config.check()
    assert (config.batch_size, config.clean_only, config.env.task_ids) == (4, ["ours"], [0, 1])
    assert config.rename_map_of("ours") == names
    assert (
        html.escape(cell["command"]).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
        in (folder / "report.html").read_text()
    )


def with_met(folder):
    """Let the delay be met in 4 of the 8 episodes per suite and policy ours that tell."""
    rows = read_rows(folder, RUN)
    for row in rows:
        if (row["policy"], row["condition"]) == ("ours", "C4:all=delay@2"):
            row["fault_steps"] = {0: 0, 1: 0, 2: None}.get(row["episode"], 3)
    write_rows(folder, rows)
    return folder


def test_cells_tell_in_how_many_episodes_the_fault_was_met(tmp_path, capsys):
    texts = ["C4:all=delay@2", "C2:rgb=zero"]
    folder = with_met(synthetic_run(tmp_path / "run", texts=texts))
    assert main([str(folder)]) == 0
    assert '<span class="muted">met in 4 of 8 episodes</span>' in (folder / "report.html").read_text()
    assert (folder / "report.md").read_text().count("; met in 4 of 8 episodes |") == 1
    assert re.search(r"C4:all=delay@2 .*; met in 4 of 8 episodes", capsys.readouterr().out)
    told = {(r["policy"], r["condition"]): (r["met"], r["met_known"]) for r in csv_of(folder) if r["met"]}
    assert told == {("ours", "C4:all=delay@2"): ("4", "8")}
    suites = with_met(synthetic_run(tmp_path / "suites", suites=("toy", "game"), texts=texts))
    assert main([str(suites)]) == 0
    page = (suites / "report.html").read_text()
    assert page.count("met in 4 of 8 episodes") == 2, "in the table of each suite"
    assert page.count("met in 8 of 16 episodes") == 1
    for other in (folder, folder / "results.json"):
        capsys.readouterr()
        assert main([str(folder), str(other), f"--output={tmp_path / 'out'}"]) == 0
        told = r"\d+ % \(\d+/10, \d+–\d+\); met in 4 of 8 episodes"
        assert re.search(f"C4:all=delay@2: {told} -> {told}", capsys.readouterr().out)
        assert (tmp_path / "out" / "comparison.html").read_text().count("met in 4 of 8 episodes") == 2


def test_a_fault_that_was_not_looked_at_was_not_met(tmp_path):
    def change(row):
        if row["condition"] == "C4:all=delay@2":
            row.update(fault_steps=4, fault_looks=int(row["episode"] < 2))

    cells = {c["condition"]: c for c in summary_of(tmp_path / "run", change)["cells"]}
    expected = [4, 10] if "fault_looks" in MEASURES else [10, 10]
    assert cells["C4:all=delay@2"]["results"]["ours"]["met"] == expected
    assert cells["C2:rgb=zero"]["results"]["ours"]["met"] is None


def test_announced_losses_that_a_policy_is_not_told_of_are_marked(tmp_path, capsys):
    texts = ["C1:rgb+seg+thermal", "C1:camera=image2", "C1:depth+seg+thermal", "C2:rgb=zero"]
    folder = synthetic_run(tmp_path / "run", texts=texts, suites=("toy", "game"))
    manifest = json.loads((folder / "run.json").read_text())
    manifest["policies"]["vanilla"]["reads_masks"] = False
    manifest["policies"]["ours"]["reads_masks"] = True
    (folder / "run.json").write_text(json.dumps(manifest))
    assert main([str(folder)]) == 0
    lost = {"C1:camera=image2", "C1:depth+seg+thermal"}  # of its two colour pictures
    words = "not told: for this policy the same as a black picture"
    told = {(r["policy"], r["condition"], r["told"]) for r in csv_of(folder) if r["told"]}
    assert told == {("vanilla", c, words) for c in lost} | {("ours", c, "told") for c in lost}
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    assert len(re.findall(rf"^\| `C1:.*; {words} \|", text, re.MULTILINE)) == 2
    assert page.count(f'<span class="tag long">{words}</span>') == 2 * 3, (
        "over all, and in the table of each suite"
    )
    terminal = capsys.readouterr().out
    assert {line.split()[0] for line in terminal.splitlines() if line.count("; not told") == 1} == lost
    assert "vanilla does not read which sensors are announced as absent" in terminal
    for other in (folder, folder / "results.json"):
        assert main([str(folder), str(other), f"--output={tmp_path / 'out'}"]) == 0
        compared = capsys.readouterr().out
        assert compared.count(words) == 2 * 2 * 2, "two conditions, two suites, both sides"
        assert (tmp_path / "out" / "comparison.html").read_text().count(words) == 2 * 2 * 2
    unknown = summary_of(tmp_path / "unknown", texts=texts)
    assert all(r["told"] is None for c in unknown["cells"] for r in c["results"].values())


def test_every_comparison_says_what_it_could_have_shown(tmp_path, capsys):
    folder = synthetic_run(tmp_path / "run", suites=("toy", "game"), texts=["C2:rgb=zero"])
    assert main([str(folder)]) == 0
    terminal, text = capsys.readouterr().out, (folder / "report.md").read_text()
    page = (folder / "report.html").read_text()
    power = r"\d+ \(n = 20\)"
    assert re.search(rf"C2:rgb=zero.*ours \S+ \(.*?\), p = [\d.]+; {power}", terminal)
    assert re.search(rf"\| `C2:rgb=zero` .* \[{power}\] \| .* \[{power}\] \| .* \[{power}\] \|", text)
    assert len(re.findall(r"\[can show \d+ \(n = 10\)\]", page)) == 2 * 3, (
        "per suite: to clean twice, to the baseline"
    )
    assert len(re.findall(rf'<td class="n">{power}</td>', page)) == 3
    for row in csv_of(folder):
        for comparison in ("versus_clean", "versus_baseline"):
            assert bool(row[f"{comparison}_difference"]) == bool(row[f"{comparison}_detectable"])
    other = synthetic_run(tmp_path / "other", suites=("toy", "game"), texts=["C2:rgb=zero"], seed=5)
    assert main([str(folder), str(other), f"--output={tmp_path / 'out'}"]) == 0
    assert len(re.findall(r"paired, can show \d+ \(n = \d+\)", capsys.readouterr().out)) == 2 * 2 * 2


def test_files_have_no_noise_of_the_arithmetic(tmp_path):
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"])
    assert main([str(folder)]) == 0
    assert main([str(folder), str(folder), f"--output={tmp_path}"]) == 0
    for path in (folder / "results.json", folder / "results.csv", tmp_path / "comparison.json"):
        numbers = re.findall(r"-?\d+\.\d+(?:e-?\d+)?", path.read_text())
        assert numbers
        for number in numbers:
            assert len(number.partition("e")[0].lstrip("-0.").replace(".", "")) <= 6, (path.name, number)
    p_values = {"p": 1.23456789e-12, "whole": 7, "none": None, "list": (1 / 3,)}
    assert rounded(p_values) == {"p": 1.23457e-12, "whole": 7, "none": None, "list": [0.333333]}


def test_origins_of_policy_and_environment_stand_together(tmp_path):
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"])
    manifest = json.loads((folder / "run.json").read_text())
    manifest["env"]["origins"] = {"rgb": "sensor", "depth": "sensor", "seg": "sensor"}
    manifest["policies"]["ours"]["origins"] = {"rgb": "sensor", "image2.depth": "derived"}
    (folder / "run.json").write_text(json.dumps(manifest))
    assert main([str(folder)]) == 0
    expected = "depth: sensor, seg: sensor, rgb: sensor, image2.depth: derived (environment: sensor)"
    for text in ((folder / "report.html").read_text(), (folder / "report.md").read_text()):
        assert expected in text
        assert "ours computes image2.depth from RGB: this is no sensor redundancy." in text
        assert "ours takes image2.depth for computed from RGB" in text


def test_starts_that_the_recorder_records_from_are_named(tmp_path):
    suite = {
        **manifest_of(("toy",), [])["suites"]["toy"],
        "init_states": 10,
        "init_state_splits": {"train": [0, 4], "eval": [5, 9]},
    }
    notes = summary_of(tmp_path / "run", suites={"toy": suite}, texts=["C2:rgb=zero"])["notes"]
    assert any("of the split that multismolvla-record records from" in n for n in notes)


def test_the_contents_list_every_section(tmp_path):
    folder = synthetic_run(tmp_path / "run", suites=("toy", "game"))
    (folder / "modalities.png").write_bytes(b"png")
    diagnosis = {"schema": 1, "remark": "r", "dataset": "d", "held_out": True, "policies": {}}
    (folder / "diagnosis.json").write_text(json.dumps(diagnosis))
    assert main([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    contents = re.findall(r'<li><a href="#([^"]+)"', page)
    sections = [i for i in re.findall(r'<h2 id="([^"]+)"', page) if i != "C0"]
    assert contents == sections
    assert {"looks", "door", "suites"} <= set(sections)


def test_a_page_above_its_limit_is_warned_of(tmp_path, monkeypatch, caplog):
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"])
    assert main([str(folder)]) == 0
    assert not caplog.records
    monkeypatch.setattr("multismolvla_eval.page.PAGE_LIMIT", 10_000)
    assert main([str(folder)]) == 0
    (record,) = caplog.records
    assert "The page has" in record.getMessage()


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


def test_gate_withholds_robustness_per_suite(tmp_path):
    """Good enough over all, but not in the second suite."""

    def rate(episode):
        return 0.05 if (episode.policy, episode.suite) == ("ours", "hard") else 0.9

    folder = synthetic_run(tmp_path / "run", suites=("easy", "hard"), rate=rate)
    assert main([str(folder)]) == 0
    summary = json.loads((folder / "results.json").read_text())
    ours = summary["policies"][0]
    assert ours["gate"]["passed"]
    assert ours["suites"]["easy"]["gate"]["passed"]
    assert "below half of the baseline's" in ours["suites"]["hard"]["gate"]["reason"]
    assert set(summary["aggregates"]["ours"]["suites"]) == {"easy"}
    assert set(summary["aggregates"]["vanilla"]["suites"]) == {"easy", "hard"}
    parts = next(c for c in summary["cells"] if c["condition"] == "C2:rgb=zero")["results"]["ours"]["suites"]
    assert parts["easy"]["versus_clean"]["n"] == 10
    assert parts["hard"]["versus_clean"] is parts["hard"]["versus_baseline"] is None
    assert any("No robustness figures for ours in hard" in n for n in summary["notes"])
    clean = next(c for c in summary["cells"] if c["condition"] == "C0")["results"]["ours"]
    assert clean["n"] == sum(p["n"] for p in clean["suites"].values()) == 40
    page = (folder / "report.html").read_text()
    assert "easy: every condition" in page
    assert "easy: successes per task" in page


def test_a_policy_that_reads_the_simulator_is_an_upper_bound_without_robustness(tmp_path, capsys):
    folder = synthetic_run(
        tmp_path / "run",
        (1.0, 0.7),
        names=("expert", "vanilla"),
        texts=["C2:rgb=zero"],
        privileged=("expert",),
    )
    assert main([str(folder)]) == 0
    summary = json.loads((folder / "results.json").read_text())
    assert "expert" not in summary["aggregates"]
    assert all(c["results"]["expert"]["versus_clean"] is None for c in summary["cells"])
    for text in (
        capsys.readouterr().out,
        (folder / "report.html").read_text(),
        (folder / "report.md").read_text(),
    ):
        assert "upper bound" in text
        assert "expert reads the simulator's state" in text.replace("&#39;", "'")


def test_families_are_the_conditions_of_a_group_that_hit_the_same_modality(tmp_path):
    cells = {c["condition"]: c for c in summary_of(tmp_path / "run")["cells"]}
    sizes = {c["family"]: c["results"]["ours"]["versus_clean"]["family_size"] for c in cells.values() if c["results"]["ours"]["versus_clean"]}  # fmt: skip
    assert sizes == {
        "C1 subsets": 14,
        "C1 cameras": 1,
        "C2 rgb": 1,
        "C3 rgb": 5,
        "C3 depth": 1,
        "C4 all": 1,
        "C5 depth": 1,
    }
    assert cells["C0"]["results"]["ours"]["versus_baseline"]["family_size"] == 1
    noise = [cells[f"C3:rgb=builtin_noise@{s}"]["results"]["ours"]["versus_clean"] for s in range(1, 6)]
    least = min(noise, key=lambda e: e["p_value"])
    assert least["p_holm"] == pytest.approx(min(1, 5 * least["p_value"]))


def test_repetitions_of_the_clean_condition_are_no_independent_episodes(tmp_path, capsys):
    """Three runs from the same 20 starts; here the start decides, so three runs tell as much as one."""
    folder = synthetic_run(
        tmp_path / "run", clean_seeds=3, rate=lambda e: float(e.episode < 3 + 4 * e.task_id)
    )
    assert main([str(folder)]) == 0
    summary = json.loads((folder / "results.json").read_text())
    ours = summary["policies"][0]
    assert [(r["successes"], r["n"]) for r in ours["clean_seeds"]] == [(10, 20)] * 3
    cells = {c["condition"]: c["results"]["ours"] for c in summary["cells"]}
    once = wilson(10, 20)
    for rate in (cells["C0"], ours["clean"]):
        assert (rate["successes"], rate["n"], rate["starts"], rate["effective"]) == (30, 60, 20, 20)
        assert (rate["low"], rate["high"]) == (pytest.approx(once.low, 1e-5), pytest.approx(once.high, 1e-5))
    assert (cells["C0"]["versus_baseline"]["n"], cells["C0"]["versus_baseline"]["episodes"]) == (20, 60)
    assert cells["C2:rgb=zero"]["versus_clean"]["n"] == 10, (
        "only the first repetition has faulted counterparts"
    )
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for told in (capsys.readouterr().out, text, page):
        assert "50 % (30/60 of 20 starts, 30–70)" in told
        assert (
            told.count("50 % (10/20, 30–70), 50 % (10/20, 30–70), 50 % (10/20, 30–70); 0 points between") == 2
        )
    assert '<h2 id="suites">Clean success</h2>' in page, "with a single suite, too"
    clean = next(r for r in csv_of(folder) if (r["policy"], r["condition"]) == ("ours", "C0"))
    assert (clean["n"], clean["starts"], clean["effective"]) == ("60", "20", "20.0")


def test_compared_runs_pair_repeated_starts_once(tmp_path):
    a = synthetic_run(tmp_path / "a", texts=["C2:rgb=zero"], clean_seeds=3)
    b = synthetic_run(tmp_path / "b", texts=["C2:rgb=zero"], clean_seeds=3, seed=2)
    assert main([str(a), str(b), f"--output={tmp_path / 'out'}"]) == 0
    clean = json.loads((tmp_path / "out" / "comparison.json").read_text())["cells"][0]
    assert clean["condition"] == "C0"
    assert [r["n"] for r in clean["rates"]] == [60, 60]
    assert (clean["difference"]["n"], clean["difference"]["episodes"]) == (20, 60)


def test_csv_and_json_hold_every_cell_and_episode(tmp_path):
    folder = synthetic_run(tmp_path / "run", suites=("a", "b"), texts=["C2:rgb=zero"])
    assert main([str(folder)]) == 0
    table = csv_of(folder)
    assert [(r["policy"], r["suite"], r["condition"]) for r in table] == [
        (p, s, c) for c in ("C0", "C2:rgb=zero") for p in ("ours", "vanilla") for s in ("all", "a", "b")
    ]
    assert float(table[0]["rate"]) == pytest.approx(int(table[0]["successes"]) / int(table[0]["n"]), 1e-5)
    episodes = json.loads((folder / "results.json").read_text())["episodes"]
    assert len(episodes["success"]) == len(episodes["init_state"]) == 2 * 2 * 2 * 15
    assert set(episodes["names"]["condition"]) == {"C0", "C2:rgb=zero"}


def test_gates_are_calibrated_where_rows_have_them(tmp_path):
    def change(row):
        corrupted = row["condition"] == "C2:rgb=zero"
        row["gate"] = {"rgb": 0.2 if corrupted and row["episode"] else 0.9, "depth": 0.9}

    calibration = summary_of(tmp_path / "run", change)["aggregates"]["ours"]["calibration"]
    rgb = calibration["rgb"]
    assert 0.5 < rgb["auroc"] < 1
    assert rgb["success_flagged"]["n"] == 8
    assert rgb["success_flagged"]["low"] < rgb["success_flagged"]["high"]
    assert rgb["corrupted"] == 10 + 5 * 10 + 10, "C2, five severities of noise, the delay of all"
    assert calibration["depth"]["auroc"] == 0.5
    assert summary_of(tmp_path / "other")["aggregates"]["ours"]["calibration"] is None


def test_the_sensor_diagnosis_stands_beside_success(tmp_path, capsys):
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"])
    arm = {"n": 9, "error": 0.4321, "low": 0.4, "high": 0.5}
    changed = {
        **arm,
        "error": 0.8,
        "difference": 0.4,
        "difference_low": 0.3,
        "difference_high": 0.5,
        "relative": 0.9,
    }
    policies = {
        "ours": {
            "checkpoint": "made-up-ours",
            "arms": {"true": arm, "zeroed": changed, "rgb zeroed": changed},
        },
        "vanilla": {"checkpoint": "of another day", "arms": {"true": arm}},
        "stranger": {"checkpoint": "s", "arms": {"true": arm}},
    }
    content = {
        "schema": 1,
        "remark": "r",
        "dataset": "d",
        "episodes": None,
        "held_out": False,
        "policies": policies,
    }
    (folder / "diagnosis.json").write_text(json.dumps(content))
    assert main([str(folder)]) == 0
    cells = {c["condition"]: c["results"] for c in json.loads((folder / "results.json").read_text())["cells"]}
    assert cells["C0"]["ours"]["offline"] == {"error": 0.4321, "n": 9}
    assert cells["C2:rgb=zero"]["ours"]["offline"]["error"] == 0.8
    assert cells["C0"]["vanilla"]["offline"] is None, "that was another checkpoint"
    page = (folder / "report.html").read_text()
    for text in (
        "0.432 (0.400–0.500)",
        "+90 %",
        "measured with the checkpoint of another day",
        "may have been trained on",
    ):
        assert text in page
    assert "stranger" not in page
    (folder / "diagnosis.json").write_text("{}")
    assert main([str(folder)]) == 2
    assert "not of the format version 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "foreign",
    [
        {},
        {"policies": []},
        {"policies": {"ours": {"arms": {"true": {"error": 1.0}}, "checkpoint": "made-up-ours"}}},
        {"policies": {"ours": {"arms": {"true": {"error": 1.0}}}}},
        {"policies": {"ours": {"arms": ["true"], "checkpoint": "made-up-ours"}}},
    ],
)
def test_a_foreign_diagnosis_is_named(tmp_path, capsys, foreign):
    """Of the right format version, but not what the diagnosis writes."""
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"])
    known = {"schema": 1, "remark": "r", "dataset": "d", "held_out": True, "policies": {}}
    content = {**known, **foreign} if foreign else {"schema": 1, "policies": {}}
    (folder / "diagnosis.json").write_text(json.dumps(content))
    assert main([str(folder)]) == 2
    told = capsys.readouterr().err
    assert "diagnosis.json is not what multismolvla-eval --diagnose writes" in told
    assert "Delete it" in told


def test_policies_that_run_clean_only_are_not_waited_for(tmp_path):
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"], clean_only=["vanilla"])
    write_rows(
        folder,
        [r for r in read_rows(folder, RUN) if (r["policy"], r["condition"]) != ("vanilla", "C2:rgb=zero")],
    )
    assert main([str(folder)]) == 0
    run = json.loads((folder / "results.json").read_text())["run"]
    assert run["planned"] == run["finished"] == 20 + 20 + 10


def test_a_page_stays_below_its_limit_and_keeps_failures(tmp_path, monkeypatch):
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"], rate=lambda e: e.condition == "C0")
    for path in (folder / "clips").iterdir():
        path.write_bytes(bytes(100_000))
    monkeypatch.setattr("multismolvla_eval.page.PAGE_LIMIT", 600_000)
    assert main([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert len(page.encode()) < 600_000
    assert "clips are left out to keep this page small" in page
    assert "under C0" in page, "clean clips come first: every failure is seen beside one"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"assets": ""}, "the assets were not hashed"),
        (
            {"assets": "0123"},
            "the assets 0123 are not known as LIBERO's published ones (nobody has looked at them)",
        ),
        (
            {"assets": "0123", "assets_standins": None, "assets_differing": ["a"]},
            "(1 files are missing or changed)",
        ),
        (
            {"assets": "0123", "assets_standins": True},
            "stand-ins (hash 0123): figures made with these assets are not comparable",
        ),
        ({"assets": "0123", "assets_standins": False}, None),
    ],
)
def test_assets_are_named_by_hash(facts, words):
    (fact,) = assets_facts({"libero_goal": facts})
    assert (words in fact["note"]) if words else not fact["note"]
    (own,) = assets_facts({"toy": facts})
    assert not own["note"]


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

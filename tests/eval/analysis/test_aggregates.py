"""Figures over many conditions and over repeated starts, from synthetic rows that say so."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from report_readers import cells_of, csv_of, summary_of
from synthetic import RGB, facts, suite, synthetic_run, write_rows

from multismolvla.corruption import parse_condition
from multismolvla.modalities import MODALITIES
from multismolvla_eval.analysis.statistics import wilson
from multismolvla_eval.analysis.summarise import summarise
from multismolvla_eval.analysis.table import episode_table
from multismolvla_eval.records.store import read_run
from multismolvla_eval.report.command import main
from multismolvla_eval.report.format import detection_lines, families_text


def test_severity_area_compares_the_same_starts(tmp_path):
    """The clean cell has further episodes, all of which fail; where both cells have some, nothing is lost."""

    def change(row):
        row.success = row.episode < 5

    area = summary_of(tmp_path / "run", change).aggregates["ours"].severity_area
    (type_,) = area.types
    assert type_ == "rgb=builtin_noise"
    mean = area.mean
    assert (mean.value, mean.n, mean.types) == (pytest.approx(1), 10, 1)
    assert (mean.low, mean.why) == (None, "all resamples are equal"), "no width is no interval"
    assert area.seen == mean, "noise is a type that training may meet"
    assert area.unseen is None


def test_severity_area_and_corruption_error_are_those_of_the_protocol(tmp_path):
    """Exact shares of ten starts per task; ours loses one more per severity than the baseline does."""

    def change(row):
        severity = int(row.condition[-1]) if row.condition.startswith("C3:rgb") else 0
        row.success = row.episode < 9 - severity - (1 if severity and row.policy == "ours" else 0)

    texts = [f"C3:rgb=builtin_noise@{s}" for s in range(1, 6)]
    figures = summary_of(tmp_path / "run", change, texts=texts, episodes=10).aggregates["ours"]
    rates = [0.9, 0.7, 0.6, 0.5, 0.4, 0.3]
    area, error = figures.severity_area.mean, figures.mce.mean
    assert area.value == pytest.approx(np.trapezoid(rates) / (5 * rates[0]))
    assert error.value == pytest.approx(100 * (5 - 2.5) / (5 - 3.0))
    for figure in (area, error):
        assert figure.n == 20
        assert figure.low < figure.value < figure.high


SOFT = [
    f"C3:{t}@{s}"
    for t in ("rgb=builtin_noise", "rgb.image=builtin_noise", "depth=holes")
    for s in range(1, 6)
]


def reading(**modalities):
    """Policies that read these modalities only."""
    suffix = {"rgb": "", "depth": "_depth", "seg": "_seg", "thermal": "_thermal"}
    return {
        n: facts(n, reads=[key + suffix[m] for key in RGB for m in read]) for n, read in modalities.items()
    }


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
    read = reading(ours=["rgb", "depth"], vanilla=["rgb", "seg"])
    folder = synthetic_run(tmp_path / "run", texts=SOFT, policies=read)
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
    nothing = reading(ours=["thermal"], vanilla=["rgb"])
    area = summary_of(tmp_path / "other", texts=SOFT, policies=nothing).aggregates["ours"].severity_area
    assert area.mean is None
    assert area.left_out == {"this policy does not read them": ["rgb", "rgb.image", "depth"]}


@pytest.mark.parametrize(
    ("changes", "reads_fault"),
    [({"reads": []}, None), ({"reads": ["observation.state"], "no_vision": "grey"}, False)],
)
def test_only_a_policy_with_inputs_can_be_said_not_to_read_a_fault(tmp_path, changes, reads_fault):
    policies = {"vanilla": facts("vanilla", **changes)}
    summary = summary_of(tmp_path / "run", texts=["C2:rgb=zero"], policies=policies)
    assert cells_of(summary, "vanilla")["C2:rgb=zero"].reads_fault is reads_fault


def test_a_policy_reads_the_faults_of_rgb_in_what_the_environment_computes_from_it(tmp_path):
    read = reading(ours=["thermal"], vanilla=["rgb"])
    for kind, types in (("sensor", set()), ("derived", {"rgb=builtin_noise"})):
        suites = {"toy": suite(provenance={"rgb": "sensor", "thermal": kind})}
        summary = summary_of(tmp_path / kind, texts=SOFT, policies=read, suites=suites)
        assert cells_of(summary, "ours")["C3:rgb=builtin_noise@3"].reads_fault == bool(types)
        assert set(summary.aggregates["ours"].severity_area.types) == types


def test_a_baseline_that_ran_clean_only_leaves_no_corruption_error(tmp_path):
    folder = synthetic_run(tmp_path / "run", texts=SOFT, clean_only=["vanilla"])
    write_rows(folder, [r for r in read_run(folder)[1] if r.policy == "ours" or r.condition == "C0"])
    assert main([str(folder)]) == 0
    figures = json.loads((folder / "results.json").read_text())["aggregates"]
    assert figures["ours"]["severity_area"]["mean"]["types"] == 1
    assert figures["ours"]["mce"]["mean"] is figures["vanilla"]["severity_area"]["mean"] is None


def test_a_baseline_that_never_succeeds_judges_nobody(tmp_path):
    """Half of nothing is reached by a policy with one success of twenty."""

    def change(row):
        row.success = (row.policy, row.task_id, row.episode) == ("ours", 0, 0)

    summary = summary_of(tmp_path / "run", change, texts=SOFT)
    ours = summary.policies[0]
    assert ours.clean.successes == 1
    assert "baseline, by whose clean success it is judged, never succeeds" in ours.withheld
    assert summary.aggregates == {}
    assert all(c.versus_clean is None for c in cells_of(summary, "ours").values())


def test_every_summary_number_has_n_and_an_interval_or_a_reason(tmp_path, capsys):
    folder = synthetic_run(tmp_path / "run", suites=("toy", "game"), clean_repeats=2)
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
    value = r"[−+]?\d+(\.\d+)?"
    number = rf"-?{value}( %)? \((n = \d+; no interval: [a-z ]+|{value}(–| to ){value}, n = \d+)\)"
    for where in ("", " in toy", " in game"):
        assert re.search(rf"ours{where}: severity area \(1 = nothing lost\) {number}", text)
        assert re.search(rf"ours{where}: mean corruption error .*? {number}", text)
        assert re.search(rf"ours{where}: over 15 subsets .* worst \d+ % \(\d+/\d+, \d+–\d+\) with", text)
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


def test_families_are_the_conditions_of_a_group_that_hit_the_same_modality(tmp_path):
    summary = summary_of(tmp_path / "run")
    cells = cells_of(summary, "ours")
    sizes = {c.family: cells[c.condition].versus_clean for c in summary.conditions}
    assert {name: c.family_size for name, c in sizes.items() if c} == {
        "C1 subsets": 14,
        "C1 cameras": 1,
        "C2 rgb": 1,
        "C3 rgb": 5,
        "C3 depth": 1,
        "C4 all": 1,
        "C5 depth": 1,
    }
    assert cells["C0"].versus_baseline.family_size == 1
    noise = [cells[f"C3:rgb=builtin_noise@{s}"].versus_clean for s in range(1, 6)]
    least = min(noise, key=lambda c: c.p_value)
    assert least.p_holm == pytest.approx(min(1, 5 * least.p_value))
    text = families_text(summary)
    assert (
        "C0 (1), C1 subsets (14 to clean, 15 to the baseline), C1 cameras (1), C2 rgb (1), C3 rgb (5)" in text
    )
    assert "the difference is not settled" in text


def test_families_of_suites_are_adjusted_apart_and_their_sizes_told(tmp_path):
    """The second suite has run fewer severities."""
    folder = synthetic_run(tmp_path / "run", suites=("toy", "game"), texts=SOFT[:5])
    manifest, rows = read_run(folder)
    kept = [r for r in rows if r.suite == "toy" or not r.condition.endswith("@5")]
    summary = summarise(episode_table(kept, manifest), manifest)
    first = cells_of(summary, "ours")["C3:rgb=builtin_noise@1"]
    assert [first.suites[s].versus_clean.family_size for s in ("toy", "game")] == [5, 4]
    assert first.versus_clean.family_size == 5
    assert "C3 rgb (4–5)." in families_text(summary)


def test_repetitions_of_the_clean_condition_are_no_independent_episodes(tmp_path, capsys):
    """Three runs from the same 20 starts; here the start decides, so three runs tell as much as one."""
    folder = synthetic_run(
        tmp_path / "run", clean_repeats=3, rate=lambda e: float(e.episode < 3 + 4 * e.task_id)
    )
    assert main([str(folder)]) == 0
    summary = json.loads((folder / "results.json").read_text())
    ours = summary["policies"][0]
    assert [(r["successes"], r["n"]) for r in ours["repeats"]] == [(10, 20)] * 3
    cells = {c["condition"]: c["cells"]["ours"] for c in summary["conditions"]}
    once = wilson(10, 20)
    for rate in (cells["C0"]["success"], ours["clean"]):
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


def detection(folder, change, **changes):
    return summary_of(folder, change, **changes).aggregates["ours"].detection


def test_detection_of_corrupted_sensors_is_judged_where_rows_have_weights(tmp_path):
    """The weight of RGB falls with black pictures but in the first episodes, and once without reason."""

    def change(row):
        black = row.condition == "C2:rgb=zero"
        wrong = (row.condition, row.task_id, row.episode) == ("C0", 0, 9)
        row.modality_weight = {"rgb": 0.2 if (black and row.episode) or wrong else 0.9, "depth": 0.9}
        row.success = not black or row.episode == 0

    figures = summary_of(tmp_path / "run", change).aggregates["ours"]
    rgb = figures.detection["rgb"]
    assert 0.5 < rgb.auroc < 1
    assert (rgb.success_flagged.successes, rgb.success_flagged.n) == (0, 8)
    assert rgb.success_missed.successes == rgb.success_missed.n == 2 + 5 * 10
    assert rgb.success_flagged.low < rgb.success_flagged.high
    assert rgb.corrupted == 10 + 5 * 10, "C2 and five severities of noise, but not the delay of all"
    assert (rgb.sound, rgb.sound_flagged) == (20 + 10 + 2 * 10, 1), "clean, nothing lost, and faults of depth"
    assert figures.detection["depth"].auroc == 0.5
    (line, _) = detection_lines("ours", figures)
    expected = (
        "it flags 2 % of the sound ones, too; success 0 % (0/8, 0–32) where it was flagged, 100 % (52/52"
    )
    assert expected in line
    assert detection(tmp_path / "other", None) == {}


def test_a_perfect_relative_weight_is_rated_perfect(tmp_path):
    """It is lower for a faulted sensor than for others: that cannot show faults of all, nor ones not met."""
    texts = ["C2:rgb=zero", "C2:all=zero", "C4:rgb=delay@2", "C4:all=delay@2", "C4:all=frozen"]

    def change(row):
        hit = {f.modality for f in parse_condition(row.condition).faults}
        if row.condition == "C4:rgb=delay@2":
            row.fault_steps, row.fault_looks = 4, int(row.episode > 1)
            hit = hit if row.episode > 1 else set()
        relative = 0 < len(hit) < len(MODALITIES)
        row.modality_weight = {m: 0.5 if not relative else 0.1 if m in hit else 0.6 for m in MODALITIES}

    found = detection(tmp_path / "run", change, texts=texts)
    assert list(found) == ["rgb"]
    assert (found["rgb"].auroc, found["rgb"].corrupted) == (1, 10 + 6)

    def only_two(row):
        change(row)
        row.modality_weight = {m: row.modality_weight[m] for m in ("rgb", "depth")}

    found = detection(tmp_path / "two", only_two, texts=["C2:rgb=zero", "C2:rgb=zero+depth=zero"])
    assert (found["rgb"].auroc, found["rgb"].corrupted) == (1, 10), "all that it reads"


def test_a_modality_computed_from_a_faulted_rgb_is_no_sound_one(tmp_path):
    """A late RGB makes the thermal picture late; where RGB is broken, the thermal one is announced lost."""

    def change(row):
        row.modality_weight = {"rgb": 0.4, "depth": 0.6, "thermal": 0.5}

    derived = suite(provenance={"rgb": "sensor", "depth": "sensor", "thermal": "derived"})
    texts = ["C4:rgb=delay@2", "C3:rgb=fog@1"]
    found = detection(tmp_path / "run", change, texts=texts, suites={"toy": derived})
    assert {m: (d.corrupted, d.sound) for m, d in found.items()} == {"rgb": (20, 20), "thermal": (10, 20)}

"""What stands beside a cell's rate: whether it is reportable, power, faults met, losses not told."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace

from report_readers import cells_of, csv_of, summary_of
from synthetic import CONDITIONS, facts, synthetic_run, write_rows

from multismolvla_eval.analysis.summarise import summarise
from multismolvla_eval.analysis.table import episode_table
from multismolvla_eval.records.store import read_run
from multismolvla_eval.report import plots
from multismolvla_eval.report.command import main

EXPERT = {"expert": facts("expert", privileged=True)}


def with_met(folder):
    """Let the delay be met in 4 of the 8 episodes per suite and policy ours that tell."""
    rows = read_run(folder)[1]
    for row in rows:
        if (row.policy, row.condition) == ("ours", "C4:all=delay@2"):
            row.fault_steps = {0: 0, 1: 0, 2: None}.get(row.episode, 3)
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
    capsys.readouterr()
    assert main([str(folder), str(folder), f"--output={tmp_path / 'out'}"]) == 0
    told = r"\d+ % \(\d+/10, \d+–\d+\); met in 4 of 8 episodes"
    assert re.search(f"C4:all=delay@2: {told} -> {told}", capsys.readouterr().out)
    assert (tmp_path / "out" / "comparison.html").read_text().count("met in 4 of 8 episodes") == 2


def test_a_fault_that_was_not_looked_at_was_not_met(tmp_path):
    def change(row):
        if row.condition == "C4:all=delay@2":
            row.fault_steps, row.fault_looks = 4, int(row.episode < 2)

    cells = cells_of(summary_of(tmp_path / "run", change), "ours")
    assert cells["C4:all=delay@2"].met == (4, 10)
    assert cells["C2:rgb=zero"].met is None


def test_announced_losses_that_a_policy_is_not_told_of_are_marked(tmp_path, capsys):
    texts = ["C1:rgb+seg+thermal", "C1:camera=image2", "C1:depth+seg+thermal", "C2:rgb=zero"]
    policies = {"vanilla": facts("vanilla", mask_reaches_policy=False)}
    folder = synthetic_run(tmp_path / "run", texts=texts, suites=("toy", "game"), policies=policies)
    assert main([str(folder)]) == 0
    lost = {"C1:camera=image2", "C1:depth+seg+thermal"}  # of its two colour pictures
    words = "not told: for this policy the same as a black picture"
    column = "mask_reaches_policy"
    told = {(r["policy"], r["condition"], r[column]) for r in csv_of(folder) if r[column]}
    assert told == {("vanilla", c, words) for c in lost} | {("ours", c, "yes") for c in lost}
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    assert len(re.findall(rf"^\| `C1:.*; {words} \|", text, re.MULTILINE)) == 2 * 3, (
        "over all, and in the table of each suite"
    )
    assert page.count(f'<span class="tag long">{words}</span>') == 2 * 3, (
        "over all, and in the table of each suite"
    )
    terminal = capsys.readouterr().out
    assert {line.split()[0] for line in terminal.splitlines() if line.count("; not told") == 1} == lost
    assert "vanilla does not read which sensors are announced as absent" in terminal
    assert main([str(folder), str(folder), f"--output={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().out.count(words) == 2 * 2 * 2, "two conditions, two suites, both sides"
    assert (tmp_path / "out" / "comparison.html").read_text().count(words) == 2 * 2 * 2


def test_every_comparison_says_what_it_could_have_shown(tmp_path, capsys):
    folder = synthetic_run(tmp_path / "run", suites=("toy", "game"), texts=["C2:rgb=zero"])
    assert main([str(folder)]) == 0
    terminal, text = capsys.readouterr().out, (folder / "report.md").read_text()
    page = (folder / "report.html").read_text()
    power = r"\d+ \(n = 20\)"
    assert re.search(rf"C2:rgb=zero.*ours \S+ \(.*?\), p = [\d.]+; {power}", terminal)
    assert re.search(rf"\| `C2:rgb=zero` .* \[{power}\] \| .* \[{power}\] \| .* \[{power}\] \|", text)
    shown = Counter(re.findall(r"can show \d+ \(n = (\d+)\)", page))
    assert shown["10"] == 2 * 3, "per suite: both policies to clean, one to the baseline"
    assert shown["20"] == 3 + 2, "over both suites, and clean in each suite"
    assert shown["40"] == 1, "clean over both suites"
    for row in csv_of(folder):
        for comparison in ("versus_clean", "versus_baseline"):
            assert bool(row[f"{comparison}_difference"]) == bool(row[f"{comparison}_detectable"])
    other = synthetic_run(tmp_path / "other", suites=("toy", "game"), texts=["C2:rgb=zero"], seed=5)
    assert main([str(folder), str(other), f"--output={tmp_path / 'out'}"]) == 0
    assert len(re.findall(r"paired, can show \d+ \(n = \d+\)", capsys.readouterr().out)) == 2 * 2 * 2


def test_robustness_of_a_policy_that_fails_clean_is_withheld(tmp_path):
    folder = synthetic_run(tmp_path / "run", clean=(0.15, 0.9))
    assert main([str(folder)]) == 0
    summary = json.loads((folder / "results.json").read_text())
    ours = summary["policies"][0]
    assert "below half of the baseline's" in ours["withheld"]
    assert "ours" not in summary["aggregates"]
    for condition in summary["conditions"]:
        assert condition["cells"]["ours"]["versus_clean"] is None
        assert (condition["cells"]["ours"]["versus_baseline"] is None) == (condition["condition"] != "C0")
    assert any("No robustness figures for ours" in n for n in summary["notes"])


def test_robustness_is_withheld_while_the_baseline_has_no_clean_episodes(tmp_path):
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"])
    kept = [r for r in read_run(folder)[1] if (r.policy, r.condition) != ("vanilla", "C0")]
    write_rows(folder, kept)
    assert main([str(folder)]) == 0
    reason = "No robustness figures for ours: the baseline, by whose clean success it is judged, has no clean"
    assert reason in (folder / "report.html").read_text()
    assert reason in (folder / "report.md").read_text()
    faulted = [r for r in csv_of(folder) if (r["policy"], r["condition"]) == ("ours", "C2:rgb=zero")]
    assert [r["versus_clean_n"] for r in faulted] == [""]


def test_what_is_withheld_is_drawn_and_told_nowhere_and_marked_in_every_row(tmp_path, capsys):
    """An upper bound and a policy that fails clean, beside a baseline that is fine."""
    names = ("expert", "weak", "vanilla")
    folder = synthetic_run(tmp_path / "run", (1.0, 0.15, 0.9), names=names, policies=EXPERT)
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
        assert (row["privileged"], row["no_vision"]) == (str(row["policy"] == "expert"), "False")
        assert row["reportable"] == str(row["policy"] == "vanilla")
        assert bool(row["withheld"]) == (row["policy"] != "vanilla")
    manifest, rows = read_run(folder)
    summary = summarise(episode_table(rows, manifest), manifest)
    assert set(plots.reported(summary)) == {"vanilla"}
    summary = replace(summary, policies=summary.policies[:2])
    assert plots.success_points(summary, ("C2",)) is plots.severity_curves(summary, "rgb") is None
    assert plots.subset_map(summary) is None


def test_robustness_is_withheld_per_suite(tmp_path):
    """Good enough over all, but not in the second suite."""

    def rate(episode):
        return 0.05 if (episode.policy, episode.suite) == ("ours", "hard") else 0.9

    folder = synthetic_run(tmp_path / "run", suites=("easy", "hard"), rate=rate)
    assert main([str(folder)]) == 0
    summary = json.loads((folder / "results.json").read_text())
    ours = summary["policies"][0]
    assert ours["withheld"] == ours["suites"]["easy"]["withheld"] == ""
    assert "below half of the baseline's" in ours["suites"]["hard"]["withheld"]
    assert set(summary["aggregates"]["ours"]["suites"]) == {"easy"}
    assert set(summary["aggregates"]["vanilla"]["suites"]) == {"easy", "hard"}
    cells = {c["condition"]: c["cells"]["ours"] for c in summary["conditions"]}
    parts = cells["C2:rgb=zero"]["suites"]
    assert parts["easy"]["versus_clean"]["n"] == 10
    assert parts["hard"]["versus_clean"] is parts["hard"]["versus_baseline"] is None
    assert any("No robustness figures for ours in hard" in n for n in summary["notes"])
    parts = cells["C0"]["suites"].values()
    assert cells["C0"]["success"]["n"] == sum(p["success"]["n"] for p in parts) == 40
    page = (folder / "report.html").read_text()
    assert "easy: every condition" in page
    assert "easy: successes per task" in page


def test_a_policy_that_reads_the_simulator_is_an_upper_bound_without_robustness(tmp_path, capsys):
    folder = synthetic_run(
        tmp_path / "run",
        (1.0, 0.7),
        names=("expert", "vanilla"),
        texts=["C2:rgb=zero"],
        policies=EXPERT,
    )
    assert main([str(folder)]) == 0
    summary = json.loads((folder / "results.json").read_text())
    assert "expert" not in summary["aggregates"]
    assert all(c["cells"]["expert"]["versus_clean"] is None for c in summary["conditions"])
    for text in (
        capsys.readouterr().out,
        (folder / "report.html").read_text(),
        (folder / "report.md").read_text(),
    ):
        assert "upper bound" in text
        assert "expert reads the simulator's state" in text.replace("&#39;", "'")

"""The report, from synthetic rows that say so."""

from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
import sys

import draccus
import pytest
from msgspec import to_builtins
from msgspec.structs import replace
from report_readers import Page, csv_of
from synthetic import COMPARABLE, synthetic_run, write_rows

from multismolvla.system.files import write_json
from multismolvla_eval.analysis.diagnosis import FILE, Change, ControlError, Diagnosis, SensorUse
from multismolvla_eval.config import EvalConfig
from multismolvla_eval.records.store import ResultsError, read_run
from multismolvla_eval.report.command import main
from multismolvla_eval.report.files import rounded


def test_a_report_needs_no_torch(tmp_path):
    """Importing it takes as long as a small report."""
    folder = synthetic_run(tmp_path / "run")
    program = (
        "import sys; from multismolvla_eval.report.command import main; main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, capture_output=True)


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
    conditions = {c["condition"]: c for c in summary["conditions"]}
    ours = conditions["C2:rgb=zero"]["cells"]["ours"]
    assert ours["success"]["n"] == 10
    assert ours["versus_clean"]["n"] == ours["versus_baseline"]["n"] == 10
    assert ours["versus_clean"]["p_holm"] >= ours["versus_clean"]["p_value"]
    assert "--conditions=[C2:rgb=zero]" in conditions["C2:rgb=zero"]["command"]
    assert summary["checks"]["starts"] == {"episodes": 20, "equal": 20}
    assert conditions["C3:depth=holes@3"]["cells"]["ours"]["reads_fault"] is False
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "Synthetic rows" in markdown
    assert "| `C2:rgb=zero` |" in markdown

    first = page_text
    main([str(folder), f"--output={tmp_path / 'report'}"])
    assert (tmp_path / "report" / "report.html").read_text() == first, "the same results give the same page"


def test_the_command_of_a_cell_repeats_every_option_that_matters(tmp_path):
    names = {"observation.images.image": "observation.images.top"}
    changes = {
        "rename_map": {"ours": names},
        "clean_only": ["ours"],
        "comparable": replace(COMPARABLE, batch_size=4),
    }
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"], **changes)
    write_rows(folder, [r for r in read_run(folder)[1] if r.policy != "ours" or r.condition == "C0"])
    assert main([str(folder)]) == 0
    conditions = json.loads((folder / "results.json").read_text())["conditions"]
    (command,) = [c["command"] for c in conditions if c["group"] == "C2"]
    given = shlex.split(command)[1:]
    config = draccus.parse(EvalConfig, args=given)
    config.check()
    assert (config.batch_size, config.clean_only, config.env.task_ids) == (4, ["ours"], [0, 1])
    assert config.rename_map == {"ours": names}
    assert (
        html.escape(command).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
        in (folder / "report.html").read_text()
    )


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


def test_the_contents_list_every_section(tmp_path):
    folder = synthetic_run(tmp_path / "run", suites=("toy", "game"))
    (folder / "modalities.png").write_bytes(b"png")
    write_json(folder / FILE, to_builtins(diagnosis_of({})))
    assert main([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    contents = re.findall(r'<li><a href="#([^"]+)"', page)
    sections = [i for i in re.findall(r'<h2 id="([^"]+)"', page) if i != "C0"]
    assert contents == sections
    assert {"looks", "inputs", "suites"} <= set(sections)


def test_modality_weights_are_judged_without_soft_faults_and_subsets_too(tmp_path, capsys):
    """At the levels smoke and quick there is no other figure over many conditions."""
    folder = synthetic_run(tmp_path / "run", (0.8, 0.8), suites=("toy", "game"), texts=["C2:rgb=zero"])
    rows = read_run(folder)[1]
    for row in rows:
        if row.policy == "ours":
            row.modality_weight = {"rgb": 0.1 if row.condition == "C2:rgb=zero" else 0.9, "depth": 0.9}
            row.fault_steps = row.fault_looks = 5
    write_rows(folder, rows)
    assert main([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "Severity area:" not in page
    assert "Do the modality weights show which sensor is corrupted?" in page
    for scope in ("ours", "ours in toy", "ours in game"):
        line = f"{scope}: weight of rgb: AUROC 1.00"
        assert page.count(f"<li>{line}") == 1
        assert f"- {line}" in (folder / "report.md").read_text()
    assert "ours: weight of rgb: AUROC 1.00" in capsys.readouterr().out


def test_the_markdown_page_has_each_suite_and_what_the_protocol_counts_beside_success(tmp_path):
    folder = synthetic_run(tmp_path / "run", suites=("toy", "game"), texts=["C2:rgb=zero"])
    assert main([str(folder)]) == 0
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    summary = json.loads((folder / "results.json").read_text())
    ours = next(c["cells"]["ours"] for c in summary["conditions"] if c["condition"] == "C2:rgb=zero")
    sections = dict(zip(*[iter(re.split(r"^## (.*)$", text, flags=re.MULTILINE)[1:])] * 2, strict=True))
    named = (
        ("Unannounced loss of sensors", ours),
        ("Suite toy", ours["suites"]["toy"]),
        ("Suite game", ours["suites"]["game"]),
    )
    for title, part in named:
        (row,) = [line for line in sections[title].splitlines() if line.startswith("| `C2:rgb=zero`")]
        against = part["versus_clean"]
        assert f"({part['success']['successes']}/{part['success']['n']}, " in row
        assert re.search(rf"\| {100 * against['ratio']:.0f} % \(\d+–\d+, n = {against['n']}\) \|", row)
    assert "| ours | C2 | 20 | " in sections["Diagnostics"]
    assert " × time out | 5 | 50 % | 1 |" in sections["Diagnostics"]
    assert sections["Policies"].count("| 20 ms | 1500 MB |") == 2
    assert page.count('<td class="n">20.0 ms</td><td class="n">1500 MB</td>') == 2


def test_a_page_above_its_limit_is_warned_of(tmp_path, monkeypatch, caplog):
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"])
    assert main([str(folder)]) == 0
    assert not caplog.records
    monkeypatch.setattr("multismolvla_eval.report.page.PAGE_LIMIT", 10_000)
    assert main([str(folder)]) == 0
    (record,) = caplog.records
    assert "The page has" in record.getMessage()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "run.json").unlink(), "holds no run.json"),
        (lambda f: (f / "episodes-0of1.jsonl").write_text(""), "no finished episodes"),
        (lambda f: (f / "episodes-0of1.jsonl").write_text("{}\n"), "missing required field `run`"),
        (
            lambda f: (f / "episodes-0of1.jsonl").write_text(
                (f / "episodes-0of1.jsonl").read_text().replace("made-up-ours", "other", 1)
            ),
            "unknown to the manifest",
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
    from multismolvla_eval.report.command import write_report

    with pytest.raises(ResultsError):
        write_report(tmp_path)


def test_csv_and_json_hold_every_cell(tmp_path):
    folder = synthetic_run(tmp_path / "run", suites=("a", "b"), texts=["C2:rgb=zero"])
    assert main([str(folder)]) == 0
    table = csv_of(folder)
    assert [(r["policy"], r["suite"], r["condition"]) for r in table] == [
        (p, s, c) for c in ("C0", "C2:rgb=zero") for p in ("ours", "vanilla") for s in ("all", "a", "b")
    ]
    assert float(table[0]["rate"]) == pytest.approx(int(table[0]["successes"]) / int(table[0]["n"]), 1e-5)
    summary = json.loads((folder / "results.json").read_text())
    cells = {c["condition"]: c["cells"] for c in summary["conditions"]}
    for row in table:
        whole = cells[row["condition"]][row["policy"]]
        part = whole if row["suite"] == "all" else whole["suites"][row["suite"]]
        for name in ("successes", "n", "starts", "rate", "low", "high"):
            assert float(row[name]) == part["success"][name]
        for comparison in ("versus_clean", "versus_baseline"):
            for name in ("n", "difference", "low", "high", "p_value", "p_holm"):
                known = part[comparison] and str(part[comparison][name])
                assert row[f"{comparison}_{name}"].removesuffix(".0") == (known or "").removesuffix(".0")


def diagnosis_of(policies):
    return Diagnosis(
        dataset="d", episodes=None, held_out=False, frames=9, modality_frames=9, seed=0, rename_map={},
        policies=policies, command="",
    )  # fmt: skip


def test_the_sensor_diagnosis_stands_beside_success(tmp_path):
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"])
    true = ControlError(9, 0.4321, 0.4, 0.5)
    changed = ControlError(9, 0.8, 0.4, 0.5, Change(0.4, 0.3, 0.5, 0.9))
    controls = {"true": true, "zeroed": changed, "rgb zeroed": changed}
    policies = {
        "ours": SensorUse("p", "made-up-ours", controls=controls),
        "vanilla": SensorUse("p", "of another day", controls={"true": true}),
        "stranger": SensorUse("p", "s", controls={"true": true}),
    }
    write_json(folder / FILE, to_builtins(diagnosis_of(policies)))
    assert main([str(folder)]) == 0
    summary = json.loads((folder / "results.json").read_text())
    cells = {c["condition"]: c["cells"] for c in summary["conditions"]}
    assert cells["C0"]["ours"]["offline"]["error"] == 0.4321
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


@pytest.mark.parametrize(
    ("control", "named"),
    [
        ({"error": 1.0}, "missing required field `n` - at `$.policies[...].controls[...]`"),
        ({"n": 1.5, "error": 1.0, "low": 0.5, "high": 2.0}, "Expected `int`, got `float`"),
        ({"n": -1, "error": 1.0, "low": 0.5, "high": 2.0}, "Expected `int` >= 0"),
        ("true", "Expected `object`, got `str`"),
    ],
)
def test_a_damaged_diagnosis_is_refused_by_name(tmp_path, capsys, control, named):
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"])
    content = to_builtins(diagnosis_of({"ours": SensorUse("p")}))
    content["policies"]["ours"]["controls"] = {"true": control}
    write_json(folder / FILE, content)
    assert main([str(folder)]) == 2
    told = capsys.readouterr().err
    assert f"{folder / FILE}" in told
    assert named in told
    assert "Delete it" in told


def test_policies_that_run_clean_only_are_not_waited_for(tmp_path):
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"], clean_only=["vanilla"])
    faulted = ("vanilla", "C2:rgb=zero")
    write_rows(folder, [r for r in read_run(folder)[1] if (r.policy, r.condition) != faulted])
    assert main([str(folder)]) == 0
    run = json.loads((folder / "results.json").read_text())["run"]
    assert run["planned"] == run["finished"] == 20 + 20 + 10


def test_a_page_stays_below_its_limit_and_keeps_failures(tmp_path, monkeypatch):
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"], rate=lambda e: e.condition == "C0")
    for path in (folder / "clips").iterdir():
        path.write_bytes(bytes(100_000))
    monkeypatch.setattr("multismolvla_eval.report.page.PAGE_LIMIT", 600_000)
    assert main([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert len(page.encode()) < 600_000
    assert "clips are left out to keep this page small" in page
    assert "under C0" in page, "clean clips come first: every failure is seen beside one"

"""What a reader must know before quoting a figure."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace
from report_readers import summary_of
from synthetic import CALL, facts, suite, synthetic_run, write_rows

from multismolvla.corruption import parse_condition
from multismolvla_eval.analysis.notes import assets_notes
from multismolvla_eval.analysis.summarise import summarise
from multismolvla_eval.analysis.table import episode_table
from multismolvla_eval.config import EnvironmentArguments, EvalConfig
from multismolvla_eval.protocol.levels import LEVELS
from multismolvla_eval.protocol.schedule import Counts
from multismolvla_eval.records.manifest import build_manifest
from multismolvla_eval.records.schema import AttackRecord, RunFacts, SuiteFacts
from multismolvla_eval.records.store import read_manifest, read_run, write_manifest
from multismolvla_eval.report.command import main


def test_notes_of_the_user_and_changes_of_commit_and_machine_are_shown(tmp_path, capsys):
    first, later = (
        replace(CALL, commit="c0ffee"),
        replace(CALL, commit="decade", time="2020-01-02T00:00:00+00:00"),
    )
    folder = synthetic_run(tmp_path / "run", calls=[first, later], remarks=["ours saw 3 episodes"])
    assert main([str(folder)]) == 0
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for part in (capsys.readouterr().out, page, text):
        assert "ours saw 3 episodes" in part
        assert "The calls of this run differ in commit (" in part
    for part in (page, text):
        assert "c0ffee" in part
        assert "decade" in part


@pytest.mark.parametrize(
    ("ours", "vanilla", "said"),
    [
        (200, 100, "ours 200, vanilla 100. Part of a difference"),
        (20480, 20480, "alike in all: 20,480."),
        (200, None, ""),
    ],
)
def test_training_of_unequal_length_is_told(tmp_path, ours, vanilla, said):
    policies = {
        "ours": facts("ours", training_samples=ours),
        "vanilla": facts("vanilla", training_samples=vanilla),
    }
    notes = [n for n in summary_of(tmp_path / "run", policies=policies).notes if "seen in training" in n]
    assert len(notes) == bool(said)
    assert said in "".join(notes)


def test_an_attack_stands_beside_random_signs_and_who_cannot_be_attacked_is_named(tmp_path):
    policies = {"ours": facts("ours", attacks=["policy", "random_sign"]), "vanilla": facts("vanilla")}
    texts = ["C6:rgb=policy@4", "C6:rgb=random_sign@4"]
    folder = synthetic_run(tmp_path / "run", texts=texts, policies=policies)
    manifest, rows = read_run(folder)
    kept = [r for r in rows if r.policy == "ours" or r.condition == "C0"]

    def notes():
        return summarise(episode_table(kept, manifest), manifest).notes

    assert not [n for n in notes() if "raised its objective" in n]
    attacked = [r for r in kept if r.condition == texts[0]]
    for row in attacked:
        row.attack = AttackRecord(2, 0.5, 0.6, 2.0, 0, 0.125)
    attacked[0].attack = AttackRecord(0, 0.0, 0.0, 0.0, 0, 0.5)
    (told,) = [n for n in notes() if "raised its objective" in n]
    looks = 2 * (len(attacked) - 1)
    assert told.startswith(
        f"ours, {texts[0]}: at {looks} looks the attack raised its objective from 0.5 to 2"
    )
    assert told.endswith("to 0.6; smallest gradient 0.12.")
    attacked[1].attack = AttackRecord(2, 0.5, 0.6, 2.0, 1, 0.0)
    assert [n for n in notes() if "smallest gradient 0. At 1 looks it did no more than they" in n]
    assert [n for n in notes() if n.startswith("Attacks (C6) change RGB alone. Depth, segmentation")]
    (left_out,) = [n for n in notes() if "left out" in n]
    assert left_out.startswith(f"vanilla is left out of {texts[0]}, {texts[1]}: no such attack is possible")
    figures = summarise(episode_table(kept, manifest), manifest).run
    assert figures.planned == figures.finished == len(kept)


@pytest.mark.parametrize(("states", "warned"), [(None, False), (10, False), (5, True)])
def test_more_episodes_than_initial_states_are_named_as_repeats(tmp_path, states, warned):
    summary = summary_of(tmp_path / "run", suites={"toy": suite(init_states=states)})
    notes, clean = summary.notes, summary.policies[0].clean
    assert (clean.n, clean.starts) == (20, 10 if warned else 20)
    assert any("smallest cell has n = 10 starts" in n for n in notes)
    assert (
        any("Up to 10 episodes per task of toy share 5 different initial states" in n for n in notes)
        == warned
    )


def test_the_smallest_cell_is_one_of_a_single_suite(tmp_path):
    notes = summary_of(tmp_path / "run", suites=("toy", "game"), texts=["C2:rgb=zero"]).notes
    (note,) = [n for n in notes if "smallest cell" in n]
    assert "n = 10 starts (of one policy, condition and suite)" in note
    assert "34 points on the same starts" in note
    assert "50 points against other ones (around 80 % success)" in note


def test_figures_over_all_suites_name_those_that_are_not_reportable(tmp_path, capsys):
    folder = synthetic_run(
        tmp_path / "run",
        suites=("easy", "hard"),
        texts=[f"C3:rgb=builtin_noise@{s}" for s in range(1, 6)],
        rate=lambda e: 0.0 if (e.policy, e.suite) == ("ours", "hard") else 0.95,
    )
    assert main([str(folder)]) == 0
    found = json.loads((folder / "results.json").read_text())["aggregates"]
    assert (found["ours"]["weak_suites"], found["vanilla"]["weak_suites"]) == (["hard"], [])
    page, text, terminal = (
        (folder / "report.html").read_text(),
        (folder / "report.md").read_text(),
        capsys.readouterr().out,
    )
    for told in (text, terminal):
        assert "ours (all suites, also hard, where its robustness is not reportable): severity area" in told
        assert "vanilla: severity area" in told
    assert "ours in easy: severity area" in text
    for told in (page, text, terminal):
        assert "Its figures over all suites include hard." in told
    assert page.count("ll suites, also hard, where its robustness is not reportable") == 2, (
        "on its card and in its row"
    )


def test_only_a_policy_with_a_marked_cell_is_said_to_be_not_told(tmp_path):
    """Standing still reads no announcement either, but no picture that could be announced as lost."""
    policies = {
        "zero": facts("zero", reads=[], mask_reaches_policy=False),
        "vanilla": facts("vanilla", mask_reaches_policy=False),
    }
    texts = ["C1:-rgb", "C2:rgb=zero"]
    folder = synthetic_run(tmp_path / "run", names=tuple(policies), texts=texts, policies=policies)
    manifest, rows = read_run(folder)
    table = episode_table(rows, manifest)
    for announced, named in ((["C1:depth+seg+thermal"], ["vanilla"]), ([], [])):
        summary = summarise(table, replace(manifest, conditions=["C0", *announced, "C2:rgb=zero"]))
        assert [n.split()[0] for n in summary.notes if "are announced as absent" in n] == named


@pytest.mark.parametrize(
    ("lowered", "reason"),
    [
        ({}, None),
        ({"episodes": 1}, "1 episodes per task of each fault (level standard: 10)"),
        ({"clean_episodes": 5}, "5 clean episodes per task (level standard: 10)"),
        ({"clean_repeats": 1}, "1 repetitions of the clean condition (level standard: 3)"),
        ({"conditions": ["C0", "C2:rgb=zero"]}, "conditions of level standard are missing"),
        ({"complete": False}, "not all tasks of toy"),
    ],
)
def test_what_may_be_quoted_depends_on_what_ran_not_on_the_levels_name(tmp_path, lowered, reason):
    """A run is called with ``--level=standard``, and perhaps with an option that lowers it."""
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"], episodes=1, clean_episodes=1)
    asked = [parse_condition(c).id for c in LEVELS["standard"].conditions]
    changes = {"clean_episodes": 10, "episodes": 10, "clean_repeats": 3, "conditions": asked, **lowered}
    suites = {"toy": suite(complete=changes.pop("complete", True))}
    write_manifest(folder, replace(read_manifest(folder), level="standard", suites=suites, **changes))
    assert main([str(folder)]) == 0
    for text in ((folder / "report.html").read_text(), (folder / "report.md").read_text()):
        assert ("may not be quoted" in text) == (reason is not None)
        assert (reason or "") in text


def test_a_run_notes_whether_it_had_all_tasks(tmp_path):
    run = RunFacts({"toy": SuiteFacts(type="toy", tasks={0: "a"}, max_steps=9)}, ["image"], {})

    def noted(ids, level="standard"):
        env = EnvironmentArguments("toy", "toy", ids)
        config = EvalConfig(["a=a"], env=env, level=level, output=tmp_path)
        return build_manifest(config, run, [], Counts(1, 1), [])

    assert not noted([0]).suites["toy"].complete
    assert not noted(None, "smoke").suites["toy"].complete, "its first task only"
    write_manifest(tmp_path, noted(None))
    assert noted([0]).suites["toy"].complete, "an earlier call had them all"


def test_provenance_of_policy_and_environment_stand_together(tmp_path):
    suites = {"toy": suite(provenance={"rgb": "sensor", "depth": "sensor", "seg": "sensor"})}
    policies = {"ours": facts("ours", provenance={"rgb": "sensor", "image2.depth": "derived"})}
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"], suites=suites, policies=policies)
    assert main([str(folder)]) == 0
    expected = "depth: sensor, seg: sensor, rgb: sensor, image2.depth: derived (environment: sensor)"
    for text in ((folder / "report.html").read_text(), (folder / "report.md").read_text()):
        assert expected in text
        assert "ours computes image2.depth from RGB: this is no sensor redundancy." in text
        assert "ours takes image2.depth for computed from RGB" in text


@pytest.mark.parametrize("moved", [0, 3])
def test_cells_that_do_not_start_alike_are_named_wherever_figures_are_read(tmp_path, capsys, moved):
    folder = synthetic_run(tmp_path / "run", texts=["C2:rgb=zero"])
    rows = read_run(folder)[1]
    for row in [r for r in rows if (r.policy, r.condition, r.task_id) == ("ours", "C0", 0)][:moved]:
        row.start = "somewhere else"
    write_rows(folder, rows)
    assert main([str(folder)]) == 0
    note = f"{moved} of 20 (task, episode) pairs do not start from the same simulator state in all cells"
    written = [(folder / name).read_text() for name in ("report.html", "report.md", "results.json")]
    for text in (capsys.readouterr().out, *written):
        assert (note in text) == bool(moved)


def test_starts_that_the_recorder_records_from_are_named(tmp_path):
    toy = suite(init_states=10, init_state_splits={"train": [0, 4], "eval": [5, 9]})
    notes = summary_of(tmp_path / "run", suites={"toy": toy}, texts=["C2:rgb=zero"]).notes
    assert any("of the split that multismolvla-record records from" in n for n in notes)


@pytest.mark.parametrize(
    ("assets", "words"),
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
def test_assets_are_named_by_hash(assets, words):
    notes = list(assets_notes({"libero_goal": suite(**assets)}))
    assert (words in notes[0]) if words else not notes
    assert not list(assets_notes({"toy": suite(**assets)}))

"""The demo: every chapter at every start, in order, until one fails; minutes of all the work."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from multismolvla_run import demo

NAMES = ["doctor", "record", "train", "eval", "report"]
REPO = Path(__file__).resolve().parents[2]
WRITE = "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + '\\n'); sys.exit(int(sys.argv[3]))"


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Run the demo with chapters that only leave a mark; their exit codes and marks can be given."""
    monkeypatch.chdir(REPO)
    diary = tmp_path / "diary.txt"

    def run(
        codes: dict[str, int] | None = None, marks: dict[str, str] | None = None
    ) -> tuple[int, list[str]]:
        def story(size, out, configs, workers):
            # exit codes are read from a file, so that a failing chapter keeps its command
            codes_file = str(tmp_path / "codes.json")
            code = (
                f"import json, sys; sys.argv[3:] = [json.load(open({codes_file!r}))[sys.argv[4]]]; " + WRITE
            )
            hints = {"eval": "delete it"}

            def command(name: str) -> tuple[str, ...]:
                return (sys.executable, "-c", code, str(diary), (marks or {}).get(name, name), "0", name)

            return [demo.Chapter(name, name, command(name), hints.get(name, "")) for name in NAMES]

        (tmp_path / "codes.json").write_text(json.dumps({n: (codes or {}).get(n, 0) for n in NAMES}))
        diary.write_text("")
        monkeypatch.setattr(demo, "story", story)
        code = demo.main(["--size=smoke", f"--output={tmp_path / 'out'}"])
        return code, diary.read_text().split()

    return run


def test_every_start_runs_every_chapter_in_order(play, capsys):
    # Only the chapters know whether their work is done: an edited preset leaves the command as it was.
    assert play() == (0, NAMES)
    assert "together" in capsys.readouterr().out
    assert play() == (0, NAMES)


def test_failed_chapter_ends_the_story_with_its_hint(play, capsys):
    assert play({"train": 1}) == (1, NAMES[:3])
    message = capsys.readouterr().err
    assert "Start the same command again" in message
    assert "delete it" not in message
    assert play({"eval": 2}) == (1, NAMES[:4])
    assert "delete it" in capsys.readouterr().err


def test_interrupted_chapter_ends_the_story(play, capsys):
    assert play({"eval": 130}) == (130, NAMES[:4])
    assert "Interrupted" in capsys.readouterr().err
    assert play() == (0, NAMES)


def test_unfit_machine_ends_the_story(play):
    assert play({"doctor": 1}) == (1, ["doctor"])


def test_damaged_record_starts_over(play, tmp_path):
    play()
    (tmp_path / "out/demo.json").write_text('{"half')
    assert play() == (0, NAMES)
    assert set(json.loads((tmp_path / "out/demo.json").read_text())) == set(NAMES)


@pytest.mark.parametrize(("code", "longer"), [(1, True), (0, False)])
def test_minutes_are_those_of_the_work(play, tmp_path, code, longer):
    play({"train": code})
    path = tmp_path / "out/demo.json"
    record = json.loads(path.read_text())
    record["train"]["seconds"] = 600.0
    path.write_text(json.dumps(record))
    play()  # an interrupted chapter goes on: its minutes add up; a finished one has nothing to do
    seconds = json.loads(path.read_text())["train"]["seconds"]
    assert seconds > 600 if longer else seconds == 600
    play(marks={"train": "other"})  # another command is other work
    assert json.loads(path.read_text())["train"]["seconds"] < 600


def test_outside_the_repository_it_says_where_to_start(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert demo.main([]) == 2
    assert "repository's root" in capsys.readouterr().err


@pytest.mark.parametrize("size", sorted(demo.SIZES))
def test_story_uses_the_presets_final_checkpoints(size, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(REPO)
    assert demo.main(["--dry-run", f"--size={size}", f"--output={tmp_path / 'out'}"]) == 0
    output = capsys.readouterr().out
    assert "train.py " + demo.SIZES[size].preset in output
    assert "smolvla=" in output
    assert "/pretrained_model" in output
    assert not (tmp_path / "out").exists()


def test_evaluation_of_changed_policies_names_the_folder_to_delete(tmp_path):
    chapters = {c.name: c for c in demo.story(demo.SIZES["smoke"], tmp_path / "out", REPO / "configs", 2)}
    assert f"delete {tmp_path / 'out/eval'} to evaluate the new policies" in chapters["eval"].hint

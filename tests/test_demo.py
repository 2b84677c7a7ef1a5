"""The demo: chapters in order, continued where interrupted, repeated where something before them changed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from multismolvla_run import demo

REPO = Path(__file__).resolve().parents[1]
WRITE = "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + '\\n'); sys.exit(int(sys.argv[3]))"


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Run the demo with chapters that only leave a mark; `codes` are their exit codes, `marks` what they write."""
    monkeypatch.chdir(REPO)
    diary = tmp_path / "diary.txt"

    def run(
        codes: dict[str, int] | None = None, marks: dict[str, str] | None = None
    ) -> tuple[int, list[str]]:
        def story(size, out, configs, workers):
            # exit codes are read from a file, so that a failing chapter keeps its command
            code = f"import json, sys; sys.argv[3:] = [json.load(open({str(tmp_path / 'codes.json')!r}))[sys.argv[4]]]; "
            return [
                demo.Chapter(
                    name, name, (sys.executable, "-c", code + WRITE, str(diary), (marks or {}).get(name, name), "0", name),
                    always=name == "doctor",
                )
                for name in ("doctor", "record", "train", "eval", "report")
            ]  # fmt: skip

        names = ("doctor", "record", "train", "eval", "report")
        (tmp_path / "codes.json").write_text(json.dumps({n: (codes or {}).get(n, 0) for n in names}))
        diary.write_text("")
        monkeypatch.setattr(demo, "story", story)
        code = demo.main(["--size", "smoke", "--output", str(tmp_path / "out")])
        return code, diary.read_text().split()

    return run


def test_chapters_run_once_in_order(play, capsys):
    assert play() == (0, ["doctor", "record", "train", "eval", "report"])
    output = capsys.readouterr().out
    assert "together" in output
    assert play() == (0, ["doctor"])


def test_failed_chapter_is_where_it_goes_on(play, capsys):
    assert play({"train": 1}) == (1, ["doctor", "record", "train"])
    assert "Start the same command again" in capsys.readouterr().err
    assert play() == (0, ["doctor", "train", "eval", "report"])


def test_interrupted_chapter_is_where_it_goes_on(play, capsys):
    assert play({"eval": 130}) == (130, ["doctor", "record", "train", "eval"])
    assert "Interrupted" in capsys.readouterr().err
    assert play() == (0, ["doctor", "eval", "report"])


def test_unfit_machine_ends_the_story(play):
    assert play({"doctor": 1}) == (1, ["doctor"])


def test_changed_chapter_takes_the_later_ones_along(play):
    play()
    assert play(marks={"train": "longer"}) == (0, ["doctor", "longer", "eval", "report"])


def test_damaged_record_starts_over(play, tmp_path):
    play()
    (tmp_path / "out/demo.json").write_text('{"half')
    assert play()[1] == ["doctor", "record", "train", "eval", "report"]


def test_minutes_of_an_interrupted_chapter_add_up(play, tmp_path):
    play({"train": 1})
    path = tmp_path / "out/demo.json"
    record = json.loads(path.read_text())
    record["train"]["seconds"] = 600.0
    path.write_text(json.dumps(record))
    play()
    assert json.loads(path.read_text())["train"]["seconds"] > 600


def test_outside_the_repository_it_says_where_to_start(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert demo.main([]) == 2
    assert "repository's root" in capsys.readouterr().err


@pytest.mark.parametrize("size", sorted(demo.SIZES))
def test_story_uses_the_presets_final_checkpoints(size, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(REPO)
    assert demo.main(["--dry-run", "--size", size, "--output", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "train.py " + demo.SIZES[size].preset in output
    assert "smolvla=" in output
    assert "/pretrained_model" in output
    assert not (tmp_path / "out").exists()

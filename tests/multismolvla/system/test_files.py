"""A file appears whole or not at all."""

import json
import os

import pytest

from multismolvla.system.files import whole_file, write_json


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "curve.png"
    target.write_text("old")
    with whole_file(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
        assert (partial.parent, partial.suffix, partial.name[0]) == (tmp_path, ".png", ".")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_new(tmp_path, error):
    target = tmp_path / "curve.png"
    target.write_text("old")

    def write_half() -> None:
        with whole_file(target) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_content_is_on_the_disk_before_its_name_and_then_the_name(tmp_path, monkeypatch):
    target = tmp_path / "run.json"
    target.write_text("old")
    synced, sync = [], os.fsync

    def note(descriptor):
        synced.append((os.fstat(descriptor).st_ino, target.read_text()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with whole_file(target) as partial:
        partial.write_text("new")
    assert synced == [(target.stat().st_ino, "old"), (tmp_path.stat().st_ino, "new")]


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, "ä"]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, "ä"]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"b": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, "ä"]}

"""What a run says of its source tree."""

from __future__ import annotations

import os
import subprocess

from multismolvla_eval.records import system_info


def test_the_commit_is_read_without_writing_to_the_repository(tmp_path, monkeypatch):
    """``git status`` would refresh the index under a lock, at which others who use the repository fail."""

    def git(*arguments):
        told = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *told, *arguments], check=True, capture_output=True)

    git("init", "-q")
    file, index = tmp_path / "module.py", tmp_path / ".git" / "index"
    file.write_text("x = 1")
    git("add", "module.py")
    git("commit", "-qm", "first")
    monkeypatch.setattr(system_info, "__file__", str(file))
    os.utime(file, (1, 1))  # the index remembers another time, which git status would correct
    before = index.read_bytes()
    commit = system_info.source_commit()
    assert commit is not None
    assert not commit.endswith("+changes")
    assert index.read_bytes() == before
    file.write_text("x = 2")
    assert system_info.source_commit() == f"{commit}+changes"

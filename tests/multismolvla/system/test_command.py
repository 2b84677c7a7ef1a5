"""What the commands share: options, named errors, Ctrl-C, progress."""

import logging
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from multismolvla.system.command import CommandError, entry_point, parse_options, show_progress


@dataclass
class Options:
    """Options of a command."""

    size: int = 4
    dry_run: bool = False
    domains: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"--size={self.size}: expected at least 1.")


class OwnError(CommandError):
    pass


def raising(error: BaseException):
    def main() -> int:
        raise error

    return main


def test_the_exit_code_is_that_of_main():
    @entry_point("tool")
    def main(code: int) -> int:
        """Entry point."""
        return code

    assert [main(0), main(code=3)] == [0, 3]
    assert main.__doc__ == "Entry point."


@pytest.mark.parametrize("error", [OwnError("do this"), ValueError("do this"), FileNotFoundError("do this")])
def test_named_errors_are_one_sentence(error, capsys):
    assert entry_point("tool")(raising(error))() == 1
    assert entry_point("error", failure=2)(raising(error))() == 2
    assert capsys.readouterr() == ("", "tool: do this\nerror: do this\n")


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        entry_point("tool")(raising(ZeroDivisionError()))()
    with pytest.raises(ValueError, match="not listed"):
        entry_point("tool", errors=(OwnError,))(raising(ValueError("not listed")))()


def test_control_c_tells_how_to_continue(capsys):
    assert entry_point("tool")(raising(KeyboardInterrupt()))() == 130
    assert entry_point("tool", interrupted="Nothing was left.")(raising(KeyboardInterrupt()))() == 130
    lines = ["tool: interrupted; the same command continues.", "Nothing was left."]
    assert capsys.readouterr() == ("", "\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], Options()),
        (["--dry-run"], Options(dry_run=True)),
        (["--dry_run", "--size", "3"], Options(size=3, dry_run=True)),
        (["--dry-run=false", "--note=--a-b"], Options(note="--a-b")),
        (["--dry-run", "false"], Options()),
        (["--note", "a-b", "--domains={seg: tok-seg@4}"], Options(note="a-b", domains={"seg": "tok-seg@4"})),
    ],
)
def test_names_take_dashes_and_switches_stand_alone(words, expected):
    assert parse_options(Options, words) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["first", "3"], Options(note="first", size=3)),
        (["first", "--size=5"], Options(note="first", size=5)),
        (["--dry-run", "true"], Options(dry_run=True)),
        ([], Options()),
    ],
)
def test_the_first_words_may_go_without_a_name(words, expected):
    assert parse_options(Options, words, positional=("note", "size")) == expected


@pytest.mark.parametrize("spelling", [["--config-path={}"], ["--config_path", "{}"]])
def test_what_is_wrong_with_a_file_of_options_names_the_file(tmp_path, spelling):
    file = tmp_path / "options.yaml"
    words = [word.format(file) for word in spelling]
    with pytest.raises(ValueError, match=f"^--config_path={file}: "):
        parse_options(Options, words)
    file.write_text("size: 3")
    assert parse_options(Options, words) == Options(size=3)
    file.write_text("sise: 3")
    with pytest.raises(ValueError, match=f"{file}.*`sise`.*--help"):
        parse_options(Options, words)


def test_the_process_s_own_arguments_are_the_default(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tool", "--size=7"])
    assert parse_options(Options) == Options(size=7)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--size=0", "^--size=0: expected at least 1"),  # as the dataclass says it
        ("--size=many", "`size`.*'many'"),
        ("--domains={depth", "cannot be read"),
    ],
)
def test_refused_values_are_named(word, message):
    with pytest.raises(ValueError, match=message):
        parse_options(Options, [word])


def test_an_unknown_option_ends_with_the_usage(capsys):
    with pytest.raises(SystemExit) as end:
        parse_options(Options, ["--sise=3"])
    assert end.value.code == 2
    assert "--sise=3" in capsys.readouterr().err


def test_progress_is_that_of_the_named_packages(capsys):
    logging.getLogger().handlers.clear()  # those of pytest, which show_progress would close
    names = ("__main__", "ours", "theirs")
    show_progress("ours")
    for name in names:
        logging.getLogger(name).info("%s goes on", name)
        logging.getLogger(name).warning("%s is unwell", name)
    lines = ["__main__ goes on", "__main__ is unwell", "ours goes on", "ours is unwell", "theirs is unwell"]
    assert capsys.readouterr().err.splitlines() == lines


def test_nothing_heavy_is_imported():
    heavy = {"torch", "draccus", "lerobot", "numpy"}
    code = f"import sys, multismolvla.system.command; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

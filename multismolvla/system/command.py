"""What the ``main()`` of every command does around its work: options, named errors, Ctrl-C, progress.

Imports nothing heavy, so that ``--help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence

#: What a command says after Ctrl-C that keeps nothing half-done.
AGAIN = "Interrupted. The same command begins anew."


class CommandError(RuntimeError):
    """A command cannot begin, go on or finish; the message says what to do."""


def entry_point[**P](
    name: str,
    *,
    errors: tuple[type[Exception], ...] = (CommandError, ValueError, OSError),
    failure: int = 1,
    interrupted: str | None = None,
    loads: str = "",
) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Decorator of a ``main()``: named errors and Ctrl-C become a sentence on stderr and an exit code.

    Args:
        name: what messages begin with.
        errors: exceptions whose message is for the user; all others are bugs and keep their traceback.
        failure: exit code after one of them; 130 after Ctrl-C.
        interrupted: what is said after Ctrl-C; by default that the same command continues.
        loads: package that takes seconds to import, announced so that the terminal does not stay silent.

    Returns:
        What makes of ``main`` a function that returns the exit code in every one of these cases.
    """

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(main)
        def answer(*args: P.args, **kwargs: P.kwargs) -> int:
            # lerobot 0.6.1 tries torchcodec whenever it opens a dataset. Without FFmpeg's libraries it takes
            # PyAV and warns with 120 lines of tracebacks; multismolvla-doctor says it in one.
            logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)
            first = os.environ.get("RANK", "0") == "0"  # of a launcher's processes one speaks
            if first and loads and loads not in sys.modules and not {"-h", "--help"} & {*sys.argv}:
                sys.stderr.write(f"Loading {loads} ...\n")
            try:
                return main(*args, **kwargs)
            except errors as error:
                sys.stderr.write(f"{name}: {error}\n")
                return failure
            except KeyboardInterrupt:
                sys.stderr.write(f"{interrupted or f'{name}: interrupted; the same command continues.'}\n")
                return 130

        return answer

    return decorate


def parse_options[T](
    options: type[T], arguments: Sequence[str] | None = None, positional: Sequence[str] = ()
) -> T:
    """Options of a command from its arguments.

    Beside what draccus 0.11 understands, dashes may stand in names, a switch may stand alone (``--dry-run``),
    and the first words may go without a name.

    Args:
        options: dataclass whose fields are the options.
        arguments: default: those of the process.
        positional: options whose values may be the first words, in this order.

    Raises:
        ValueError: a value is not of the option's type, or refused by the dataclass; the message names the
            option.
        SystemExit: ``--help``, or an option that does not exist.
    """
    import draccus
    import yaml

    words = list(sys.argv[1:] if arguments is None else arguments)
    for place, option in enumerate(positional[: len(words)]):
        if words[place].startswith("-"):
            break
        words[place] = f"--{option}={words[place]}"
    fields = dataclasses.fields(options)  # type: ignore[arg-type]
    switches = {field.name for field in fields if field.type in (bool, "bool")}
    words = _spelled(words, switches)
    file = _config_file(words)
    if file and not os.path.isfile(file):
        raise ValueError(f"--config_path={file}: there is no such file.")
    try:
        return draccus.parse(options, args=words)
    except (draccus.utils.DraccusException, yaml.YAMLError) as error:
        # draccus wraps what a dataclass refuses in a sentence that does not say what was wrong.
        if isinstance(error.__cause__, ValueError) and not isinstance(error, draccus.utils.DecodingError):
            raise error.__cause__ from None
        where = f"The options in {file} and on the command line" if file else "The options"
        raise ValueError(f"{where} cannot be read: {error}. --help lists the options.") from error


def _config_file(words: Sequence[str]) -> str | None:
    """The file that ``--config_path=FILE`` or ``--config_path FILE`` names."""
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name == "--config_path":
            return value if equals else following
    return None


def _spelled(words: Sequence[str], switches: set[str]) -> list[str]:
    """The words with underscores in options' names, and a value after each switch that stands alone."""
    found = []
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
            if name[2:] in switches and not equals and following.startswith("-"):
                equals, value = "=", "true"
        found.append(name + equals + value)
    return found


def show_progress(*packages: str) -> None:
    """Print what these packages and the started module log at level INFO; of all others only warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    for package in ("__main__", *packages):
        logging.getLogger(package).setLevel(logging.INFO)

"""Child processes: they do not outlive us, their whole output is logged, their progress is shown.

``lerobot-train`` runs unpatched: its progress is read from what it prints. The terminal sees a bar and, after
a failure, the end of the log.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout
from tqdm import tqdm

from multismolvla.system.command import CommandError

_BAR = re.compile(r"(\d+)/(\d+) \[")
_METRIC = re.compile(r"\b(loss|lr|grdn|[a-z_]+_loss):\s*([-+\d.e]+)")
_PR_SET_PDEATHSIG = 1
#: Seconds between two lines of progress in a log.
_LOG_INTERVAL = 15


class ChildFailedError(CommandError):
    """A child process ended with an error."""


class BusyError(CommandError):
    """Another process works in the same folder."""


class Progress:
    """Shows the state of a ``lerobot-train`` process: a bar on a terminal, a line now and then in a log."""

    def __init__(self, name: str, total: int, step: int = 0) -> None:
        terminal = sys.stderr.isatty()
        self._total = total
        self._bar = tqdm(
            total=total,
            initial=step,
            desc=name,
            unit="step",
            file=sys.stderr if terminal else _Lines(),
            mininterval=0.1 if terminal else _LOG_INTERVAL,
            bar_format=None
            if terminal
            else "{desc}: step {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left{postfix}",
        )

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self._bar.n)

    def feed(self, line: str) -> None:
        """Take note of one line of ``lerobot-train``'s output: its own bar, metrics, or both in one line."""
        if "loss:" in line:
            self._bar.set_postfix(dict(_METRIC.findall(line)), refresh=False)
        bar = _BAR.search(line)
        if bar and line.startswith("Training"):
            # After a resume lerobot 0.6.1 counts the remaining steps only.
            step = self._total - int(bar.group(2)) + int(bar.group(1))
            if step > self.step:
                self._bar.update(step - self.step)

    def close(self) -> None:
        """Leave the bar on the screen."""
        self._bar.close()


class _Lines:
    """Takes what tqdm draws and writes each state as a line of its own."""

    def write(self, text: str) -> None:
        if state := text.strip("\r\n "):
            sys.stderr.write(state + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def die_with_parent() -> None:
    """Ask Linux to end this process with its parent, so that a killed driver leaves no trainer."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder, which is created if absent, for this process; the system releases it even after a kill.

    Raises:
        BusyError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock").acquire(timeout=0):
            yield
    except Timeout:
        raise BusyError(
            f"{folder} is in use by another process. Wait for it, stop it, or choose another --output."
        ) from None


def show_command(command: list[str], env: Mapping[str, str] | None = None) -> str:
    """A command as one can paste it in the working directory, one option per line."""
    here = f"{Path.cwd()}{os.sep}"
    words = [shlex.quote(word.removeprefix(here)) for word in command]
    options = next((i for i, word in enumerate(command) if word.startswith("--")), len(words))
    settings = [f"{name}={shlex.quote(value)}" for name, value in (env or {}).items()]
    return " \\\n    ".join([" ".join([*settings, *words[:options]]), *words[options:]])


def installed_program(name: str) -> str:
    """Path of a program of this Python's environment; its name where it is elsewhere."""
    installed = Path(sys.executable).with_name(name)
    return str(installed) if installed.exists() else name


def child_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The present environment with ``env`` on top; in a log, bars are drawn now and then only."""
    quiet = {} if sys.stderr.isatty() else {"TQDM_MININTERVAL": str(_LOG_INTERVAL)}
    return {**quiet, **os.environ, "PYTHONUNBUFFERED": "1", **env}


def run_logged(
    command: list[str], log: Path, env: Mapping[str, str] | None = None, progress: Progress | None = None
) -> None:
    """Run a child, write all it prints into ``log``, and show progress or the output itself.

    Args:
        command: program and arguments.
        log: file to append to; its folder is created.
        env: environment variables to set on top of the present ones.
        progress: of a ``lerobot-train`` child; without it the output passes through to stderr.

    Raises:
        ChildFailedError: the child ended with an error; the message ends with its last lines.
        KeyboardInterrupt: after the child has been ended.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # The progress is read from lerobot-train's own bar, so that one must be drawn often.
    often = {"TQDM_MININTERVAL": "1"} if progress is not None else {}
    tail: deque[str] = deque(maxlen=25)
    with log.open("ab") as log_file:
        log_file.write(f"\n$ {show_command(command, env)}\n".encode())
        with subprocess.Popen(
            command,
            env=child_environment({**often, **(env or {})}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        ) as child:
            try:
                assert child.stdout is not None
                for line in _lines(child.stdout, log_file, echo=progress is None):
                    if progress is not None:
                        progress.feed(line)
                    if not _BAR.search(line):
                        tail.append(line)
                code = child.wait()
            except BaseException:
                stop(child)
                raise
            finally:
                if progress is not None:
                    progress.close()
    if code != 0:
        end = "\n".join(f"    {line}" for line in tail if line.strip())
        raise ChildFailedError(
            f"{Path(command[0]).name} ended with code {code}. Its last lines ({log}):\n{end}"
        )


def _lines(stream: IO[bytes], log_file: IO[bytes], echo: bool) -> Iterator[str]:
    """Lines of a stream, which a carriage return ends too; copied to the log, and to stderr if wanted."""
    pending = b""
    while chunk := os.read(stream.fileno(), 65536):
        log_file.write(chunk)
        log_file.flush()
        if echo:
            sys.stderr.write(chunk.decode(errors="replace"))
            sys.stderr.flush()
        *complete, pending = re.split(rb"[\r\n]", pending + chunk)
        for line in complete:
            yield line.decode(errors="replace")
    if pending:
        yield pending.decode(errors="replace")


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a child: it usually got the terminal's Ctrl-C too, so wait a little, then terminate, then kill."""
    for ask, patience_s in ((lambda: None, 2.0), (child.terminate, 10.0), (child.kill, 10.0)):
        ask()
        try:
            child.wait(timeout=patience_s)
            return
        except subprocess.TimeoutExpired:
            continue


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that the child is ended and the state written in both cases."""

    def raise_interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, raise_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)

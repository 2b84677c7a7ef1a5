"""Child processes: started so that they cannot outlive us, logged in full, shown as a progress bar.

``lerobot-train`` runs unpatched: its progress is read from what it prints. The whole output goes into a log file, of
which the terminal sees a bar, the warnings, and, after a failure, the end.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

_BAR = re.compile(r"(\d+)/(\d+) \[")
_METRIC = re.compile(r"\b(loss|lr|updt_s|grdn|[a-z_]+_loss):\s*([-+\d.e]+)")
_PR_SET_PDEATHSIG = 1


class ChildFailedError(RuntimeError):
    """A child process ended with an error."""


class BusyError(RuntimeError):
    """Another process works in the same folder."""


@dataclass
class Progress:
    """Draws the state of a training stage: a bar on a terminal, a line now and then in a log.

    Attributes:
        name: label of the stage.
        total: number of steps.
        step: steps done.
    """

    name: str
    total: int
    step: int = 0

    def __post_init__(self) -> None:
        self.metrics: dict[str, str] = {}
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(total=self.total, desc=self.name, unit="step", disable=not self._terminal)
        self._started = self._said = time.monotonic()
        self._first: int | None = None

    def feed(self, line: str) -> None:
        """Take note of one line of ``lerobot-train``'s output (its own bar, or a line of metrics)."""
        bar = _BAR.search(line)
        if bar and line.startswith("Training"):
            # After a resume lerobot 0.6.1 counts the remaining steps only.
            self.update(self.total - int(bar.group(2)) + int(bar.group(1)))
        elif "loss:" in line:
            self.metrics.update(_METRIC.findall(line))
            self._bar.set_postfix(self.metrics, refresh=False)

    def update(self, step: int) -> None:
        """Move to ``step`` and draw, if it is time to."""
        if self._first is not None and step == self.step:
            return
        if self._first is None:
            self._first, self._started = step, time.monotonic()
            self._bar.initial = step
        self.step = step
        self._bar.n = step
        self._bar.refresh()
        now = time.monotonic()
        if not self._terminal and (now - self._said > 15 or step >= self.total):
            self._said = now
            sys.stderr.write(self.line() + "\n")
            sys.stderr.flush()

    def line(self) -> str:
        """The state in words."""
        done = self.step - (self._first or 0)
        per_step = (time.monotonic() - self._started) / done if done else 0.0
        left = (
            f", {per_step:.2f} s/step, {per_step * (self.total - self.step) / 60:.1f} min left"
            if done
            else ""
        )
        metrics = "".join(f", {name} {value}" for name, value in self.metrics.items() if name != "updt_s")
        return f"{self.name}: step {self.step}/{self.total}{metrics}{left}"

    def close(self) -> None:
        """Leave the bar on the screen."""
        self._bar.close()


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent dies, so that a killed driver leaves no trainer behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process; released by the system even after a kill.

    Args:
        folder: created if absent.

    Raises:
        BusyError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise BusyError(
                f"{folder} is in use by process {holder}. Wait for it, stop it, or choose another --output."
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def show_command(command: list[str], env: Mapping[str, str] | None = None) -> str:
    """A command as one can paste it in the working directory, one option per line."""
    here = f"{Path.cwd()}{os.sep}"
    command = [word.removeprefix(here) for word in command]
    head = [f"{k}={shlex.quote(v)}" for k, v in (env or {}).items()]
    words = [shlex.quote(word) for word in command]
    options = next((i for i, word in enumerate(command) if word.startswith("--")), len(words))
    lines = [" ".join([*head, *words[:options]])]
    return " \\\n    ".join([*lines, *words[options:]])


def run_logged(
    command: list[str], log: Path, env: Mapping[str, str] | None = None, progress: Progress | None = None
) -> None:
    """Run a child, write all it prints into ``log``, and show progress or the output itself.

    Args:
        command: program and arguments.
        log: file to append to; its folder is created.
        env: environment variables to set on top of the present ones.
        progress: shows the state of a ``lerobot-train`` child; without it the output passes through to stderr.

    Raises:
        ChildFailedError: the child ended with an error; the message ends with its last lines.
        KeyboardInterrupt: after the child has been ended.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    full_env = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
    if progress is None and not sys.stderr.isatty():
        full_env.setdefault("TQDM_MININTERVAL", "15")
    tail: deque[str] = deque(maxlen=25)
    with log.open("ab") as log_file:
        log_file.write(f"\n$ {show_command(command, env)}\n".encode())
        with subprocess.Popen(
            command,
            env=full_env,
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
    """Lines of a stream, where a carriage return ends one too; copied to the log and, if wanted, to stderr."""
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
    """End a child: it has usually got the terminal's Ctrl-C as well, so wait a little, then terminate, then kill."""
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

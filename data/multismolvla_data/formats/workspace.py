"""How every command makes a data set: in a hidden folder; it appears under ``--output`` when whole.

What stops a command loses nothing that was finished: the same command continues in that folder. A command
with other options is refused: the folder keeps what decides the content, the command's *identity*.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from multismolvla.system.command import CommandError
from multismolvla.system.files import write_json
from multismolvla_data.formats.metadata import METADATA_FILE, JsonObject, read_metadata

logger = logging.getLogger(__name__)


class WorkspaceError(CommandError):
    """A data set cannot be begun, continued or finished; the message says what to do."""


@dataclass(frozen=True)
class Workspace:
    """The folder in which a command makes a data set."""

    command: str  # its name, under which the data set's metadata keep the identity
    output: Path  # where the data set appears
    identity: JsonObject  # what decides its content

    @property
    def root(self) -> Path:
        """The folder itself."""
        return self.output.parent / f".{self.output.name}.unfinished"

    @property
    def episodes(self) -> Path:
        """For files or folders of finished episodes."""
        return self.root / "episodes"

    @property
    def dataset(self) -> Path:
        """Where the data set is assembled."""
        return self.root / "dataset"

    def is_published(self) -> bool:
        """Whether the output is this very data set, whole.

        Raises:
            WorkspaceError: anything else is there.
        """
        if not occupied(self.output):
            return False
        remedy = "Choose another --output, or delete that folder."
        if not (self.output / METADATA_FILE).is_file():
            raise WorkspaceError(f"{self.output} exists and has no {METADATA_FILE}. {remedy}")
        known = read_metadata(self.output).identities.get(self.command)
        if known is None:
            raise WorkspaceError(f"{self.output} is a data set that {self.command} did not make. {remedy}")
        if known != self.identity:
            difference = first_difference(known, self.identity)
            raise WorkspaceError(f"{self.output} was made with another {difference}. {remedy}")
        shutil.rmtree(self.root, ignore_errors=True)
        return True

    def open(self) -> None:
        """Begin, or continue what was begun; with another identity it is refused."""
        self.episodes.mkdir(parents=True, exist_ok=True)
        begun = self.root / "identity.json"
        with FileLock(self.root / "begin.lock"):  # several processes may begin at once
            if begun.is_file():
                logger.info("Continuing in %s.", self.root)
            else:
                write_json(begun, self.identity)
        known = json.loads(begun.read_text())
        if known != self.identity:
            difference = first_difference(known, self.identity)
            raise WorkspaceError(
                f"{self.root} holds unfinished work with another {difference}. Repeat the command that began "
                "it, or delete that folder."
            )

    @contextlib.contextmanager
    def claim(self, role: str = "maker") -> Iterator[None]:
        """Hold a role that only one process may have; where another has it, that is an error."""
        self.root.mkdir(parents=True, exist_ok=True)  # a process that published meanwhile has removed it
        lock = FileLock(self.root / f"{role}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise WorkspaceError(f"Another process is {role} of {self.root}. Wait for it.") from None
        try:
            yield
        finally:
            lock.release()

    def sweep(self, leftovers: str = ".*") -> None:
        """Remove what a killed process left half-written among the episodes; a claim must be held."""
        for partial in self.episodes.glob(leftovers):
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink()

    def publish(self) -> None:
        """Move the whole data set into place in one step, then drop this folder."""
        with contextlib.suppress(FileNotFoundError):
            self.output.rmdir()
        os.replace(self.dataset, self.output)
        shutil.rmtree(self.root, ignore_errors=True)
        logger.info("Data set: %s", self.output)


def make(workspace: Workspace, build: Callable[[], None]) -> Path:
    """Make a data set, continue to make it, or find it made; returns its folder.

    ``build`` makes it at ``workspace.dataset``, its metadata included.
    """
    if workspace.is_published():
        logger.info("%s is complete already; nothing to do.", workspace.output)
        return workspace.output
    with naming_full_disk():
        workspace.open()
        with workspace.claim():
            workspace.sweep()
            build()
            workspace.publish()
    return workspace.output


@contextlib.contextmanager
def naming_full_disk() -> Iterator[None]:
    """Turn every error that a full disk or quota causes into a `WorkspaceError` that says so."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (CommandError, OSError, DatasetsError) as error:
        if not is_disk_full(error):
            raise
        raise WorkspaceError(
            f"the disk is full ({error}). What is finished is kept; free some space and repeat the same "
            "command."
        ) from error


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it (`datasets` wraps it), is a full disk or quota."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    while error is not None:
        if isinstance(error, OSError) and (error.errno in full or "Not enough disk space" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def occupied(output: Path) -> bool:
    """Whether there is something at a place; an empty folder made beforehand does not count."""
    return output.exists() and (not output.is_dir() or any(output.iterdir()))


def first_difference(known: object, wanted: object) -> str:
    """Name and values of the first entry in which two identities differ."""
    if isinstance(known, dict) and isinstance(wanted, dict):
        for name in (*wanted, *known):
            if known.get(name) != wanted.get(name):
                inner = first_difference(known.get(name), wanted.get(name))
                return f"{name} {inner}" if inner.startswith("(") else f"{name}.{inner}"
    return f"({known!r}, asked for: {wanted!r})"

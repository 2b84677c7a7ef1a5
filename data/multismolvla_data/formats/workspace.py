"""Where a data set is made, so that it appears under ``--output`` only when whole, and what killed its making loses nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

from multismolvla.system.command import CommandError
from multismolvla.system.files import write_json

logger = logging.getLogger(__name__)

#: Our own metadata, beside LeRobot's; LeRobot 0.6.1 drops unknown fields of info.json.
METADATA_FILE = "meta/multismolvla.json"


class Production(Protocol):
    """Options of a command that makes a data set under ``output`` and can continue: recorder or replay."""

    output: Path

    def fingerprint(self) -> dict[str, Any]:
        """What decides the content of the data set, as JSON."""


class RecordingError(CommandError):
    """The recording cannot be started, continued or finished; the message says what to do."""


def _workspace(config: Production) -> Path:
    return config.output.parent / f".{config.output.name}.recording"


def finished(config: Production) -> bool:
    """Whether the output is this very recording, whole.

    Raises:
        RecordingError: anything else is there.
    """
    metadata = config.output / METADATA_FILE
    if metadata.is_file():
        known = json.loads(metadata.read_text()).get("recording")
        if known == config.fingerprint():
            return True
        raise RecordingError(
            f"{config.output} was recorded with other settings: {known}; asked for: {config.fingerprint()}. "
            "Choose another --output or delete that folder."
        )
    if occupied(config.output):
        raise RecordingError(
            f"{config.output} exists and is not a data set written by this command (no {METADATA_FILE}): "
            "a foreign or half-written data set. Choose another --output or delete that folder."
        )
    return False


def open_workspace(config: Production) -> Path:
    """Begin the recording's folder, or continue in it.

    Returns:
        The folder: ``episodes`` for the files of finished ones, ``dataset`` for what is assembled of them.

    Raises:
        RecordingError: a recording with other settings was begun there.
    """
    workspace = _workspace(config)
    begun = workspace / "recording.json"
    if begun.is_file():
        known = json.loads(begun.read_text())
        if known != config.fingerprint():
            raise RecordingError(
                f"{workspace} holds an unfinished recording with other settings: {known}; asked for: "
                f"{config.fingerprint()}. Repeat the command that began it, or delete that folder."
            )
        logger.info("Continuing the recording in %s.", workspace)
    elif workspace.exists():
        shutil.rmtree(workspace)  # killed before its first line was written
    (workspace / "episodes").mkdir(parents=True, exist_ok=True)
    for partial in (workspace / "episodes").glob(".*.npz"):
        partial.unlink()
    if not begun.is_file():
        write_json(begun, config.fingerprint())
    return workspace


def publish(config: Production, workspace: Path) -> None:
    """Move the whole data set into place in one step, then drop the workspace."""
    move_into_place(workspace / "dataset", config.output)
    shutil.rmtree(workspace)
    logger.info("Data set: %s (first pictures: %s)", config.output, config.output / "preview.png")


def occupied(output: Path) -> bool:
    """Whether there is something at a place; an empty folder made beforehand does not count."""
    return output.exists() and (not output.is_dir() or any(output.iterdir()))


def move_into_place(folder: Path, output: Path) -> None:
    """Give a whole folder its place in one step; ``output`` must not be `occupied`."""
    with contextlib.suppress(FileNotFoundError):
        output.rmdir()
    os.replace(folder, output)

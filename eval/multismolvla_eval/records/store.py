"""Results on disk: a manifest and append-only files with one line per episode.

A line is written with one call and synced, so a killed run can leave at most one half-written last line,
which the next run cuts off. Everything else that is not as expected (a foreign row, a broken line in the
middle, an episode twice) is named and refused: a number computed from a doubtful file is worse than none.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from multismolvla.system.files import write_json
from multismolvla_eval.records.schema import SCHEMA, Comparable, EpisodeRow, RunManifest

logger = logging.getLogger(__name__)

MANIFEST = "run.json"
SHARD_PATTERN = "episodes-*.jsonl"

_ROW = msgspec.json.Decoder(EpisodeRow)
#: What msgspec says of a file that is damaged; deep nesting ends in Python's own error.
_DAMAGED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class ResultsError(ValueError):
    """A result file that must not be used: corrupt, foreign or contradictory."""


def comparable_hash(parts: Comparable | Mapping[str, object]) -> str:
    """Short stable hash of what makes episodes comparable (environment, seed, definitions).

    Conditions, number of episodes, workers and further policies may change between two calls of the same run;
    what is hashed here may not.
    """
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:12]


@contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; the kernel releases it with the process, also after kill -9.

    Raises:
        ResultsError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ResultsError(
            f"{path} is locked: another multismolvla-eval writes the same shard. Wait for it, or give this "
            "one its own --shard=i/n or --output."
        ) from None
    try:
        yield
    finally:
        lock.release()


def read_struct[T](path: Path, kind: type[T], remedy: str) -> T:
    """A JSON file as an object of one of our types.

    Args:
        path: of the file.
        kind: declared with msgspec.
        remedy: what to do about a damaged file, a sentence.

    Raises:
        ResultsError: no such file, no valid JSON, or a field that is missing, unknown or wrong.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise ResultsError(f"There is no {path}. {remedy}") from None
    except _DAMAGED as error:
        raise ResultsError(f"{path} cannot be read: {error}. {remedy}") from error


class _Version(msgspec.Struct):
    """As much of a manifest as every version of the format has."""

    schema: int | None = None


def read_manifest(folder: Path) -> RunManifest:
    """The manifest of a run.

    Raises:
        ResultsError: missing, unreadable, or of another version of this format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ResultsError(f"{folder} holds no {MANIFEST}: not an output folder of multismolvla-eval.")
    remedy = "The results beside it cannot be read without it: restore it, or choose another --output."
    found = read_struct(path, _Version, remedy).schema
    if found != SCHEMA:
        raise ResultsError(
            f"{path} has the format version {found!r}, expected {SCHEMA}. Use the version of this package "
            "that wrote it, or another --output."
        )
    return read_struct(path, RunManifest, remedy)


def write_manifest(folder: Path, manifest: RunManifest) -> None:
    """Write the manifest of a run, whole or not at all."""
    write_json(folder / MANIFEST, msgspec.to_builtins(manifest))


class ShardWriter:
    """Appends rows to one file, durably.

    Attributes:
        path: the file.
        repaired: bytes of a half-written last line that were cut off when the file was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.repaired = _cut_half_line(path)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, row: EpisodeRow) -> None:
        """Write one row and wait until it is on the disk.

        Raises:
            msgspec.ValidationError: the row could not be read again, e.g. because of a number that is NaN.
            OSError: the disk is full or gone; a partial line is cut off again first.
        """
        data = msgspec.json.encode(row) + b"\n"
        _ROW.decode(data)
        before = os.fstat(self._descriptor).st_size
        written = os.write(self._descriptor, data)
        if written != len(data):
            os.ftruncate(self._descriptor, before)
            raise OSError(
                f"Only {written} of {len(data)} bytes fitted into {self.path}. Free disk space, run again."
            )
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; rows are on the disk already."""
        os.close(self._descriptor)


def _cut_half_line(path: Path) -> int:
    if not path.exists():
        return 0
    data = path.read_bytes()
    keep = data.rfind(b"\n") + 1
    lost = len(data) - keep
    if lost:
        os.truncate(path, keep)
        logger.warning("Cut a half-written line (%d bytes) off %s: that episode runs again.", lost, path)
    return lost


def read_run(folder: Path) -> tuple[RunManifest, list[EpisodeRow]]:
    """Manifest and rows of a run, checked against each other.

    Raises:
        ResultsError: names file and line of the first thing that is wrong.
    """
    manifest = read_manifest(folder)
    return manifest, list(iterate_rows(folder, manifest))


def iterate_rows(folder: Path, manifest: RunManifest) -> Iterator[EpisodeRow]:
    """The rows of a run, from all its shards, one after the other: those of a large run fill the memory.

    Args:
        folder: output folder.
        manifest: of the run; rows of another run, policy, checkpoint, suite or version of it, task, condition
            or episode are foreign.

    Raises:
        ResultsError: names file and line of the first thing that is wrong.
    """
    seen: dict[str, tuple[str, int]] = {}
    for path in sorted(folder.glob(SHARD_PATTERN)):
        for number, row in _read_shard(path):
            if problem := _stranger(row, manifest):
                raise ResultsError(
                    f"{path.name}:{number} {problem}. A row of another run must not be averaged in: move the "
                    "file to its own folder, or continue the run with the options that made the row."
                )
            first = seen.setdefault(row.key, (path.name, number))
            if first != (path.name, number):
                raise ResultsError(
                    f"{path.name}:{number} repeats the episode {row.key!r} of {first[0]}:{first[1]}. Two "
                    f"runs have written into {folder}: keep one of the files."
                )
            yield row


def _read_shard(path: Path) -> Iterator[tuple[int, EpisodeRow]]:
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.endswith(b"\n"):
                logger.warning(
                    "%s ends with a half-written line, which multismolvla-eval will cut off.", path
                )
                return
            try:
                row = _ROW.decode(line)
            except _DAMAGED as error:
                raise ResultsError(
                    f"{path.name}:{number} is no row: {error}. The file was damaged after it was written: "
                    "restore it, or delete the line and run the evaluation again to repeat the episode."
                ) from error
            yield number, row


def _stranger(row: EpisodeRow, manifest: RunManifest) -> str:
    """Why no call of this run has made a row; empty if one may have."""
    if row.run != manifest.fingerprint:
        return f"is of run {row.run!r}, not {manifest.fingerprint!r}: environment, seed or definitions differ"
    policy, suite = manifest.policies.get(row.policy), manifest.suites.get(row.suite)
    if policy is None or policy.checkpoint != row.checkpoint:
        return f"is of policy {row.policy!r} with checkpoint {row.checkpoint}, unknown to the manifest"
    if suite is None:
        return f"is of the suite {row.suite!r}, the manifest knows {sorted(manifest.suites)}"
    if row.suite_hash != suite.suite_hash:
        return (
            f"was made in another version of the suite {row.suite!r} ({row.suite_hash!r}, not "
            f"{suite.suite_hash!r}): assets, step limit, initial states or rendering differ"
        )
    clean = row.condition == "C0"
    episodes = manifest.clean_episodes if clean else manifest.episodes
    repeats = manifest.clean_repeats if clean else 1
    if row.task_id not in suite.tasks:
        return f"has the task_id {row.task_id}, the manifest plans {sorted(suite.tasks)}"
    if row.condition not in manifest.conditions:
        return f"has the condition {row.condition!r}, which the manifest does not plan"
    if row.episode >= episodes:
        return f"has the episode {row.episode}, the manifest plans 0 to {episodes - 1} ({row.condition})"
    if row.repeat >= repeats:
        return f"has the repeat {row.repeat}, the manifest plans 0 to {repeats - 1} ({row.condition})"
    return ""


def completed(rows: Iterable[EpisodeRow]) -> set[str]:
    """Keys of the episodes that need not run again."""
    return {row.key for row in rows}

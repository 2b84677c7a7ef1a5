"""Results on disk: a manifest and append-only files with one line per episode.

A line is written with one call and synced, so a killed run can leave at most one half-written last line, which the next
run cuts off. Everything else that is not as expected (a foreign row, a broken line in the middle, an episode twice) is
named and refused: a number computed from a doubtful file is worse than none.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multismolvla_eval.protocol.schedule import KEY
from multismolvla_eval.records import fields
from multismolvla_eval.records.fields import optional

logger = logging.getLogger(__name__)

#: 2: several suites per run, repetitions of C0 (`seed`), hash of the executed actions. 3: `start` covers the fixtures' places,
#: the expert's `checkpoint` its code.
SCHEMA = 3
MANIFEST = "run.json"
SHARD_PATTERN = "episodes-*.jsonl"
#: What every row holds. Batches, crashes and environments that tell less leave some of it out.
_ROW = fields.record(
    {
        **dict.fromkeys(("run", "policy", "checkpoint", "suite", "condition"), fields.text),
        **dict.fromkeys(("task_id", "episode", "seed", "init_state", "steps"), fields.count),
        "success": fields.flag,
        **dict.fromkeys(("world", "cause", "start", "time"), optional(fields.text)),
        **dict.fromkeys(("steps_to_success", "fault_steps", "fault_looks"), optional(fields.count)),
        **dict.fromkeys(("door", "encoder"), optional(fields.texts)),
        **dict.fromkeys(("seconds", "gripper"), optional(fields.each(optional(fields.number)))),
        "peak_memory_mb": optional(fields.number),
        "gate": optional(fields.each(fields.share)),
        "clip": optional(fields.clip),
    }
)

#: What to do about a line that no evaluation writes.
_REPEAT = (
    "The file was damaged after it was written: restore it, or delete the line and run the evaluation again to repeat the "
    "episode."
)

Row = dict[str, Any]


class ResultsError(ValueError):
    """A result file that must not be used: corrupt, foreign or contradictory."""


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Short stable hash of what makes episodes comparable (environment, seed, definitions).

    Conditions, number of episodes, workers and further policies may change between two calls of the same run; what is
    hashed here may not.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def episode_key(row: Mapping[str, Any]) -> str:
    """Identity of an episode within a run."""
    return "|".join([str(row[k]) for k in KEY])


@contextmanager
def manifest_lock(folder: Path) -> Iterator[None]:
    """Wait for the right to read and rewrite the manifest: shards that start together must not lose each other's part."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "run.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; the kernel releases it with the process, also after kill -9.

    Raises:
        ResultsError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResultsError(
                f"{path} is locked: another multismolvla-eval writes the same shard. Wait for it, or give this one "
                "its own --shard=i/n or --output."
            ) from None
        yield


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A file that holds one JSON object.

    Args:
        path: of the file.
        remedy: what to do about a damaged one, a sentence.

    Raises:
        ResultsError: no such file, no valid JSON, or no object.
    """
    try:
        content = fields.parse_json(path.read_bytes())
    except FileNotFoundError:
        raise ResultsError(f"There is no {path}. {remedy}") from None
    except ValueError as error:
        raise ResultsError(f"{path} is not valid JSON ({error}). {remedy}") from error
    if not isinstance(content, dict):
        raise ResultsError(f"{path} holds a {type(content).__name__}, expected an object. {remedy}")
    return content


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        ResultsError: missing, unreadable, or of another version of this format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ResultsError(f"{folder} holds no {MANIFEST}: not an output folder of multismolvla-eval.")
    manifest = read_json(
        path,
        "Restore it: the results beside it cannot be read without it. To begin anew, choose another --output.",
    )
    if manifest.get("schema") != SCHEMA or "fingerprint" not in manifest:
        found = manifest.get("schema")
        raise ResultsError(
            f"{path} has the format version {found!r}, expected {SCHEMA}. Use the version of this package that wrote it, "
            "or another --output."
        )
    return manifest


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

    def append(self, row: Row) -> None:
        """Write one row and wait until it is on the disk.

        Raises:
            OSError: the disk is full or gone; a partial line is cut off again first.
        """
        data = (json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n").encode()
        before = os.fstat(self._descriptor).st_size
        written = os.write(self._descriptor, data)
        if written != len(data):
            os.ftruncate(self._descriptor, before)
            raise OSError(
                f"Only {written} of {len(data)} bytes fitted into {self.path}. Free some disk space and run again."
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


def read_rows(folder: Path, run: str, manifest: Mapping[str, Any] | None = None) -> list[Row]:
    """All rows of a run, from all its shards; see :func:`iterate_rows`."""
    return list(iterate_rows(folder, run, manifest))


def iterate_rows(folder: Path, run: str, manifest: Mapping[str, Any] | None = None) -> Iterator[Row]:
    """The rows of a run, from all its shards, one after the other: a large run does not fit into memory comfortably.

    Args:
        folder: output folder.
        run: fingerprint that every row must carry.
        manifest: of the run; rows of another policy, checkpoint, suite or version of it, task, condition or episode are
            foreign.

    Raises:
        ResultsError: names file and line of the first thing that is wrong.
    """
    known = None if manifest is None else worlds(manifest)
    seen: dict[str, str] = {}
    for path in sorted(folder.glob(SHARD_PATTERN)):
        for number, row in _read_shard(path):
            place = f"{path.name}:{number}"
            _check_row(row, place, run)
            if manifest is not None and known is not None:
                check_policy(row, place, manifest["policies"])
                _check_world(row, place, known)
                _check_planned(row, place, manifest)
            key = episode_key(row)
            if key in seen:
                raise ResultsError(
                    f"{place} repeats the episode {key!r} of {seen[key]}. Two runs have written into {folder}: keep one "
                    "of the files."
                )
            seen[key] = place
            yield row


def _read_shard(path: Path) -> Iterator[tuple[int, Row]]:
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.endswith(b"\n"):
                logger.warning(
                    "%s ends with a half-written line, which is left out; multismolvla-eval will repair it.",
                    path,
                )
                return
            try:
                row = fields.parse_json(line)
            except ValueError as error:
                raise ResultsError(f"{path.name}:{number} is not valid JSON ({error}). {_REPEAT}") from error
            yield number, row


def _check_row(row: Any, place: str, run: str) -> None:
    if wrong := _ROW(row):
        raise ResultsError(f"{place}{wrong}. {_REPEAT}")
    if row["success"] == bool(cause_of(row)):
        raise ResultsError(
            f"{place} contradicts itself: success is {row['success']} and the cause of a failure {row.get('cause')!r}. {_REPEAT}"
        )
    if row["run"] != run:
        raise ResultsError(
            f"{place} belongs to the run {row['run']!r}, this folder's manifest to {run!r}: environment, seed or "
            "definitions differ, so the figures are not comparable. Move the file to its own folder."
        )


def check_policy(row: Row, place: str, policies: Mapping[str, Mapping[str, Any]]) -> None:
    """A row of another policy must neither be averaged in nor count as done.

    Args:
        row: of an episode.
        place: of the row, for the message.
        policies: the manifest's entries, by name.

    Raises:
        ResultsError: the manifest does not know the policy, or with another checkpoint.
    """
    policy = policies.get(row["policy"])
    if policy is None or policy["checkpoint"] != row["checkpoint"]:
        raise ResultsError(
            f"{place} is of the policy {row['policy']!r} with checkpoint {row['checkpoint']}, which the manifest does not know: "
            "the file belongs to another run. Move it to its own folder."
        )


def _check_world(row: Row, place: str, worlds: Mapping[str, str]) -> None:
    if row["suite"] not in worlds:
        raise ResultsError(
            f"{place} is of the suite {row['suite']!r}, this folder's manifest knows {sorted(worlds)}: the file belongs to "
            "another run. Move it to its own folder."
        )
    if row.get("world") != worlds[row["suite"]]:
        raise ResultsError(
            f"{place} was made in another version of the suite {row['suite']!r} ({row.get('world')!r}, manifest "
            f"{worlds[row['suite']]!r}): assets, step limit, initial states or rendering differ, so the figures are not "
            "comparable. Move the file to its own folder."
        )


def _check_planned(row: Row, place: str, manifest: Mapping[str, Any]) -> None:
    """A row that no call of this run has planned must not be averaged in."""
    tasks, clean = manifest["suites"][row["suite"]]["tasks"], row["condition"] == "C0"
    limits = {
        "episode": manifest["clean_episodes" if clean else "episodes"],
        "seed": manifest["clean_seeds"] if clean else 1,
    }
    if str(row["task_id"]) not in tasks:
        wrong, expected = "task_id", f"one of {sorted(map(int, tasks))}"
    elif row["condition"] not in manifest["conditions"]:
        wrong, expected = "condition", "one of its conditions"
    else:
        beyond = [k for k, limit in limits.items() if not 0 <= row[k] < limit]
        if not beyond:
            return
        wrong, expected = beyond[0], f"0 to {limits[beyond[0]] - 1} ({row['condition']})"
    raise ResultsError(
        f"{place} has the {wrong} {row[wrong]!r}, this folder's manifest plans {expected}: the row belongs to another run. "
        "Move the file to its own folder, or continue the run with the options that made the row."
    )


def read_run(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """Manifest and rows of a run, checked against each other.

    Raises:
        ResultsError: names file and line of the first thing that is wrong.
    """
    manifest = read_manifest(folder)
    return manifest, read_rows(folder, manifest["fingerprint"], manifest)


def worlds(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Per suite the hash that its rows carry."""
    return {name: suite["world"] for name, suite in manifest["suites"].items()}


def completed(rows: Iterable[Row]) -> set[str]:
    """Keys of the episodes that need not run again."""
    return {episode_key(r) for r in rows}


def crashed(row: Row) -> bool:
    """Whether an episode ended because its process died or hung, and not by the policy's doing."""
    return cause_of(row).startswith(("crash", "stuck"))


def cause_of(row: Row) -> str:
    """Why an episode ended; empty for a success."""
    return str(row.get("cause") or "")

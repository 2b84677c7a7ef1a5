"""The work folder of an unfinished annotation: what was begun, which episodes are finished, which process does what."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from multismolvla.system.command import CommandError
from multismolvla_data.annotate.config import AnnotateConfig
from multismolvla_data.formats.workspace import METADATA_FILE, move_into_place, occupied

logger = logging.getLogger(__name__)

_POLL_SECONDS = 2.0


class AnnotationError(CommandError):
    """The annotation cannot be started, continued or finished; the message says what to do."""


class Work:
    """The work folder, beside ``--output``.

    Args:
        cfg: the options.
        fingerprint: what must be equal for the work to be continued.
        episodes: all episodes of the source that are taken.
    """

    def __init__(self, cfg: AnnotateConfig, fingerprint: Mapping[str, Any], episodes: Sequence[int]) -> None:
        self.root = cfg.output.parent / f".{cfg.output.name}.annotating"
        self.cfg, self.fingerprint, self.episodes = cfg, dict(fingerprint), list(episodes)
        self.rank, self.world_size = place_of(cfg)

    def shard(self, episode: int) -> Path:
        """Folder of a finished episode."""
        return self.root / "episodes" / f"{episode:06d}"

    def done(self, episodes: Sequence[int]) -> list[int]:
        """Those that are finished."""
        return [e for e in episodes if self.shard(e).is_dir()]

    def mine(self) -> list[int]:
        """Episodes of this process, finished or not."""
        return self.episodes[self.rank :: self.world_size]

    def open(self) -> None:
        """Begin, or continue what was begun with equal options.

        Raises:
            AnnotationError: something else was begun there.
        """
        (self.root / "episodes").mkdir(parents=True, exist_ok=True)
        begun = self.root / "annotating.json"
        if not begun.is_file():
            partial = self.root / f".annotating.{uuid.uuid4().hex}"
            partial.write_text(json.dumps(self.fingerprint, indent=1))
            with contextlib.suppress(FileExistsError):
                os.link(partial, begun)  # of several processes that begin at once, one wins and all agree
            partial.unlink()
        known = json.loads(begun.read_text())
        if known != self.fingerprint:
            name = first_difference(known, self.fingerprint)
            raise AnnotationError(
                f"{self.root} holds an unfinished annotation with another {name}. Repeat the command that began it, or "
                "delete that folder."
            )

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[None]:
        """Hold a role (``rank0``, ``merge``) that only one process may have.

        Raises:
            AnnotationError: another process has it.
        """
        self.root.mkdir(parents=True, exist_ok=True)  # a process that published meanwhile has removed it
        with (self.root / f"{name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                raise AnnotationError(
                    f"Another process is {name} of {self.root}. Wait for it, or start several with `accelerate launch --multi_gpu` "
                    "or --rank and --world_size."
                ) from error
            yield

    def sweep(self) -> None:
        """Remove what an earlier process of this rank left half-written; to be called with the rank claimed."""
        for partial in (self.root / "episodes").glob(f".*.rank{self.rank}"):
            shutil.rmtree(partial, ignore_errors=True)

    def wait(self, advance: Callable[[int], object]) -> None:
        """Until all episodes are finished, by whichever process.

        Args:
            advance: called with the number of episodes that were finished meanwhile.

        Raises:
            AnnotationError: nothing was finished for ``wait_minutes``.
        """
        finished, since = len(self.done(self.episodes)), time.monotonic()
        while finished < len(self.episodes):
            if time.monotonic() - since > self.cfg.wait_minutes * 60:
                raise AnnotationError(
                    f"For {self.cfg.wait_minutes:g} minutes no episode was finished. {self.missing()}"
                )
            time.sleep(_POLL_SECONDS)
            now = len(self.done(self.episodes))
            if now > finished:
                advance(now - finished)
                finished, since = now, time.monotonic()

    def missing(self) -> str:
        """Message about the episodes that are not finished."""
        left = sorted(set(self.episodes) - set(self.done(self.episodes)))
        return (
            f"{len(left)} of {len(self.episodes)} episodes are not finished (first: {left[:5]}). Start the missing processes again, or "
            f"the command without --merge; finished episodes are kept in {self.root}."
        )

    def publish(self, dataset: Path) -> None:
        """Move the whole dataset into place in one step, then drop the work folder."""
        move_into_place(dataset, self.cfg.output)
        shutil.rmtree(self.root, ignore_errors=True)


def finished(cfg: AnnotateConfig, fingerprint: Mapping[str, Any]) -> bool:
    """Whether the output is this very annotation, whole.

    Raises:
        AnnotationError: something else is there.
    """
    metadata = cfg.output / METADATA_FILE
    if metadata.is_file():
        known = json.loads(metadata.read_text()).get("annotation", {}).get("fingerprint")
        if known == dict(fingerprint):
            shutil.rmtree(cfg.output.parent / f".{cfg.output.name}.annotating", ignore_errors=True)
            return True
        what = (
            first_difference(known, dict(fingerprint)) if known else "provenance (it is no annotated dataset)"
        )
        raise AnnotationError(
            f"{cfg.output} is a dataset with another {what}. Choose another --output, or delete that folder."
        )
    if occupied(cfg.output):
        raise AnnotationError(
            f"{cfg.output} exists and was not written by multismolvla-annotate (no {METADATA_FILE}). Choose another --output, "
            "or delete that folder."
        )
    return False


def place_of(cfg: AnnotateConfig) -> tuple[int, int]:
    """(rank, number of processes): by option, else from the environment that `accelerate launch` (torchrun) sets.

    No process group is made: the processes never talk to each other, so that none can hang on another's death.
    """
    if cfg.rank is not None and cfg.world_size is not None:
        return cfg.rank, cfg.world_size
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def launched_alone(cfg: AnnotateConfig) -> bool:
    """Whether `accelerate launch` started one process without a number, as it does without ``--multi_gpu`` on a CPU."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ and cfg.rank is None


def local_rank() -> int:
    """Number of this process on its machine, which picks its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it (`datasets` wraps it), is a full disk or quota."""
    while error is not None:
        if isinstance(error, OSError) and (
            error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "Not enough disk space" in str(error)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def first_difference(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Name and values of the first entry in which two fingerprints differ."""
    for name in (*wanted, *known):
        a, b = known.get(name), wanted.get(name)
        if a != b and isinstance(a, dict) and isinstance(b, dict):
            return f"{name}.{first_difference(a, b)}"
        if a != b:
            return f"{name} ({a!r}, asked for: {b!r})"
    return "setting"

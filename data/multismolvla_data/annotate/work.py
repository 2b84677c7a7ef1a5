"""The share of one process in an annotation: its episodes, and what the other processes finished."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from multismolvla_data.annotate.config import AnnotateConfig
from multismolvla_data.formats.workspace import Workspace, WorkspaceError

_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class WorkShare:
    """This process's share.

    The processes never talk to each other, so none can hang on another's death: they share a folder.
    """

    workspace: Workspace
    episodes: Sequence[int]  # all of the source that are taken
    rank: int
    world_size: int

    @classmethod
    def of(cls, cfg: AnnotateConfig, workspace: Workspace, episodes: Sequence[int]) -> WorkShare:
        """Rank and number of processes by option, else as `accelerate launch` (torchrun) tells."""
        if cfg.rank is not None and cfg.world_size is not None:
            return cls(workspace, episodes, cfg.rank, cfg.world_size)
        rank, world_size = (int(os.environ.get(*known)) for known in (("RANK", "0"), ("WORLD_SIZE", "1")))
        return cls(workspace, episodes, rank, world_size)

    @property
    def mine(self) -> list[int]:
        """Episodes of this process, finished or not."""
        return list(self.episodes[self.rank :: self.world_size])

    def shard(self, episode: int) -> Path:
        """Folder of a finished episode."""
        return self.workspace.episodes / f"{episode:06d}"

    def done(self, episodes: Sequence[int]) -> list[int]:
        """Those that are finished."""
        return [episode for episode in episodes if self.shard(episode).is_dir()]

    def sweep(self) -> None:
        """Remove what a killed process of this rank left half-written; the rank must be claimed."""
        self.workspace.sweep(f".*.rank{self.rank}")

    def wait(self, minutes: float) -> None:
        """Until all episodes are finished, by whichever process.

        Raises:
            WorkspaceError: no episode was finished for so many minutes.
        """
        finished, since = len(self.done(self.episodes)), time.monotonic()
        label, total = "wait for the others", len(self.episodes)
        with tqdm(
            total=total, initial=finished, desc=label, unit="episode", disable=finished == total
        ) as bar:
            while finished < total:
                if time.monotonic() - since >= minutes * 60:
                    left = sorted(set(self.episodes) - set(self.done(self.episodes)))
                    raise WorkspaceError(
                        f"{len(left)} of {total} episodes are not finished (first: {left[:5]}). Start the "
                        f"missing processes again; finished episodes are kept in {self.workspace.root}."
                    )
                time.sleep(min(_POLL_SECONDS, minutes * 60))
                now = len(self.done(self.episodes))
                if now > finished:
                    bar.update(now - finished)
                    finished, since = now, time.monotonic()


def launched_alone(cfg: AnnotateConfig) -> bool:
    """Whether `accelerate launch` started a single process, as without ``--multi_gpu`` on a CPU."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ and cfg.rank is None


def local_rank() -> int:
    """Number of this process on its machine, which picks its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))

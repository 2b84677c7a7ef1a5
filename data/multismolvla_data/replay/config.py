"""Options of ``multismolvla-replay``."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multismolvla_data.formats.libero_hdf5 import demo_files

if TYPE_CHECKING:
    from multismolvla_data.replay.episode import ReplaySettings


@dataclass
class ReplayConfig:
    """Options of the replay.

    Raises:
        ValueError: an option is out of range; the message names it.
    """

    # A file <task>_demo.hdf5, or a folder of them.
    source: Path
    # Suite that the tasks belong to: libero_spatial, libero_object, libero_goal, libero_10, libero_90,
    # multismolvla_mini.
    suite: str
    # Folder of the data set to write. Must not exist, or be the result of this very command.
    output: Path = Path("outputs/replay")
    # "actions" executes the actions from the first state: what a policy would have seen, but some demonstrations no
    # longer succeed. "states" shows the recorded states one by one: the same trajectory for certain.
    mode: str = "actions"
    # Drop actions that do nothing, by OpenVLA's rule. It also drops pauses in which only the fingers move: a
    # demonstration that needs them fails (mode "actions") or its fingers jump (mode "states").
    filter_noops: bool = True
    # Motionless steps before the first action, as the community's conversions do; mode "actions" only.
    settle_steps: int = 10
    # Keep demonstrations that do not succeed. They are reported in any case.
    keep_failed: bool = False
    # Demonstrations per task, the first ones; 0 = all.
    episodes: int = 0
    # Pixels, height and width; 0 means 64 for the mini suite and 256 (the public LIBERO data) otherwise.
    size: int = 0
    # "default" or "fast"; stored in the metadata, must match the evaluation's.
    render_quality: str = "default"
    # Seed of fixtures' places where a file does not tell them, and of the thermal camera's noise.
    seed: int = 0
    # Simulator processes; 0 = number of cores.
    workers: int = 0
    # Folder of LIBERO's assets; default: environment variable MULTISMOLVLA_LIBERO_ASSETS, then hf-libero's places.
    libero_assets: str | None = None
    # Name stored in the data set; default: multismolvla/<name of the output folder>.
    repo_id: str = ""
    # Check the files, list what would be done and how long it would take, write nothing.
    dry_run: bool = False

    def __post_init__(self) -> None:
        from lerobot_env_multismolvla.mini import SUITE_NAME

        if self.mode not in ("actions", "states"):
            raise ValueError(f"--mode={self.mode}: expected 'actions' or 'states'.")
        if self.settle_steps < 0:
            raise ValueError(f"--settle_steps={self.settle_steps}: expected 0 or more.")
        if self.episodes < 0:
            raise ValueError(f"--episodes={self.episodes}: expected 0 (all) or more.")
        if self.render_quality not in ("default", "fast"):
            raise ValueError(f"--render_quality={self.render_quality}: expected 'default' or 'fast'.")
        self.size = self.size or (64 if self.suite == SUITE_NAME else 256)
        if self.size < 16:
            raise ValueError(f"--size={self.size}: expected at least 16 pixels.")
        if self.workers < 0:
            raise ValueError(f"--workers={self.workers}: expected 0 (one per core) or more.")
        self.workers = self.workers or max(1, len(os.sched_getaffinity(0)))
        self.repo_id = self.repo_id or f"multismolvla/{self.output.name}"

    @property
    def task(self) -> str:
        """The suite, under the name that the recorder gives it."""
        return self.suite

    @property
    def settings(self) -> ReplaySettings:
        """What decides the content of an episode."""
        from multismolvla_data.replay.episode import ReplaySettings

        return ReplaySettings(
            suite=self.suite,
            size=self.size,
            render_quality=self.render_quality,
            mode=self.mode,
            filter_noops=self.filter_noops,
            settle_steps=self.settle_steps if self.mode == "actions" else 0,
            keep_failed=self.keep_failed,
            seed=self.seed,
            libero_assets=self.libero_assets,
        )

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for a replay to be continued, or to pass for this one. Reads all files."""
        from lerobot_env_multismolvla.mini import MINI_VERSION, SUITE_NAME, assets_hash

        sources = {file.path.name: file.digest for file in demo_files(self.source)}
        identity = {**asdict(self.settings), "episodes": self.episodes, "sources": sources}
        del identity["libero_assets"]  # where they lie does not matter
        if self.suite == SUITE_NAME:
            identity |= {"version": MINI_VERSION, "assets": assets_hash()}
        return identity

"""Options of ``multismolvla-replay``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from multismolvla_data.formats.simulators import SimulatorSettings, worker_count


@dataclass(frozen=True)
class ReplaySettings:
    """What decides the content of the replayed episodes; for the meaning see `ReplayConfig`."""

    simulator: SimulatorSettings  # does not settle after a reset, but from the demonstration's first state
    mode: str
    filter_noops: bool
    settle_steps: int
    keep_failed: bool
    seed: int


@dataclass
class ReplayConfig:
    """Options of the replay; one that is out of range is a ValueError that names it."""

    # A file <task>_demo.hdf5, or a folder of them.
    source: Path
    # Suite that the tasks belong to: libero_spatial, libero_object, libero_goal, libero_10, libero_90,
    # multismolvla_mini.
    suite: str
    # Folder of the data set to write. Must not exist, or be the result of this very command.
    output: Path = Path("outputs/replay")
    # "actions" executes the actions from the first state: what a policy would have seen, but some of them no
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
    # Store RGB as video, as LeRobot's own recordings do: smaller, and at 256 pixels training loads it several
    # times faster. It is lossy; depth, segmentation and thermal stay as they are.
    video: bool = False
    # "default" or "fast"; stored in the metadata, must match the evaluation's.
    render_quality: str = "default"
    # Seed of fixtures' places where a file does not tell them, and of the thermal camera's noise.
    seed: int = 0
    # Simulator processes; 0 = number of cores.
    workers: int = 0
    # Folder of LIBERO's assets; default: variable MULTISMOLVLA_LIBERO_ASSETS, then hf-libero's places.
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
        self.size = self.size or (64 if self.suite == SUITE_NAME else 256)
        self.workers = worker_count(self.workers)
        self.repo_id = self.repo_id or f"multismolvla/{self.output.name}"
        _ = self.settings  # what it refuses shall be refused before anything is done

    @property
    def settings(self) -> ReplaySettings:
        """What decides the content of an episode."""
        return ReplaySettings(
            simulator=SimulatorSettings(
                suite=self.suite,
                size=self.size,
                render_quality=self.render_quality,
                settle_steps=0,
                libero_assets=self.libero_assets,
            ),
            mode=self.mode,
            filter_noops=self.filter_noops,
            settle_steps=self.settle_steps if self.mode == "actions" else 0,
            keep_failed=self.keep_failed,
            seed=self.seed,
        )

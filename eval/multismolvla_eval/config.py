"""Options of ``multismolvla-eval``. Imports nothing slow, so that ``--help`` answers at once."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multismolvla.modalities import MODALITIES

#: Policies that need no checkpoint: standing still and chance are lower bounds, the scripted expert, which
#: reads the simulator's state, an upper one. `replay` plays one demonstration per task of a recording.
BUILTIN_POLICIES: tuple[str, ...] = ("zero", "random", "expert", "replay:DATASET")
#: Value of ``--view`` that opens a viewer on this machine.
VIEWER = "viewer"
#: A name becomes part of file names and of the report's anchors.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass
class EnvironmentArguments:
    """Which environment, tasks and streams."""

    # A LeRobot environment type, or `package.module:attribute` naming an `EnvironmentSource` factory.
    type: str = "multismolvla_libero"
    # Suites, comma-separated as in LeRobot's --env.task, e.g. libero_spatial,libero_object,libero_goal.
    task: str = "multismolvla_mini"
    # Tasks of every suite; all when left out.
    task_ids: list[int] | None = None
    # Further fields of the environment's configuration, e.g. '{observation_height: 256, init_split: all}'.
    options: dict[str, Any] = field(default_factory=dict)

    def suites(self) -> list[str]:
        """Names of the suites, in order."""
        return list(dict.fromkeys(name.strip() for name in self.task.split(",") if name.strip()))


@dataclass(kw_only=True)
class EstimatorOptions:
    """What a checkpoint's ``config.json`` cannot know of this machine: the networks that estimate of RGB."""

    # Folders with the files of the networks that policies compute streams of RGB with, where they are not in
    # the hub's cache, e.g. '{thermal: FOLDER}'; as --policy.estimator_sources of LeRobot's programs.
    estimator_sources: dict[str, str] = field(default_factory=dict)
    # Where such files are missing: error, or absent (the policy acts without the stream, as
    # --policy.missing_estimator says); the checkpoint's own choice when left out.
    missing_estimator: str | None = None

    def check_estimators(self) -> None:
        """See that both can be meant.

        Raises:
            ValueError: something that is not estimated, or another word than error and absent.
        """
        if unknown := sorted(set(self.estimator_sources) - set(MODALITIES[1:])):
            raise ValueError(
                f"--estimator_sources names {unknown[0]!r}; expected some of {list(MODALITIES[1:])}."
            )
        if self.missing_estimator not in (None, "error", "absent"):
            raise ValueError(f"--missing_estimator={self.missing_estimator}: expected error or absent.")


@dataclass
class EvalConfig(EstimatorOptions):
    """Paired evaluation of policies under failing sensors."""

    # What is evaluated: `name=path`; the path is a checkpoint folder or hub id, `no_vision:` and one of those
    # (the same policy without pictures), `no_health:` and one (with policy.health=off), or `builtin:` and one
    # of zero, random, expert, replay:DATASET (open loop, what multismolvla-record wrote of LIBERO).
    policies: list[str] = field(default_factory=list)
    # The policy that the others are compared with; the last one when left out.
    baseline: str | None = None
    # Policies that run C0 only: no fault can touch them (builtin:) or none needs to (no_vision).
    clean_only: list[str] = field(default_factory=list)
    env: EnvironmentArguments = field(default_factory=EnvironmentArguments)
    # smoke, quick, standard or full: conditions and episodes per task.
    level: str = "quick"
    # Conditions instead of the level's, e.g. '[C1:-rgb, C3:rgb=gaussian_noise@3]'; attacks, e.g.
    # '[C6:rgb=policy@4, C6:rgb=random_sign@4]', need --batch_size=1. C0 is always run.
    conditions: list[str] | None = None
    # Episodes per task of each condition but C0; the level's number when left out.
    episodes: int | None = None
    # Episodes per task of C0; the level's number when left out.
    clean_episodes: int | None = None
    # Repetitions of C0 with other environment and noise seeds; the level's number when left out.
    clean_repeats: int | None = None
    # Everything random derives from it: environment, policy noise, faults, each from its own generator.
    seed: int = 0
    # Results are appended here; the same command continues an interrupted run.
    output: Path = Path("outputs/eval")
    # Simulator processes on this machine. With --batch_size=1 each has its own copy of the policies.
    workers: int = 1
    # Above 1: one more process holds the policies and computes the action chunks of so many simulators at a
    # time; batches that are not full are padded. Best equal to --workers on a GPU. It is part of the run's
    # identity and cannot change when a run is continued: batches of another size round differently, so
    # episodes would not be comparable.
    batch_size: int = 1
    # `i/n`: this process runs part i of n, e.g. $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT; the processes
    # of `accelerate launch` divide it further.
    shard: str = "0/1"
    # LeRobotDataset on which is measured, before the roll-outs, how much each policy uses its sensors.
    diagnose: Path | None = None
    # Episodes of it that no policy was trained on; all when left out, which is then said.
    diagnose_episodes: list[int] | None = None
    # Device of the policies; the checkpoint's own choice when left out.
    device: str | None = None
    # Clips per policy and condition, from the first tasks' first episode; 0 for none.
    clips: int = 1
    # An episode that takes longer is ended and counts as crashed [s].
    episode_timeout: float = 900.0
    # Show the first worker's episodes in rerun: --view opens the viewer, --view=FILE.rrd saves a recording.
    view: str | None = None
    # Modules to import in every process because they register environment or policy types.
    plugins: list[str] = field(default_factory=list)
    # Rename observation keys, as LeRobot's --rename_map:
    # '{observation.images.image: observation.images.camera1}' for all policies,
    # '{name: {observation.images.image: observation.images.top}}' for one.
    rename_map: dict[str, Any] = field(default_factory=dict)
    # Sentences for the report's notes, e.g. '["ours was trained for 300 steps only"]'.
    note: list[str] = field(default_factory=list)
    # Print cells, episodes, an estimate, and whether a run in --output would be continued; run nothing.
    dry_run: bool = False

    def policy_paths(self) -> dict[str, str]:
        """Names and paths of the policies, in order.

        Raises:
            ValueError: no policy, a policy without ``name=path``, or a name used twice.
        """
        if not self.policies:
            raise ValueError(
                "No policies to evaluate. Give at least one: "
                "--policies='[ours=outputs/mini/robust, vanilla=outputs/mini/base]'."
            )
        paths: dict[str, str] = {}
        for text in self.policies:
            name, _, path = text.partition("=")
            if not path or not _NAME.fullmatch(name):
                raise ValueError(
                    f"--policies has the entry {text!r}; expected name=path with a name of letters, digits, "
                    "'_', '-', '.', e.g. ours=outputs/mini/robust or zero=builtin:zero."
                )
            if name in paths:
                raise ValueError(
                    f"--policies uses the name {name!r} twice. Give every policy a name of its own."
                )
            prefix, _, rest = path.partition(":")
            if prefix in ("no_vision", "no_health") and rest.startswith("builtin:"):
                raise ValueError(
                    f"--policies has the entry {text!r}; built-in policies look at no picture anyway. "
                    f"{prefix}: takes a checkpoint."
                )
            kind, colon, dataset = path.removeprefix("builtin:").partition(":")
            builtin = f"{kind}:DATASET" if colon and dataset else kind
            if path.startswith("builtin:") and builtin not in BUILTIN_POLICIES:
                raise ValueError(
                    f"Unknown built-in policy {path!r}. Known: {[f'builtin:{n}' for n in BUILTIN_POLICIES]}."
                )
            paths[name] = path
        return paths

    def baseline_name(self) -> str:
        """Name of the baseline.

        Raises:
            ValueError: ``--baseline`` names none of the policies.
        """
        names = list(self.policy_paths())
        if self.baseline is None:
            return names[-1]
        if self.baseline not in names:
            raise ValueError(f"--baseline={self.baseline} is none of the policies {names}.")
        return self.baseline

    def check(self) -> None:
        """Check what can be known before anything is loaded.

        Raises:
            ValueError: an option has no meaning; the message names it as typed.
        """
        names, baseline = list(self.policy_paths()), self.baseline_name()
        self.check_estimators()
        for option in ("workers", "batch_size", "episodes", "clean_episodes", "clean_repeats"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ValueError(f"--{option}={value} must be at least 1.")
        if self.episode_timeout <= 0:
            raise ValueError(f"--episode_timeout={self.episode_timeout} must be positive (seconds).")
        if self.env.task_ids is not None and not self.env.task_ids:
            raise ValueError("--env.task_ids is an empty list. Leave it out to run all tasks of the suite.")
        for name in self.clean_only:
            if name not in names or name == baseline:
                raise ValueError(
                    f"--clean_only names {name!r}; expected policies of {names} other than the baseline "
                    f"{baseline!r}, with which every condition is compared."
                )
        for name, renamed in self.rename_map.items():
            if isinstance(renamed, dict) and name not in names:
                raise ValueError(
                    f"--rename_map has an entry for {name!r}, which is none of the policies {names}."
                )
        if not self.env.suites():
            raise ValueError(f"--env.task={self.env.task!r} names no suite, e.g. libero_object.")
        if self.view is not None:
            check_view(self.view)


def renaming(policy: str, rename_map: Mapping[str, str | Mapping[str, str]]) -> dict[str, str]:
    """Environment's observation key -> policy's: what ``--rename_map`` says for all and for this policy."""
    shared = {k: v for k, v in rename_map.items() if isinstance(v, str)}
    own = rename_map.get(policy, {})
    return shared if isinstance(own, str) else {**shared, **own}


def check_view(target: str) -> None:
    """Say before anything is loaded whether ``--view`` can work.

    Raises:
        ValueError: neither ``viewer``, nor a file name with ``.rrd``, nor a viewer's address; or no display.
        ModuleNotFoundError: rerun is not installed.
    """
    if importlib.util.find_spec("rerun") is None:
        raise ModuleNotFoundError(
            "--view needs rerun. Install it with: pip install 'lerobot_policy_multismolvla[view]'"
        )
    if target == VIEWER:
        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise ValueError(
                "--view opens a window, but there is no display here (DISPLAY and WAYLAND_DISPLAY are not "
                "set). Save a recording with --view=FILE.rrd, or name a viewer elsewhere: "
                "--view=rerun+http://HOST:9876/proxy."
            )
    elif not target.endswith(".rrd") and not target.startswith(("rerun+http://", "rerun+https://")):
        raise ValueError(
            f"--view={target}: expected nothing (opens a viewer), a file name ending in .rrd, or a viewer's "
            "address, e.g. rerun+http://HOST:9876/proxy."
        )

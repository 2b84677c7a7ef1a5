"""``--env.type=multismolvla_libero``: options of the multimodal LIBERO environment. Imports no simulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.processor import PolicyProcessorPipeline
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_env_multismolvla import mini
from lerobot_env_multismolvla.cameras import suite_cameras, suite_views
from lerobot_env_multismolvla.processor_multismolvla_libero import MultiSmolVLALiberoProcessorStep
from multismolvla.corruption import parse_condition
from multismolvla.modalities import MODALITIES, SMALLEST_SIDE, Modality

QUALITIES = ("default", "fast")
INIT_SPLITS = ("eval", "train", "all")
#: Whose ids segmentation pictures hold.
SEG_LABELS = ("suite", "coco")
#: No-op steps after a reset of LIBERO's suites: LeRobot's number, for figures that can be compared. The
#: expert is measured with the same.
LIBERO_SETTLE_STEPS = 10


@EnvConfig.register_subclass("multismolvla_libero")
@dataclass
class MultiSmolVLALiberoConfig(EnvConfig):
    """LIBERO suites and the mini suite with several sensors per camera.

    Evaluation takes the initial states that recording leaves out (``init_split="eval"``): the first 20 of
    LIBERO's 50 per task. LeRobot's own protocol uses all: for figures beside published ones say
    ``--env.init_split=all``.

    Raises:
        ValueError: an option has a value the environment cannot serve; the message names the option.
    """

    # Comma-separated suites: "multismolvla_mini" (needs no assets) or LIBERO's own ("libero_object", ...).
    task: str = mini.SUITE_NAME
    # Tasks of each suite to run; all when not given.
    task_ids: list[int] | None = None
    # Control rate in Hz. Actions are displacements per step, so another value changes what an action means.
    fps: int = 20
    # Step limit; the default is 140 for the mini suite and LeRobot's for LIBERO's suites.
    episode_length: int | None = None
    # Modalities to render, of rgb, depth, seg, thermal. Those left out have no sensor: a policy that can
    # computes them of RGB, for all others they are absent.
    streams: list[str] = field(default_factory=lambda: list(MODALITIES))
    # Pixels; 0 means 64 for the mini suite and 256 (the public LIBERO data) otherwise.
    observation_height: int = 0
    observation_width: int = 0
    # "default", or "fast" without multisampling and reflections. On CPU worth it for LIBERO's scenes only.
    render_quality: str = "default"
    # Which initial states: "eval", "train" (disjoint from eval) or "all".
    init_split: str = "eval"
    # No-op steps after a reset; -1: 3 for the mini suite, where nothing falls, else LeRobot's 10. With mujoco
    # >= 3.4 some objects of libero_10 still fall then (a warning says so); 20 let them rest, but differ from
    # LeRobot's figures.
    num_steps_wait: int = -1
    # Rebuild the model at each reset; default: for LIBERO's suites, whose fixtures need it (0.7 s).
    hard_reset: bool | None = None
    # Relative (delta) or absolute end-effector control, as in LeRobot.
    control_mode: str = "relative"
    # Folder of LIBERO's assets; default: variable MULTISMOLVLA_LIBERO_ASSETS, then hf-libero's places.
    libero_assets: str | None = None
    # Class ids in segmentation pictures: "suite" (its own classes, which a policy's seg_labels maps) or
    # "coco" (mapped to the ids of 4M's tokenizer: 0 = none, COCO panoptic class + 1).
    seg_labels: str = "suite"
    # Sensor faults, e.g. "C1:-rgb" (RGB gone and announced); grammar in multismolvla.corruption.conditions.
    condition: str | None = None
    # Run seed of the faults' own generators.
    fault_seed: int = 0
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [s for s in self.streams if s not in MODALITIES]
        if unknown or not self.streams:
            raise ValueError(f"--env.streams={self.streams}: expected at least one of {list(MODALITIES)}.")
        if self.fps <= 0:
            raise ValueError(f"--env.fps must be positive, got {self.fps}.")
        if not self.suites:
            raise ValueError(f"--env.task={self.task!r} names no suite; expected e.g. {mini.SUITE_NAME!r}.")
        default = 64 if self.suites == [mini.SUITE_NAME] else 256
        self.observation_height = self.observation_height or default
        self.observation_width = self.observation_width or default
        if min(self.observation_height, self.observation_width) < SMALLEST_SIDE:
            raise ValueError(
                f"--env.observation_height/width are {self.observation_height}x{self.observation_width}; "
                f"expected at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels."
            )
        for option, known in (
            ("render_quality", QUALITIES),
            ("init_split", INIT_SPLITS),
            ("seg_labels", SEG_LABELS),
        ):
            if getattr(self, option) not in known:
                raise ValueError(f"--env.{option}={getattr(self, option)}: expected one of {known}.")
        if self.condition is not None:
            parse_condition(self.condition).check_delivered(self.streams)
        self._declare_features()

    @property
    def suites(self) -> list[str]:
        """Names of the suites in ``task``."""
        return [name.strip() for name in (self.task or "").split(",") if name.strip()]

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the environment."""
        return {
            "streams": list(self.streams),
            "render_quality": self.render_quality,
            "init_split": self.init_split,
            "libero_assets": self.libero_assets,
            "seg_labels": self.seg_labels,
            "obs_type": "pixels_agent_pos",
            "observation_height": self.observation_height,
            "observation_width": self.observation_width,
            "control_freq": self.fps,
            "control_mode": self.control_mode,
            "episode_length": self.episode_length,
        }

    def suite_kwargs(self, suite: str) -> dict[str, Any]:
        """``gym_kwargs`` plus the options whose default depends on the suite."""
        is_mini = suite == mini.SUITE_NAME
        wait = self.num_steps_wait if self.num_steps_wait >= 0 else (3 if is_mini else LIBERO_SETTLE_STEPS)
        hard = self.hard_reset if self.hard_reset is not None else not is_mini
        cameras = suite_cameras(suite)
        return {
            **self.gym_kwargs,
            "num_steps_wait": wait,
            "hard_reset": hard,
            "camera_name": list(cameras),
            "camera_name_mapping": cameras,
        }

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras in observations, those of all suites in ``task``; third-person first."""
        named = (camera for suite in self.suites for camera in suite_cameras(suite).values())
        return tuple(dict.fromkeys(named))

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False, require_assets: bool = True
    ) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """Vector environments of all chosen tasks, by suite and task id.

        Args:
            n_envs: environments per task; number i starts with initial state i and advances by ``n_envs``.
            use_async_envs: one process per environment (needs ``n_envs > 1``).
            require_assets: refuse now what the first reset would refuse; LeRobot trains in between.

        Raises:
            ValueError: unknown suite or task id.
            FileNotFoundError: a LIBERO suite without LIBERO's assets.
        """
        from lerobot_env_multismolvla.libero.setup import ensure_libero_config, require_libero_assets

        ensure_libero_config()
        from lerobot.envs.libero import _get_suite, _select_task_ids  # lerobot 0.6.1
        from lerobot.envs.utils import _LazyAsyncVectorEnv  # lerobot 0.6.1

        from lerobot_env_multismolvla.mini import suite as _  # noqa: F401 - registers the suite

        envs: dict[str, dict[int, gym.vector.VectorEnv]] = {}
        for name in self.suites:
            suite = _get_suite(name)
            if require_assets and name != mini.SUITE_NAME:
                require_libero_assets(name, self.libero_assets)
            spaces: tuple[Any, ...] = (None, None, None)
            for task_id in _select_task_ids(len(suite.tasks), self.task_ids):
                makers = [self.env_maker(name, task_id, i, n_envs) for i in range(n_envs)]
                if use_async_envs and n_envs > 1:
                    vector = _LazyAsyncVectorEnv(makers, *spaces)
                    spaces = (vector.observation_space, vector.action_space, vector.metadata)
                else:
                    mode = gym.vector.AutoresetMode.NEXT_STEP
                    vector = gym.vector.SyncVectorEnv(makers, autoreset_mode=mode)
                envs.setdefault(name, {})[task_id] = vector
        return envs

    def env_maker(
        self, suite: str, task_id: int, episode_index: int = 0, n_envs: int = 1
    ) -> Callable[[], gym.Env]:
        """A picklable function that makes one environment, in this or in another process.

        Args:
            suite: name of the suite.
            task_id: number of the task.
            episode_index: first initial state.
            n_envs: stride from one initial state to the next.
        """
        options = {**self.suite_kwargs(suite), "episode_index": episode_index, "n_envs": n_envs}
        return partial(_make_env, suite, task_id, self.condition, self.fault_seed, **options)

    def get_env_processors(self) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
        """The step that makes dataset frames from raw observations, and nothing for actions."""
        step = MultiSmolVLALiberoProcessorStep(cameras=list(self.cameras))
        return PolicyProcessorPipeline(steps=[step]), PolicyProcessorPipeline(steps=[])

    def _declare_features(self) -> None:
        """What the processed observation holds, in LeRobot's terms (shapes are height, width, channels)."""
        features = {
            ACTION: PolicyFeature(FeatureType.ACTION, (7,)),
            OBS_STATE: PolicyFeature(FeatureType.STATE, (8,)),
        }
        for suite in self.suites:
            for streams in suite_views(suite).values():
                for modality, key in streams.items():
                    if modality in self.streams:
                        channels = 1 if modality == Modality.DEPTH else 3
                        shape = (self.observation_height, self.observation_width, channels)
                        features[key] = PolicyFeature(FeatureType.VISUAL, shape)
        self.features = features
        self.features_map = {key: key for key in features}


def _make_env(suite: str, task_id: int, condition: str | None, fault_seed: int, **options: Any) -> gym.Env:
    """Make one environment; runs in the worker process."""
    from lerobot_env_multismolvla.faults import FaultWrapper
    from lerobot_env_multismolvla.multimodal_env import MultiModalLiberoEnv, get_suite

    env = MultiModalLiberoEnv(get_suite(suite), task_id, suite, **options)
    return env if condition is None else FaultWrapper(env, parse_condition(condition), fault_seed)

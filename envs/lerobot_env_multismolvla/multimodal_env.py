"""LeRobot's LIBERO environment with depth, segmentation and simulated thermal next to RGB.

Importing this module imports the simulator; ``lerobot_env_multismolvla`` itself does not. The pictures are
made in ``streams``, initial states come from ``libero.initial_states`` and ``mini.initial_states``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from lerobot_env_multismolvla.facts import EnvironmentFacts
from lerobot_env_multismolvla.libero.initial_states import (
    EVALUATION_STATES,
    read_states,
    split_of,
    split_ranges,
    split_states,
)
from lerobot_env_multismolvla.libero.setup import asset_root, ensure_libero_config, require_libero_assets
from multismolvla.corruption.cross_modal import Displacement
from multismolvla.modalities import MODALITIES, Modality, Provenance, stream_name
from multismolvla.system.libero_assets import AssetIdentity, find_libero_assets, identify

ensure_libero_config()

from lerobot.envs.libero import LiberoEnv, _get_suite  # noqa: E402
from lerobot.lerobot_types import RobotObservation  # noqa: E402
from libero.libero import get_libero_path  # noqa: E402

from lerobot_env_multismolvla import mini  # noqa: E402
from lerobot_env_multismolvla.cameras import suite_views  # noqa: E402
from lerobot_env_multismolvla.labels import label_set  # noqa: E402
from lerobot_env_multismolvla.libero.simulator import Simulator  # noqa: E402
from lerobot_env_multismolvla.mini import suite as _  # noqa: E402, F401 - registers the suite with LIBERO
from lerobot_env_multismolvla.mini.initial_states import STATES_PER_SPLIT, SimulatorStates  # noqa: E402
from lerobot_env_multismolvla.processor_multismolvla_libero import NO_SENSOR, upright  # noqa: E402
from lerobot_env_multismolvla.streams import StreamCameras, observation_space  # noqa: E402
from lerobot_env_multismolvla.thermal import ThermalCamera  # noqa: E402

logger = logging.getLogger(__name__)

# By itself MuJoCo appends its warnings to MUJOCO_LOG.TXT in the working directory.
mujoco.set_mju_user_warning(lambda text: logger.warning("MuJoCo: %s", text))

#: Above this speed [m/s] an object does not lie still when the episode begins.
MOVING = 0.05


class MultiModalLiberoEnv(LiberoEnv):
    """LIBERO task with several sensors per camera, all rendered from one simulator state.

    Differs from :class:`lerobot.envs.libero.LiberoEnv` (lerobot 0.6.1) in its observations, in where initial
    states come from, and in the mini suite's step limit; control, success and the order of initial states are
    LeRobot's. Options are checked by its configuration.

    Raw observation, before LeRobot's and our processor step (pictures bottom row first): under ``pixels``
    ``image``, ``image2`` and their ``_seg`` (R class, G instance, B 0) and ``_thermal`` (grey), uint8 (H, W,
    3), and the mini suite's ``image3``; ``image_depth``, ``image2_depth`` float32 (H, W, 1) metres, 0 =
    invalid; ``presence`` float32 (views * modalities,), view-major, 1 = the sensor is there, 0 = it is
    lost, -1 = it is not among ``streams``; ``robot_state`` as upstream.

    Args:
        task_suite: LIBERO benchmark object.
        task_id: number of the task in the suite.
        task_suite_name: name of the suite.
        streams: modalities to render.
        render_quality: ``"default"`` or ``"fast"``.
        init_split: ``"eval"``, ``"train"`` or ``"all"`` initial states; the first two are disjoint.
        libero_assets: folder with LIBERO's own assets; unused by the mini suite.
        seg_labels: ``"suite"`` or ``"coco"``, see :func:`~lerobot_env_multismolvla.labels.label_set`.
        hard_reset: whether each reset rebuilds the model.
        **kwargs: as upstream.

    Attributes:
        init_state_splits: first and last number, as this environment counts its initial states, of those for
            evaluation (``"eval"``) and those for recording (``"train"``), as far as it offers them.
        render_observations: while False, ``step`` makes no pictures; physics, success and random numbers stay
            the same. For observations that no policy looks at. ``reset`` sets it to True.
        render_seconds: time spent on pictures so far [s].

    Raises:
        ValueError: the file of initial states holds anything else.
        FileNotFoundError: there are no initial states. Assets are looked for at the first reset.

    Example:
        >>> from lerobot.envs.factory import make_env, make_env_config
        >>> import lerobot_env_multismolvla  # registers the type
        >>> envs = make_env(make_env_config("multismolvla_libero", task="multismolvla_mini"), n_envs=1)
        >>> observation, info = envs["multismolvla_mini"][0].reset(seed=[0])
    """

    # lerobot 0.6.1 says 80, but control runs at 20 Hz: its videos play four times too fast.
    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self,
        task_suite: Any,
        task_id: int,
        task_suite_name: str,
        *,
        streams: Sequence[str] = MODALITIES,
        render_quality: str = "default",
        init_split: str = "eval",
        libero_assets: str | None = None,
        seg_labels: str = "suite",
        hard_reset: bool = True,
        **kwargs: Any,
    ) -> None:
        self.suite = task_suite_name
        self.streams = tuple(m for m in MODALITIES if m in streams)
        self.render_quality = render_quality
        self.init_split = init_split
        self.seg_labels = seg_labels
        self._is_mini = task_suite_name == mini.SUITE_NAME
        self._libero_assets = libero_assets
        if self._is_mini:
            kwargs["episode_length"] = kwargs.get("episode_length") or mini.MAX_STEPS
        # Upstream must not read the states: its pickle loader runs what the file says.
        super().__init__(task_suite, task_id, task_suite_name, init_states=False, **kwargs)
        self.init_states = True
        self.hard_reset = hard_reset
        if self._is_mini:
            self._init_states: Any = None  # they depend on the model and are made at reset
            counts = (STATES_PER_SPLIT, STATES_PER_SPLIT)
        else:
            task = task_suite.get_task(task_id)
            path = Path(get_libero_path("init_states"), task.problem_folder, Path(task.init_states_file).name)
            stored = read_states(path)
            self._init_states = split_states(stored, init_split)
            counts = (min(EVALUATION_STATES, len(stored)), max(0, len(stored) - EVALUATION_STATES))
        self.init_state_splits = split_ranges(init_split, *counts)
        self._warned_of_motion = False
        size = (self.observation_height, self.observation_width)
        self._stream_cameras = StreamCameras(size, render_quality, task_suite_name, seg_labels)
        self._step_index = 0
        self._last_pictures: dict[str, np.ndarray] = {}
        self.render_observations = True
        self.render_seconds = 0.0
        #: (camera as named in observations, modality) -> where that camera is, instead of at its place.
        self._displaced: Mapping[tuple[str, str], Displacement] = {}
        #: Camera, as named in observations -> modalities that it renders.
        delivered = suite_views(self.suite)
        self._camera_streams = {c: tuple(m for m in self.streams if m in delivered[c]) for c in self.cameras}
        self.observation_space = observation_space(self.observation_space, self._camera_streams, size)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Camera names as they appear in observation keys, third-person first."""
        return tuple(self.camera_name_mapping[name] for name in self.camera_name)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names of the segmentation pictures; the position is the id."""
        return label_set(self.suite, self.seg_labels)

    @property
    def provenance(self) -> dict[str, str]:
        """Where each modality comes from: all are independent renderings, none is computed from another."""
        return {m: str(Provenance.SENSOR) for m in self.streams}

    @property
    def assets(self) -> AssetIdentity | None:
        """Which assets the pictures are made with; ``None`` as long as LIBERO's are missing.

        The mini suite's are its own and stand in for nothing.
        """
        if self._is_mini:
            return AssetIdentity(mini.assets_hash(), False, ())
        folder = find_libero_assets(self._libero_assets)
        return None if folder is None else identify(folder)

    @cached_property
    def _assets_folder(self) -> Path:
        return mini.ASSETS if self._is_mini else require_libero_assets(self.suite, self._libero_assets)

    @property
    def facts(self) -> EnvironmentFacts:
        """What the records of an evaluation keep of this environment."""
        assets = self.assets
        return EnvironmentFacts(
            type="multismolvla_libero",
            tasks={self.task_id: self.task_description},
            max_steps=self._max_episode_steps,
            init_states=sum(last - first + 1 for first, last in self.init_state_splits.values()),
            init_state_splits=self.init_state_splits,
            init_split=self.init_split,
            render_quality=self.render_quality,
            num_steps_wait=self.num_steps_wait,
            mini_version=mini.MINI_VERSION if self._is_mini else None,
            faultable=True,
            fps=self.control_freq,
            streams=self.streams,
            provenance=self.provenance,
            labels=self.labels,
            assets="" if assets is None else assets.hash,
            assets_standins=None if assets is None else assets.standins,
            assets_differing=() if assets is None else assets.differing,
        )

    @property
    def simulation(self) -> Any:
        """LIBERO's problem object, for scripted experts and tests. The environment must have been reset."""
        if self._env is None:
            raise RuntimeError("The simulator starts at the first reset; call reset() first.")
        return self._env.env

    def reset(self, seed: int | None = None, **kwargs: Any) -> tuple[RobotObservation, dict[str, Any]]:
        """Upstream's reset plus an episode seed for the thermal camera.

        With ``options={"init_state_id": i}`` the episode starts from state ``i`` instead of the next one.
        With ``options={"displaced": {(camera, modality): Displacement}}`` it is seen from elsewhere.

        Returns:
            The observation, and ``info`` with the initial state used (``init_state_id``), its split
            (``init_split``) and the speed of the fastest object [m/s] when the episode begins
            (``object_speed``).
        """
        options = kwargs.get("options") or {}
        self._displaced = options.get("displaced", {})
        if "init_state_id" in options:
            self.init_state_id = int(options["init_state_id"])
        used = self.init_state_id
        self._stream_cameras.thermal = ThermalCamera((seed or 0, self.task_id, used))
        self._step_index = 0
        self.render_observations = True
        with asset_root(self._assets_folder):
            self._ensure_env()
            if self._is_mini:
                self._init_states = SimulatorStates(self.simulation, self.task_id, self.init_split)
            observation, info = super().reset(seed=seed, **kwargs)
        speed = self._object_speed()
        if speed > MOVING and not self._warned_of_motion:
            self._warned_of_motion = True
            logger.warning(
                "%s task %d begins while an object moves at %.2f m/s, after %d settle steps. "
                "It comes to rest first with --env.num_steps_wait=20 (default: 10, as in LeRobot's figures).",
                self.suite,
                self.task_id,
                speed,
                self.num_steps_wait,
            )
        split = split_of(self.init_state_splits, used)
        return observation, {**info, "init_state_id": used, "init_split": split, "object_speed": speed}

    def _object_speed(self) -> float:
        """Speed of the fastest free body [m/s]; with mujoco >= 3.4 some stored states let things fall."""
        model, data = self.simulation.sim.model._model, self.simulation.sim.data._data
        free = model.jnt_dofadr[model.jnt_type == 0]  # mjJNT_FREE; its first three velocities are m/s
        return max((float(np.linalg.norm(data.qvel[start : start + 3])) for start in free), default=0.0)

    def step(self, action: np.ndarray) -> tuple[RobotObservation, float, bool, bool, dict[str, Any]]:
        """As upstream; the step number indexes the thermal camera's noise."""
        self._step_index += 1
        return super().step(action)

    @property
    def state(self) -> np.ndarray:
        """Flattened simulator state, float64 (1 + nq + nv,): time, joint positions, joint velocities."""
        return self.simulation.sim.get_state().flatten()

    def restore(self, state: np.ndarray, observe: bool = True) -> RobotObservation:
        """Put the simulator into a recorded state. The environment must have been reset.

        Args:
            state: as :attr:`state` gives it, of this task's model. Fixtures are not in it, see
                :meth:`place_fixtures`.
            observe: whether to render; without it the result is LIBERO's raw observation, without pictures.

        Raises:
            ValueError: the state has another width than this task's model.
        """
        model = self.simulation.sim.model._model
        if state.shape != (1 + model.nq + model.nv,):
            raise ValueError(
                f"A state of shape {state.shape} does not fit task {self.task!r}, whose model has "
                f"{1 + model.nq + model.nv} numbers (time, {model.nq} positions, {model.nv} velocities)."
            )
        raw = self._env.set_init_state(state)
        if not observe:
            return raw
        self._step_index += 1
        return self._format_raw_obs(raw)

    @property
    def fixture_bodies(self) -> tuple[str, ...]:
        """Bodies of the fixtures. Each reset draws their place, about 1 cm either way; no state holds it."""
        names = (f.root_body for f in self.simulation.fixtures_dict.values() if hasattr(f, "root_body"))
        known = set(self.simulation.sim.model.body_names)
        return tuple(name for name in names if name in known)

    def place_fixtures(self, poses: dict[str, np.ndarray]) -> None:
        """Move fixtures until the next reset: body -> (7,) position in metres and quaternion w x y z."""
        model = self.simulation.sim.model
        for name, pose in poses.items():
            body = model.body_name2id(name)
            model.body_pos[body], model.body_quat[body] = pose[:3], pose[3:]
        self.simulation.sim.forward()

    def render(self) -> np.ndarray:
        """Third-person RGB of the current state, upright, uint8, at least 256 pixels high."""
        self._ensure_env()
        picture = self._last_pictures.get(self.cameras[0])
        if picture is None:
            picture = self._render_camera(self.camera_name[0], ("rgb",))["rgb"]
        return upright(picture, at_least=256)

    def clean_rgb(self) -> dict[str, np.ndarray]:
        """RGB of the last observation per camera, before any fault, upright; uint8 (H, W, 3)."""
        pictures = {c: self._last_pictures[c] for c in self.cameras if c in self._last_pictures}
        for name, camera in self.camera_name_mapping.items():
            if camera in pictures and (camera, Modality.RGB) in self._displaced:
                pictures[camera] = self._render_camera(name, ("rgb",), in_place=True)["rgb"]
        return {camera: upright(picture) for camera, picture in pictures.items()}

    def close(self) -> None:
        """Free renderer and simulator."""
        self._stream_cameras.close()
        super().close()

    def _ensure_env(self) -> None:
        """Unlike upstream: no camera observations in robosuite, because this class renders by itself."""
        if self._env is not None:
            return
        with asset_root(self._assets_folder):
            env = Simulator(
                bddl_file_name=self._task_bddl_file,
                control_freq=self.control_freq,
                hard_reset=self.hard_reset,
                use_camera_obs=False,
                has_offscreen_renderer=False,
            )
            env.forget = self._is_mini or not self.hard_reset
            # Mini states name every pose: LIBERO's sampler (global generator) must not run in between.
            env.env.deterministic_reset = self._is_mini
            env.reset()
        self._env = env

    def _format_raw_obs(self, raw_obs: RobotObservation) -> RobotObservation:
        """Unlike upstream: pictures of all streams, rendered here; the robot state stays upstream's."""
        placeholders = dict.fromkeys(self.camera_name)
        observation = super()._format_raw_obs({**raw_obs, **placeholders})
        observation.pop("pixels")
        present = [
            1.0 if m in self._camera_streams[camera] else NO_SENSOR
            for camera in self.cameras
            for m in MODALITIES
        ]
        observation["presence"] = np.array(present, np.float32)
        self._last_pictures = {}  # also what render() shows must not be from an earlier step
        if not self.render_observations:
            return observation
        started = time.perf_counter()
        pixels: dict[str, np.ndarray] = {}
        for number, name in enumerate(self.camera_name):
            camera = self.camera_name_mapping[name]
            for stream, picture in self._render_camera(name, self._camera_streams[camera], number).items():
                place = observation if stream == Modality.DEPTH else pixels
                place[stream_name(camera, stream)] = picture
        self._last_pictures = pixels
        if pixels:
            observation["pixels"] = pixels
        self.render_seconds += time.perf_counter() - started
        return observation

    def _render_camera(
        self,
        name: str,
        streams: Sequence[str],
        number: int = 0,
        in_place: bool = False,
    ) -> dict[str, np.ndarray]:
        """All ``streams`` of one camera from the current simulator state; ``in_place``: not displaced."""
        camera = self.camera_name_mapping[name]
        own = {m: to for (where, m), to in self._displaced.items() if where == camera and not in_place}
        return self._stream_cameras.render(self.simulation, name, streams, self._step_index, number, own)


def get_suite(name: str) -> Any:
    """LIBERO benchmark object of a suite, the mini suite included.

    Raises:
        ValueError: no such suite.
    """
    return _get_suite(name)

"""Where environments come from: any LeRobot environment type, or an object of one's own with the same few methods."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from torch import Tensor

from multismolvla.corruption import (
    Condition,
)
from multismolvla_eval.config import EnvironmentArguments

logger = logging.getLogger(__name__)

Batch = dict[str, Any]


class EnvironmentSource(Protocol):
    """What the runner needs to know about the environments of one suite.

    Attributes:
        suite: name of the suite.
        tasks: instruction per task id.
        cameras: camera names as in observation keys.
        config: LeRobot's environment configuration, ``None`` if it has none (then only built-in policies work).
        action_dim: number of action components.
        max_steps: steps after which an episode has failed.
    """

    suite: str
    tasks: dict[int, str]
    cameras: tuple[str, ...]
    config: Any
    action_dim: int
    max_steps: int

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest: step limit, modality provenance, labels, hash of the assets, initial states."""

    def make(self, task_id: int) -> gym.Env:
        """A raw, unbatched environment. ``reset(seed=, options={"init_state_id": i})`` selects the start."""

    def with_faults(self, env: gym.Env, condition: Condition, run_seed: int) -> gym.Env:
        """The environment seen through the condition's faults; the clean condition changes nothing."""

    def processors(self, policy_config: Any) -> tuple[Callable[[Batch], Batch], Callable[[Tensor], Tensor]]:
        """Observation (raw, batched) -> policy batch, and policy action -> environment action."""


def add_batch_axis(observation: Mapping[str, Any]) -> dict[str, Any]:
    """A raw observation as a vector environment with one member gives it."""
    return {
        k: add_batch_axis(v) if isinstance(v, Mapping) else np.asarray(v)[None]
        for k, v in observation.items()
    }


class LeRobotSource:
    """One suite of an environment type registered with LeRobot.

    Args:
        config: LeRobot's environment configuration; several suites may share one.
        suite: name of the suite.
        members: a vector environment with one member per task, as ``create_envs`` gives them.

    Raises:
        ValueError: the environment has no step limit.
    """

    def __init__(self, config: Any, suite: str, members: Mapping[int, Any]) -> None:
        self.config, self.suite = config, suite
        # Only the members are used: a vector environment resets by itself and so would skip initial states.
        self._envs: dict[int, gym.Env] = {task_id: vector.envs[0] for task_id, vector in members.items()}
        self.tasks = {
            i: _attribute(e, "task_description", _attribute(e, "task", "")) for i, e in self._envs.items()
        }
        first = next(iter(self._envs.values()))
        self.cameras = tuple(_attribute(first, "cameras", ())) or _cameras_of(first)
        self.action_dim = int(first.action_space.shape[0])  # type: ignore[index]
        self.max_steps = int(_attribute(first, "_max_episode_steps", 0))
        # what FaultWrapper works on
        self._faultable = hasattr(first.unwrapped, "cameras") and _has_presence(first.observation_space)
        if self.max_steps < 1:
            raise ValueError(
                f"The suite {suite!r} of the environment type {config.type!r} has no step limit (_max_episode_steps)."
            )

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest."""
        first = next(iter(self._envs.values()))
        known = {k: _attribute(first, k, None) for k in ("init_split", "render_quality", "num_steps_wait")}
        return {
            "type": self.config.type,
            "max_steps": self.max_steps,
            "init_states": _count_states(first),
            "init_state_splits": {k: list(v) for k, v in _attribute(first, "init_state_splits", {}).items()},
            **{k: v for k, v in known.items() if v is not None},
            **_version(self.suite),
            "faultable": self._faultable,
            "fps": int(getattr(self.config, "fps", 0)),
            "streams": list(_attribute(first, "streams", ("rgb",))),
            "provenance": dict(_attribute(first, "provenance", {})),
            "labels": list(_attribute(first, "labels", ())),
            **_assets(first),
        }

    def make(self, task_id: int) -> gym.Env:
        """The environment of a task; it starts its simulator at the first reset."""
        return self._envs[task_id]

    def with_faults(self, env: gym.Env, condition: Condition, run_seed: int) -> gym.Env:
        """Wrap in the fault wrapper of our environment package; clean episodes run without it."""
        if not condition.faults:
            return env
        from lerobot_env_multismolvla.faults import FaultWrapper

        return FaultWrapper(env, condition, run_seed)

    def processors(self, policy_config: Any) -> tuple[Callable[[Batch], Batch], Callable[[Tensor], Tensor]]:
        """The steps of ``lerobot-eval`` around the policy's own processors, in its order."""
        from lerobot.envs.factory import make_env_pre_post_processors
        from lerobot.envs.utils import preprocess_observation
        from lerobot.utils.constants import ACTION

        before, after = make_env_pre_post_processors(env_cfg=self.config, policy_cfg=policy_config)

        def observe(raw: Batch) -> Batch:
            task = raw.pop("task")
            batch = preprocess_observation(raw)
            batch["task"] = task
            return before(batch)

        def act(action: Tensor) -> Tensor:
            return after({ACTION: action})[ACTION]

        return observe, act


def _assets(env: gym.Env) -> dict[str, Any]:
    """Hash of the assets; of LIBERO's own also whether some are stand-ins and which files nobody knows."""
    identity = _attribute(env, "assets", None)
    if identity is None:
        return {"assets": str(_attribute(env, "assets_hash", ""))}
    return {
        "assets": identity.hash,
        "assets_standins": identity.standins,
        "assets_differing": list(identity.differing),
    }


def _version(suite: str) -> dict[str, int]:
    """The mini suite is ours and changes; scenes and states of a version are what makes its episodes comparable."""
    from lerobot_env_multismolvla import mini

    return {"mini_version": mini.MINI_VERSION} if suite == mini.SUITE_NAME else {}


def _attribute(env: gym.Env, name: str, default: Any) -> Any:
    return getattr(env.unwrapped, name, default)


def _count_states(env: gym.Env) -> int | None:
    """Number of different initial states, where the environment knows it; LIBERO starts again after the last."""
    states = _attribute(env, "_init_states", None)
    return len(states) if states is not None else _attribute(env, "num_init_states", None)


def _has_presence(space: gym.Space[Any]) -> bool:
    return isinstance(space, gym.spaces.Dict) and "presence" in space.spaces


def _cameras_of(env: gym.Env) -> tuple[str, ...]:
    space = env.observation_space
    pixels = space["pixels"] if isinstance(space, gym.spaces.Dict) and "pixels" in space.spaces else None
    return tuple(pixels.spaces) if isinstance(pixels, gym.spaces.Dict) else ("image",)


def choose_start(env: gym.Env, number: int) -> None:
    """Let the next reset begin with the stored initial state ``number``, whatever ran before.

    Our environments are told by an option of the reset. LeRobot's own LIBERO types (0.6.1) know no such option and count
    their resets: without this, arms of different histories would not start the same.
    """
    bare: Any = env.unwrapped
    if hasattr(bare, "init_state_id"):
        bare.init_state_id = number


#: What a reset edits in MuJoCo's model: LIBERO draws the places of fixtures, which no joint position holds.
_EDITED = ("body_pos", "body_quat")


def state_hash(env: gym.Env) -> str | None:
    """Hash of where everything stands and how it moves: shows that two arms really start the same.

    It covers the simulator's state (time, joint positions and velocities) and the places of all bodies in the model.

    Returns:
        16 hexadecimal digits; ``None`` where there is no simulator to look into.
    """
    bare = env.unwrapped
    simulation = getattr(bare, "simulation", None)  # ours
    if simulation is None:
        simulation = getattr(getattr(bare, "_env", None), "env", None)  # LeRobot's own LIBERO types
    sim = getattr(simulation, "sim", None)
    if sim is None:
        return None
    model = getattr(sim, "model", None)
    parts = [sim.get_state().flatten(), *(getattr(model, name) for name in _EDITED if model is not None)]
    digest = hashlib.sha256()
    for part in parts:
        array = np.ascontiguousarray(part)
        digest.update(str((array.shape, array.dtype)).encode() + array.tobytes())
    return digest.hexdigest()[:16]


def load_sources(arguments: EnvironmentArguments) -> dict[str, EnvironmentSource]:
    """One source per suite that the options name, in their order.

    Raises:
        ValueError: unknown type, option, suite or task id, or ``module:attribute`` that cannot be found.
        FileNotFoundError: LIBERO's assets are missing, or not whole.
        ModuleNotFoundError: LIBERO-Plus is asked for and not what is installed, or no LIBERO is.
    """
    module_name, colon, attribute = arguments.type.partition(":")
    if not colon:
        return _lerobot_sources(arguments)
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"--env.type={arguments.type}: cannot load {attribute!r} from {module_name!r}: {error}."
        ) from error
    return {suite: factory(replace(arguments, task=suite)) for suite in arguments.suites()}


def load_source(arguments: EnvironmentArguments) -> EnvironmentSource:
    """The source of the one suite that the options name.

    Raises:
        ValueError: as :func:`load_sources`, or the options name several suites.
    """
    sources = load_sources(arguments)
    if len(sources) != 1:
        raise ValueError(f"--env.task={arguments.task} names {len(sources)} suites; expected one here.")
    return next(iter(sources.values()))


def _lerobot_sources(arguments: EnvironmentArguments) -> dict[str, EnvironmentSource]:
    from lerobot.envs.configs import EnvConfig
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    try:
        config_class = EnvConfig.get_choice_class(arguments.type)
    except KeyError as error:
        known = sorted(EnvConfig.get_known_choices())
        raise ValueError(
            f"--env.type={arguments.type} is not registered with LeRobot. Known: {known}. A type of your own is "
            "registered by a module named in --plugins."
        ) from error
    options: dict[str, Any] = {"task": arguments.task, **arguments.options}
    if arguments.task_ids is not None:
        options["task_ids"] = list(arguments.task_ids)
    try:
        config = config_class(**options)
    except TypeError as error:
        raise ValueError(
            f"--env.options do not fit the environment type {arguments.type!r}: {error}."
        ) from error
    if arguments.type == LIBERO_PLUS_TYPE:
        require_libero_plus()
    assets = _prepare_libero(arguments, config)
    envs = config.create_envs(n_envs=1, use_async_envs=False)
    if assets is not None:
        _refuse_missing_task_files(assets, envs)
    return {suite: LeRobotSource(config, suite, members) for suite, members in envs.items()}


def _prepare_libero(arguments: EnvironmentArguments, config: Any) -> Path | None:
    """What must be said before LIBERO is imported and before a simulator starts.

    Returns:
        LIBERO's assets, of which every file that a task reads must be there; ``None`` where none are needed, or where they are
        others than LIBERO's.

    Raises:
        FileNotFoundError: the assets are missing, or not whole.
    """
    from lerobot_env_multismolvla.libero.setup import (
        ensure_libero_config,
        require_libero_assets,
        set_asset_root,
    )
    from multismolvla.system.libero_assets import find_libero_assets

    if arguments.type == "multismolvla_libero":
        folder = find_libero_assets(config.libero_assets)
        if folder is None or not any(name.startswith("libero_") for name in config.suites):
            return None  # nothing of it is needed, or the environment says what to do
    elif arguments.type == "libero":
        ensure_libero_config()
        folder = require_libero_assets(arguments.suites()[0])
        set_asset_root(
            folder
        )  # LeRobot's environments leave it to hf-libero, which may download into the home folder
    elif arguments.type == LIBERO_PLUS_TYPE:
        _refuse_missing_plus_assets(ensure_libero_config())
        return None
    else:
        return None
    _refuse_missing_assets(folder)
    return folder


def _refuse_missing_assets(folder: Path) -> None:
    """A task whose files are missing would crash in every episode, which must not count as the policy's failures."""
    from multismolvla.system.libero_assets import missing_files

    missing = missing_files(folder)
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} of the files that LIBERO's suites read, e.g. {missing[0]}. Fetch them again: "
            "multismolvla-doctor --fetch-assets."
        )


def _refuse_missing_plus_assets(configuration: Path) -> None:
    """The same for LIBERO-Plus, whose files nobody has listed: its folder must be there."""
    import yaml

    folder = Path(yaml.safe_load(configuration.read_text())["assets"])
    if not folder.is_dir():
        raise FileNotFoundError(
            f"LIBERO-Plus has no assets: {folder} (named in {configuration}) is no folder. Fetch them as its README says "
            "(6.4 GB)."
        )


def _refuse_missing_task_files(assets: Path, envs: Mapping[str, Mapping[int, Any]]) -> None:
    """The same for what only these tasks read, e.g. those of libero_90."""
    from lerobot_env_multismolvla.libero.files import refuse_missing_files

    vectors = [v for suite, members in envs.items() if suite.startswith("libero_") for v in members.values()]
    if vectors:
        refuse_missing_files((Path(v.envs[0].unwrapped._task_bddl_file) for v in vectors), assets)


#: LeRobot's environment type for LIBERO-Plus (C7), and the file that tells its package from plain LIBERO's.
LIBERO_PLUS_TYPE = "libero_plus"


_LIBERO_PLUS_FILE = "libero/benchmark/task_classification.json"


def require_libero_plus() -> None:
    r"""Check that LIBERO-Plus (C7) can be run.

    C7 is a set of 10,030 tasks, one trial each, and no sensor fault, hence no condition: it is run as an environment of
    its own, without C1 to C5 (its type has RGB only)::

        multismolvla-eval --policies='[ours=...]' --env.type=libero_plus --env.task=libero_spatial \
            --conditions='[C0]' --clean_episodes=1

    ``--env.task_ids`` takes the documented subset. Its package replaces ``libero`` (same import name) and is, as LeRobot says,
    a namespace package, which an installed hf-libero hides wherever it stands on the path: it needs an
    installation without hf-libero, and its results can never be in one run with those of LIBERO.

    Raises:
        ModuleNotFoundError: what is installed as ``libero`` is not LIBERO-Plus, or nothing is.
    """
    spec = importlib.util.find_spec("libero")
    places = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    # of several portions of a namespace package the first one with the inner package is what is imported
    imported = next((p for p in places if (p / "libero").is_dir()), None)
    if imported is None or not (imported / _LIBERO_PLUS_FILE).is_file():
        found = (
            f"the package libero in {imported} is plain LIBERO"
            if imported
            else "no package libero is installed"
        )
        raise ModuleNotFoundError(
            f"--env.type={LIBERO_PLUS_TYPE} (C7) needs LIBERO-Plus, but {found}. Clone sylvestf/LIBERO-plus from GitHub, "
            "put the clone on PYTHONPATH in an environment of its own without hf-libero, which would hide it, and fetch its "
            "assets (6.4 GB) as its README says; LeRobot's docker/Dockerfile.benchmark.libero_plus shows the steps."
        )

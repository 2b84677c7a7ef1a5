"""Environments: any LeRobot environment type, or an object of one's own with the same few methods."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import msgspec
import numpy as np
from torch import Tensor

from multismolvla.corruption import Condition
from multismolvla.modalities import Provenance
from multismolvla.provenance import with_derived
from multismolvla_eval.config import EnvironmentArguments
from multismolvla_eval.records.schema import SuiteFacts

#: What LeRobot calls a batch: tensors, and texts, by observation key.
Batch = dict[str, Any]


class EnvironmentSource(Protocol):
    """What the runner needs to know about the environments of one suite.

    Attributes:
        suite: name of the suite.
        cameras: camera names as in observation keys.
        config: LeRobot's environment configuration; ``None``: only built-in policies work.
        action_dim: number of action components.
    """

    suite: str
    cameras: tuple[str, ...]
    config: Any
    action_dim: int

    def facts(self) -> SuiteFacts:
        """What the environment tells of itself, for rows and manifest."""

    def make(self, task_id: int) -> gym.Env:
        """A raw, unbatched environment. ``reset(seed=, options={"init_state_id": i})`` selects the start."""

    def with_faults(self, env: gym.Env, condition: Condition, run_seed: int) -> gym.Env:
        """The environment seen through the condition's faults; the clean condition changes nothing."""

    def processors(self, policy_config: Any) -> tuple[Callable[[Batch], Batch], Callable[[Tensor], Tensor]]:
        """Observation (raw, batched) -> policy batch, and policy action -> environment action."""


@runtime_checkable
class RendersOnDemand(Protocol):
    """An environment that renders no pictures while it is told not to, and measures how long it renders."""

    render_observations: bool
    render_seconds: float


@runtime_checkable
class KeepsCleanPictures(Protocol):
    """An environment that keeps its last pictures as they were before any fault."""

    def clean_rgb(self) -> dict[str, np.ndarray]:
        """By camera, upright, uint8 (H, W, 3)."""


@runtime_checkable
class _CountsStarts(Protocol):
    init_state_id: int


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
        first = next(iter(self._envs.values()))
        self.cameras = tuple(getattr(first.unwrapped, "cameras", ())) or _cameras_of(first)
        self.action_dim = int(first.action_space.shape[0])  # type: ignore[index]
        self._facts = _facts_of(config, suite, self._envs)

    def facts(self) -> SuiteFacts:
        """See `EnvironmentSource`."""
        return self._facts

    def make(self, task_id: int) -> gym.Env:
        """The environment of a task; it starts its simulator at the first reset."""
        return self._envs[task_id]

    def with_faults(self, env: gym.Env, condition: Condition, run_seed: int) -> gym.Env:
        """Wrap in the fault wrapper of our environment package, unless no sensor has a fault.

        None has in a clean episode, nor under an attack, which changes what the policy looks at: but then
        what the environment computes from RGB would still show the clean one.
        """
        derived = {m for m, kind in self._facts.provenance.items() if kind == Provenance.DERIVED}
        if all(f.kind == "adversarial" for f in with_derived(condition.faults, derived, self.cameras)):
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
            return before({**preprocess_observation(raw), "task": task})

        def act(action: Tensor) -> Tensor:
            return after({ACTION: action})[ACTION]

        return observe, act


def _facts_of(config: Any, suite: str, envs: Mapping[int, gym.Env]) -> SuiteFacts:
    """Facts about a suite's environments; other types than ours provide fewer."""
    from lerobot_env_multismolvla.multimodal_env import MultiModalLiberoEnv

    bare = next(iter(envs.values())).unwrapped
    tasks = {i: _instruction(env.unwrapped) for i, env in envs.items()}
    if isinstance(bare, MultiModalLiberoEnv):
        return msgspec.convert({**vars(bare.facts), "tasks": tasks}, SuiteFacts)
    return _facts_of_other(config, suite, next(iter(envs.values())), tasks)


def _facts_of_other(config: Any, suite: str, env: gym.Env, tasks: dict[int, str]) -> SuiteFacts:
    """What can be known of an environment that does not tell it, such as LeRobot's own types (0.6.1)."""
    bare: Any = env.unwrapped
    limit, states = getattr(bare, "_max_episode_steps", None), getattr(bare, "_init_states", None)
    if not limit:
        raise ValueError(
            f"The suite {suite!r} of the type {config.type!r} has no step limit (_max_episode_steps)."
        )
    space = env.observation_space
    return SuiteFacts(
        type=config.type,
        tasks=tasks,
        max_steps=int(limit),
        init_states=None if states is None else len(states),
        num_steps_wait=getattr(bare, "num_steps_wait", None),
        # what FaultWrapper works on
        faultable=bool(getattr(bare, "cameras", ()))
        and isinstance(space, gym.spaces.Dict)
        and "presence" in space.spaces,
        fps=int(getattr(config, "fps", 0)),
        streams=list(getattr(bare, "provenance", ())) or ["rgb"],
    )


def _instruction(env: Any) -> str:
    return str(getattr(env, "task_description", None) or getattr(env, "task", ""))


def _cameras_of(env: gym.Env) -> tuple[str, ...]:
    space = env.observation_space
    pixels = space["pixels"] if isinstance(space, gym.spaces.Dict) and "pixels" in space.spaces else None
    return tuple(pixels.spaces) if isinstance(pixels, gym.spaces.Dict) else ("image",)


def choose_start(env: gym.Env, number: int) -> None:
    """Let the next reset begin with the stored initial state ``number``, whatever ran before.

    Our environments are told by an option of the reset. LeRobot's own LIBERO types (0.6.1) know no such
    option and count their resets: without this, episodes after different histories would not start the same.
    """
    bare = env.unwrapped
    if isinstance(bare, _CountsStarts):
        bare.init_state_id = number


#: What a reset edits in MuJoCo's model: LIBERO draws the places of fixtures, which no joint position holds.
_EDITED = ("body_pos", "body_quat")


def state_hash(env: gym.Env) -> str | None:
    """Hash of where everything stands and how it moves: shows that two episodes really start the same.

    It covers the simulator's time, joint positions and velocities, and the places of all bodies in the model.

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


def load_sources(arguments: EnvironmentArguments, to_run: bool = True) -> dict[str, EnvironmentSource]:
    """One source per suite that the options name, in their order.

    Args:
        arguments: of ``--env``.
        to_run: whether episodes are to run; only their facts are asked for otherwise.

    Raises:
        ValueError: unknown type, option, suite or task id, or ``module:attribute`` that cannot be found.
        FileNotFoundError: LIBERO's assets are not whole, or missing although episodes are to run.
        ModuleNotFoundError: LIBERO-Plus is asked for and not what is installed, or no LIBERO is.
    """
    module_name, colon, attribute = arguments.type.partition(":")
    if not colon:
        return _lerobot_sources(arguments, to_run)
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"--env.type={arguments.type}: cannot load {attribute!r} from {module_name!r}: {error}."
        ) from error
    return {suite: factory(replace(arguments, task=suite)) for suite in arguments.suites()}


def _lerobot_sources(arguments: EnvironmentArguments, to_run: bool) -> dict[str, EnvironmentSource]:
    from lerobot.envs.configs import EnvConfig
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    types = sorted(EnvConfig.get_known_choices())
    if arguments.type not in types:
        raise ValueError(
            f"--env.type={arguments.type} is not registered with LeRobot. Known: {types}. A type of your own "
            "is registered by a module named in --plugins."
        )
    config_class = EnvConfig.get_choice_class(arguments.type)
    known = [f.name for f in fields(config_class)]
    for name in arguments.options.keys() - known:
        near = difflib.get_close_matches(name, known, 1)
        raise ValueError(
            f"--env.options: the environment type {arguments.type!r} has no {name!r}. "
            + (f"Did you mean {near[0]!r}?" if near else f"It has {sorted(known)}.")
        )
    tasks = {} if arguments.task_ids is None else {"task_ids": list(arguments.task_ids)}
    config = config_class(**{"task": arguments.task, **arguments.options, **tasks})
    assets = _prepare_libero(arguments, config, to_run)
    ours = {"require_assets": to_run} if arguments.type == "multismolvla_libero" else {}
    envs = config.create_envs(n_envs=1, use_async_envs=False, **ours)
    if assets is not None:
        _refuse_missing_task_files(assets, envs)
    return {suite: LeRobotSource(config, suite, members) for suite, members in envs.items()}


def _prepare_libero(arguments: EnvironmentArguments, config: Any, to_run: bool) -> Path | None:
    """What must be done before LIBERO is imported.

    Returns:
        LIBERO's assets, of which every file that a task reads must be there; ``None`` where they are others,
        or none.

    Raises:
        FileNotFoundError: the assets are missing although episodes are to run.
        ModuleNotFoundError: LIBERO-Plus is asked for and not what is installed.
    """
    from lerobot_env_multismolvla.libero.setup import (
        ensure_libero_config,
        require_libero_assets,
        set_asset_root,
    )
    from multismolvla.system.libero_assets import find_libero_assets

    if arguments.type == "multismolvla_libero":
        return find_libero_assets(config.libero_assets)
    if arguments.type == "libero":
        ensure_libero_config()
        if not to_run and find_libero_assets() is None:
            return None
        folder = require_libero_assets(arguments.suites()[0])
        set_asset_root(folder)  # hf-libero may otherwise download into the home folder
        return folder
    if arguments.type == "libero_plus":
        _require_libero_plus()
        ensure_libero_config()
    return None


def _require_libero_plus() -> None:
    """Refuse to run plain LIBERO as LIBERO-Plus (C7): both packages are called ``libero``.

    Raises:
        ModuleNotFoundError: what is installed as ``libero`` is not LIBERO-Plus, or nothing is.
    """
    spec = importlib.util.find_spec("libero")
    places = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    # of several portions of a namespace package the first one with the inner package is what is imported
    imported = next((p for p in places if (p / "libero").is_dir()), None)
    if imported is None or not (imported / "libero/benchmark/task_classification.json").is_file():
        raise ModuleNotFoundError(
            f"--env.type=libero_plus (C7) needs LIBERO-Plus; the package libero here is {imported}. Clone "
            "sylvestf/LIBERO-plus from GitHub, put the clone on PYTHONPATH in an environment of its own "
            "without hf-libero, which would hide it, and fetch its assets (6.4 GB) as its README says."
        )


def _refuse_missing_task_files(assets: Path, envs: Mapping[str, Mapping[int, Any]]) -> None:
    """A task whose files are missing would crash in every episode, which says nothing about a policy."""
    from lerobot_env_multismolvla.libero.files import refuse_missing_files

    vectors = [v for suite, members in envs.items() if suite.startswith("libero_") for v in members.values()]
    if vectors:
        refuse_missing_files((Path(v.envs[0].unwrapped._task_bddl_file) for v in vectors), assets)

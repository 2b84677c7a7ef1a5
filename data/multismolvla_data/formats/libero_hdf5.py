"""LIBERO's official demonstration files: ``<task>_demo.hdf5``, about fifty demonstrations of one task.

Layout, as LIBERO's ``scripts/create_dataset.py`` writes it: group ``data`` (attributes ``bddl_file_name``,
``env_args`` and ``problem_info`` in JSON, ``num_demos``, ...) with one group ``demo_<i>`` per demonstration:
``actions`` (T, 7), ``states`` (T, 1 + nq + nv), ``robot_states`` (T, 9), ``rewards`` and ``dones`` (T,),
``obs/*``, and the attributes ``num_samples``, ``init_state`` and ``model_file`` (the scene as MuJoCo XML).

``states[t]`` is the simulator *before* ``actions[t]``; the pictures in ``obs`` were taken *after* it. Whoever
trains on the file's own pictures must shift them by one; a replay from states needs no such shift.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np

SUFFIX = "_demo.hdf5"
ACTION_SIZE = 7
#: Control rate of the demonstrations; another one gives each action another meaning.
CONTROL_HZ = 20
#: Below this norm of the six motion components an action moves nothing (OpenVLA's rule).
NOOP_THRESHOLD = 1e-4


class DemoFileError(ValueError):
    """A file is not what LIBERO's official demonstrations are; the message names file, place and remedy."""


@dataclass(frozen=True)
class Demonstration:
    """One demonstration.

    Attributes:
        actions: float64 (T, 7) in [-1, 1]: delta position, delta rotation, gripper (-1 open, +1 close).
        states: float64 (T, 1 + nq + nv), flattened simulator state before each action.
        model_xml: the scene it was recorded in; ``None`` where a converted file has dropped it.
    """

    actions: np.ndarray
    states: np.ndarray
    model_xml: str | None = None


@dataclass(frozen=True)
class DemoFile:
    """What a demonstration file holds, without the large arrays."""

    path: Path
    task: str  # from the file's name
    noops: dict[str, np.ndarray]  # per demonstration, in numeric order: bool (T,), which actions are no-ops
    digest: str  # over all actions and first states


def find_demo_files(source: Path) -> list[Path]:
    """The demonstration files that ``source`` names: itself, or those directly in the folder, by name."""
    files = [source] if source.is_file() else sorted(source.glob(f"*{SUFFIX}"))
    if not files or not files[0].name.endswith(SUFFIX):
        raise DemoFileError(
            f"--source={source}: expected a file <task>{SUFFIX} (its name tells the task) or a folder of "
            "them, e.g. LIBERO's libero_object."
        )
    return files


def noop_mask(actions: np.ndarray) -> np.ndarray:
    """Which actions do nothing, by the rule that OpenVLA's ``regenerate_libero_dataset.py`` made common.

    An action (T, 7) is a no-op when its six motion components have a norm below 1e-4 and its gripper command
    equals that of the last action that was *kept*. Before any action is kept the motion alone decides.
    """
    mask = np.linalg.norm(actions[:, :-1], axis=1) < NOOP_THRESHOLD
    gripper = None
    for step in range(len(actions)):
        if mask[step] and (gripper is None or actions[step, -1] == gripper):
            continue
        mask[step], gripper = False, actions[step, -1]
    return mask


def inspect_demo_file(path: Path) -> DemoFile:
    """Check a whole file, without its pictures, and find its no-ops.

    Raises:
        DemoFileError: truncated, foreign, incomplete, or demonstrations of another kind of control.
    """
    noops: dict[str, np.ndarray] = {}
    digest = hashlib.sha256()
    with _open(path) as data:
        _check_attributes(path, data)
        for name in _demo_names(path, data):
            demo = _read(path, data, name)
            noops[name] = noop_mask(demo.actions)
            digest.update(name.encode() + demo.actions.tobytes() + demo.states[0].tobytes())
    return DemoFile(path, path.name.removesuffix(SUFFIX), noops, digest.hexdigest()[:16])


def read_demo(path: Path, name: str) -> Demonstration:
    """Read one demonstration, which must be there and undamaged."""
    with _open(path) as data:
        return _read(path, data, name)


def fixture_poses(model_xml: str, bodies: Sequence[str]) -> dict[str, np.ndarray]:
    """Where fixtures stood when a demonstration was recorded: LIBERO's states do not hold it.

    Returns:
        Body name -> float64 (7,): position in metres, unit quaternion w x y z.

    Raises:
        DemoFileError: the text is no MuJoCo model, or a body is missing: another scene.
    """
    try:
        root = ElementTree.fromstring(model_xml)
    except ElementTree.ParseError as error:
        raise DemoFileError(f"model_file is not XML: {error}.") from error
    found = {body.get("name"): body for body in root.iter("body")}
    poses = {}
    for name in bodies:
        if name not in found:
            raise DemoFileError(f"model_file has no fixture {name!r}: it is the scene of another task.")
        position = np.array(found[name].get("pos", "0 0 0").split(), np.float64)
        quaternion = np.array(found[name].get("quat", "1 0 0 0").split(), np.float64)
        poses[name] = np.concatenate([position, quaternion / np.linalg.norm(quaternion)])
    return poses


@contextmanager
def _open(path: Path) -> Iterator[h5py.Group]:
    """The group ``data`` of a file; whatever HDF5 finds wrong with the file is named."""
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("data"), h5py.Group):
                raise DemoFileError(f"{path} has no group 'data' but {sorted(file)}: no file of LIBERO's.")
            yield file["data"]
    except OSError as error:
        raise DemoFileError(
            f"{path} cannot be read as HDF5: {error}. Truncated by an unfinished download? Fetch it again."
        ) from error


def _demo_names(path: Path, data: h5py.Group) -> list[str]:
    """Names ``demo_<i>`` in numeric order (HDF5's own order puts demo_10 before demo_2)."""
    names = [name for name in data if name.startswith("demo_") and name[5:].isdecimal()]
    if not names:
        raise DemoFileError(f"{path} has no demonstration: expected groups data/demo_0, data/demo_1, ...")
    announced = int(data.attrs.get("num_demos", len(names)))
    if announced != len(names):
        raise DemoFileError(
            f"{path} announces {announced} demonstrations and has {len(names)}: incomplete. Fetch it again, "
            "or correct the attribute num_demos if some were removed on purpose."
        )
    return sorted(names, key=lambda name: int(name[5:]))


def _check_attributes(path: Path, data: h5py.Group) -> None:
    """What the file says about itself must fit its name and our control; converted files may say nothing."""
    task = path.name.removesuffix(SUFFIX)
    bddl = Path(_text(data.attrs.get("bddl_file_name", task))).name.removesuffix(".bddl")
    if bddl != task:
        raise DemoFileError(f"{path} holds task {bddl!r} by its bddl_file_name: name it {bddl}{SUFFIX}.")
    try:
        arguments = json.loads(data.attrs.get("env_args", "{}")).get("env_kwargs", {})
    except json.JSONDecodeError as error:
        raise DemoFileError(f"{path}: the attribute env_args is not JSON: {error}.") from error
    rate = arguments.get("control_freq", CONTROL_HZ)
    controller = (arguments.get("controller_configs") or {}).get("type", "OSC_POSE")
    if (rate, controller) != (CONTROL_HZ, "OSC_POSE"):
        raise DemoFileError(
            f"{path} was recorded at {rate} Hz with controller {controller!r}; expected {CONTROL_HZ} Hz and "
            "'OSC_POSE'."
        )


def _read(path: Path, data: h5py.Group, name: str) -> Demonstration:
    place = f"{path}: data/{name}"
    if name not in data:
        raise DemoFileError(f"{place} does not exist; the file has {_demo_names(path, data)}.")
    group = data[name]
    missing = [key for key in ("actions", "states") if not isinstance(group.get(key), h5py.Dataset)]
    if missing:
        raise DemoFileError(f"{place} lacks {missing}; it has {sorted(group)}.")
    actions, states = (np.asarray(group[key], np.float64) for key in ("actions", "states"))
    if actions.ndim != 2 or actions.shape[1] != ACTION_SIZE or not len(actions):
        raise DemoFileError(f"{place}/actions has shape {actions.shape}; expected (steps, {ACTION_SIZE}).")
    if states.ndim != 2 or len(states) != len(actions):
        raise DemoFileError(
            f"{place}/states has shape {states.shape} beside {len(actions)} actions; expected one per action."
        )
    for key, values in (("actions", actions), ("states", states)):
        broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(broken):
            raise DemoFileError(f"{place}/{key} has a value that is not finite, first in row {broken[0]}.")
    xml = group.attrs.get("model_file")
    return Demonstration(actions, states, None if xml is None else _text(xml))


def _text(value: object) -> str:
    """An attribute as text; HDF5 has strings of fixed length, too, which h5py gives as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)

"""Sensor faults between the simulator and everything else, for paired evaluation."""

from __future__ import annotations

from collections import deque
from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from lerobot.lerobot_types import RobotObservation
from torch import Tensor

from lerobot_env_multismolvla.processor_multismolvla_libero import upright
from multismolvla.corruption import (
    Condition,
    Fault,
    apply_cross,
    episode_seed,
    frame_generator,
    shown_step,
)
from multismolvla.corruption.cross_modal import (
    BEYOND_ONE_PICTURE,
    DISPLACED,
    Displacement,
    draw_displacement,
)
from multismolvla.corruption.hard import apply_hard
from multismolvla.corruption.names import FREEZES
from multismolvla.corruption.soft import apply_soft
from multismolvla.corruption.temporal import WINDOW_TYPES
from multismolvla.modalities import MODALITIES, Modality, Provenance, stream_name
from multismolvla.provenance import with_derived


class FaultWrapper(gym.Wrapper):
    """Applies an evaluation condition to the raw observations of a :class:`MultiModalLiberoEnv`.

    Its generators depend on run seed, suite, task, initial state, camera, modality, fault and step alone, and
    it touches no other random number: a clean and a faulted episode differ in nothing but the fault.

    ``drop`` empties the stream, with ``presence`` 0 if the fault is announced. ``zero``, ``grey``, ``freeze``
    (the episode's first frame stays) and ``noisy_freeze`` (it stays under fresh noise) leave ``presence`` at
    1. Soft and cross-modal faults change the content, temporal ones show an earlier picture or none. Depth
    pixels that a fault makes invalid become 0. Modalities that the environment computes from RGB share its
    faults, see :func:`multismolvla.provenance.with_derived`. Attacks (C6) are no faults of a sensor, they
    happen where the policy looks: here they only drop what is computed from their RGB.

    With a temporal fault the observation has ``captured``, float32 (views * modalities,): when the picture of
    each stream was taken, in seconds of the episode, as cameras that stamp their pictures would tell it.

    ``info["fault_active"]`` says whether any stream is changed in this step: a temporal fault may begin later
    than the episode ends.

    Args:
        env: the environment, not vectorised.
        condition: what is broken.
        run_seed: seed of the evaluation run.

    Raises:
        ValueError: the condition names a camera that the environment does not have, or exchanges the cameras
            of an environment with one.

    Example:
        >>> env = FaultWrapper(config.env_maker("multismolvla_mini", 0)(), parse_condition("C1:-rgb"), 0)
    """

    def __init__(self, env: gym.Env, condition: Condition, run_seed: int) -> None:
        super().__init__(env)
        self.condition = condition
        self.run_seed = run_seed
        inner: Any = env.unwrapped
        self._cameras: tuple[str, ...] = inner.cameras
        self._labels: tuple[str, ...] = inner.labels
        for fault in condition.faults:
            unknown = sorted(set(fault.cameras or ()) - set(self._cameras))
            if unknown or (fault.type == "swapped" and len(self._cameras) < 2):
                wish = f"names camera {unknown[0]!r}" if unknown else "exchanges cameras"
                raise ValueError(
                    f"Condition {condition.id!r} {wish}; this environment has {list(self._cameras)}."
                )
        self._derived = {m for m, kind in inner.provenance.items() if kind == Provenance.DERIVED}
        reaching = with_derived(condition.faults, self._derived, self._cameras)
        self._faults = tuple(f for f in reaching if f.kind != "adversarial")
        self._step_index = 0
        self._init_state = 0
        self._active = False
        #: Per stream: the first picture (``freeze``), the last one shown, or the last k + 1 (``delay``).
        self._kept: dict[tuple[str, str], deque[Tensor]] = {}
        self._shown: np.ndarray | None = None
        #: Step at which each stream's picture was taken, (V * M,); ``None`` without a fault in time.
        self._taken: np.ndarray | None = None
        if any(f.kind == "temporal" for f in self._faults):
            self._taken = np.zeros(len(self._cameras) * len(MODALITIES), np.float32)
            known: Any = env.observation_space
            times = gym.spaces.Box(0.0, np.inf, self._taken.shape, np.float32)
            self.observation_space = gym.spaces.Dict({**known.spaces, "captured": times})

    def reset(self, **kwargs: Any) -> tuple[RobotObservation, dict[str, Any]]:
        """Start an episode; the initial state's number seeds the faults."""
        self._step_index = 0
        self._kept = {}
        displacing = [f for f in self._faults if f.type in DISPLACED]
        if displacing:  # the first picture shows it already
            env: Any = self.env.unwrapped
            options = kwargs.get("options") or {}
            self._init_state = int(options.get("init_state_id", env.init_state_id))
            displaced = {
                (camera, fault.modality): self._displacement(fault, camera)
                for fault, camera in product(displacing, self._cameras)
                if fault.hits(camera, fault.modality)
            }
            kwargs["options"] = {**options, "displaced": displaced}
        observation, info = self.env.reset(**kwargs)
        self._init_state = int(info.get("init_state_id", 0))
        return self._break(observation), {**info, "fault_active": self._active}

    def step(self, action: Any) -> tuple[RobotObservation, Any, bool, bool, dict[str, Any]]:
        """One control step; only the returned observation is changed."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._step_index += 1
        broken = self._break(observation)
        return broken, reward, terminated, truncated, {**info, "fault_active": self._active}

    def render(self) -> Any:
        """The third-person picture that the policy gets, upright, at least 256 pixels high."""
        if self._shown is None:
            return self.env.render()
        return upright(self._shown, at_least=256)

    def _break(self, observation: RobotObservation) -> RobotObservation:
        """A copy of the observation with all faults applied."""
        broken = dict(observation)
        broken["pixels"] = dict(observation.get("pixels", {}))
        broken["presence"] = observation["presence"].copy()
        self._active = False
        if self._taken is not None:
            self._taken[:] = self._step_index
        for fault, camera in product(self._faults, self._cameras):
            if fault.hits(camera, fault.modality):
                self._break_stream(observation, broken, fault, camera)
        if self._taken is not None:
            env: Any = self.env.unwrapped
            broken["captured"] = self._taken / np.float32(env.control_freq)
        if not broken["pixels"]:
            broken.pop("pixels")
        self._shown = broken.get("pixels", {}).get(self._cameras[0])
        return broken

    def _break_stream(
        self, observation: RobotObservation, broken: RobotObservation, fault: Fault, camera: str
    ) -> None:
        """Change one stream of ``broken`` in place."""
        depth = fault.modality == Modality.DEPTH
        pictures = observation if depth else observation.get("pixels", {})
        source = camera
        if fault.type == "swapped":  # of more than two cameras each gets the next one's
            rendered = [c for c in self._cameras if stream_name(c, fault.modality) in pictures]
            if camera in rendered:
                source = rendered[(rendered.index(camera) + 1) % len(rendered)]
        picture = pictures.get(stream_name(source, fault.modality))
        gone = fault.type == "drop"
        if picture is not None:  # the environment renders it
            distance = observation.get(stream_name(source, Modality.DEPTH))
            result, gone = self._break_picture(picture, fault, camera, distance)
            place = broken if depth else broken["pixels"]
            place[stream_name(camera, fault.modality)] = result
        if gone and fault.announced:
            broken["presence"][self._place(fault, camera)] = 0.0

    def _place(self, fault: Fault, camera: str) -> int:
        """Number of a stream where all streams are in one row."""
        return self._cameras.index(camera) * len(MODALITIES) + MODALITIES.index(fault.modality)

    def _break_picture(
        self, picture: np.ndarray, fault: Fault, camera: str, distance: np.ndarray | None
    ) -> tuple[np.ndarray, bool]:
        """(H, W, C) -> (H, W, C), same dtype, and whether nothing is shown."""
        image = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
        valid = image > 0 if fault.modality == Modality.DEPTH else None
        type_ = fault.type
        if fault.kind == "temporal":
            seen = self._in_time(image, fault, camera)
            if seen is not None:
                return seen.numpy().transpose(1, 2, 0).copy(), False
            type_ = "drop"
        self._active = True
        if fault.hard or type_ == "drop":
            first = image
            if type_ in FREEZES:
                first = self._kept.setdefault((camera, fault.modality), deque([image.clone()]))[0]
            generator = frame_generator(self._seed(fault, camera), self._step_index, type_)
            image, valid = apply_hard(image, valid, fault.modality, type_, first, generator)
        elif fault.kind == "soft":
            generator = frame_generator(self._seed(fault, camera), self._step_index, type_)
            labels = len(self._labels) or None
            depth = None
            if distance is not None:
                depth = torch.from_numpy(np.ascontiguousarray(distance[..., :1].transpose(2, 0, 1)))
            image, valid = apply_soft(
                image, valid, fault.modality, type_, fault.severity, generator, labels, depth
            )
        elif type_ not in BEYOND_ONE_PICTURE:
            generator = torch.Generator().manual_seed(self._seed(fault, camera))
            image, valid = apply_cross(image, valid, fault.modality, type_, fault.parameter, generator)
        if valid is not None:
            image = torch.where(valid, image, torch.zeros_like(image))
        return np.ascontiguousarray(image.numpy().transpose(1, 2, 0)), type_ == "drop"

    def _in_time(self, image: Tensor, fault: Fault, camera: str) -> Tensor | None:
        """The picture that a temporal fault shows now; ``None`` during an outage."""
        step, delay = self._step_index, fault.type == "delay"
        limit = self.env.unwrapped._max_episode_steps  # type: ignore[attr-defined]
        shown = shown_step(fault.type, fault.parameter, self._seed(fault, camera), step, limit)
        if shown is None:
            return None
        length = int(fault.parameter or 0) + 1 if delay else 1
        kept = self._kept.setdefault((camera, fault.modality), deque(maxlen=length))
        if delay or shown == step:
            kept.append(image.clone())  # the environment may draw its next picture into the same memory
        self._active |= shown != step
        if self._taken is not None:
            self._taken[self._place(fault, camera)] = shown
        return kept[0]

    def _displacement(self, fault: Fault, camera: str) -> Displacement:
        generator = torch.Generator().manual_seed(self._seed(fault, camera))
        return draw_displacement(fault.type, float(fault.parameter or 0.0), generator)

    def _seed(self, fault: Fault, camera: str) -> int:
        """The fault's seed in this episode.

        Windows in time are the episode's, not the stream's. What is computed from RGB misses the frames that
        RGB misses. A displaced camera goes the same way in all its modalities and by every distance.
        """
        env: Any = self.env.unwrapped
        window = fault.type in WINDOW_TYPES
        follows = fault.kind == "temporal" and fault.modality in self._derived
        displaced = fault.type in DISPLACED
        return episode_seed(
            self.run_seed,
            env.suite,
            env.task_id,
            self._init_state,
            "" if window else camera,
            "" if window or displaced else str(Modality.RGB) if follows else fault.modality,
            fault.type.removesuffix("_silent"),
            0 if displaced else fault.severity if fault.parameter is None else fault.parameter,
        )

"""Sensor faults between the simulator and everything else, for paired evaluation."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from multismolvla.corruption import Condition, Fault, apply_hard, apply_soft, episode_seed, frame_generator
from multismolvla.modalities import MODALITIES

#: Suffix of a modality's raw observation key after the camera's name.
_SUFFIX = {"rgb": "", "depth": "_depth", "seg": "_seg", "thermal": "_thermal"}


class FaultWrapper(gym.Wrapper):
    """Applies an evaluation condition to the raw observations of a :class:`MultiModalLiberoEnv`.

    It draws from generators of its own that depend on run seed, suite, task, initial state, camera, modality, fault
    and step only. Physics, the other sensors and every other random number stay what they are without it, so a clean
    and a faulted episode differ in nothing but the fault.

    ``drop`` empties the stream and tells the policy (``presence`` 0, if the fault is announced). ``zero``, ``grey`` and
    ``freeze`` (the first frame of the episode stays) leave ``presence`` at 1. Soft faults degrade the content. Depth
    pixels that a fault makes invalid become 0.

    Args:
        env: the environment, not vectorised.
        condition: what is broken.
        run_seed: seed of the evaluation run.

    Raises:
        ValueError: the condition names a camera that the environment does not have.

    Example:
        >>> env = FaultWrapper(config.env_maker("multismolvla_mini", 0)(), parse_condition("C1:-rgb"), run_seed=0)
    """

    def __init__(self, env: gym.Env, condition: Condition | None, run_seed: int) -> None:
        super().__init__(env)
        self.condition = condition
        self.run_seed = run_seed
        self._faults: tuple[Fault, ...] = condition.faults if condition is not None else ()
        cameras = env.unwrapped.cameras  # type: ignore[attr-defined]
        for fault in self._faults:
            unknown = sorted(set(fault.cameras or ()) - set(cameras))
            if unknown:
                raise ValueError(
                    f"Condition {condition.id if condition else None!r} names camera {unknown[0]!r}; this environment "
                    f"has {list(cameras)}."
                )
        self._cameras = cameras
        self._step_index = 0
        self._init_state = 0
        self._first: dict[tuple[str, str], Tensor] = {}
        self._shown: np.ndarray | None = None

    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; the initial state's number seeds the faults."""
        observation, info = self.env.reset(**kwargs)
        self._step_index = 0
        self._first = {}
        self._init_state = int(info.get("init_state_id", 0))
        return self._break(observation), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """One control step; only the returned observation is changed."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._step_index += 1
        return self._break(observation), reward, terminated, truncated, info

    def render(self) -> Any:
        """The third-person picture that the policy gets, upright, at least 256 pixels high."""
        if self._shown is None:
            return self.env.render()
        factor = max(1, -(-256 // self._shown.shape[0]))
        return self._shown[::-1, ::-1].repeat(factor, 0).repeat(factor, 1)

    def _break(self, observation: dict[str, Any]) -> dict[str, Any]:
        """A copy of the observation with all faults applied."""
        broken = dict(observation)
        broken["pixels"] = dict(observation.get("pixels", {}))
        broken["presence"] = observation["presence"].copy()
        for fault in self._faults:
            for v, camera in enumerate(self._cameras):
                if not fault.hits(camera, fault.modality):
                    continue
                if fault.type == "drop" and fault.announced:
                    broken["presence"][v * len(MODALITIES) + MODALITIES.index(fault.modality)] = 0.0
                key = camera + _SUFFIX[fault.modality]
                place = broken if fault.modality == "depth" else broken["pixels"]
                if key in place:
                    place[key] = self._break_picture(place[key], fault, camera)
        if not broken["pixels"]:
            broken.pop("pixels")
        self._shown = broken.get("pixels", {}).get(self._cameras[0])
        return broken

    def _break_picture(self, picture: np.ndarray, fault: Fault, camera: str) -> np.ndarray:
        """(H, W, C) -> (H, W, C), same dtype."""
        image = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
        valid = image > 0 if fault.modality == "depth" else None
        if fault.hard:
            frozen = self._first.setdefault((camera, fault.modality), image)
            image, valid = apply_hard(image, valid, fault.modality, fault.type, frozen)
        else:
            env: Any = self.env.unwrapped
            seed = episode_seed(
                self.run_seed,
                env.suite,
                env.task_id,
                self._init_state,
                camera,
                fault.modality,
                fault.type,
                fault.severity,
            )
            generator = frame_generator(seed, self._step_index, fault.type)
            image, valid = apply_soft(image, valid, fault.modality, fault.type, fault.severity, generator)
        if fault.modality == "depth" and valid is not None:
            image = torch.where(valid, image, torch.zeros_like(image))
        return np.ascontiguousarray(image.numpy().transpose(1, 2, 0))

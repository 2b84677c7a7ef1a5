"""Environment processor step: raw LIBERO observation -> the keys, orientation and state of our datasets.

Recorder and evaluation run this same step, so that a frame of a dataset is a frame of an evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import RobotObservation
from lerobot.processor import ObservationProcessorStep, ProcessorStepRegistry
from lerobot.utils.constants import OBS_IMAGES, OBS_PREFIX, OBS_STATE
from torch import Tensor

from multismolvla.modalities import (
    MODALITIES,
    Modality,
    captured_key,
    default_view_map,
    padding_mask_key,
    picture_key,
    stream_name,
)

#: In the presence vector: nothing is lost here, for there is no such sensor. A policy may compute the stream.
NO_SENSOR = -1.0


def add_batch_axis(observation: Mapping[str, Any]) -> RobotObservation:
    """A raw observation with the leading axis that a vector environment with one member adds."""
    return {
        key: add_batch_axis(value) if isinstance(value, Mapping) else np.asarray(value)[None]
        for key, value in observation.items()
    }


def upright(picture: np.ndarray, at_least: int = 0) -> np.ndarray:
    """A raw picture (H, W, C) turned as in datasets, enlarged until it is ``at_least`` pixels high."""
    factor = max(1, -(-at_least // picture.shape[0]))
    turned = picture[::-1, ::-1]
    return turned if factor == 1 else turned.repeat(factor, 0).repeat(factor, 1)


def canonical_quaternion(quaternion: Tensor) -> Tensor:
    """The quaternion (..., 4), x y z w, of the same rotation whose first non-zero component is positive.

    A gripper that points straight down is turned by pi about x, where the sign decides between the axis-angle
    +pi and -pi. Uncorrected, the first component jumps by 2 pi between frames of an episode, in training and
    in evaluation at different places.
    """
    sign = torch.zeros_like(quaternion[..., :1])
    for component in range(4):
        sign = torch.where(sign == 0, torch.sign(quaternion[..., component : component + 1]), sign)
    return quaternion * torch.where(sign == 0, torch.ones_like(sign), sign)


def quaternion_to_axis_angle(quaternion: Tensor) -> Tensor:
    """Rotation vectors (B, 3) float32 of unit quaternions (B, 4), x y z w.

    The angle lies in [0, 2 pi). It is not wrapped: wrapping would bring the jump back.
    """
    quaternion = quaternion.to(torch.float32)
    w = quaternion[:, 3:].clamp(-1.0, 1.0)
    sine = torch.sqrt(torch.clamp(1.0 - w * w, min=0.0))
    axis = quaternion[:, :3] / sine.clamp(min=1e-10)
    return torch.where(sine > 1e-10, axis * 2.0 * torch.acos(w), torch.zeros_like(axis))


@dataclass
@ProcessorStepRegistry.register(name="multismolvla_libero_processor")
class MultiSmolVLALiberoProcessorStep(ObservationProcessorStep):
    """Turns every stream by 180 degrees, builds the 8-dimensional state, expands presence to padding masks.

    Replaces lerobot 0.6.1's ``LiberoProcessorStep``, which turns only RGB and leaves the quaternion's sign to
    chance. Input, after LeRobot's ``preprocess_observation``: pictures float (B, 3, H, W) in [0, 1];
    ``observation.<camera>_depth`` float (B, H, W, 1) metres; ``observation.presence`` float (B, V * M), and
    where a fault shows earlier pictures ``observation.captured``; ``observation.robot_state`` nested.

    Output: pictures turned; ``observation.images.<camera>_depth`` float32 (B, 1, H, W) metres, 0 = invalid;
    ``<key>_padding_mask`` bool (B,) for each view and modality that has a sensor, True = present;
    ``<key>_captured`` float (B,) seconds of the episode; ``observation.state`` float32 (B, 8): position (3,
    metres), axis-angle (3, radians, canonical sign), finger positions (2, metres).

    Args:
        cameras: camera names in the order of the presence vector. A suite that has only the first of them
            lacks the others: their masks say absent.
    """

    cameras: list[str] = field(default_factory=lambda: ["image", "image2"])

    def observation(self, observation: RobotObservation) -> RobotObservation:
        """Apply the step to one batch; see the class."""
        processed = dict(observation)
        for key in [k for k in processed if k.startswith(f"{OBS_IMAGES}.")]:
            processed[key] = torch.flip(processed[key], dims=[2, 3])
        for camera in self.cameras:
            depth = processed.pop(f"{OBS_PREFIX}{stream_name(camera, Modality.DEPTH)}", None)
            if depth is not None:
                turned = torch.flip(depth.to(torch.float32).permute(0, 3, 1, 2), dims=[2, 3])
                processed[picture_key(camera, Modality.DEPTH)] = turned.contiguous()
        presence = processed.pop(f"{OBS_PREFIX}presence", None)
        if presence is not None:
            streams = self._by_stream("presence", presence, absent=0.0)
            known = {key: there for key, there in streams.items() if not (there == NO_SENSOR).all()}
            processed.update({padding_mask_key(key): there > 0.5 for key, there in known.items()})
        captured = processed.pop(f"{OBS_PREFIX}captured", None)
        if captured is not None:
            streams = self._by_stream("captured", captured, absent=torch.nan)
            processed.update({captured_key(key): taken for key, taken in streams.items()})
        robot = processed.pop(f"{OBS_PREFIX}robot_state", None)
        if robot is not None:
            processed[OBS_STATE] = self._state(robot)
        return processed

    def _by_stream(self, name: str, values: Tensor, absent: float) -> dict[str, Tensor]:
        """Picture key -> (B,), its column of (B, V * M); ``absent`` for the cameras that a suite lacks."""
        expected = len(self.cameras) * len(MODALITIES)
        if values.ndim != 2 or values.shape[1] > expected or values.shape[1] % len(MODALITIES):
            raise ValueError(
                f"observation.{name} has shape {tuple(values.shape)}; expected (batch, {expected}): "
                f"{len(self.cameras)} cameras {self.cameras} times modalities {list(MODALITIES)}."
            )
        whole = values.new_full((len(values), expected), absent)
        whole[:, : values.shape[1]] = values
        keys = [key for view in default_view_map(tuple(self.cameras)).values() for key in view.values()]
        return {key: whole[:, place] for place, key in enumerate(keys)}

    @staticmethod
    def _state(robot: RobotObservation) -> Tensor:
        """(B, 8) float32 from LIBERO's nested robot state."""
        parts = [robot["eef"]["pos"], robot["eef"]["quat"], robot["gripper"]["qpos"]]
        position, quaternion, fingers = (p if p.ndim == 2 else p.unsqueeze(0) for p in parts)
        rotation = quaternion_to_axis_angle(canonical_quaternion(quaternion))
        return torch.cat([position.float(), rotation, fingers.float()], dim=-1)

    def get_config(self) -> dict[str, Any]:
        """Arguments to rebuild the step."""
        return {"cameras": self.cameras}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Features are declared in their final form by the environment's config; nothing changes here."""
        return features

"""The pictures in an observation: their keys and spaces, and how each camera's are made.

:mod:`~lerobot_env_multismolvla.rendering` draws; classes and temperatures are then looked up by geom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from lerobot_env_multismolvla.labels import GeomTables, geom_tables
from lerobot_env_multismolvla.processor_multismolvla_libero import NO_SENSOR
from lerobot_env_multismolvla.rendering import SceneRenderer
from lerobot_env_multismolvla.thermal import ThermalCamera
from multismolvla.corruption.cross_modal import Displacement
from multismolvla.modalities import MODALITIES, Modality, stream_name


def observation_space(
    base: spaces.Dict, streams: Mapping[str, Sequence[str]], size: tuple[int, int]
) -> spaces.Dict:
    """Upstream's space with the pictures of all chosen streams (a vector env drops undeclared keys).

    Args:
        base: upstream's space; its pictures are left out.
        streams: camera name as in observation keys -> the modalities rendered.
        size: height and width of the pictures in pixels.
    """
    pixels: dict[str, Space] = {}
    top: dict[str, Space] = {}
    for camera, rendered in streams.items():
        for stream in rendered:
            if stream == Modality.DEPTH:  # no uint8: beside `pixels`
                top[stream_name(camera, stream)] = spaces.Box(0.0, np.inf, (*size, 1), np.float32)
            else:
                pixels[stream_name(camera, stream)] = spaces.Box(0, 255, (*size, 3), np.uint8)
    top["presence"] = spaces.Box(NO_SENSOR, 1.0, (len(streams) * len(MODALITIES),), np.float32)
    if pixels:
        top["pixels"] = spaces.Dict(pixels)
    return spaces.Dict({**{k: v for k, v in base.spaces.items() if k != "pixels"}, **top})


class StreamCameras:
    """Makes the pictures of one environment's cameras; a new model gets a new renderer and new tables.

    Args:
        size: height and width of the pictures in pixels.
        quality: ``"default"`` or ``"fast"``.
        suite: name of the suite, which decides classes and temperatures.
        seg_labels: whose class ids, see :func:`~lerobot_env_multismolvla.labels.label_set`.

    Attributes:
        tables: classes, instances and temperatures of the geoms; ``None`` before the first picture.
        thermal: the thermal camera; each episode has its own.
    """

    def __init__(self, size: tuple[int, int], quality: str, suite: str, seg_labels: str) -> None:
        self._height, self._width = size
        self._quality = quality
        self._suite, self._seg_labels = suite, seg_labels
        self._renderer: SceneRenderer | None = None
        self._model: Any = None
        self.tables: GeomTables | None = None
        self.thermal = ThermalCamera((0,))

    def render(
        self,
        simulation: Any,
        camera: str,
        streams: Sequence[str],
        step: int,
        number: int,
        displaced: Mapping[str, Displacement],
    ) -> dict[str, np.ndarray]:
        """All ``streams`` of one camera from the current simulator state, as in the raw observation.

        Args:
            simulation: LIBERO's problem object.
            camera: the camera's name as LeRobot has it, e.g. ``"agentview_image"``.
            streams: modalities to render.
            step: control step in the episode, for the thermal camera's noise.
            number: number of the camera, for the same.
            displaced: modality -> where the camera is for it, instead of at its place.
        """
        sim = simulation.sim
        if self._model is not sim.model._model:  # first frame, or a hard reset built a new model
            self.close()
            self._model = sim.model._model
            self._renderer = SceneRenderer(self._model, self._width, self._height, self._quality)
            self.tables = geom_tables(simulation, self._suite, self._seg_labels)
        assert self._renderer is not None
        assert self.tables is not None
        found: dict[str, np.ndarray] = {}
        for place in dict.fromkeys(displaced.get(m) for m in streams):  # mostly one: None
            here = [m for m in streams if displaced.get(m) == place]
            pictures = self._renderer.render(
                sim.data._data,
                camera.removesuffix("_image"),
                color="rgb" in here,
                depth="depth" in here,
                geoms="seg" in here or "thermal" in here,
                displaced=place,
            )
            geoms = pictures.pop("geoms", None)
            if "seg" in here:
                classes, instances = self.tables.class_ids[geoms], self.tables.instance_ids[geoms]
                pictures["seg"] = np.stack([classes, instances, np.zeros_like(classes)], axis=-1)
            if "thermal" in here:
                pictures["thermal"] = self.thermal.picture(self.tables.temperatures[geoms], step, number)
            found |= pictures
        return found

    def close(self) -> None:
        """Free the renderer; the next picture makes a new one."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer, self._model = None, None

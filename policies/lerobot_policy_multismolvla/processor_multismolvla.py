"""Pre- and post-processing of MultiSmolVLA: SmolVLA's pipeline plus three steps.

``SensorStep`` makes sensors canonical, ``HealthStep`` marks pictures that are not fit to be used, and
`safety.guard.GuardStep` lets no unsafe action out. They are saved with the checkpoint, so training,
``lerobot-eval`` and ``lerobot-rollout`` run the same code on units, validity and orientation. The four
standard steps keep LeRobot's names and order; its scripts override them by name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.types import PipelineFeatureType, PolicyFeature
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from lerobot.processor import (
    DeviceProcessorStep,
    EnvTransition,
    ObservationProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    ProcessorStepRegistry,
    TransitionKey,
)
from lerobot.utils.constants import (
    OBS_STATE,
    POLICY_POSTPROCESSOR_DEFAULT_NAME,
    POLICY_PREPROCESSOR_DEFAULT_NAME,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from lerobot_policy_multismolvla.safety.guard import GuardStep, guard_of, put_guard
from multismolvla.health import Marker, Picture, StreamStatistics, health_key, inspect
from multismolvla.modalities import ViewMap, valid_key, view_map_difference
from multismolvla.sensors import SensorReader
from multismolvla.weights import read_json

logger = logging.getLogger(__name__)

#: LeRobot's files of a checkpoint's processors.
PRE_FILE, POST_FILE = f"{POLICY_PREPROCESSOR_DEFAULT_NAME}.json", f"{POLICY_POSTPROCESSOR_DEFAULT_NAME}.json"


@ProcessorStepRegistry.register("multismolvla_sensors")
@dataclass
class SensorStep(SensorReader, ObservationProcessorStep):
    """`multismolvla.sensors.SensorReader`, which the dataset tools use, too, as a pre-processor step.

    Wrong content is an error until a stream was right once: units and dtypes that are wrong from the start
    are a mistake in the configuration. Later it is a fault of the sensor, which the policy judges.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._sound: set[str] = set()  # streams that were right once

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Make the declared streams of one observation canonical."""
        faults: dict[str, Tensor] = {}
        out = self.read(observation, faults)
        if not faults.keys() <= self._sound:
            return self.read(observation)  # raises
        keys = {key for streams in self.views.values() for key in streams.values()}
        self._sound |= keys & out.keys() - faults.keys()
        return out | {health_key(key): cause[:, None].float() for key, cause in faults.items()}

    def get_config(self) -> dict[str, Any]:
        """What is written to ``policy_preprocessor.json``."""
        return asdict(self) | {"depth_range_m": list(self.depth_range_m)}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Keys stay as they are."""
        return features


@ProcessorStepRegistry.register("multismolvla_health")
@dataclass
class HealthStep(ObservationProcessorStep):
    """Marks every picture with what `multismolvla.health` says of it; the policy decides.

    Statistics are of the data of a training that is over. A further one leaves them out: its data may be
    others, and what is unusual among them is known only afterwards.

    Attributes:
        views: the view map.
        fitted: what the statistics were fitted on, see ``multismolvla-health fit``: the name of the data set,
            its number of frames, and the views; empty = no statistics are there.
    """

    views: ViewMap = field(default_factory=dict)
    fitted: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.statistics: dict[str, StreamStatistics] = {}  # by view.modality
        self.states: Tensor | None = None  # (2, D): where the robot was in the training data
        self._markers: dict[tuple[str, ...], Marker] = {}  # by the streams that are there

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Mark the pictures of an observation."""
        if self.fitted and _is_trained_on(transition):
            logger.warning(
                "The health statistics are left out: they are of %s, and training goes on, perhaps on other "
                "data. When it is over: multismolvla-health fit.",
                ", ".join(f"{k}={v}" for k, v in self.fitted.items() if k != "views"),
            )
            self.set_statistics({}, {})
        return super().__call__(transition)

    def pictures(self, observation: Mapping[str, Any]) -> dict[str, Picture]:
        """The declared pictures that are there, by ``view.modality``."""
        return {
            f"{view}.{m}": Picture(observation[key], m, observation.get(valid_key(key)))
            for view, streams in self.views.items()
            for m, key in streams.items()
            if key in observation
        }

    @torch.no_grad()  # an attack differentiates what goes on to the policy, and marks are none of it
    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Add the marks, under `multismolvla.health.health_key`."""
        there = self.pictures(observation)
        if not there:
            return dict(observation)
        seen = inspect(list(there.values()))
        keys = [health_key(self.views[view][m]) for view, _, m in (name.rpartition(".") for name in there)]
        known = None
        if any(key in observation for key in keys):  # found before the pictures were canonical
            none = torch.zeros_like(seen.cause[:, 0])
            known = torch.stack(
                [observation[key][:, 0].long() if key in observation else none for key in keys], 1
            )
        state = observation.get(OBS_STATE)
        marks = self._marker(there)(seen, known, None if state is None else state.flatten(1))
        return observation | {key: marks[:, n] for n, key in enumerate(keys)}

    def _marker(self, there: Mapping[str, Picture]) -> Marker:
        names = tuple(there)
        if names not in self._markers:
            statistics = [self.statistics.get(name) for name in names]
            self._markers[names] = Marker([p.modality for p in there.values()], statistics, self.states)
        return self._markers[names]

    def set_statistics(
        self,
        statistics: Mapping[str, StreamStatistics],
        fitted: dict[str, Any],
        states: Tensor | None = None,
    ) -> None:
        """Use the statistics of these streams (``view.modality``), and of the states, from now on."""
        self.statistics, self.fitted, self.states = dict(statistics), fitted, states
        self._markers.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics, one row per stream, and the range of the states."""
        rows = {name: s.to_tensor() for name, s in self.statistics.items()}
        return rows if self.states is None else rows | {OBS_STATE: self.states}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Read the statistics.

        Raises:
            ValueError: they are of other views, or damaged.
        """
        other = view_map_difference(self.fitted.get("views", self.views), self.views)
        if other:
            raise ValueError(
                f"The health statistics are of other views: {other}. Fit them for these: "
                "multismolvla-health fit."
            )
        rows = {name: row for name, row in state.items() if name != OBS_STATE}
        declared = {f"{view}.{m}" for view, streams in self.views.items() for m in streams}
        unknown = sorted(set(rows) - declared)
        if unknown:
            raise ValueError(
                f"The health statistics are of {unknown}, which the view map does not declare (it has "
                f"{sorted(declared)}). Fit them for these views: multismolvla-health fit."
            )
        states = state.get(OBS_STATE)
        if states is not None and (states.ndim != 2 or len(states) != 2 or states.isnan().any()):
            raise ValueError(
                f"Health statistics: the states' range has shape {tuple(states.shape)} (NaN: "
                f"{bool(states.isnan().any())}), expected (2, D). Fit them again: multismolvla-health fit."
            )
        self.set_statistics(
            {name: StreamStatistics.from_tensor(row) for name, row in rows.items()},
            self.fitted,
            states,
        )

    def get_config(self) -> dict[str, Any]:
        """What is written to ``policy_preprocessor.json``."""
        return {"views": self.views, "fitted": self.fitted}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Marks are no features."""
        return features


def _is_trained_on(transition: EnvTransition) -> bool:
    """Whether these are rows of training data, which come with actions and their numbers in the data set.

    LeRobot 0.6.1 tells processors neither that training begins nor on what.
    """
    about = transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}
    return transition.get(TransitionKey.ACTION) is not None and "index" in about


def make_multismolvla_pre_post_processors(
    config: MultiSmolVLAConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """SmolVLA's pipelines with our steps (found by LeRobot through this name).

    Two stand after the device step, the guard at the very end.

    Args:
        config: the policy's configuration.
        dataset_stats: statistics of state and action for normalisation and guard.

    Returns:
        (pre-processor, post-processor).
    """
    pre, post = make_smolvla_pre_post_processors(config, dataset_stats)
    device = next(i for i, step in enumerate(pre.steps) if isinstance(step, DeviceProcessorStep))
    pre.steps = [*pre.steps[: device + 1], sensor_step(config), *pre.steps[device + 1 :]]
    complete_processors(config, pre, post)
    return pre, post


def sensor_step(config: MultiSmolVLAConfig) -> SensorStep:
    """The step that makes a policy's streams canonical."""
    return SensorStep(
        views=config.views,
        depth_unit=config.depth_unit,
        depth_range_m=config.depth_range_m,
        num_labels=config.num_labels,
        half_turns=config.half_turns,
    )


def check_stored_processors(folder: Path, views: ViewMap) -> None:
    """See that a checkpoint's processors are of its policy's views, and that what our steps learned is whole.

    LeRobot reads them without knowing the policy, and names no file that is damaged.

    Args:
        folder: of the checkpoint; without processors nothing is checked.
        views: the policy's.

    Raises:
        ValueError: other views, named, or a damaged file.
    """
    own = {
        "multismolvla_sensors": SensorStep,
        "multismolvla_health": HealthStep,
        "multismolvla_guard": GuardStep,
    }
    for path in (folder / name for name in (PRE_FILE, POST_FILE)):
        for entry in read_json(path).get("steps", ()) if path.is_file() else ():
            name, config = entry.get("registry_name"), entry.get("config", {})
            if name not in own:
                continue
            other = view_map_difference(config.get("views", views), views)
            if other:
                raise ValueError(
                    f"{path}: the step {name} has other views than the policy: {other}. Take both from one "
                    "training, or give a policy other views by multismolvla-export --views."
                )
            if "state_file" not in entry:
                continue
            file = folder / entry["state_file"]
            try:
                own[name](**config).load_state_dict(load_file(file))
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{file} cannot be read: {error}. Fetch it again, or make it anew: "
                    f"multismolvla-health fit --policy {folder} --dataset ..."
                ) from error
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error


def complete_processors(
    config: MultiSmolVLAConfig, pre: PolicyProcessorPipeline, post: PolicyProcessorPipeline
) -> list[str]:
    """Give the pipelines the steps for health and guard where they lack them, as older checkpoints do.

    Returns:
        Names of what was added.
    """
    added = []
    if not any(isinstance(step, HealthStep) for step in pre.steps):
        sensors = next(i for i, step in enumerate(pre.steps) if isinstance(step, SensorStep))
        pre.steps = [*pre.steps[: sensors + 1], HealthStep(views=config.views), *pre.steps[sensors + 1 :]]
        added.append("health")
    if guard_of(post) is None:
        put_guard(post, config.stopped)
        added.append("guard")
    return added

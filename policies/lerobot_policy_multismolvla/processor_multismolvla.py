"""Pre- and post-processing of MultiSmolVLA: SmolVLA's pipeline plus one step that makes sensors canonical.

``SensorStep`` is saved with the checkpoint, so training, ``lerobot-eval`` and ``lerobot-rollout`` run the
same code on units, validity and orientation. The four standard steps keep LeRobot's names and order; its
scripts override them by name.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lerobot.configs.types import PipelineFeatureType, PolicyFeature
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from lerobot.processor import (
    DeviceProcessorStep,
    ObservationProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    ProcessorStepRegistry,
)
from torch import Tensor

from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from multismolvla.sensors import SensorReader


@ProcessorStepRegistry.register("multismolvla_sensors")
@dataclass
class SensorStep(SensorReader, ObservationProcessorStep):
    """`multismolvla.sensors.SensorReader`, which the dataset tools use, too, as a pre-processor step."""

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Make the declared streams of one observation canonical."""
        return self.read(observation)

    def get_config(self) -> dict[str, Any]:
        """What is written to ``policy_preprocessor.json``."""
        return asdict(self) | {"depth_range_m": list(self.depth_range_m)}

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Keys stay as they are."""
        return features


def make_multismolvla_pre_post_processors(
    config: MultiSmolVLAConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """SmolVLA's pipelines with ``SensorStep`` after the device step (found by LeRobot through this name).

    Args:
        config: the policy's configuration.
        dataset_stats: statistics of state and action for normalisation.

    Returns:
        (pre-processor, post-processor).
    """
    pre, post = make_smolvla_pre_post_processors(config, dataset_stats)
    device = next(i for i, step in enumerate(pre.steps) if isinstance(step, DeviceProcessorStep))
    sensors = SensorStep(
        views=config.views,
        depth_unit=config.depth_unit,
        depth_range_m=config.depth_range_m,
        num_labels=config.num_labels,
        half_turns=config.half_turns,
    )
    pre.steps = [*pre.steps[: device + 1], sensors, *pre.steps[device + 1 :]]
    return pre, post

"""LeRobot plugin: policy ``multismolvla``, its processors, and this distribution's environment and cameras.

LeRobot imports this module by the distribution's name and swallows exceptions, so it stays cheap and needs
neither the simulator nor any weights.
"""

import lerobot_env_multismolvla  # noqa: F401  registers --env.type=multismolvla_libero
import lerobot_robot_multismolvla  # noqa: F401  registers cameras: multismolvla_guarded, multismolvla_thermal
from lerobot_policy_multismolvla.configuration_multismolvla import MultiSmolVLAConfig
from lerobot_policy_multismolvla.processor_multismolvla import (
    SensorStep,
    make_multismolvla_pre_post_processors,
)

__all__ = ["MultiSmolVLAConfig", "SensorStep", "make_multismolvla_pre_post_processors"]

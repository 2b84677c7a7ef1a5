"""LeRobot plugin: policy ``multismolvla``, its processors, and (through ``lerobot_env_multismolvla``) the environment.

LeRobot imports this module by the distribution's name and swallows exceptions, so it stays cheap and needs neither the
simulator nor any weights.
"""

import lerobot_env_multismolvla  # noqa: F401  registers --env.type=multismolvla_libero

from .configuration_multismolvla import MultiSmolVLAConfig
from .processor_multismolvla import SensorStep, make_multismolvla_pre_post_processors

__all__ = ["MultiSmolVLAConfig", "SensorStep", "make_multismolvla_pre_post_processors"]

"""LIBERO with depth, segmentation and thermal, and the mini suite: ``--env.type=multismolvla_libero``.

LeRobot imports this package to discover the environment, so it must import fast and without the simulator:
``multimodal_env``, ``mini.suite`` and ``rendering`` are imported when an environment is created.
"""

from lerobot_env_multismolvla.configuration_multismolvla_libero import MultiSmolVLALiberoConfig
from lerobot_env_multismolvla.processor_multismolvla_libero import (
    MultiSmolVLALiberoProcessorStep,
    canonical_quaternion,
)

__all__ = ["MultiSmolVLALiberoConfig", "MultiSmolVLALiberoProcessorStep", "canonical_quaternion"]

"""LeRobot plugins for robots: a camera that never raises, and a thermal one that means temperatures.

``lerobot_policy_multismolvla``, which LeRobot discovers, imports this package for its registrations. It needs
nothing but :mod:`multismolvla`, and the devices' modules are imported when one is made.
"""

from lerobot_robot_multismolvla.config_guarded import GuardedCameraConfig
from lerobot_robot_multismolvla.config_thermal import ThermalCameraConfig

__all__ = ["GuardedCameraConfig", "ThermalCameraConfig"]

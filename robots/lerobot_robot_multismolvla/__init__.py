"""LeRobot plugins for robots: guarded and thermal cameras, and simulated devices.

``lerobot_policy_multismolvla``, which LeRobot discovers, imports this package for its registrations. It needs
nothing but :mod:`multismolvla`, and the devices' modules are imported when one is made.
"""

from lerobot_robot_multismolvla.config_guarded import GuardedCameraConfig
from lerobot_robot_multismolvla.config_thermal import ThermalCameraConfig
from lerobot_robot_multismolvla.simulated.config_arm import SimArmConfig
from lerobot_robot_multismolvla.simulated.config_camera import SimCameraConfig
from lerobot_robot_multismolvla.simulated.config_teleoperator import ScriptedTeleoperatorConfig

__all__ = [
    "GuardedCameraConfig",
    "ScriptedTeleoperatorConfig",
    "SimArmConfig",
    "SimCameraConfig",
    "ThermalCameraConfig",
]

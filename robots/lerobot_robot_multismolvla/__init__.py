"""LeRobot plugins for robots: a camera that never raises.

``lerobot_policy_multismolvla``, which LeRobot discovers, imports this package for its registrations. It needs
nothing but :mod:`multismolvla`, and the devices' modules are imported when one is made.
"""

from lerobot_robot_multismolvla.config_guarded import GuardedCameraConfig

__all__ = ["GuardedCameraConfig"]

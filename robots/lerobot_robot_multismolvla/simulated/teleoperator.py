"""An operator who does what is written down, where a person's hands are missing."""

from __future__ import annotations

from lerobot.lerobot_types import RobotAction
from lerobot.teleoperators.teleoperator import Teleoperator

from lerobot_robot_multismolvla.simulated.config_teleoperator import ScriptedTeleoperatorConfig


class ScriptedTeleoperator(Teleoperator):
    """See :class:`ScriptedTeleoperatorConfig`.

    Args:
        config: what it does.
    """

    config_class = ScriptedTeleoperatorConfig
    name = "multismolvla_scripted"

    def __init__(self, config: ScriptedTeleoperatorConfig) -> None:
        super().__init__(config)
        self.config = config
        self._connected = False
        self._asked = 0

    @property
    def action_features(self) -> dict[str, type[float]]:
        """Names of its actions."""
        return dict.fromkeys(self.config.actions[0], float)

    @property
    def feedback_features(self) -> dict[str, type[float]]:
        """None: nothing moves it."""
        return {}

    @property
    def is_connected(self) -> bool:
        """Whether it is connected."""
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        """Always."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Begin with the first action."""
        self._connected, self._asked = True, 0

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def get_action(self) -> RobotAction:
        """The action of this step."""
        number = self._asked // self.config.hold % len(self.config.actions)
        self._asked += 1
        return dict(self.config.actions[number])

    def send_feedback(self, feedback: RobotAction) -> None:
        """Nothing happens."""

    def disconnect(self) -> None:
        """Nothing happens."""
        self._connected = False

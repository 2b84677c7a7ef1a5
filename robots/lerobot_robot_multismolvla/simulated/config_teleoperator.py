"""The configuration of a scripted teleoperator, apart because LeRobot imports it with every command."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.teleoperators.config import TeleoperatorConfig


@TeleoperatorConfig.register_subclass("multismolvla_scripted")
@dataclass
class ScriptedTeleoperatorConfig(TeleoperatorConfig):
    """``--teleop.type=multismolvla_scripted --teleop.actions='[{x.vel: 0.5, ...}, ...]'``.

    Attributes:
        actions: what the operator does one after the other, in the robot's own names, and then from the
            beginning again.
        hold: for how many steps each.
    """

    actions: list[dict[str, float]] = field(default_factory=list)
    hold: int = 1

    def __post_init__(self) -> None:
        names = {frozenset(action) for action in self.actions}
        if len(names) != 1 or not self.actions[0]:
            raise ValueError(
                "--teleop.actions: expected at least one action, and the same names in all of them; got "
                f"{[sorted(n) for n in names]}."
            )
        if self.hold < 1:
            raise ValueError(f"--teleop.hold={self.hold} must be at least 1.")

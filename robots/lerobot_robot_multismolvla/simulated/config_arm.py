"""The configuration of the simulated arm, apart because LeRobot imports it with every command."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lerobot.cameras.configs import CameraConfig
from lerobot.robots import RobotConfig

CLOCKS = ("real", "lockstep")
SPLITS = ("eval", "train")


@RobotConfig.register_subclass("multismolvla_sim_arm")
@dataclass
class SimArmConfig(RobotConfig):
    """``--robot.type=multismolvla_sim_arm``: the arm of the mini suite.

    Attributes:
        task_id: which of the suite's tasks.
        clock: ``real``: the simulation runs at 20 Hz whether or not somebody acts, and an action is obeyed
            for one of its steps. ``lockstep``: each action is one step, and nothing happens in between.
        init_state_id: where the first episode begins; each next one begins with the next state.
        init_split: of which initial states, ``eval`` or ``train``.
        seed: of the thermal camera's noise.
        episodes: after so many, ended by success or time-out, the process is asked to stop as by Ctrl-C;
            0 = never. Between episodes somebody puts everything back, at once.
        episode_length: steps after which an episode has failed; default: the suite's.
        pictures: which of the suite's pictures it has, e.g. ``[image, image_depth]``; default: all of them.
        cameras: further cameras, or such as take the place of the arm's own picture of their name.
        report: file for the outcomes (JSON), written when the arm is disconnected.
    """

    task_id: int = 0
    clock: str = "real"
    init_state_id: int = 0
    init_split: str = "eval"
    seed: int = 0
    episodes: int = 0
    episode_length: int | None = None
    pictures: list[str] | None = None
    cameras: dict[str, CameraConfig] = field(default_factory=dict)
    report: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, known in (("clock", CLOCKS), ("init_split", SPLITS)):
            if getattr(self, option) not in known:
                raise ValueError(f"--robot.{option}={getattr(self, option)}: expected one of {known}.")
        for option in ("task_id", "init_state_id", "episodes"):
            if getattr(self, option) < 0:
                raise ValueError(f"--robot.{option}={getattr(self, option)} must not be negative.")

r"""``multismolvla-emulate``: an SO-101 without hardware, which LeRobot's own commands connect to.

Example:
    $ multismolvla-emulate so101              # runs until Ctrl-C, and prints the commands that use it
    $ multismolvla-emulate camera --cameras='[wrist]' --port=5556     # one of its cameras, after a kill
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from multismolvla.system.command import entry_point, parse_options
from multismolvla_run.process import terminate_as_interrupt

DEVICES = ("so101", "camera")
CAMERAS = ("front", "wrist")


@dataclass
class EmulateOptions:
    """Options of ``multismolvla-emulate``."""

    device: str = "so101"  # so101 (the arm and its cameras) or camera (one camera of an arm that runs)
    # where the arm's serial port appears (a link named "port"), and its calibration
    folder: Path = Path("outputs/emulate")
    cameras: list[str] = field(default_factory=lambda: list(CAMERAS))
    port: int = 5555  # TCP port of the first camera; each next one has the next
    width: int = 320  # of the cameras' pictures
    height: int = 240
    fps: int = 20  # pictures per second and camera

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ValueError(f"{self.device!r} is no device; expected one of {', '.join(DEVICES)}.")
        if {*self.cameras} - {*CAMERAS} or len({*self.cameras}) < len(self.cameras):
            raise ValueError(f"--cameras={self.cameras}: expected each of {list(CAMERAS)} at most once.")
        if self.device == "camera" and len(self.cameras) != 1:
            raise ValueError(f"--cameras={self.cameras}: a camera by itself is one, e.g. '[front]'.")
        for name in ("width", "height", "fps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}={getattr(self, name)} must be at least 1.")


def emulate(options: EmulateOptions) -> None:
    """Be the device until the process is interrupted.

    Raises:
        CommandError: the device cannot begin; the message says why.
        OSError: a camera's port is taken, or the arm it looks at does not run.
    """
    from lerobot_robot_multismolvla.emulated.camera import CameraSettings, publish
    from lerobot_robot_multismolvla.emulated.so101 import (
        joints_file,
        lerobot_command,
        run,
        scripted_operator,
    )

    size = (options.width, options.height, options.fps)
    joints = joints_file(options.folder)
    cameras = [CameraSettings(c, joints, options.port + i, *size) for i, c in enumerate(options.cameras)]
    if options.device == "camera":
        publish(cameras[0])
        return

    def greet(processes: dict[str, int]) -> None:
        own = os.getpid()
        lines = [
            f"An SO-101 runs until Ctrl-C (process {own}), with its cameras:",
            *(f"  {c.name}: process {processes[c.name]}, port {c.port}" for c in cameras),
            "Unplug a camera: kill -9 its process; freeze it: kill -STOP. Motors without power: kill -STOP "
            f"{own}.",
            "",
            lerobot_command(options.folder, cameras, "lerobot-teleoperate", *scripted_operator()),
            "",
            lerobot_command(
                options.folder, cameras, "lerobot-rollout", "--policy.path=POLICY", "--task=TASK"
            ),
        ]
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()

    run(options.folder, cameras, greet)


@entry_point("multismolvla-emulate", interrupted="It is switched off.", loads="lerobot")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    options = parse_options(EmulateOptions, argv, positional=("device",))
    with terminate_as_interrupt():  # so that the cameras end, too
        emulate(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())

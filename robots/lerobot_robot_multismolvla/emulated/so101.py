"""The emulated SO-101: motors, arm and cameras together, behind a serial port that appears as a file."""

from __future__ import annotations

import json
import multiprocessing
import os
import pty
import select
import shlex
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import numpy as np

from lerobot_robot_multismolvla.emulated.arm import JOINTS, Arm
from lerobot_robot_multismolvla.emulated.camera import CameraSettings, publish, shared_joints
from lerobot_robot_multismolvla.emulated.motors import Bus, Motor
from multismolvla.system.command import CommandError
from multismolvla.system.files import write_json

NAME = "so101"  # what LeRobot is to call this arm (--robot.id), and so the name of its calibration file
TURN_S = 0.01  # the arm moves on, also while nobody asks the motors


@dataclass(frozen=True)
class MotorCalibration:
    """A motor's entry in LeRobot's calibration files."""

    id: int
    drive_mode: int
    homing_offset: int
    range_min: int
    range_max: int


def joints_file(folder: Path) -> Path:
    """Where the arm that runs in ``folder`` tells its cameras how it stands."""
    return folder / "joints"


def run(
    folder: Path, cameras: Sequence[CameraSettings], ready: Callable[[dict[str, int]], None] | None = None
) -> None:
    """Be an SO-101 until the process is interrupted.

    Args:
        folder: where the serial port appears (``port``) and LeRobot's calibration of it (``so101.json``).
        cameras: its cameras; each gets a process of its own.
        ready: called when LeRobot can connect, with the number of each camera's process.

    Raises:
        CommandError: another one runs in this folder, or a camera cannot begin.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = filelock.FileLock(folder / "lock", timeout=0).acquire()
    except filelock.Timeout:
        raise CommandError(f"Another one runs in {folder}. Choose another --folder.") from None
    arm = Arm()
    motors = [Motor(number, *limits) for number, limits in enumerate(arm.ranges, 1)]
    calibration = {
        name: asdict(MotorCalibration(motor.number, 0, 0, motor.range_min, motor.range_max))
        for name, motor in zip(JOINTS, motors, strict=True)
    }
    write_json(folder / f"{NAME}.json", calibration)
    joints = shared_joints(joints_file(folder), create=True)
    joints[:] = arm.joints
    with lock, camera_processes(cameras) as processes, serial_port(folder / "port") as port:
        if ready is not None:
            ready(processes)
        bus, before = Bus(motors), time.monotonic()
        while True:
            asked, _, _ = select.select([port], [], [], TURN_S)
            now = time.monotonic()
            goals, powered = zip(*((motor.goal, motor.powered) for motor in motors), strict=True)
            arm.advance(now - before, np.array(goals), np.array(powered))
            before = now
            joints[:] = arm.joints
            for motor, position, velocity in zip(motors, arm.positions, arm.velocities, strict=True):
                motor.show(int(position), int(velocity))
            if asked:
                os.write(port, bus.answer(os.read(port, 4096)))


@contextmanager
def serial_port(link: Path) -> Iterator[int]:
    """A pseudo-terminal that a serial driver opens by the name ``link``; yields its other end."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    link.unlink(missing_ok=True)
    link.symlink_to(os.ttyname(theirs))
    try:
        yield ours
    finally:  # theirs was open as well: otherwise ours fails while no driver has it open
        link.unlink(missing_ok=True)
        os.close(theirs)
        os.close(ours)


@contextmanager
def camera_processes(cameras: Sequence[CameraSettings]) -> Iterator[dict[str, int]]:
    """Processes of the cameras, each of which has sent a picture; yields their numbers by name.

    Raises:
        CommandError: one cannot begin; it has said why.
    """
    spawn = multiprocessing.get_context("spawn")
    started = {}
    try:
        for settings in cameras:
            receiver, sender = spawn.Pipe(duplex=False)
            process = spawn.Process(target=publish, args=(settings, sender), daemon=True)
            process.start()
            sender.close()
            started[settings.name] = (process, receiver)
        for name, (_, receiver) in started.items():
            try:
                receiver.recv()
            except EOFError:
                raise CommandError(f"Camera {name} could not begin, see above.") from None
        yield {name: process.pid or 0 for name, (process, _) in started.items()}
    finally:
        for process, _ in started.values():
            process.kill()  # a stopped one would heed nothing else
            process.join()


def lerobot_command(folder: Path, cameras: Sequence[CameraSettings], name: str, *words: str) -> str:
    """A command of LeRobot on this arm with its cameras guarded, ready for a shell.

    Args:
        folder: in which the arm runs.
        cameras: its cameras.
        name: of the command.
        words: further options.
    """
    guarded = {}
    for camera in cameras:
        inner = {
            "type": "zmq",
            "server_address": "127.0.0.1",
            "port": camera.port,
            "camera_name": camera.name,
            "timeout_ms": 500,
        }
        size = {"width": camera.width, "height": camera.height, "fps": camera.fps}
        guarded[camera.name] = {"type": "multismolvla_guarded", "inner": inner, **size}
    robot = [
        "--robot.type=so101_follower",
        f"--robot.id={NAME}",
        f"--robot.port={folder / 'port'}",
        f"--robot.calibration_dir={folder}",
        f"--robot.cameras={json.dumps(guarded)}",
    ]
    return shlex.join([name, *robot, *words])


def scripted_operator() -> list[str]:
    """Options of an operator who shows what the arm can do: up, to the block, and back, a while each."""
    names = [f"{joint}.pos" for joint in JOINTS]
    poses = ((0, 0, 0, 0, 0, 20), (15, 20, 10, 60, 0, 80), (0, -100, 90, 60, 0, 5))
    actions = [dict(zip(names, map(float, pose), strict=True)) for pose in poses]
    return [
        "--teleop.type=multismolvla_scripted",
        "--teleop.hold=120",
        f"--teleop.actions={json.dumps(actions)}",
    ]

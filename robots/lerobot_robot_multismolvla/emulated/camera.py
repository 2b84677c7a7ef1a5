"""A camera of the emulated arm: a process that renders what it sees and sends it to LeRobot's zmq camera."""

from __future__ import annotations

import base64
import json
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from multismolvla.system.processes import end_with_parent


@dataclass(frozen=True)
class CameraSettings:
    """What a camera's process must know.

    Attributes:
        name: the camera's name in the arm's model.
        joints: file with the joints' angles, see :func:`shared_joints`.
        port: TCP port of this machine.
        width: of its pictures.
        height: of its pictures.
        fps: pictures per second, or as many as this machine can render.
    """

    name: str
    joints: Path
    port: int
    width: int
    height: int
    fps: int


def shared_joints(file: Path, create: bool = False) -> NDArray[np.float64]:
    """The joints' angles (6,) [rad] as a file that the arm writes and its cameras read.

    Raises:
        FileNotFoundError: nobody has made the file.
    """
    if not create and not file.is_file():
        raise FileNotFoundError(f"{file} is not there: the arm that this camera looks at does not run.")
    return np.memmap(file, np.float64, "w+" if create else "r", shape=(6,))


def publish(settings: CameraSettings, ready: Connection | None = None) -> None:
    """Send pictures until the process is ended.

    Args:
        settings: which, and where to.
        ready: is told when the first picture has been sent; the process then ends with its parent.

    Raises:
        OSError: the port is taken, or the arm does not run.
    """
    os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is imported
    import cv2
    import mujoco
    import zmq

    from lerobot_robot_multismolvla.emulated.arm import MODEL

    if ready is not None:
        end_with_parent()
    joints = shared_joints(settings.joints)
    model = mujoco.MjModel.from_xml_path(str(MODEL))
    data = mujoco.MjData(model)
    socket = zmq.Context().socket(zmq.PUB)
    socket.setsockopt(zmq.LINGER, 0)
    try:
        socket.bind(f"tcp://127.0.0.1:{settings.port}")
    except zmq.ZMQError as error:
        raise OSError(f"Camera {settings.name} cannot use port {settings.port}: {error}.") from error
    with mujoco.Renderer(model, settings.height, settings.width) as renderer:
        due = time.monotonic()
        while True:
            data.qpos[:] = joints
            mujoco.mj_kinematics(model, data)
            mujoco.mj_camlight(model, data)
            renderer.update_scene(data, camera=settings.name)
            # RGB goes into the JPEG as if it were BGR: LeRobot 0.6.1 takes it out the same way
            _, encoded = cv2.imencode(".jpg", renderer.render())
            message = {
                "timestamps": {settings.name: time.time()},
                "images": {settings.name: base64.b64encode(encoded.tobytes()).decode()},
            }
            socket.send_string(json.dumps(message))
            if ready is not None:
                ready.send(None)
                ready = None
            due = max(due + 1 / settings.fps, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))

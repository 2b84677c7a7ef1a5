"""The cameras of each suite and what each of them delivers. Imports no simulator."""

from __future__ import annotations

from lerobot_env_multismolvla import mini
from multismolvla.modalities import MODALITIES, ViewMap, picture_key

#: LIBERO's cameras by their names in the simulator; the names in observations are LeRobot's.
LIBERO_CAMERAS = {"agentview_image": "image", "robot0_eye_in_hand_image": "image2"}


def suite_cameras(suite: str) -> dict[str, str]:
    """Cameras of a suite: name in the simulator -> name in observations, third-person first."""
    return dict(mini.CAMERAS if suite == mini.SUITE_NAME else LIBERO_CAMERAS)


def suite_views(suite: str) -> ViewMap:
    """View map of the data sets and observations of a suite: camera -> modality -> key."""
    return {
        camera: {m: picture_key(camera, m) for m in mini.CAMERA_MODALITIES.get(camera, MODALITIES)}
        for camera in suite_cameras(suite).values()
    }

"""Geometry of grasping: the narrow side of an object, hand orientations, heights. NumPy and SciPy only.

A hand orientation is a rotation matrix whose columns are the gripper's own axes in the world: the second is
the finger axis (from one finger to the other), the third points from the palm to the fingertips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

DOWN = np.array([0.0, 0.0, -1.0])

#: The fingertips end this far below the grip site, metres; the site cannot come closer to a surface.
FINGERTIP = 0.010
#: Lowest grip site above the underside of what is grasped: tips pressed onto the surface stick to it and do
#: not close.
LOWEST_GRASP = FINGERTIP + 0.002


@dataclass(frozen=True)
class Strip:
    """A strip between two parallel lines that holds a planar point set, and its bounding rectangle."""

    center: np.ndarray  # (2,) centre of the rectangle
    axis: np.ndarray  # (2,) unit vector across the strip, with a non-negative y component
    width: float  # extent along ``axis``
    length: float  # extent across ``axis``


def strip_along(points: np.ndarray, axis: np.ndarray) -> Strip:
    """Bounding rectangle of ``points`` (n, 2) with one side along ``axis`` (2,)."""
    axis = np.asarray(axis, float) / np.linalg.norm(axis)
    if axis[1] < 0 or (axis[1] == 0 and axis[0] < 0):
        axis = -axis
    frame = np.stack([axis, [-axis[1], axis[0]]])
    low, high = (points @ frame.T).min(0), (points @ frame.T).max(0)
    width, length = high - low
    return Strip((low + high) / 2 @ frame, axis, float(width), float(length))


def narrowest_strip(points: np.ndarray, prefer: np.ndarray | None = None, slack: float = 0.0) -> Strip:
    """Rotating calipers: the minimal width of a planar point set.

    Args:
        points: (n, 2), at least three of them not on one line.
        prefer: (2,) axis to take instead when the set is at most ``slack`` wider along it.
        slack: in the points' unit.

    Returns:
        The strip. One of its lines contains an edge of the convex hull, so only the hull's edges are tried.
    """
    hull = points[ConvexHull(points).vertices]
    edges = np.roll(hull, -1, axis=0) - hull
    best = min((strip_along(hull, np.array([-dy, dx])) for dx, dy in edges), key=lambda strip: strip.width)
    if prefer is not None:
        preferred = strip_along(hull, prefer)
        if preferred.width <= best.width + slack:
            return preferred
    return best


def hand_rotation(finger_axis: np.ndarray, pointing: np.ndarray = DOWN) -> np.ndarray:
    """Orientation (3, 3) along ``pointing``, the finger axis nearest to ``finger_axis`` (2,) or (3,)."""
    z = np.asarray(pointing, float) / np.linalg.norm(pointing)
    y = np.zeros(3)
    y[: len(finger_axis)] = finger_axis
    y -= (y @ z) * z
    y /= np.linalg.norm(y)
    return np.stack([np.cross(y, z), y, z], axis=1)


def turn_between(current: np.ndarray, goal: np.ndarray, symmetric: bool = True) -> np.ndarray:
    """Rotation vector (3,), radians, world axes, that turns one hand orientation (3, 3) into another.

    The shorter way if ``symmetric``: the fingers are alike, so half a turn about the pointing axis changes
    nothing.
    """
    goals = [goal, goal * [-1.0, -1.0, 1.0]] if symmetric else [goal]
    turns = [Rotation.from_matrix(g @ current.T).as_rotvec() for g in goals]
    return min(turns, key=lambda turn: float(np.linalg.norm(turn)))


def tilted(rotation: np.ndarray, axis: np.ndarray, angle: float) -> np.ndarray:
    """``rotation`` (3, 3) turned by ``angle`` (radians) about a world ``axis`` (3,)."""
    unit = np.asarray(axis, float) / np.linalg.norm(axis)
    return Rotation.from_rotvec(angle * unit).as_matrix() @ rotation


def grasp_height(bottom: float, top: float, depth: float) -> float:
    """Height of the grip site, metres: ``depth`` below the top, but not through the surface underneath."""
    return max(top - depth, bottom + LOWEST_GRASP)


def shape_corners(kind: str, size: np.ndarray) -> np.ndarray:
    """Points (n, 3) in a collision shape's own frame whose convex hull is the shape or a little more.

    Args:
        kind: box, cylinder, capsule, sphere or ellipsoid.
        size: (3,) MuJoCo's ``geom_size``, metres.

    Raises:
        ValueError: another kind of shape.
    """
    if kind in ("cylinder", "capsule"):
        half = size[1] + (size[0] if kind == "capsule" else 0.0)
        angles = np.arange(16) * (np.pi / 8)
        ring = size[0] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return np.concatenate([np.insert(ring, 2, z, axis=1) for z in (-half, half)])
    if kind not in ("box", "sphere", "ellipsoid"):
        known = "box, cylinder, capsule, sphere or ellipsoid"
        raise ValueError(f"Corners of a {kind!r} shape are not known; expected {known}.")
    half_sizes = np.full(3, size[0]) if kind == "sphere" else size
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
    return signs * half_sizes


#: The open hand around the grip site in its own axes (x, finger axis, pointing), metres: low and high corner
#: of the palm with the wrist above it (an open drawer may hang over the object), and of the two fingers.
HAND_BOXES = np.array(
    [
        [[-0.037, -0.100, -0.250], [0.037, 0.100, -0.032]],
        [[-0.012, 0.040, -0.032], [0.012, 0.058, FINGERTIP]],
        [[-0.012, -0.058, -0.032], [0.012, -0.040, FINGERTIP]],
    ]
)


def hand_overlap(place: np.ndarray, rotation: np.ndarray, boxes: np.ndarray, margin: float = 0.002) -> int:
    """Number of the open hand's sample points that would lie in obstacles.

    Args:
        place: (3,) grip site, metres.
        rotation: (3, 3) hand orientation.
        boxes: (n, 2, 3) axis-aligned obstacles, low and high corners.
        margin: obstacles are made larger by this, metres.
    """
    if not len(boxes):
        return 0
    samples = []
    for low, high in HAND_BOXES:
        axes = [np.linspace(a, b, n) for a, b, n in zip(low, high, (5, 13, 9), strict=True)]
        samples.append(np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 3))
    points = np.concatenate(samples) @ rotation.T + place
    inside = (points[:, None] > boxes[:, 0] - margin) & (points[:, None] < boxes[:, 1] + margin)
    return int(inside.all(-1).any(-1).sum())

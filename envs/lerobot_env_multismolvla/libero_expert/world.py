"""What the expert sees of a LIBERO simulation: where things are, how large, and snapshots of it all.

All of it is a function of the joint positions alone (kinematics, which MuJoCo leaves one substep behind, is
brought up to date first). So the expert acts the same in a state that was stepped to and in a restored one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from lerobot_env_multismolvla.libero_expert.geometry import shape_corners

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_SHAPES = {
    mujoco.mjtGeom.mjGEOM_BOX: "box",
    mujoco.mjtGeom.mjGEOM_CYLINDER: "cylinder",
    mujoco.mjtGeom.mjGEOM_CAPSULE: "capsule",
    mujoco.mjtGeom.mjGEOM_SPHERE: "sphere",
    mujoco.mjtGeom.mjGEOM_ELLIPSOID: "ellipsoid",
}


@dataclass(frozen=True)
class Snapshot:
    """All that decides a simulation's further course: MuJoCo's state and the controller's memory."""

    physics: np.ndarray
    controller: dict[str, np.ndarray | float | None]
    gripper_command: np.ndarray


@dataclass(frozen=True)
class Drawer:
    """A drawer now."""

    position: float  # its joint, metres: 0 closed, -0.16 open
    opening: np.ndarray  # (3,) unit vector in which it opens
    handle: np.ndarray  # (3,) centre of its bar, metres


class World:
    """Reads and steps one LIBERO problem (``MultiModalLiberoEnv.simulation``) until its model is rebuilt."""

    def __init__(self, domain: Any) -> None:
        self.domain = domain
        self._model = domain.sim.model._model
        self._data = domain.sim.data._data
        self._grip_site = domain.robots[0].eef_site_id
        self._fingers = [self._model.body(f"gripper0_{side}finger").id for side in ("left", "right")]
        self._shapes: dict[str, list[tuple[int, np.ndarray]]] = {}

    # --- the hand
    # -------------------------------------------------------------------------------------------------

    @property
    def grip(self) -> np.ndarray:
        """Grip site between the fingers, (3,) metres, world."""
        return np.array(self._data.site_xpos[self._grip_site])

    @property
    def hand(self) -> np.ndarray:
        """Hand orientation (3, 3) as in :mod:`.geometry`."""
        # The finger axis comes from the two finger bodies: the site's own frame is turned against them.
        pointing = self._data.site_xmat[self._grip_site].reshape(3, 3)[:, 2]
        left, right = (self._data.xpos[f] for f in self._fingers)
        across = left - right
        across = across - (across @ pointing) * pointing
        across /= np.linalg.norm(across)
        return np.stack([np.cross(across, pointing), across, pointing], axis=1)

    # --- objects, fixtures, regions
    # ---------------------------------------------------------------------------------

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the movable objects."""
        return tuple(self.domain.objects_dict)

    @property
    def fixtures(self) -> tuple[str, ...]:
        """Names of the fixtures that have a body of their own (a table has none)."""
        return tuple(name for name in self.domain.fixtures_dict if name in self.domain.obj_body_id)

    @property
    def task(self) -> str:
        """Name of the task: that of its bddl file."""
        return Path(self.domain.bddl_file_name).stem

    @property
    def goal(self) -> list[list[str]]:
        """Predicates that must all hold, e.g. ``["in", "milk_1", "basket_1_contain_region"]``."""
        return list(self.domain.parsed_problem["goal_state"])

    def category(self, name: str) -> str:
        """Object category of an instance, e.g. ``"milk"``."""
        return str(self.domain.get_object(name).category_name)

    def is_region(self, name: str) -> bool:
        """Whether ``name`` is a region (a site) and not an object or fixture."""
        return name in self.domain.object_sites_dict

    def position(self, name: str) -> np.ndarray:
        """Origin of an object, fixture or region, (3,) metres, world."""
        if self.is_region(name):
            return np.array(self._data.site_xpos[self._model.site(name).id])
        return np.array(self._data.xpos[self.domain.obj_body_id[name]])

    def rotation(self, name: str) -> np.ndarray:
        """Orientation (3, 3) of an object, fixture or region."""
        if self.is_region(name):
            return np.array(self._data.site_xmat[self._model.site(name).id]).reshape(3, 3)
        return np.array(self._data.xmat[self.domain.obj_body_id[name]]).reshape(3, 3)

    def region_owner(self, region: str) -> str:
        """Object or fixture that a region belongs to."""
        return str(self.domain.object_sites_dict[region].parent_name)

    @property
    def drawers(self) -> tuple[str, ...]:
        """Names of the regions that are drawers."""
        return tuple(
            name
            for name, site in self.domain.object_sites_dict.items()
            if getattr(site, "joints", None)
            and self._model.joint(site.joints[0]).type == mujoco.mjtJoint.mjJNT_SLIDE
        )

    def drawer(self, region: str) -> Drawer:
        """The drawer that a region lies in. Its bar is its shape farthest to the front."""
        joint = self._model.joint(self.domain.object_sites_dict[region].joints[0])
        opening = -np.array(self._data.xaxis[joint.id])  # negative joint positions are open
        bars = np.flatnonzero((self._model.geom_bodyid == joint.bodyid) & (self._model.geom_group == 0))
        bar = max(bars, key=lambda geom: float(self._data.geom_xpos[geom] @ opening))
        position = float(self._data.qpos[joint.qposadr[0]])
        return Drawer(position, opening, np.array(self._data.geom_xpos[bar]))

    def joint_axis(self, body: str) -> np.ndarray:
        """World axis (3,) of a body's joint."""
        return np.array(self._data.xaxis[self._model.body(body).jntadr[0]])

    def joint_anchor(self, body: str) -> np.ndarray:
        """A point (3,) on the axis of a body's joint, metres, world."""
        return np.array(self._data.xanchor[self._model.body(body).jntadr[0]])

    def joint_position(self, body: str) -> float:
        """Position of a body's one-dimensional joint: metres or radians."""
        return float(self._data.qpos[self._model.jnt_qposadr[self._model.body(body).jntadr[0]]])

    def body_corners(self, body: str) -> np.ndarray:
        """Corners of the collision shapes of one body (not of its children), (n, 3) metres, world."""
        return self._corners(body, [self._model.body(body).id])

    def corners(self, name: str) -> np.ndarray:
        """Corners of all collision shapes of an object or fixture, (n, 3) metres, world."""
        return self._corners(name, self._bodies(name))

    def bottom(self, name: str) -> float:
        """Lowest point of an object, metres, world."""
        return float(self.corners(name)[:, 2].min())

    def top(self, name: str) -> float:
        """Highest point of an object, metres, world."""
        return float(self.corners(name)[:, 2].max())

    def clearance(
        self, start: np.ndarray, end: np.ndarray, ignore: tuple[str, ...], margin: float = 0.06
    ) -> float:
        """Highest top of the objects and fixtures on the straight way from ``start`` to ``end`` (2,), metres.

        Those whose bounding rectangle is within ``margin`` of it count; -inf when the way is free.
        """
        way = start + np.linspace(0.0, 1.0, 12)[:, None] * (end - start)
        highest = -np.inf
        for name in (*self.objects, *self.fixtures):
            if name in ignore:
                continue
            points = self.corners(name)
            low, high = points[:, :2].min(0), points[:, :2].max(0)
            distance = np.linalg.norm(np.maximum(np.maximum(low - way, way - high), 0.0), axis=1)
            if distance.min() < margin:
                highest = max(highest, float(points[:, 2].max()))
        return highest

    def boxes(self, ignore: tuple[str, ...] = ()) -> np.ndarray:
        """Axis-aligned bounding boxes (n, 2, 3), low and high corner, of all collision shapes."""
        boxes = []
        for name in (*self.objects, *self.fixtures):
            if name not in ignore:
                boxes += [(p.min(0), p.max(0)) for p in self._shape_corners(name, self._bodies(name))]
        return np.array(boxes).reshape(-1, 2, 3)

    def holds(self, predicate: list[str]) -> bool:
        """Whether a goal predicate holds now, by LIBERO's own test."""
        return bool(self.domain._eval_predicate(predicate))

    def solved(self) -> bool:
        """Whether the task is solved, by LIBERO's own test."""
        return bool(self.domain._check_success())

    def at_rest(self, speed: float = 0.05) -> bool:
        """Whether no movable object is faster than ``speed`` (metres or radians per second)."""
        fastest = 0.0
        for name in self.objects:
            start = self._model.joint(self.domain.get_object(name).joints[-1]).dofadr[0]
            fastest = max(fastest, float(np.abs(self._data.qvel[start : start + 3]).max()))
        return fastest < speed

    # --- time
    # --------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Bring positions up to date with the joints; changes nothing that the dynamics depends on."""
        mujoco.mj_kinematics(self._model, self._data)

    def step(self, action: np.ndarray) -> None:
        """One control step, bit for bit that of ``domain.step``, without observations, reward or bookkeeping.

        robosuite 1.4 computes the forward dynamics three times per substep (before the action, in the
        controller's update, in the step). The first is enough: nothing moves in between.
        """
        domain, sim = self.domain, self.domain.sim
        policy_step = True
        sim.forward = _nothing  # the controller's own update calls it
        try:
            for _ in range(int(domain.control_timestep / domain.model_timestep)):
                mujoco.mj_step1(self._model, self._data)
                domain._pre_action(action, policy_step)
                mujoco.mj_step2(self._model, self._data)
                policy_step = False
        finally:
            del sim.forward
        domain._post_process()

    def snapshot(self) -> Snapshot:
        """Everything :meth:`restore` needs."""
        physics = np.empty(mujoco.mj_stateSize(self._model, _STATE))
        mujoco.mj_getState(self._model, self._data, physics, _STATE)
        robot = self.domain.robots[0]
        memory = {
            key: np.copy(value) if isinstance(value, np.ndarray) else value
            for key, value in vars(robot.controller).items()
            if value is None or isinstance(value, bool | int | float | np.ndarray)
        }
        return Snapshot(physics, memory, np.array(robot.gripper.current_action))

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of this world. The course from there is bit for bit what it was."""
        mujoco.mj_setState(self._model, self._data, snapshot.physics, _STATE)
        mujoco.mj_forward(self._model, self._data)
        robot = self.domain.robots[0]
        for key, value in snapshot.controller.items():
            setattr(robot.controller, key, np.copy(value) if isinstance(value, np.ndarray) else value)
        robot.gripper.current_action = np.array(snapshot.gripper_command)
        self.domain._post_process()  # the stove's burner is switched with its knob

    # --- corners
    # -----------------------------------------------------------------------------------------------------

    def _bodies(self, name: str) -> list[int]:
        root = self.domain.obj_body_id[name]
        return [b for b in range(self._model.nbody) if self._is_below(b, root)]

    def _is_below(self, body: int, root: int) -> bool:
        while body > 0:
            if body == root:
                return True
            body = self._model.body_parentid[body]
        return False

    def _corners(self, key: str, bodies: list[int]) -> np.ndarray:
        return np.concatenate(self._shape_corners(key, bodies))

    def _shape_corners(self, key: str, bodies: list[int]) -> list[np.ndarray]:
        """Corners of each shape in the world."""
        if key not in self._shapes:
            collision = np.isin(self._model.geom_bodyid, bodies) & (self._model.geom_group == 0)
            self._shapes[key] = [(geom, self._shape(geom)) for geom in np.flatnonzero(collision)]
        return [
            points @ self._data.geom_xmat[geom].reshape(3, 3).T + self._data.geom_xpos[geom]
            for geom, points in self._shapes[key]
        ]

    def _shape(self, geom: int) -> np.ndarray:
        kind = _SHAPES.get(mujoco.mjtGeom(int(self._model.geom_type[geom])))
        if kind is not None:
            return shape_corners(kind, self._model.geom_size[geom])
        box = self._model.geom_aabb[geom]  # a mesh: centre and half sizes of its bounding box
        return box[:3] + shape_corners("box", box[3:])


def _nothing() -> None:
    """Stands in for ``sim.forward`` where its result is there already."""

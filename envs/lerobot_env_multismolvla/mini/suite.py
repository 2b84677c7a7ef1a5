"""Registers the mini suite's objects, problem class and benchmark with LIBERO; imports the simulator.

To LIBERO's own floor problem the problem class adds four things: the third-person camera looks at the
workspace, the hand has a second camera on its other side, the arm starts right above the workspace (episodes
stay short), and the robot is drawn by its collision meshes. The Panda's visual meshes are 0.33 million
vertices, most of the price of a software-rendered frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lerobot_env_multismolvla.libero.setup import ensure_libero_config

ensure_libero_config()

from libero.libero.benchmark import BENCHMARK_MAPPING, Benchmark, Task, register_benchmark  # noqa: E402
from libero.libero.envs.base_object import OBJECTS_DICT, register_object  # noqa: E402
from libero.libero.envs.bddl_base_domain import TASK_MAPPING, register_problem  # noqa: E402
from libero.libero.envs.regions import REGION_SAMPLERS, TableRegionSampler  # noqa: E402
from robosuite.models.objects import MujocoXMLObject  # noqa: E402

from lerobot_env_multismolvla.mini import ASSETS, CATEGORY_LABELS, SUITE_NAME, TASKS  # noqa: E402
from lerobot_env_multismolvla.mini.initial_states import HOME_QPOS  # noqa: E402

# hf-libero 0.1.4: its class decorator returns None, so the class is only to be had from the registry.
_FloorProblem: Any = TASK_MAPPING["libero_floor_manipulation"]

#: Third-person camera: position, point looked at (world, metres) and vertical field of view (degrees).
CAMERA_POSITION = np.array([0.42, -0.04, 0.78])
CAMERA_TARGET = np.array([-0.07, -0.04, 0.04])
CAMERA_FOVY = 36.0
#: robosuite's camera on the hand sits 5 cm before the hand's axis; this one is that after half a turn.
SECOND_HAND_CAMERA = {
    "mode": "fixed",
    "name": "robot0_eye_in_hand_2",
    "pos": "-0.05 0 0",
    "quat": "0 -0.707108 0.707108 0",
    "fovy": "75",
}

_ROBOT_RGBA = {"robot": "0.86 0.86 0.88 1", "hand": "0.30 0.32 0.34 1", "finger": "0.12 0.12 0.12 1"}


class _MiniObject(MujocoXMLObject):
    """A free body read from our own xml; the attributes are those that LIBERO asks of an object."""

    xml: str = ""

    def __init__(self, name: str, joints: Any = "default") -> None:
        super().__init__(
            str(ASSETS / "objects" / f"{self.xml}.xml"),
            name=name,
            # Built here, not as a default argument: robosuite writes the joint's name into the dictionary.
            joints=[{"type": "free", "damping": "0.0005"}] if joints == "default" else joints,
            obj_type="all",
            duplicate_collision_geoms=False,
        )
        self.category_name = self.xml
        self.rotation = (0.0, 0.0)
        self.rotation_axis = "z"
        self.object_properties: dict[str, dict[str, str]] = {"vis_site_names": {}}


def camera_quaternion(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Orientation (4,), w x y z, of a MuJoCo camera at ``position`` (3,) that looks at ``target`` (3,).

    It looks along its -z, +y is up; the target must not be straight above or below.
    """
    import mujoco

    back = (position - target) / np.linalg.norm(position - target)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    matrix = np.stack([right, np.cross(back, right), back], axis=1)
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, matrix.reshape(-1))
    return quaternion


def _simplify_robot(root: Any) -> None:
    """Draw the robot by its collision meshes: about 300 vertices per link instead of 10 to 50 thousand.

    The visual geoms stay, because robosuite maps their names to ids: a body's first one takes over the
    collision mesh, the others become points in a group that is never drawn.
    """
    robot = root.find(".//body[@name='robot0_base']")
    for body in robot.iter("body"):
        collision = next((g for g in body.findall("geom") if g.get("group") == "0" and g.get("mesh")), None)
        drawn = False
        for geom in [g for g in body.findall("geom") if g.get("group") == "1" and g.get("mesh")]:
            name = body.get("name")
            part = "finger" if "finger" in name else "hand" if name.startswith("gripper0") else "robot"
            if collision is not None and not drawn:
                drawn = True
                geom.set("mesh", collision.get("mesh"))
                for key in ("pos", "quat"):
                    geom.attrib.pop(key, None)
                    if collision.get(key):
                        geom.set(key, collision.get(key))
                geom.attrib.pop("material", None)
                geom.set("rgba", _ROBOT_RGBA[part])
            else:
                geom.attrib.pop("mesh")
                geom.set("type", "sphere")
                geom.set("size", "0.0001")
                geom.set("group", "4")
    used = {g.get("mesh") for g in root.iter("geom")}
    assets = root.find("asset")
    for mesh in [m for m in assets.findall("mesh") if m.get("name") not in used]:
        assets.remove(mesh)


def _set_visual(root: Any) -> None:
    """Light and clipping planes; robosuite 1.4 drops an arena's own ``visual`` and ``statistic`` elements."""
    visual = root.find("visual")
    visual.find("map").attrib.update({"znear": "0.02", "zfar": "10"})
    light = {"ambient": "0.45 0.45 0.45", "diffuse": "0.35 0.35 0.35", "specular": "0 0 0"}
    visual.append(visual.makeelement("headlight", light))
    root.append(root.makeelement("statistic", {"extent": "1"}))  # znear and zfar are multiples of it


class MultiSmolVLA_Mini_Floor(_FloorProblem):  # noqa: N801 - LIBERO derives the bddl problem name from it
    """Floor problem with our scene, cameras, home pose and the simplified robot."""

    def __init__(self, bddl_file_name: str, *args: Any, **kwargs: Any) -> None:
        kwargs["scene_xml"] = kwargs.get("scene_xml") or str(ASSETS / "scenes" / "mini_floor.xml")
        super().__init__(bddl_file_name, *args, **kwargs)

    def _setup_camera(self, mujoco_arena: Any) -> None:
        super()._setup_camera(mujoco_arena)
        mujoco_arena.set_camera(
            camera_name="agentview",
            pos=CAMERA_POSITION,
            quat=camera_quaternion(CAMERA_POSITION, CAMERA_TARGET),
            camera_attribs={"fovy": str(CAMERA_FOVY)},
        )

    def _load_model(self) -> None:
        super()._load_model()
        self.robots[0].init_qpos = HOME_QPOS.copy()
        hand = self.model.root.find(".//camera[@name='robot0_eye_in_hand']/..")
        hand.append(hand.makeelement("camera", SECOND_HAND_CAMERA))
        _simplify_robot(self.model.root)
        _set_visual(self.model.root)


class MULTISMOLVLA_MINI(Benchmark):  # noqa: N801 - the class name is the suite's key in LIBERO's registry
    """The mini suite as a LIBERO benchmark."""

    def __init__(self, task_order_index: int = 0) -> None:
        super().__init__(task_order_index=task_order_index)
        self.name = SUITE_NAME
        self.tasks = [
            # Absolute folder: os.path.join in LIBERO and in LeRobot then ignores their own bddl root.
            Task(name, name.replace("_", " "), "Libero", str(ASSETS / "bddl"), f"{name}.bddl", "")
            for name in TASKS
        ]
        self.n_tasks = len(self.tasks)


def _register() -> None:
    """Register once; LIBERO asserts on doubles and the module may be executed again in tests."""
    for category in CATEGORY_LABELS:
        if category not in OBJECTS_DICT:  # LIBERO makes "mini_cube" of the class name MiniCube
            register_object(type(category.title().replace("_", ""), (_MiniObject,), {"xml": category}))
    name = MultiSmolVLA_Mini_Floor.__name__.lower()
    if name not in TASK_MAPPING:
        register_problem(MultiSmolVLA_Mini_Floor)
        REGION_SAMPLERS[name] = {"floor": TableRegionSampler}
    if SUITE_NAME not in BENCHMARK_MAPPING:
        register_benchmark(MULTISMOLVLA_MINI)


_register()

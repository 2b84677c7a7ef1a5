"""The mini suite: three short pick-and-place tasks on the LIBERO engine with own primitive assets (60 KB).

Importing this package is cheap. ``mini.suite`` imports the simulator and registers everything with LIBERO.
"""

import hashlib
from functools import cache
from pathlib import Path

SUITE_NAME = "multismolvla_mini"
ASSETS = Path(__file__).parent / "assets"

#: Part of a recording's identity. Raise it with every change of what the same settings record (initial
#: states, expert, action noise, labels, thermal camera, step limit): otherwise an old dataset passes for a
#: new one.
MINI_VERSION = 3

#: Names of the mini suite's cameras in the simulator and in observations. LIBERO has the first two; the third
#: sits on the other side of the hand, so that the wrist camera and it can stand in for each other.
CAMERAS: dict[str, str] = {
    "agentview_image": "image",
    "robot0_eye_in_hand_image": "image2",
    "robot0_eye_in_hand_2_image": "image3",
}
#: What a camera delivers that has no other sensors.
CAMERA_MODALITIES: dict[str, tuple[str, ...]] = {"image3": ("rgb",)}

#: Task names in suite order; the instruction is the name with blanks.
TASKS: tuple[str, ...] = (
    "put_the_cube_in_the_basket",
    "put_the_can_on_the_plate",
    "put_the_can_in_the_basket",
)

#: ``(object to move, goal object)`` of each task, by instance name.
TASK_OBJECTS: tuple[tuple[str, str], ...] = (
    ("cube_1", "basket_1"),
    ("can_1", "plate_1"),
    ("can_1", "basket_1"),
)

#: Category of LIBERO's object registry -> class of MINI_LABELS: a red cube of 4.5 cm, a blue can 4.5 cm wide
#: and 7.5 cm high, a yellow tray-like basket of 14 x 14 x 5 cm, a magenta plate 14 cm wide and 1 cm high.
CATEGORY_LABELS: dict[str, str] = {
    "mini_cube": "cube",
    "mini_can": "can",
    "mini_basket": "basket",
    "mini_plate": "plate",
}

#: Step limit of an episode. The expert needs 80 steps in the mean and 112 at worst; the rest is for a policy
#: that moves more slowly or has to go back for an object.
MAX_STEPS = 140


@cache
def assets_hash() -> str:
    """Hash over names and contents of all asset files, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(p for p in ASSETS.rglob("*") if p.is_file()):
        digest.update(file.relative_to(ASSETS).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]

"""The mini suite: three short pick-and-place tasks on the LIBERO engine with own primitive assets (60 KB).

Importing this package is cheap. ``mini.suite`` imports the simulator and registers everything with LIBERO.
"""

from pathlib import Path

SUITE_NAME = "multismolvla_mini"
ASSETS = Path(__file__).parent / "assets"

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

#: Category of LIBERO's object registry -> class of MINI_LABELS.
CATEGORY_LABELS: dict[str, str] = {
    "mini_cube": "cube",
    "mini_can": "can",
    "mini_basket": "basket",
    "mini_plate": "plate",
}

#: Step limit of an episode: about twice the expert's mean, so that a policy may correct itself.
MAX_STEPS = 120

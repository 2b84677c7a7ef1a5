"""Does every task start and show what it should? ``python docs/libero_survey.py``.

Resets and steps each task of the chosen suites once (two to four seconds each), checks every stream of both
cameras and prints a line per task. With ``--sheet`` it also draws the first task of each suite::

    python docs/libero_survey.py --task_ids=[2] --sheet=docs/libero_streams.png
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.lerobot_types import RobotObservation

from lerobot_env_multismolvla.configuration_multismolvla_libero import CAMERAS, MultiSmolVLALiberoConfig
from lerobot_env_multismolvla.labels import object_categories
from lerobot_env_multismolvla.processor_multismolvla_libero import add_batch_axis
from multismolvla.modalities import Modality, default_view_map, stream_name
from multismolvla.pictures import SheetRow, Tile, colourise, contact_sheet
from multismolvla.system.command import entry_point, parse_options
from multismolvla.system.files import whole_file

#: End of the sheet's depth scale per camera [m].
_DEPTH_SPAN = {"image": 2.5, "image2": 1.0}


@dataclass
class SurveyOptions:
    """Options of the survey."""

    # comma-separated
    suites: str = "libero_spatial,libero_object,libero_goal,libero_10"
    # the same of every suite; default: all
    task_ids: list[int] | None = None
    # folder with LIBERO's assets
    assets: str | None = None
    # pixels of the pictures' sides
    size: int = 128
    # suite or coco
    seg_labels: str = "suite"
    # draw the first task of each suite into this PNG
    sheet: Path | None = None


@dataclass
class TaskSurvey:
    """What one task showed.

    Attributes:
        suite: name of the suite.
        task_id: number of the task.
        task: instruction.
        seconds: time to make the environment, reset it and step it twice.
        speed: of the fastest object when the episode begins [m/s].
        classes: names of the segmentation classes in sight of either camera.
        problems: what is wrong, in words.
        observation: processed batch of one, as a policy gets it.
    """

    suite: str
    task_id: int
    task: str
    seconds: float = 0.0
    speed: float = 0.0
    classes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    observation: RobotObservation = field(default_factory=dict)


def survey(config: MultiSmolVLALiberoConfig) -> Iterator[TaskSurvey]:
    """Start every task that ``config`` names, one after the other."""
    from lerobot.envs.utils import preprocess_observation

    process = config.get_env_processors()[0].process_observation
    for suite, members in config.create_envs(n_envs=1).items():
        for task_id, vector in members.items():
            env: Any = vector.envs[0]
            one = TaskSurvey(suite, task_id, env.task_description)
            started = time.perf_counter()
            try:
                _, info = env.reset(seed=0, options={"init_state_id": 0})
            except FileNotFoundError as error:  # of libero_90's objects, some asset folders lack a few
                one.problems.append(f"cannot start: {error}")
            else:
                for _ in range(2):
                    raw, *_ = env.step(np.array([0, 0, 0, 0, 0, 0, -1], np.float32))
                one.speed = info["object_speed"]
                one.classes, one.problems = _look(env, raw)
                one.observation = process(preprocess_observation(add_batch_axis(raw)))
            one.seconds = time.perf_counter() - started
            env.close()
            yield one


def _look(env: Any, raw: RobotObservation) -> tuple[list[str], list[str]]:
    """Names of the classes in sight, and what is wrong with the observation."""
    problems = [f"no {key}" for key in env.observation_space.spaces if key not in raw]
    problems += [f"no {key}" for key in env.observation_space["pixels"].spaces if key not in raw["pixels"]]
    seen: set[str] = set()
    for camera in env.cameras:
        for stream in (stream_name(camera, m) for m in (Modality.RGB, Modality.THERMAL)):
            if raw["pixels"][stream].std() < 2:
                problems.append(f"{stream} shows nothing")
        depth = raw[stream_name(camera, Modality.DEPTH)]
        known = depth[depth > 0]
        if not np.isfinite(depth).all() or known.size < depth.size / 2 or not 0.02 < np.median(known) < 5:
            problems.append(f"{stream_name(camera, Modality.DEPTH)} is no depth in metres")
        ids = np.unique(raw["pixels"][stream_name(camera, Modality.SEG)][..., 0])
        seen |= {env.labels[i] if i < len(env.labels) else f"id {i}" for i in ids}
    wanted = {"robot", "gripper", *_categories_of_interest(env)} & set(env.labels)
    problems += [f"no {name} in sight" for name in sorted(wanted - seen)]
    if "other" in seen:
        problems.append("an object without a class of its own")
    return sorted(seen), problems


def _categories_of_interest(env: Any) -> set[str]:
    """Classes of what the task is about. Parts and regions of an object count as the object."""
    wanted = env.simulation.obj_of_interest
    categories = object_categories(env.simulation)
    return {c for name, c in categories.items() if any(w == name or w.startswith(f"{name}_") for w in wanted)}


def draw_sheet(surveys: Sequence[TaskSurvey], path: Path, size: int) -> None:
    """One row per task: five pictures of each camera. PNG of 256 colours.

    Args:
        surveys: what is drawn.
        path: written whole; the folder is made.
        size: pixels of a picture's longer side.
    """
    rows = [
        SheetRow(
            f"{one.suite}, task {one.task_id}: {one.task}",
            [tile for camera in CAMERAS.values() for tile in _tiles(one.observation, camera)],
        )
        for one in surveys
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        contact_sheet(rows, size).quantize(256, dither=0).save(partial, format="PNG", optimize=True)


def _tiles(batch: RobotObservation, camera: str) -> Iterator[Tile]:
    """One camera's pictures; segmentation as class and as instance."""
    for modality, key in default_view_map((camera,))[camera].items():
        values, far = batch[key][0].numpy(), _DEPTH_SPAN[camera]
        if modality == Modality.SEG:
            yield Tile(colourise(modality, values), f"{camera}: class")
            yield Tile(colourise(modality, values[1:]), f"{camera}: instance")
        else:
            name = f"depth to {far:g} m" if modality == Modality.DEPTH else modality
            yield Tile(colourise(modality, values, depth_span=(0.0, far)), f"{camera}: {name}")


@entry_point("error")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 1 if a task has a problem."""
    options = parse_options(SurveyOptions, argv)
    config = MultiSmolVLALiberoConfig(
        task=options.suites,
        task_ids=options.task_ids,
        libero_assets=options.assets,
        observation_height=options.size,
        observation_width=options.size,
        seg_labels=options.seg_labels,
    )
    first: dict[str, TaskSurvey] = {}
    bad = count = 0
    for one in survey(config):
        count, bad = count + 1, bad + bool(one.problems)
        figures = f"{one.seconds:5.1f} s  {one.speed:5.2f} m/s"
        state = "; ".join(one.problems) or "ok"
        sys.stdout.write(
            f"{one.suite:<16}{one.task_id:>3} {figures}  {state:<12}  {', '.join(one.classes)}\n"
        )
        sys.stdout.flush()
        if first.setdefault(one.suite, one) is not one:
            one.observation = {}
    sys.stdout.write(f"{count - bad} of {count} tasks without a problem\n")
    if options.sheet is not None:
        draw_sheet(list(first.values()), options.sheet, options.size)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""Does every task start and show what it should? ``python -m lerobot_env_multismolvla.survey``.

Resets and steps each task of the chosen suites once (two to four seconds each), checks every stream of both cameras and
prints a line per task. With ``--sheet`` it also draws the first task of each suite in all modalities of both cameras; the
picture of the documentation is made by::

    python -m lerobot_env_multismolvla.survey --task_ids 2 --size 128 --sheet docs/libero_streams.png
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lerobot_env_multismolvla.configuration_multismolvla_libero import MultiSmolVLALiberoConfig
from lerobot_env_multismolvla.labels import object_categories
from multismolvla.modalities import MODALITIES

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
_TITLE, _GAP = 18, 3  # pixels of a caption, and between pictures
#: End of the sheet's depth scale per camera [m].
_DEPTH_SPAN = {"image": 2.5, "image2": 1.0}


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
        problems: what is wrong, in words; empty when nothing is.
        observation: processed batch of one, as a policy gets it.
    """

    suite: str
    task_id: int
    task: str
    seconds: float = 0.0
    speed: float = 0.0
    classes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    observation: dict[str, Any] = field(default_factory=dict)


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
                one.observation = process(preprocess_observation(_batch_of_one(raw)))
            one.seconds = time.perf_counter() - started
            env.close()
            yield one


def _look(env: Any, raw: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names of the classes in sight, and what is wrong with the observation."""
    problems = [f"no {key}" for key in env.observation_space.spaces if key not in raw]
    problems += [f"no {key}" for key in env.observation_space["pixels"].spaces if key not in raw["pixels"]]
    seen: set[str] = set()
    for camera in env.cameras:
        for stream in ("", "_thermal"):
            if raw["pixels"][camera + stream].std() < 2:
                problems.append(f"{camera}{stream} shows nothing")
        depth = raw[f"{camera}_depth"]
        if not (
            np.isfinite(depth).all() and (depth > 0).mean() > 0.5 and 0.02 < np.median(depth[depth > 0]) < 5
        ):
            problems.append(f"{camera}_depth is no depth in metres")
        ids = np.unique(raw["pixels"][f"{camera}_seg"][..., 0])
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


def _batch_of_one(raw: dict[str, Any]) -> dict[str, Any]:
    return {k: _batch_of_one(v) if isinstance(v, dict) else np.asarray(v)[None] for k, v in raw.items()}


def draw_sheet(surveys: list[TaskSurvey], path: Path) -> None:
    """One row per task: five pictures of each camera. PNG of 256 colours.

    Args:
        surveys: of pictures of the same size.
        path: written whole; the folder is made.
    """
    from PIL import Image, ImageDraw

    rows = [
        [p for camera, far in _DEPTH_SPAN.items() for p in _pictures(one.observation, camera, far)]
        for one in surveys
    ]
    side = rows[0][0].shape[0] + _GAP
    columns = len(rows[0])
    sheet = Image.new("RGB", (side * columns, _TITLE + (side + _TITLE) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    names = [
        name
        for camera, far in _DEPTH_SPAN.items()
        for name in (f"{camera}: rgb", f"depth (0-{far:g} m)", "seg, class", "seg, instance", "thermal")
    ]
    for i, name in enumerate(names):
        draw.text((i * side + 3, 3), name, fill="black")
    for i, (one, pictures) in enumerate(zip(surveys, rows, strict=True)):
        top = _TITLE + i * (side + _TITLE)
        draw.text((3, top + 3), f"{one.suite}, task {one.task_id}: {one.task}", fill="black")
        for j, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (j * side, top + _TITLE))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)


def _pictures(batch: dict[str, Any], camera: str, far: float) -> list[np.ndarray]:
    """One camera's pictures as uint8 (H, W, 3), in the order of the sheet's columns; depth is white near, black far or none."""
    key = f"observation.images.{camera}"

    def shown(name: str) -> np.ndarray:
        values = batch[name][0].permute(1, 2, 0).numpy()
        return np.broadcast_to(values, (*values.shape[:2], 3))

    depth = shown(f"{key}_depth")
    near = np.where(depth > 0, 1 - np.clip(depth / far, 0, 1), 0)
    ids = (shown(f"{key}_seg") * 255).round().astype(int)
    colours = np.random.default_rng(5).integers(80, 255, (256, 3)).astype(np.uint8)
    colours[0] = 25
    light = [shown(key), near, shown(f"{key}_thermal")]
    rgb, grey, thermal = ((255 * np.asarray(p)).round().astype(np.uint8) for p in light)
    return [rgb, grey, colours[ids[..., 0]], colours[ids[..., 1]], thermal]


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 1 if a task has a problem."""
    parser = argparse.ArgumentParser(prog="python -m lerobot_env_multismolvla.survey", description=__doc__)
    parser.add_argument("--suites", default=",".join(SUITES), help="comma-separated")
    parser.add_argument("--task_ids", type=int, nargs="*", help="the same of every suite; default: all")
    parser.add_argument("--assets", help="folder with LIBERO's assets")
    parser.add_argument("--size", type=int, default=128, help="pixels of the pictures' sides")
    parser.add_argument("--seg_labels", default="suite", help="suite or coco")
    parser.add_argument("--sheet", type=Path, help="draw the first task of each suite into this PNG")
    options = parser.parse_args(argv)
    config = MultiSmolVLALiberoConfig(
        task=options.suites,
        task_ids=options.task_ids,
        libero_assets=options.assets,
        observation_height=options.size,
        observation_width=options.size,
        streams=list(MODALITIES),
        seg_labels=options.seg_labels,
    )
    first: dict[str, TaskSurvey] = {}
    bad = count = 0
    for one in survey(config):
        count, bad = count + 1, bad + bool(one.problems)
        state = "; ".join(one.problems) or "ok"
        sys.stdout.write(
            f"{one.suite:<16}{one.task_id:>3} {one.seconds:5.1f} s  {one.speed:5.2f} m/s  {state:<12}  {', '.join(one.classes)}\n"
        )
        sys.stdout.flush()
        first.setdefault(one.suite, one)
        if first[one.suite] is not one:
            one.observation = {}
    sys.stdout.write(f"{count - bad} of {count} tasks without a problem\n")
    if options.sheet is not None:
        draw_sheet(list(first.values()), options.sheet)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""Refuses tasks whose files are missing before a run: they would crash in every episode.

The files of the four public suites are known (:mod:`multismolvla.system.libero_assets`), what libero_90 needs
beyond them is not. So each object of a task's definition (BDDL) is made once by LIBERO's own classes, and
every file that its model names must be there. The scenes of libero_90 are those of libero_10.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

#: So many files are named in a message.
NAMED = 10


def refuse_missing_files(definitions: Iterable[Path], assets: Path) -> None:
    """See to it that the tasks of these definitions (BDDL files) can start.

    Raises:
        FileNotFoundError: a definition, a model or a file that a model names is missing; names up to ten.
    """
    definitions = list(definitions)
    lost = [str(path) for path in definitions if not path.is_file()]
    if lost:
        raise FileNotFoundError(
            f"{len(lost)} task definitions are missing: {_list(lost)}. They belong to the package: "
            "pip install --force-reinstall hf-libero==0.1.4."
        )
    missing = sorted({str(path) for name in _objects(definitions) for path in _missing(name, assets)})
    if missing:
        raise FileNotFoundError(
            f"{assets} lacks {len(missing)} of the files that these tasks read: {_list(missing)}. "
            "Fetch them (multismolvla-doctor --fetch-assets), or leave out these tasks with --env.task_ids."
        )


def _objects(definitions: Iterable[Path]) -> list[str]:
    """Categories of objects and fixtures of all tasks; tables belong to the scenes."""
    from libero.libero.envs.bddl_utils import robosuite_parse_problem
    from libero.libero.envs.objects import get_object_dict

    known, found = get_object_dict(), set()
    for path in definitions:
        problem = robosuite_parse_problem(str(path))
        found |= {*problem["objects"], *problem["fixtures"]}
    return sorted(name for name in found if name in known)


def _missing(category: str, assets: Path) -> list[Path]:
    """Files that an object of this category reads and that are not there, relative to the assets."""
    from libero.libero.envs.objects import get_object_fn

    from lerobot_env_multismolvla.libero.setup import asset_root

    try:
        with asset_root(assets):
            model = get_object_fn(category)(name=category)
    except FileNotFoundError as error:
        return [_relative(error.filename, assets)]
    files = [Path(element.get("file")) for element in model.asset if element.get("file")]
    return [_relative(file, assets) for file in files if not file.is_file()]


def _relative(path: str | Path, assets: Path) -> Path:
    path = Path(path).resolve()
    return path.relative_to(assets.resolve()) if path.is_relative_to(assets.resolve()) else path


def _list(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")

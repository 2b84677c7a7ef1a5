"""A control that looks at nothing: one recorded demonstration of each task, played back open loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multismolvla_eval.environments import EnvironmentSource
from multismolvla_eval.policies.baselines import WithoutWeights
from multismolvla_eval.policies.checkpoints import REPLAY, builtin_identity, recorded_simulation
from multismolvla_eval.records.schema import PolicyFacts

#: In plain words, for manifest and reports.
DESCRIPTION = (
    "plays the executed actions of one recorded demonstration per task open loop, wherever the episode "
    "begins: what it solves needs no sensor at all, and success there proves nothing about sensors"
)


class ReplayPolicy(WithoutWeights):
    """``builtin:replay:DATASET``: the first demonstration of each task, then it stands still.

    Args:
        path: as in ``--policies``.
        source: the environment; its tasks are found in the dataset by their instructions.

    Raises:
        FileNotFoundError: there is no dataset, or none with executed actions.
        ValueError: it has no demonstration of one of the tasks, or one of another action size.
    """

    def __init__(self, path: str, source: EnvironmentSource) -> None:
        self._path = path
        self._actions = first_demonstrations(Path(path.removeprefix(REPLAY)))
        wanted = set(source.facts().tasks.values())
        if missing := sorted(wanted - set(self._actions)):
            raise ValueError(
                f"{path} has no demonstration of {missing[0]!r}; it shows {sorted(self._actions)}. Name a "
                "recording of the same tasks, or choose tasks with --env.task_ids."
            )
        if widths := {a.shape[1] for a in self._actions.values()} - {source.action_dim}:
            raise ValueError(
                f"{path} holds actions of {widths.pop()} numbers; the environment takes {source.action_dim}."
            )
        self._played = False

    def facts(self) -> PolicyFacts:
        """See `Policy`."""
        return PolicyFacts(
            path=self._path,
            type=REPLAY.removesuffix(":"),
            checkpoint=builtin_identity(self._path),
            description=DESCRIPTION,
        )

    def reset(self) -> None:
        """Begin anew."""
        self._played = False

    def act(self, batch: Mapping[str, Sequence[str]]) -> Tensor:
        """All actions of the demonstration (T, A), afterwards one (1, A) without motion, the gripper held.

        Args:
            batch: of which the instruction alone is read.
        """
        actions = self._actions[batch["task"][0]]
        if not self._played:
            self._played = True
            return actions
        still = torch.zeros_like(actions[-1:])
        still[:, -1] = actions[-1, -1]
        return still


def first_demonstrations(folder: Path) -> dict[str, Tensor]:
    """The executed actions of the first episode of each task, disturbances included.

    Args:
        folder: a LeRobotDataset by ``multismolvla-record``.

    Returns:
        Instruction -> float32 (T, A).

    Raises:
        FileNotFoundError: there is no dataset, or none with executed actions.
    """
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    files = recorded_simulation(folder)
    episodes = LeRobotDatasetMetadata(folder.name, root=folder).episodes
    first: dict[str, int] = {}
    for number, tasks in enumerate(episodes["tasks"]):
        first.setdefault(tasks[0], number)
    found = {}
    for task, number in first.items():
        with np.load(files[number], allow_pickle=False) as stored:
            found[task] = torch.from_numpy(stored["executed_action"].astype(np.float32))
    return found

"""What simulators, their parent and the policy server say to one another."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from multismolvla_eval.config import EnvironmentArguments
from multismolvla_eval.policies.interface import EncoderDoor


@dataclass(frozen=True)
class Request:
    """One episode asks for its next chunk.

    Attributes:
        policy: name of the policy.
        arrays: the prepared batch's tensors, (1, ...).
        noise: sampling noise (1, chunk, width), drawn by the episode's own generator; empty if the policy takes none.
        look: whether the encoder's input is asked for, too.
    """

    policy: str
    arrays: dict[str, np.ndarray]
    noise: dict[str, np.ndarray]
    look: bool = False

    def kind(self) -> Hashable:
        """Requests of the same kind, that is of equal shapes, may share a batch."""
        return (self.policy, *((k, a.shape, a.dtype.str) for k, a in sorted(self.arrays.items())))


@dataclass(frozen=True)
class Reply:
    """What comes back.

    Attributes:
        actions: float (n, A), before the post-processor.
        door: see :class:`EncoderDoor`, if asked for and shown.
        trust: how much each modality counted beside the others, see :meth:`Policy.trust`.
    """

    actions: np.ndarray
    door: EncoderDoor | None
    trust: dict[str, float]


def as_request(policy: str, batch: Mapping[str, Any], noise: Mapping[str, Tensor], look: bool) -> Request:
    """A request from a prepared batch of one row; only tensors travel, in the types that NumPy has.

    Raises:
        TypeError: a tensor in half precision, which a pre-processor on a CPU has no reason to make.
    """
    arrays = {k: v.detach().cpu().numpy() for k, v in batch.items() if isinstance(v, Tensor)}
    return Request(policy, arrays, {k: v.numpy() for k, v in noise.items()}, look)


#: Exit code of a worker whose policy server is gone.
SERVER_GONE = 3


@dataclass(frozen=True)
class WorkerArguments:
    """What a worker needs; it must be picklable for the spawn start method.

    Attributes:
        number: of the worker.
        env: environment options.
        policies: path per name.
        device: of the policies.
        seed: run seed.
        output: run folder, for logs and clips.
        plugins: modules to import first.
        rename_map: LeRobot's option per policy.
        batch_size: rows of the policy server's batches; 1: there is no server.
        role: ``worker`` or ``server``, for the log's name.
        view: where this worker's episodes are shown, as ``--view`` says.
    """

    number: int
    env: EnvironmentArguments
    policies: dict[str, str]
    device: str | None
    seed: int
    output: Path
    plugins: tuple[str, ...]
    rename_map: dict[str, dict[str, str]]
    batch_size: int = 1
    role: str = "worker"
    view: str | None = None

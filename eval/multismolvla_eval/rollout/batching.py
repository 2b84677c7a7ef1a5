"""Action chunks for several episodes at once, without an episode's result depending on which others it met.

Matrix products may round differently in batches of another size. Hence every batch has the same size, filled
up with copies, and holds only rows of equal shapes; whether a row's result then depends neither on its place
nor on the other rows is measured at the start, with the policy, the device and the shapes of this run.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from multismolvla_eval.environments import Batch
from multismolvla_eval.policies.interface import Look, Reply, Request
from multismolvla_eval.records.schema import PolicyFacts


class BatchingError(RuntimeError):
    """A policy whose results depend on what else is in the batch."""


class ChunkPolicy(Protocol):
    """What is needed of a policy to batch it; `multismolvla_eval.policies.lerobot.LeRobotPolicy` is one."""

    def facts(self) -> PolicyFacts:
        """What it tells of itself; its device is where batches go."""

    def chunk(self, batch: Batch, **noise: Tensor) -> Tensor:
        """Actions (B, n, A)."""

    def look(self, row: int, first: bool) -> Look:
        """What it saw of a row of the last batch."""


class ChunkBatcher:
    """Answers requests of one policy in batches of a fixed size.

    Args:
        policy: computes chunks.
        size: rows of every batch.

    Attributes:
        seconds: what the last batch took.
    """

    def __init__(self, policy: ChunkPolicy, size: int) -> None:
        self.policy, self.size, self.seconds = policy, size, 0.0
        self._device = policy.facts().device or "cpu"
        self._proven: set[Hashable] = set()

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Answer up to ``size`` requests of one kind.

        Raises:
            BatchingError: on this machine the policy's results depend on the rest of the batch.
        """
        kind = requests[0].kind()
        if kind not in self._proven:
            self._prove(requests[0])
            self._proven.add(kind)
        started = time.perf_counter()
        actions = self._run([*requests, *[requests[0]] * (self.size - len(requests))])
        replies = [Reply(actions[i], self.policy.look(i, r.first)) for i, r in enumerate(requests)]
        self.seconds = time.perf_counter() - started
        return replies

    def _run(self, rows: Sequence[Request]) -> np.ndarray:
        """Actions (size, n, A)."""
        batch = {k: self._stack([r.arrays[k] for r in rows]) for k in rows[0].arrays}
        noise = {k: self._stack([r.noise[k] for r in rows]) for k in rows[0].noise}
        return self.policy.chunk(batch, **noise).float().cpu().numpy()

    def _stack(self, rows: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(rows)).to(self._device)

    def _prove(self, request: Request) -> None:
        """See that a row's result is the same in every place, and beside other rows."""
        alone = self._run([request] * self.size)
        other = _another(request)
        mixed = self._run([request if i % 2 == 0 else other for i in range(self.size)])
        expected = alone[0].tobytes()
        places = any(actions.tobytes() != expected for actions in alone)
        beside = any(actions.tobytes() != expected for actions in mixed[::2])
        if places or beside:
            what = "its place in the batch" if places else "the other rows of the batch"
            worst = np.abs(np.concatenate([alone, mixed[::2]]) - alone[0]).max()
            raise BatchingError(
                f"The policy {request.policy!r} computes other actions depending on {what} (difference up to "
                f"{worst:.2g}) on the device {self._device}: its episodes would depend on which others run "
                "beside them. Use --batch_size=1, or another device or precision."
            )


def _another(request: Request) -> Request:
    """A request of the same kind with other pictures, gaps in them, sensors, state, words and noise."""
    noise = {k: np.ascontiguousarray(-a[..., ::-1]) for k, a in request.noise.items()}
    return Request(request.policy, {k: _other(a) for k, a in request.arrays.items()}, noise)


def _other(array: np.ndarray) -> np.ndarray:
    if array.dtype == bool and array.size == 1:  # a sensor is there, or not
        return ~array
    mirrored = np.ascontiguousarray(array[..., ::-1])
    if array.dtype == bool and array.ndim == 4:  # validity: one half of the picture has no measurement
        mirrored[..., : array.shape[-1] // 2] = False
    return mirrored * array.dtype.type(0.5) if array.dtype.kind == "f" else mirrored

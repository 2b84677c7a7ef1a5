"""Which task a sample shows, whether that counts as known, and what a task's instruction looks like."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def labelled_episodes(tasks: Mapping[int, str], fraction: float, seed: int) -> list[int]:
    """Which episodes count as labelled: of each task the same share, and at least one.

    An episode's place in the draw depends on (seed, its number) alone: what a small fraction labels a larger
    one labels, too.

    Args:
        tasks: number of each episode -> its task.
        fraction: of a task's episodes, in (0, 1].
        seed: of the draw.

    Returns:
        Their numbers, sorted.
    """
    by_task: dict[str, list[int]] = {}
    for number, task in tasks.items():
        by_task.setdefault(task, []).append(number)
    chosen: list[int] = []
    for numbers in by_task.values():
        drawn = sorted(numbers, key=lambda number: (_uniform(f"label/{seed}/{number}"), number))
        chosen += drawn[: max(1, round(fraction * len(numbers)))]
    return sorted(chosen)


def _uniform(text: str) -> float:
    """A number in [0, 1) that depends on a text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def instruction_anchors(embeddings: Tensor, width: int, seed: int = 0) -> Tensor:
    """Unit vectors (C, width) that stand for the tasks.

    The instructions of a suite are nearly alike, so that their mean is taken off before a fixed random
    orthogonal map brings them to ``width``.

    Args:
        embeddings: one per instruction, float (C, D), from frozen weights.
        width: of the anchors.
        seed: of the map.
    """
    rows = embeddings.detach().float().cpu()
    if len(rows) > 1:
        rows = rows - rows.mean(0)
    projection = torch.empty(rows.shape[1], width)
    nn.init.orthogonal_(projection, generator=torch.Generator().manual_seed(seed))
    return F.normalize(rows @ projection, dim=1)


def task_logits(embedding: Tensor, anchors: Tensor, temperature: float) -> Tensor:
    """Cosine of embeddings (N, d) to anchors (C, d) over the temperature, float32 (N, C)."""
    return cosines(embedding, anchors) / temperature


def cosines(rows: Tensor, others: Tensor) -> Tensor:
    """Cosine of every row (N, d) to every other (M, d), in float32 also under autocast: (N, M)."""
    return product(F.normalize(rows.float(), dim=1), F.normalize(others.float(), dim=1).T)


def product(one: Tensor, other: Tensor) -> Tensor:
    """Matrix product in float32, which autocast would round."""
    with torch.autocast(one.device.type, enabled=False):
        return one.float() @ other.float()


def known_task_loss(logits: Tensor, task: Tensor, there: Tensor) -> Tensor:
    """Cross-entropy of the samples with a known task; 0 with a gradient path if there is none.

    Args:
        logits: (N, C).
        task: int64 (N,), -1 = unknown.
        there: bool (N,), samples that show anything.
    """
    counted = there & (task >= 0)
    if not counted.any():
        return logits.sum() * 0.0
    return F.cross_entropy(logits[counted], task[counted])


def mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of values (N,) where ``counted``; 0 with a gradient path if nowhere."""
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp_min(1)

"""Which part of a run this process works on: job arrays, several machines, ``accelerate launch``.

Every episode belongs to exactly one shard, and a shard's file has exactly one writer, so processes never need
to talk to each other: a shared folder is enough, and a shard that died is continued by starting it again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from filelock import FileLock, Timeout

from multismolvla_eval.records.store import ResultsError

_LOCK = re.compile(r"episodes-(\d+)of(\d+)\.lock")


def shard_name(shard: int, shards: int) -> str:
    """Stem of a shard's files."""
    return f"episodes-{shard}of{shards}"


def locate_shard(option: str, environ: Mapping[str, str]) -> tuple[int, int]:
    """``(i, n)``: this process runs part i of n.

    A launcher that starts several processes (``accelerate launch``, ``torchrun``) tells each its number in
    ``RANK`` and ``WORLD_SIZE``; every part of ``--shard`` is divided among them.

    Args:
        option: ``--shard``, e.g. ``0/4``.
        environ: the environment.

    Raises:
        ValueError: the option is not ``i/n``, or the launcher's numbers contradict each other.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", option)
    if match is None or not int(match[1]) < int(match[2]):
        raise ValueError(
            f"--shard={option} must be i/n with 0 <= i < n, e.g. 0/4, or in a job array "
            "--shard=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT with array numbers from 0."
        )
    rank, size = _numbers(environ, "RANK", "WORLD_SIZE")
    return int(match[1]) * size + rank, int(match[2]) * size


def speaks(environ: Mapping[str, str]) -> bool:
    """Whether this process may write to the terminal: the launcher's first one on this machine."""
    return _numbers(environ, "LOCAL_RANK", "LOCAL_WORLD_SIZE")[0] == 0


def share_gpus(environ: MutableMapping[str, str]) -> None:
    """Give this process one of the machine's GPUs if a launcher has started several processes here.

    A checkpoint says ``cuda``, which is the first GPU in every process; the others are hidden. Must be called
    before CUDA is used.
    """
    rank, size = _numbers(environ, "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if size < 2:
        return
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        devices = [str(i) for i in range(torch.cuda.device_count())]
    else:
        devices = [d for d in visible.split(",") if d]
    if devices:
        environ["CUDA_VISIBLE_DEVICES"] = devices[rank % len(devices)]


def refuse_other_divisions(output: Path, shards: int) -> None:
    """See that nobody works on this folder with another number of parts: the same episode would run twice.

    Raises:
        ResultsError: names the lock that is held.
    """
    for path in sorted(output.glob("episodes-*.lock")):
        match = _LOCK.fullmatch(path.name)
        if match is None or int(match[2]) == shards:
            continue
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            raise ResultsError(
                f"{path} is locked: another multismolvla-eval works on {output} in {match[2]} parts, this "
                f"one was told {shards}. Both would run the same episodes. Wait, or use the same number."
            ) from None


def _numbers(environ: Mapping[str, str], rank: str, size: str) -> tuple[int, int]:
    number, count = environ.get(rank, "0"), environ.get(size, "1")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise ValueError(
            f"The environment says {rank}={number} and {size}={count}; a launcher sets both, with {rank} "
            f"below {size}. Unset them to run alone."
        )
    return int(number), int(count)

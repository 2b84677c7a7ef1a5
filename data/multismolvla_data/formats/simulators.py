"""Processes that render episodes, and the simulator that each of them keeps open.

One at a time: ten LIBERO scenes with their textures would fill the memory.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from multismolvla.system.processes import end_with_parent
from multismolvla_data.formats.workspace import RecordingError

_OPEN: dict[tuple[Any, ...], tuple[Any, Any]] = {}


@contextlib.contextmanager
def simulator_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for simulators. They end with this one, whatever ends it; jobs that wait are dropped.

    Raises:
        RecordingError: a process died.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise RecordingError(
            "a simulator process died, perhaps for want of memory (2 to 4 GB each). The same command continues; give it "
            "fewer --workers."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    """Set up a simulator process before anything heavy is imported in it."""
    # LP_NUM_THREADS: two software renderers with a thread each beat one with two.
    os.environ.update(LP_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends the workers in order


def simulator(
    suite: str, task_id: int, *, size: int, render_quality: str, settle_steps: int, libero_assets: str | None
) -> tuple[Any, Any]:
    """Environment and observation processor of a task, kept until another one is asked for.

    Args:
        suite: suite name.
        task_id: task within the suite.
        size: picture height and width in pixels.
        render_quality: ``"default"`` or ``"fast"``.
        settle_steps: no-op steps after a reset.
        libero_assets: folder of LIBERO's assets, or ``None`` for the usual places.

    Returns:
        The environment with all initial states, and the step that makes dataset frames of its observations. Its model
        is not rebuilt at a reset.
    """
    key = (suite, task_id, size, render_quality, settle_steps, libero_assets)
    if key not in _OPEN:
        from lerobot_env_multismolvla import MultiSmolVLALiberoConfig

        close_simulator()
        config = MultiSmolVLALiberoConfig(
            task=suite,
            observation_height=size,
            observation_width=size,
            render_quality=render_quality,
            init_split="all",
            num_steps_wait=settle_steps,
            hard_reset=False,
            libero_assets=libero_assets,
        )
        _OPEN[key] = (config.env_maker(suite, task_id)(), config.get_env_processors()[0])
    return _OPEN[key]


def close_simulator() -> None:
    """Close the simulator that is open, if any."""
    for env, _ in _OPEN.values():
        env.close()
    _OPEN.clear()

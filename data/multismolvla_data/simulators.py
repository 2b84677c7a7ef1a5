"""The simulator that a worker process renders LIBERO's episodes with.

One at a time: ten LIBERO scenes with their textures would fill the memory.
"""

from __future__ import annotations

from typing import Any

_OPEN: dict[tuple[Any, ...], tuple[Any, Any]] = {}


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

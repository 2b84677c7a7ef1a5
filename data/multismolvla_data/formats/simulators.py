"""Processes that render episodes, and the simulators that each of them keeps open."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from multismolvla.modalities import Modality, ViewMap
from multismolvla.system.command import CommandError
from multismolvla.system.libero_assets import AssetIdentity, identify
from multismolvla.system.processes import end_with_parent
from multismolvla_data.formats.metadata import JsonObject


@dataclass(frozen=True)
class SimulatorSettings:
    """How scenes of a suite are simulated and rendered; a value that cannot be is a ValueError."""

    suite: str
    size: int  # picture height and width in pixels
    render_quality: str  # default or fast
    init_split: str = "all"  # of the initial states
    settle_steps: int | None = None  # no-op steps after a reset; None = the suite's own number
    libero_assets: str | None = None  # folder; None = the usual places

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 4096 or self.size % 16:
            raise ValueError(
                f"--size={self.size}: expected a multiple of 16 pixels, at most 4096, into which 4M's "
                "patches and tokens divide a picture, also the small ones of `train.py mini` and "
                "`libero_tiny`."
            )
        if self.render_quality not in ("default", "fast"):
            raise ValueError(f"--render_quality={self.render_quality}: expected 'default' or 'fast'.")
        if self.settle_steps is not None and self.settle_steps < 0:
            raise ValueError(f"--settle_steps={self.settle_steps}: expected 0 or more.")

    @property
    def assets(self) -> AssetIdentity | None:
        """What LIBERO's scenes are made of; ``None`` of the mini suite, which brings its own.

        Raises:
            FileNotFoundError: they are not there.
        """
        from lerobot_env_multismolvla.libero.setup import require_libero_assets
        from lerobot_env_multismolvla.mini import SUITE_NAME

        if self.suite == SUITE_NAME:
            return None
        return identify(require_libero_assets(self.suite, self.libero_assets))

    def identity(self) -> JsonObject:
        """What decides the pictures; where LIBERO's assets lie does not, but they must be there."""
        from lerobot_env_multismolvla.mini import MINI_VERSION, assets_hash

        known = asdict(self)
        del known["libero_assets"]
        assets = self.assets
        if assets is None:
            return known | {"version": MINI_VERSION, "assets": assets_hash()}
        return known | {"assets": assets.hash}


def suite_tasks(suite: str) -> dict[str, str]:
    """Names and instructions of a suite's tasks, in the suite's order."""
    from lerobot_env_multismolvla.mini import SUITE_NAME, TASKS

    if suite == SUITE_NAME:
        return {name: name.replace("_", " ") for name in TASKS}
    from lerobot_env_multismolvla.multimodal_env import get_suite

    return {task.name: task.language for task in get_suite(suite).tasks}


@dataclass(frozen=True)
class TaskSimulator:
    """A task's environment, with the step that makes data set frames of its observations."""

    env: Any  # a MultiModalLiberoEnv whose model is not rebuilt at a reset
    processor: Any  # LeRobot's pipeline of observations, as in evaluation
    views: ViewMap  # of the suite

    def frame(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """One raw observation -> arrays in the data set's units.

        Returns:
            RGB, segmentation and thermal uint8 (H, W, 3); depth float32 (H, W, 1) metres;
            ``observation.state`` float32 (8,).
        """
        from lerobot.envs.utils import preprocess_observation

        from lerobot_env_multismolvla.processor_multismolvla_libero import add_batch_axis

        processed = self.processor.process_observation(preprocess_observation(add_batch_axis(observation)))
        frame = {"observation.state": processed["observation.state"][0].numpy()}
        for streams in self.views.values():
            for modality, key in streams.items():
                if key in processed:
                    picture = processed[key][0].permute(1, 2, 0).numpy()
                    is_depth = modality == Modality.DEPTH
                    frame[key] = picture if is_depth else np.rint(picture * 255.0).astype(np.uint8)
        return frame


#: Simulators of this process. Making one of the mini suite costs a second, a reset 20 ms.
_OPEN: dict[tuple[SimulatorSettings, int], TaskSimulator] = {}


def simulator(settings: SimulatorSettings, task_id: int) -> TaskSimulator:
    """The simulator of a task, kept for the next call; of LIBERO's scenes, whose textures are large, one."""
    if (settings, task_id) not in _OPEN:
        from lerobot_env_multismolvla import MultiSmolVLALiberoConfig
        from lerobot_env_multismolvla.cameras import suite_views
        from lerobot_env_multismolvla.mini import SUITE_NAME

        if settings.suite != SUITE_NAME:
            close_simulators()
        config = MultiSmolVLALiberoConfig(
            task=settings.suite,
            observation_height=settings.size,
            observation_width=settings.size,
            render_quality=settings.render_quality,
            init_split=settings.init_split,
            num_steps_wait=-1 if settings.settle_steps is None else settings.settle_steps,
            hard_reset=False,
            libero_assets=settings.libero_assets,
        )
        _OPEN[settings, task_id] = TaskSimulator(
            env=config.env_maker(settings.suite, task_id)(),
            processor=config.get_env_processors()[0],
            views=suite_views(settings.suite),
        )
    return _OPEN[settings, task_id]


def close_simulators() -> None:
    """Close the simulators that are open."""
    for opened in _OPEN.values():
        opened.env.close()
    _OPEN.clear()


def worker_count(workers: int) -> int:
    """The option ``--workers`` as a number of processes; 0 = one for each core."""
    if workers < 0:
        raise ValueError(f"--workers={workers}: expected 0 (one per core) or more.")
    return workers or len(os.sched_getaffinity(0))


@contextlib.contextmanager
def simulator_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for simulators. They end with this one, whatever ends it; jobs that wait are dropped.

    Raises:
        CommandError: a process died.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise CommandError(
            "a simulator process died, probably out of memory (each needs 2 to 4 GB). The same command "
            "continues; give it fewer --workers."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    """Set up a simulator process before anything heavy is imported in it."""
    # LP_NUM_THREADS: two software renderers with a thread each beat one with two.
    os.environ.update(LP_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends the workers in order

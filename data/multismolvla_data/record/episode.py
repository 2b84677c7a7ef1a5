"""One scripted demonstration: roll out the expert, keep what the policy would see, store it in one file.

Runs in the recorder's worker processes. The observation passes through LeRobot's ``preprocess_observation`` and our
environment processor step, the same code as in evaluation, before it is turned back into dataset units.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multismolvla.modalities import Modality, default_view_map
from multismolvla.system.files import whole_file


@dataclass(frozen=True)
class EpisodeSettings:
    """What decides the content of the episodes; two recordings with equal settings are equal.

    Attributes:
        suite: suite name.
        size: picture height and width in pixels.
        render_quality: ``"default"`` or ``"fast"``.
        init_split: split of the initial states.
        noise: scale of the disturbance of executed actions; 0 = none.
        seed: seed of that disturbance and of the thermal camera.
    """

    suite: str
    size: int
    render_quality: str
    init_split: str
    noise: float
    seed: int


#: Environments of this worker process, by task: making one costs a second, a soft reset 20 ms.
_ENVS: dict[tuple[EpisodeSettings, int], tuple[Any, Any]] = {}


def record_episode(settings: EpisodeSettings, task_id: int, state: int, target: Path) -> int:
    """Run the expert once from initial state ``state`` and store the episode if it succeeds.

    Args:
        settings: see :class:`EpisodeSettings`.
        task_id: task of the suite.
        state: number of the initial state in the split.
        target: file to write (``.npz``); written whole or not at all.

    Returns:
        Number of frames, or 0 when the expert failed (nothing is written then).
    """
    from lerobot_env_multismolvla.mini.expert import ActionNoise, MiniExpert, snapshot

    env, processor = _environment(settings, task_id)
    raw, _ = env.reset(seed=settings.seed, options={"init_state_id": state})
    expert = MiniExpert(task_id)
    noise = ActionNoise(np.random.default_rng([settings.seed, task_id, state]), settings.noise)
    frames: list[dict[str, np.ndarray]] = []
    for _ in range(env._max_episode_steps):
        clean = expert.action(snapshot(env.simulation, task_id))
        frames.append({**dataset_frame(raw, processor), "action": clean})
        raw, _, terminated, _, _ = env.step(noise.disturb(clean, expert.phase))
        if terminated:
            _store(frames, target)
            return len(frames)
    return 0


def dataset_frame(raw: dict[str, Any], processor: Any) -> dict[str, np.ndarray]:
    """One raw gym observation -> arrays in the data set's units.

    Args:
        raw: unbatched observation of :class:`~lerobot_env_multismolvla.multimodal_env.MultiModalLiberoEnv`.
        processor: the environment's observation pipeline (``config.get_env_processors()[0]``).

    Returns:
        ``{key: array}``: RGB, segmentation and thermal uint8 (H, W, 3); depth float32 (H, W, 1) metres;
        ``observation.state`` float32 (8,).
    """
    from lerobot.envs.utils import preprocess_observation

    processed = processor.process_observation(preprocess_observation(batch_of_one(raw)))
    frame = {"observation.state": processed["observation.state"][0].numpy()}
    for streams in default_view_map().values():
        for modality, key in streams.items():
            if key not in processed:
                continue
            picture = processed[key][0].permute(1, 2, 0).numpy()
            frame[key] = picture if modality == Modality.DEPTH else np.rint(picture * 255.0).astype(np.uint8)
    return frame


def load_episode(source: Path) -> dict[str, np.ndarray]:
    """Arrays of a stored episode, first axis = frame; pictures as in :func:`dataset_frame`."""
    with np.load(source, allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    return {key: _restore(key, value) for key, value in arrays.items()}


def _restore(key: str, value: np.ndarray) -> np.ndarray:
    if key.endswith("_thermal"):
        return np.repeat(value, 3, axis=-1)
    return np.pad(value, [(0, 0)] * 3 + [(0, 1)]) if key.endswith("_seg") else value


def _store(frames: list[dict[str, np.ndarray]], target: Path, **extra: np.ndarray) -> None:
    """Write all frames, and what belongs to the whole episode, to one file, atomically.

    Redundant channels are left out (half the size).
    """
    arrays: dict[str, Any] = {key: np.stack([f[key] for f in frames]) for key in frames[0]}
    for key in arrays:
        if key.endswith("_thermal"):
            arrays[key] = arrays[key][..., :1]
        elif key.endswith("_seg"):
            arrays[key] = arrays[key][..., :2]
    arrays |= extra
    with whole_file(target) as partial:
        np.savez_compressed(partial, **arrays)


def _environment(settings: EpisodeSettings, task_id: int) -> tuple[Any, Any]:
    if (settings, task_id) not in _ENVS:
        from lerobot_env_multismolvla import MultiSmolVLALiberoConfig

        config = MultiSmolVLALiberoConfig(
            task=settings.suite,
            observation_height=settings.size,
            observation_width=settings.size,
            render_quality=settings.render_quality,
            init_split=settings.init_split,
        )
        env = config.env_maker(settings.suite, task_id)()
        _ENVS[settings, task_id] = (env, config.get_env_processors()[0])
    return _ENVS[settings, task_id]


def batch_of_one(raw: dict[str, Any]) -> dict[str, Any]:
    """Add the leading axis that a vector environment would add."""
    return {k: batch_of_one(v) if isinstance(v, dict) else np.asarray(v)[None] for k, v in raw.items()}

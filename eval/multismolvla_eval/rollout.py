"""One episode: environment, faults, processors and policy in the order of ``lerobot-eval``, with everything paired."""

from __future__ import annotations

import hashlib
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multismolvla.corruption import parse_condition
from multismolvla_eval.clips import ClipRecorder
from multismolvla_eval.pictures import draw_encoder_door
from multismolvla_eval.plan import Episode
from multismolvla_eval.policies import EncoderDoor, Policy
from multismolvla_eval.results import Row
from multismolvla_eval.sources import Batch, EnvironmentSource, add_batch_axis, state_hash


def derived_seed(purpose: str, run_seed: int, episode: Episode) -> int:
    """Seed of the environment or of the policy's noise.

    It depends on task and initial state but neither on the policy nor on the condition: that is what pairs the arms.

    Returns:
        An integer in [0, 2**31), the range that every generator accepts.
    """
    text = json.dumps([purpose, run_seed, episode.suite, episode.task_id, episode.episode])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def door_hashes(batch: Batch) -> dict[str, str]:
    """Hash of every picture and presence flag that enters the policy, by observation key.

    Comparing them between a clean and a faulted episode proves that a fault reached the encoder and that it changed
    nothing else.
    """
    hashes = {}
    for key, value in batch.items():
        if (
            isinstance(value, Tensor)
            and key.startswith("observation.")
            and (value.ndim >= 4 or key.endswith("_mask"))
        ):
            tensor = value.detach().to("cpu").contiguous()
            data = tensor.to(torch.float32) if tensor.dtype == torch.bfloat16 else tensor
            digest = hashlib.sha256(str((tuple(data.shape), data.dtype)).encode())
            digest.update(data.numpy().tobytes())
            hashes[key] = digest.hexdigest()[:12]
    return hashes


@dataclass
class _Clock:
    policy: float = 0.0
    env: float = 0.0
    clip: float = 0.0


def run_episode(
    episode: Episode,
    source: EnvironmentSource,
    policy: Policy,
    run_seed: int,
    recorder: ClipRecorder | None = None,
    door_picture: Path | None = None,
) -> Row:
    """Run one episode to success, time-out or failure.

    Args:
        episode: what to run.
        source: environment.
        policy: policy, loaded.
        run_seed: seed of the whole evaluation.
        recorder: keeps pictures if given.
        door_picture: draw the first frame, as it enters the policy, into this PNG.

    Returns:
        The episode's row without the run's own fields. A NaN action ends the episode as a failure with its cause.
    """
    started = time.perf_counter()
    clock = _Clock()
    condition = parse_condition(episode.condition)
    raw_env = source.make(episode.task_id)
    env = source.with_faults(raw_env, condition, run_seed)
    observe, finish = source.processors(policy.config)
    env_seed = derived_seed("env", run_seed, episode)
    noise_seed = derived_seed("policy", run_seed, episode)
    task = source.tasks[episode.task_id]

    observation, info = env.reset(
        seed=env_seed, options={"init_state_id": episode.episode, "lerobot_new_rollout": True}
    )
    start, init_state = state_hash(raw_env), int(info.get("init_state_id", episode.episode))
    clock.env = time.perf_counter() - started
    policy.reset()
    _seed_everything(noise_seed)

    limit = int(source.describe()["max_steps"])
    success, cause = False, "time_out"
    door: dict[str, str] = {}
    encoder: EncoderDoor | None = None
    gripper: list[float] = []
    steps = 0
    while steps < limit:
        tick = time.perf_counter()
        batch = observe({**add_batch_axis(observation), "task": [task]})
        if recorder is not None:
            clip_tick = time.perf_counter()
            recorder.frame(raw_env, batch, steps)
            clock.clip += time.perf_counter() - clip_tick
            tick += time.perf_counter() - clip_tick
        batch = policy.prepare(batch)
        if steps == 0:
            door = door_hashes(batch)
        action = finish(policy.act(batch)).to("cpu").numpy()[0]
        clock.policy += time.perf_counter() - tick
        if steps == 0:
            encoder = policy.at_the_door()
            if door_picture is not None:
                draw_encoder_door(door_picture, batch, source.cameras, encoder.tokens if encoder else None)
        if not np.isfinite(action).all():
            cause = "nan_action"
            break
        gripper.append(float(action[-1]))
        tick = time.perf_counter()
        observation, _, terminated, truncated, info = env.step(action)
        clock.env += time.perf_counter() - tick
        steps += 1
        if bool(info.get("is_success", False)):
            success, cause = True, ""
            break
        if terminated or truncated:
            cause = "ended"
            break
    if recorder is not None:
        recorder.frame(raw_env, None, steps)
    return {
        "policy": episode.policy,
        "checkpoint": policy.checkpoint,
        "suite": episode.suite,
        "task_id": episode.task_id,
        "task": task,
        "condition": condition.id,
        "episode": episode.episode,
        "init_state": init_state,
        "env_seed": env_seed,
        "noise_seed": noise_seed,
        "start": start,
        "success": success,
        "cause": cause or None,
        "steps": steps,
        "steps_to_success": steps if success else None,
        "gripper": _gripper(gripper),
        "door": door,
        "encoder": encoder.hashes if encoder else None,
        "seconds": {
            "total": round(time.perf_counter() - started, 3),
            "policy": round(clock.policy, 3),
            "env": round(clock.env, 3),
            "clip": round(clock.clip, 3),
        },
    }


def _gripper(commands: list[float]) -> dict[str, Any]:
    """Statistics of the last action component; in LIBERO -1 opens and +1 closes. A frozen gripper shows here."""
    closed = np.asarray(commands) > 0
    return {
        "closed": round(float(closed.mean()), 3) if len(closed) else None,
        "switches": int((closed[1:] != closed[:-1]).sum()),
    }


def _seed_everything(seed: int) -> None:
    """Policies draw from global generators; put them in the same place at the start of every paired episode."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)

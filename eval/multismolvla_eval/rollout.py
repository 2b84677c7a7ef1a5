"""One episode: environment, faults, processors and policy in the order of ``lerobot-eval``, with everything paired."""

from __future__ import annotations

import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from multismolvla.corruption import parse_condition
from multismolvla_eval.clips import ClipRecorder
from multismolvla_eval.pictures import draw_encoder_door
from multismolvla_eval.plan import Episode
from multismolvla_eval.policies import Policy
from multismolvla_eval.results import Row
from multismolvla_eval.sources import Batch, EnvironmentSource, add_batch_axis, state_hash


def derived_seed(purpose: str, run_seed: int, episode: Episode) -> int:
    """Seed of the environment or of the policy's noise.

    It depends on task, initial state and repetition but neither on the policy nor on the condition: that is what pairs
    the arms.

    Returns:
        An integer in [0, 2**31), the range that every generator accepts.
    """
    text = json.dumps([purpose, run_seed, episode.suite, episode.task_id, episode.episode, episode.seed])
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
    condition = parse_condition(episode.condition)
    raw_env = source.make(episode.task_id)
    env = source.with_faults(raw_env, condition, run_seed)
    seeds = {purpose: derived_seed(purpose, run_seed, episode) for purpose in ("env", "policy")}
    options = {"init_state_id": episode.episode, "lerobot_new_rollout": True}
    observation, info = env.reset(seed=seeds["env"], options=options)
    start, init_state = state_hash(raw_env), int(info.get("init_state_id", episode.episode))
    loop = _Loop(source, policy, raw_env, source.tasks[episode.task_id], recorder, door_picture)
    loop.seconds["env"] = time.perf_counter() - started
    policy.reset()
    policy.watch(raw_env)
    _seed_everything(seeds["policy"])

    cause: str | None = "time_out"
    while loop.steps < source.max_steps:
        action = loop.decide(observation)
        if not np.isfinite(action).all():
            cause = "nan_action"
            break
        loop.executed.update(np.ascontiguousarray(action, np.float32).tobytes())
        tick = time.perf_counter()
        observation, _, terminated, truncated, info = env.step(action)
        loop.seconds["env"] += time.perf_counter() - tick
        loop.steps += 1
        if info.get("is_success", False) or terminated or truncated:
            cause = None if info.get("is_success", False) else "ended"
            break
    if recorder is not None:
        recorder.frame(raw_env, None, loop.steps)
    return {
        "policy": episode.policy,
        "checkpoint": policy.checkpoint,
        "suite": episode.suite,
        "task_id": episode.task_id,
        "task": source.tasks[episode.task_id],
        "condition": condition.id,
        "episode": episode.episode,
        "seed": episode.seed,
        "init_state": init_state,
        "env_seed": seeds["env"],
        "noise_seed": seeds["policy"],
        "start": start,
        "success": cause is None,
        "cause": cause,
        "steps": loop.steps,
        "steps_to_success": loop.steps if cause is None else None,
        "actions": loop.executed.hexdigest()[:16],
        "gripper": _gripper(loop.gripper),
        "door": loop.door,
        "encoder": loop.encoder,
        "seconds": {
            "total": round(time.perf_counter() - started, 3),
            **{k: round(v, 3) for k, v in loop.seconds.items()},
        },
    }


class _Loop:
    """From observation to action, with what is measured on the way.

    Attributes:
        steps: environment steps made.
        executed: hash over all executed actions: equal in two rows only if the episodes were the same.
        gripper: last component of every action.
        door: hashes of the policy's input at the first step.
        encoder: hashes of the encoder's input at the first step, if the policy shows it.
        seconds: time spent per part.
    """

    def __init__(
        self,
        source: EnvironmentSource,
        policy: Policy,
        raw_env: gym.Env,
        task: str,
        recorder: ClipRecorder | None,
        door_picture: Path | None,
    ) -> None:
        self._source, self._policy, self._env, self._task = source, policy, raw_env, task
        self._recorder, self._door_picture = recorder, door_picture
        self._observe, self._finish = source.processors(policy.config)
        self.steps = 0
        self.executed = hashlib.sha256()
        self.gripper: list[float] = []
        self.door: dict[str, str] = {}
        self.encoder: dict[str, str] | None = None
        self.seconds = {"policy": 0.0, "env": 0.0, "clip": 0.0}

    def decide(self, observation: dict[str, Any]) -> np.ndarray:
        """Action (A,) for a raw observation."""
        tick = time.perf_counter()
        batch = self._observe({**add_batch_axis(observation), "task": [self._task]})
        self.seconds["policy"] += time.perf_counter() - tick
        if self._recorder is not None:
            tick = time.perf_counter()
            self._recorder.frame(self._env, batch, self.steps)
            self.seconds["clip"] += time.perf_counter() - tick
        tick = time.perf_counter()
        batch = self._policy.prepare(batch)
        if self.steps == 0:
            self.door = door_hashes(batch)
        action = self._finish(self._policy.act(batch)).to("cpu").numpy()[0]
        self.seconds["policy"] += time.perf_counter() - tick
        if self.steps == 0:
            self._look_at_the_door(batch)
        self.gripper.append(float(action[-1]))
        return action

    def _look_at_the_door(self, batch: Batch) -> None:
        door = self._policy.at_the_door()
        self.encoder = door.hashes if door else None
        if self._door_picture is not None:
            draw_encoder_door(self._door_picture, batch, self._source.cameras, door.tokens if door else None)


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

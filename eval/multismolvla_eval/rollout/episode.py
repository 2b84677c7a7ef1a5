"""One episode: environment, faults, processors and policy in the order of ``lerobot-eval``, all paired."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from lerobot_env_multismolvla.processor_multismolvla_libero import add_batch_axis
from lerobot_policy_multismolvla.safety.stopping import PolicyStopError
from multismolvla.corruption import Condition, parse_condition
from multismolvla.modalities import PADDING_MASK_SUFFIX
from multismolvla.pictures import draw_encoder_inputs
from multismolvla_eval.environments import (
    Batch,
    EnvironmentSource,
    RendersOnDemand,
    choose_start,
    state_hash,
)
from multismolvla_eval.policies.interface import Policy
from multismolvla_eval.protocol.schedule import EpisodeSpec
from multismolvla_eval.records.schema import Durations, EpisodeRow, Gripper, HealthRecord
from multismolvla_eval.rollout.recorders import Recorder, Recorders


def derived_seed(purpose: str, run_seed: int, episode: EpisodeSpec) -> int:
    """Seed of the environment or of the policy's noise.

    It depends on task, initial state and repetition but neither on the policy nor on the condition: that is
    what pairs the cells.

    Returns:
        An integer in [0, 2**31), the range that every generator accepts.
    """
    text = json.dumps([purpose, run_seed, episode.suite, episode.task_id, episode.episode, episode.repeat])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def policy_inputs(batch: Batch) -> dict[str, str]:
    """Hash of every picture and presence flag that enters the policy, by observation key.

    Comparing them between a clean and a faulted episode proves that a fault reached the policy and that it
    changed nothing else.
    """
    hashes = {}
    for key, value in batch.items():
        if (
            isinstance(value, Tensor)
            and key.startswith("observation.")
            and (value.ndim >= 4 or key.endswith(PADDING_MASK_SUFFIX))
        ):
            tensor = value.detach().to("cpu").contiguous()
            data = tensor.to(torch.float32) if tensor.dtype == torch.bfloat16 else tensor
            digest = hashlib.sha256(str((tuple(data.shape), data.dtype)).encode())
            digest.update(data.numpy().tobytes())
            hashes[key] = digest.hexdigest()[:12]
    return hashes


def run_episode(
    episode: EpisodeSpec,
    source: EnvironmentSource,
    policy: Policy,
    run_seed: int,
    recorders: Sequence[Recorder] = (),
    picture: Path | None = None,
) -> EpisodeRow:
    """Run one episode to success, time-out or failure.

    Under an attack (C6) the sensors are sound, and the pictures change where the policy looks.

    Args:
        episode: what to run.
        source: environment.
        policy: policy, loaded.
        run_seed: seed of the whole evaluation.
        recorders: are shown the episode.
        picture: draw the first frame, as it enters the policy, into this PNG.

    Returns:
        The episode's row without what the run adds: its fingerprint, the suite's hash, the time. A NaN
        action, or a policy that refuses to act on, ends the episode as a failure with its cause.
    """
    started = time.perf_counter()
    condition = parse_condition(episode.condition)
    facts = source.facts()
    clock = _Clock()
    raw_env = source.make(episode.task_id)
    env = source.with_faults(raw_env, condition, run_seed)
    attacked = None
    if condition.attack:
        from multismolvla_eval.policies.attacked import AttackedPolicy

        policy = attacked = AttackedPolicy(policy, condition.attack, run_seed, episode)
    seeds = {purpose: derived_seed(purpose, run_seed, episode) for purpose in ("env", "policy")}
    options = {"init_state_id": episode.episode, "lerobot_new_rollout": True}
    choose_start(raw_env, episode.episode)
    with clock.simulating(raw_env):
        observation, info = env.reset(seed=seeds["env"], options=options)
    init_state, init_split = int(info.get("init_state_id", episode.episode)), info.get("init_split")
    start = state_hash(raw_env)
    recorder = Recorders(recorders)
    loop = _Loop(source, policy, raw_env, facts.tasks[episode.task_id], clock, recorder, picture)
    looked_at = policy.config is not None or bool(recorders)  # also after the first observation
    # Pictures that nobody looks at are not rendered: most, for policies that act in chunks. Faults in time
    # show earlier pictures and need all of them, unless nobody looks at any; all others, and the thermal
    # camera's noise, are functions of the step's number.
    render_always = looked_at and any(f.kind == "temporal" for f in condition.faults)
    renderer = raw_env.unwrapped
    with clock.timing("policy"):
        policy.reset()
        policy.watch(raw_env)  # where an expert that tries its motions first spends most of its time
    _seed_everything(seeds["policy"])

    cause: str | None = "time_out"
    met = _Met(condition, looked_at)
    while loop.steps < facts.max_steps:
        met.note(info, loop.steps, loop.policy_looks())
        try:
            action = loop.decide(observation)
        except PolicyStopError:
            cause = "policy_stop"
            break
        if not np.isfinite(action).all():
            cause = "nan_action"
            break
        loop.executed.update(np.ascontiguousarray(action, np.float32).tobytes())
        if isinstance(renderer, RendersOnDemand):
            renderer.render_observations = render_always or loop.looks(loop.steps + 1)
        with clock.simulating(raw_env):
            observation, _, terminated, truncated, info = env.step(action)
        loop.steps += 1
        if info.get("is_success", False) or terminated or truncated:
            cause = None if info.get("is_success", False) else "ended"
            break
    recorder.frame(raw_env, None, loop.steps)
    seconds = {"total": time.perf_counter() - started, **clock.seconds}
    return EpisodeRow(
        run="",
        policy=episode.policy,
        checkpoint=policy.facts().checkpoint,
        suite=episode.suite,
        suite_hash="",
        task_id=episode.task_id,
        task=facts.tasks[episode.task_id],
        condition=condition.id,
        episode=episode.episode,
        repeat=episode.repeat,
        init_state=init_state,
        init_split=init_split,
        start=start,
        env_seed=seeds["env"],
        noise_seed=seeds["policy"],
        success=cause is None,
        cause=cause,
        steps=loop.steps,
        steps_to_success=loop.steps if cause is None else None,
        fault_steps=met.steps,
        first_fault_step=met.first,
        fault_looks=met.looks,
        actions=loop.executed.hexdigest()[:16],
        gripper=_gripper(loop.gripper),
        policy_inputs=loop.policy_inputs,
        encoder_inputs=loop.encoder_inputs,
        modality_weight=loop.modality_weight,
        health=loop.health or None,
        attack=attacked.record() if attacked else None,
        seconds=Durations(**{part: round(value, 3) for part, value in seconds.items()}),
    )


class _Clock:
    """Where an episode's time goes, in seconds, see `Durations`."""

    def __init__(self) -> None:
        self.seconds = {"policy": 0.0, "env": 0.0, "render": 0.0, "clip": 0.0}

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Count what happens meanwhile."""
        tick = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - tick

    @contextmanager
    def simulating(self, env: gym.Env) -> Iterator[None]:
        """Count what happens meanwhile in the simulator; our environments tell their rendering time apart."""
        bare = env.unwrapped
        tick, rendered = time.perf_counter(), _render_seconds(bare)
        yield
        rendering = _render_seconds(bare) - rendered
        self.seconds["render"] += rendering
        self.seconds["env"] += time.perf_counter() - tick - rendering


def _render_seconds(env: gym.Env) -> float:
    return env.render_seconds if isinstance(env, RendersOnDemand) else 0.0


class _Met:
    """Whether an episode met its fault: one in time may begin after the episode has ended.

    Only observations on which an action was still to follow count: the last one of an episode, after success
    or the step limit, moved nobody. A frozen picture counts from the first frame on, which is the one that
    stays. An attack is on the policy's looks, and on nothing between them.

    Attributes:
        steps: steps whose observation was changed, 0 without a fault; ``None`` if the environment does not
            tell, as of a fault in time where nothing is rendered because nobody looks.
        first: the first of them, ``None`` if there is none.
        looks: how many of them the policy looked at; ``None`` if the environment does not tell. A policy that
            acts in chunks may step through a short fault without a look, and then it has not met it.
    """

    def __init__(self, condition: Condition, looked_at: bool) -> None:
        self._faulted = bool(condition.faults)
        self._at_looks = condition.attack is not None
        # All other faults last; the environment does not tell so where nothing is rendered.
        self._in_time = any(f.kind == "temporal" for f in condition.faults)
        self._unknown = self._in_time and not looked_at
        self.steps: int | None = 0
        self.looks: int | None = 0
        self.first: int | None = None

    def note(self, info: Batch, step: int, looked_at: bool) -> None:
        """Count the observation before this step."""
        if not self._faulted or self.steps is None or self.looks is None:
            return
        if self._at_looks:
            self.steps = self.looks = self.looks + looked_at
            self.first = step if self.first is None and looked_at else self.first
        elif self._unknown or "fault_active" not in info:
            self.steps = self.looks = self.first = None
        elif info["fault_active"] or (self.first is not None and not self._in_time):
            self.steps += 1
            self.looks += looked_at
            self.first = step if self.first is None else self.first


class _Loop:
    """From observation to action, with what is measured on the way.

    Attributes:
        steps: environment steps made.
        executed: hash over all executed actions: equal in two rows only if the episodes were the same.
        gripper: last component of every action.
        policy_inputs: hashes of the policy's input at the first look.
        encoder_inputs: hashes of the encoder's input at the first look, if the policy shows it.
        health: what the policy thought of each stream, if it judges them.
    """

    def __init__(
        self,
        source: EnvironmentSource,
        policy: Policy,
        raw_env: gym.Env,
        task: str,
        clock: _Clock,
        recorder: Recorders,
        picture: Path | None,
    ) -> None:
        self._source, self._policy, self._env, self._task = source, policy, raw_env, task
        self._clock, self._recorder, self._picture = clock, recorder, picture
        self._planned: deque[Tensor] = deque()  # actions that need no further observation
        self._only_batch: Batch | None = None  # built-in policies see the first observation only
        self._observe, self._finish = source.processors(policy.config)
        self.steps = 0
        self.executed = hashlib.sha256()
        self.gripper: list[float] = []
        self.policy_inputs: dict[str, str] = {}
        self.encoder_inputs: dict[str, str] | None = None
        self.health: dict[str, HealthRecord] = {}
        self._weights: dict[str, list[float]] = {}

    @property
    def modality_weight(self) -> dict[str, float] | None:
        """How much each modality counted beside the others, mean over all looks."""
        return {m: round(sum(v) / len(v), 4) for m, v in self._weights.items()} or None

    def decide(self, observation: Batch) -> np.ndarray:
        """Action (A,) for a raw observation."""
        batch = self._only_batch
        if self.looks(self.steps):
            with self._clock.timing("policy"):
                batch = self._observe({**add_batch_axis(observation), "task": [self._task]})
        if self._recorder.wants(self.steps):
            with self._clock.timing("clip"):
                self._recorder.frame(self._env, batch, self.steps)
        with self._clock.timing("policy"):
            if not self._planned:
                assert batch is not None  # looks() is true then
                self._plan(batch)
            action = self._finish(self._planned.popleft()[None]).to("cpu").numpy()[0]
        self.gripper.append(float(action[-1]))
        self._recorder.acted(action, self.steps)
        return action

    def policy_looks(self) -> bool:
        """Whether the policy decides on the next observation: it looks at all, and no action is planned."""
        return not (self._planned or self._only_batch is not None)

    def looks(self, step: int) -> bool:
        """Whether policy or recorder need the observation before this step, the present or the next one."""
        return self.policy_looks() or self._recorder.wants(step)

    def _plan(self, batch: Batch) -> None:
        """Ask the policy what to do until it wants to look again."""
        prepared = self._policy.prepare(batch)
        if self.steps == 0:
            self.policy_inputs = policy_inputs(prepared)
        self._planned.extend(self._policy.act(prepared))
        look = self._policy.last_look()
        for modality, weight in look.modality_weight.items():
            self._weights.setdefault(modality, []).append(weight)
        for stream, seen in look.health.items():
            record = self.health.setdefault(stream, HealthRecord(0))
            if seen.cause is not None:
                if record.first is None:
                    record.first, record.cause = record.looks, seen.cause
                record.absent += 1
                record.absent_at.append(record.looks)
            record.looks += 1
            record.score = round(max(record.score, seen.score), 4)
        if self.steps == 0:
            self.encoder_inputs = look.encoder_inputs
            if self._picture is not None:
                draw_encoder_inputs(self._picture, prepared, self._source.cameras, look.tokens or None)
        if self._policy.config is None:
            self._only_batch = batch


def _gripper(commands: list[float]) -> Gripper:
    """Statistics of the last action component; in LIBERO -1 opens and +1 closes."""
    closed = np.asarray(commands) > 0
    share = round(float(closed.mean()), 3) if len(closed) else None
    return Gripper(share, int((closed[1:] != closed[:-1]).sum()))


def _seed_everything(seed: int) -> None:
    """Policies draw from global generators: they start every paired episode in the same place."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)

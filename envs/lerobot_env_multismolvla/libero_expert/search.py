"""Find the variants of a task's skills that work from a given state, and carry them out.

The search runs in the simulation of the episode itself: it notes the whole state, tries variants without
rendering, and restores the state. What it found then happens again bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lerobot_env_multismolvla.libero_expert.controller import OPEN, Command, Motion, settle
from lerobot_env_multismolvla.libero_expert.skills import Skill
from lerobot_env_multismolvla.libero_expert.tasks import skills_for
from lerobot_env_multismolvla.libero_expert.world import World
from lerobot_env_multismolvla.mini.expert import ActionNoise, Phase

logger = logging.getLogger(__name__)

#: Attempts at single skills before an initial state counts as not solved.
MAX_ATTEMPTS = 24

#: ``disturb(command, stage, variant)`` -> a function of the command that gives the executed action.
Disturbance = Callable[[Command], np.ndarray]
DisturbanceMaker = Callable[[int, int], Disturbance]


def undisturbed(stage: int, variant: int) -> Disturbance:
    """Execute commands as they are."""
    del stage, variant
    return lambda command: command.action


def noisy(entropy: Sequence[int], scale: float) -> DisturbanceMaker:
    """The mini suite's action noise for the LIBERO expert, reproducible per skill and variant.

    Args:
        entropy: what names the episode, e.g. ``[seed, task, state]``.
        scale: 0 switches it off.
    """
    if scale == 0:
        return undisturbed

    def maker(stage: int, variant: int) -> Disturbance:
        noise = ActionNoise(np.random.default_rng([*entropy, stage, variant]), scale)
        return lambda command: noise.disturb(command.action, Phase.CARRY if command.free else Phase.GRASP)

    return maker


def recording_seed(seed: int, task_id: int, state: int) -> int:
    """Seed of an episode's reset: it decides where fixtures stand, which no stored state says."""
    return int(np.random.SeedSequence([seed, task_id, state]).generate_state(1)[0])


@dataclass(frozen=True)
class SkillPlan:
    """What a search found."""

    variants: tuple[int, ...]  # number of the variant of each skill
    steps: int  # control steps to success
    attempts: int  # attempts at single skills that it took
    solved: bool  # whether the task was solved; otherwise ``variants`` are all 0


def search(world: World, limit: int, disturbance: DisturbanceMaker = undisturbed) -> SkillPlan:
    """Try variants until the task is solved within ``limit`` steps; the world is left as it was found.

    Depth first: when no variant of a skill works, another one of the skill before is tried.

    Args:
        world: the simulation, at the start of an episode.
        limit: control steps of an episode.
        disturbance: disturbance of executed actions by (stage, variant); must be reproducible.
    """
    start = world.snapshot()
    world.refresh()
    skills = skills_for(world)
    attempts = 0

    def descend(stage: int, chosen: tuple[int, ...], used: int) -> SkillPlan | None:
        nonlocal attempts
        before = world.snapshot()
        for variant in range(len(skills[stage].variants(world))):
            if attempts >= MAX_ATTEMPTS:
                return None
            attempts += 1
            world.restore(before)
            steps = used
            motion, disturb = stage_motion(world, skills, stage, variant), disturbance(stage, variant)
            while steps < limit:
                world.refresh()
                command = next(motion, None)
                if command is None:
                    break
                world.step(disturb(command))
                steps += 1
                if world.solved():
                    return SkillPlan((*chosen, variant), steps, attempts, True)
            world.refresh()
            if stage + 1 < len(skills) and steps < limit and skills[stage].done(world):
                found = descend(stage + 1, (*chosen, variant), steps)
                if found is not None:
                    return found
        return None

    found = descend(0, (), 0) if skills else None
    world.restore(start)
    return found or SkillPlan((0,) * len(skills), limit, attempts, False)


def stage_motion(world: World, skills: Sequence[Skill], stage: int, variant: int) -> Motion:
    """One skill's motion; the first waits until everything has come to rest."""
    if stage == 0:
        yield from settle(world)
    skill = skills[stage]
    yield from skill.run(world, skill.variants(world)[variant])


class LiberoExpert:
    """Scripted expert that an evaluation can step like a policy.

    Attributes:
        plan: what the last search found.
        executed: the last action with its disturbance, (7,) float32; this one belongs into ``env.step``.

    Example:
        >>> observation, _ = env.reset(seed=0)
        >>> expert.reset(env)
        >>> while not terminated:
        ...     observation, reward, terminated, truncated, info = env.step(expert.act(env))
    """

    def __init__(self, disturbance: DisturbanceMaker = undisturbed) -> None:
        self._disturbance = disturbance
        self._world: World | None = None
        self._commands: Iterator[tuple[np.ndarray, np.ndarray]] = iter(())
        self.plan: SkillPlan | None = None
        self.executed: np.ndarray = np.zeros(7, np.float32)

    def reset(self, env: Any, state: int | None = None) -> SkillPlan:
        """Search from the present state of an environment that was reset; it is left as it is.

        Args:
            env: a ``MultiModalLiberoEnv``, bare or wrapped.
            state: number of the initial state, for the log only.
        """
        bare = env.unwrapped
        self._world = World(bare.simulation)
        self.plan = search(self._world, bare._max_episode_steps, self._disturbance)
        if not self.plan.solved:
            logger.warning("%s, initial state %s: the expert found no way.", bare.task, state)
        self._commands = self._run(self._world, self.plan)
        return self.plan

    def act(self, env: Any) -> np.ndarray:
        """The clean action (7,) float32 for the present state; :attr:`executed` is the disturbed one."""
        del env
        if self._world is None:
            raise RuntimeError(
                "LiberoExpert.act() before reset(): call reset(env) at the start of each episode."
            )
        self._world.refresh()
        clean, self.executed = next(self._commands)
        return clean

    def _run(self, world: World, plan: SkillPlan) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        skills = skills_for(world)
        for stage, variant in enumerate(plan.variants):
            disturb = self._disturbance(stage, variant)
            for command in stage_motion(world, skills, stage, variant):
                yield command.action, disturb(command)
        idle = np.array([0, 0, 0, 0, 0, 0, OPEN], np.float32)
        while True:
            yield idle, idle

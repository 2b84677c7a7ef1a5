"""One episode: it starts where it says, whatever ran before, and tells what the policy saw of its fault."""

from __future__ import annotations

import time
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_environment import ToyEnv, ToySource

from multismolvla_eval.config import EnvironmentArguments
from multismolvla_eval.environments import state_hash
from multismolvla_eval.policies.baselines import BuiltinPolicy
from multismolvla_eval.protocol.schedule import EpisodeSpec
from multismolvla_eval.rollout.episode import run_episode


def toy_source():
    return ToySource(EnvironmentArguments("toy_environment:ToySource", "toy", None, {}))


def simulator(**changes):
    """As much of robosuite as the start's hash looks at."""
    arrays = {
        "state": np.arange(4.0),
        "body_pos": np.zeros((3, 3)),
        "body_quat": np.ones((3, 4)),
        **changes,
    }
    model = SimpleNamespace(body_pos=arrays["body_pos"], body_quat=arrays["body_quat"])
    state = SimpleNamespace(flatten=lambda: arrays["state"])
    return SimpleNamespace(sim=SimpleNamespace(get_state=lambda: state, model=model))


def environment(**attributes):
    env = gym.Env()
    for name, value in attributes.items():
        setattr(env, name, value)
    return env


@pytest.mark.parametrize(
    "changes",
    [
        {"state": np.array([0.0, 1.0, 2.0, 3.1])},
        {"body_pos": np.array([[0.0] * 3, [0.0, 0.01, 0.0], [0.0] * 3])},
        {"body_quat": np.array([[1.0] * 4, [1.0] * 4, [1.0, 1.0, 1.0, 0.9]])},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_hash_of_a_start_sees_joints_and_fixtures(changes):
    start = state_hash(environment(simulation=simulator()))
    assert start == state_hash(environment(simulation=simulator()))
    assert start != state_hash(environment(simulation=simulator(**changes)))


def test_the_start_of_lerobots_own_libero_environments_is_hashed_too():
    assert state_hash(environment(_env=SimpleNamespace(env=simulator()))) == state_hash(
        environment(simulation=simulator())
    )
    assert state_hash(environment()) is None


@pytest.mark.sim
def test_a_fixture_that_stands_elsewhere_is_another_start():
    from lerobot_env_multismolvla import MultiSmolVLALiberoConfig

    env = MultiSmolVLALiberoConfig(streams=["depth"]).env_maker("multismolvla_mini", 0)()
    env.reset(seed=0, options={"init_state_id": 3})
    before, joints = state_hash(env), env.unwrapped.state
    model = env.unwrapped.simulation.sim.model
    body = model.body_names[-1]
    pose = np.concatenate([model.body_pos[model.body_name2id(body)] + [0.01, 0, 0], [1.0, 0, 0, 0]])
    env.unwrapped.place_fixtures({body: pose})
    assert np.array_equal(env.unwrapped.state, joints), "no joint knows it"
    assert state_hash(env) != before
    env.close()


class CountingEnv(ToyEnv):
    """As LeRobot's own LIBERO environments: it counts its initial states itself."""

    init_state_id = 0

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options={"init_state_id": self.init_state_id})
        self.init_state_id += 1
        info.pop("init_state_id")
        return observation, info


def test_an_environment_that_counts_its_resets_starts_where_the_episode_says():
    source = toy_source()
    source._envs[0] = CountingEnv(0, {})
    starts = [
        run_episode(EpisodeSpec("p", "toy", 0, condition, number), source, BuiltinPolicy("zero", 7), 0).start
        for condition, number in (("C0", 3), ("C0", 1), ("C2:rgb=zero", 3), ("C2:rgb=zero", 1))
    ]
    assert starts[:2] == starts[2:]
    assert starts[0] != starts[1]


def test_a_row_names_the_split_of_its_initial_state():
    source = toy_source()
    assert (
        run_episode(EpisodeSpec("p", "toy", 0, "C0", 1), source, BuiltinPolicy("zero", 7), 0).init_split
        is None
    )

    class Telling(gym.Wrapper):
        def reset(self, **options):
            observation, info = self.env.reset(**options)
            return observation, {**info, "init_split": "train"}

    source._envs[0] = Telling(source._envs[0])
    row = run_episode(EpisodeSpec("p", "toy", 0, "C0", 1), source, BuiltinPolicy("zero", 7), 0)
    assert row.init_split == "train"


class Chunked(BuiltinPolicy):
    """Looks at every n-th observation."""

    config = SimpleNamespace()

    def __init__(self, n: int) -> None:
        super().__init__("zero", 7)
        self.n = n

    def act(self, batch):
        return torch.zeros(self.n, 7)


def faulted_in(steps):
    """Wrapper whose observations with these numbers are faulted."""

    class Faulted(gym.Wrapper):
        def reset(self, **options):
            observation, info = self.env.reset(**options)
            return observation, {**info, "fault_active": 0 in steps}

        def step(self, action):
            *rest, info = self.env.step(action)
            return (*rest, {**info, "fault_active": self.unwrapped.count in steps})

    return Faulted


def row_of(condition, wrapper, chunk):
    source = toy_source()
    source.with_faults = lambda env, condition, run_seed: wrapper(env) if condition.faults else env
    return run_episode(
        EpisodeSpec("p", "toy", 0, condition, 1), source, Chunked(chunk), 0
    )  # time-out after six steps


@pytest.mark.parametrize(
    ("condition", "steps", "chunk", "met"),
    [
        ("C4:rgb=burst", {1, 2}, 3, (2, 1, 0)),  # over before the policy looks again
        ("C4:rgb=burst", {2, 3}, 3, (2, 2, 1)),
        ("C4:rgb=burst", {2, 3}, 1, (2, 2, 2)),
        ("C4:rgb=burst", {6}, 1, (0, None, 0)),  # the last observation moves nobody
        ("C2:rgb=zero", {0}, 3, (6, 0, 2)),
        ("C0", set(), 3, (0, None, 0)),
    ],
)
def test_a_row_says_what_the_policy_saw_of_its_fault(condition, steps, chunk, met):
    row = row_of(condition, faulted_in(steps), chunk)
    assert (row.fault_steps, row.first_fault_step, row.fault_looks) == met


def test_an_environment_that_does_not_tell_leaves_it_open():
    row = row_of("C4:rgb=burst", lambda env: env, 3)
    assert (row.fault_steps, row.first_fault_step, row.fault_looks) == (None, None, None)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sets(st.integers(0, 6)), st.integers(1, 7))
def test_looks_at_a_fault_in_time_are_the_faulted_steps_among_all_looks(steps, chunk):
    row = row_of("C4:rgb=burst", faulted_in(steps), chunk)
    acted_on = steps & set(range(6))
    assert row.fault_steps == len(acted_on)
    assert row.fault_looks == len(acted_on & set(range(0, 6, chunk)))
    assert row.first_fault_step == min(acted_on, default=None)


class Switchable(ToyEnv):
    """Counts what it renders, as our environments do it, and tells whether the picture shows a fault."""

    def __init__(self, task_id, options):
        super().__init__(task_id, options)
        self.render_observations, self.render_seconds, self.rendered = True, 0.0, 0

    def reset(self, **options):
        observation, info = super().reset(**options)
        return observation, {**info, "fault_active": True}

    def step(self, action):
        self.rendered += self.render_observations
        *rest, info = super().step(action)
        return (*rest, {**info, "fault_active": self.render_observations})


class Watching:
    """A recorder that wants every third observation."""

    def wants(self, step):
        return step % 3 == 0

    def frame(self, env, batch, step):
        pass

    def acted(self, action, step):
        pass


@pytest.mark.parametrize(
    ("condition", "policy", "recorders", "rendered", "met"),
    [
        ("C4:rgb=burst", BuiltinPolicy("zero", 7), [], 0, None),
        ("C4:rgb=burst", BuiltinPolicy("zero", 7), [Watching()], 6, 6),
        ("C4:rgb=burst", Chunked(3), [], 6, 6),
        ("C2:rgb=zero", BuiltinPolicy("zero", 7), [], 0, 6),
        ("C2:rgb=zero", Chunked(3), [], 2, 6),
    ],
)
def test_what_nobody_looks_at_is_not_rendered(condition, policy, recorders, rendered, met):
    source = toy_source()
    source._envs[0] = env = Switchable(0, {})
    source.with_faults = lambda env, condition, run_seed: gym.Wrapper(env)
    row = run_episode(EpisodeSpec("p", "toy", 0, condition, 1), source, policy, 0, recorders)
    assert (row.steps, env.rendered) == (6, rendered)
    assert row.fault_steps == met


def test_an_experts_search_counts_as_the_policys_time():
    class Searching(BuiltinPolicy):
        def watch(self, env):
            time.sleep(0.05)

    seconds = run_episode(EpisodeSpec("p", "toy", 0, "C0", 0), toy_source(), Searching("zero", 7), 0).seconds
    assert seconds.policy >= 0.05
    assert seconds.policy + seconds.env + seconds.render + seconds.clip <= seconds.total + 0.01

"""Real policies in the real environment: the runner does what ``lerobot-eval`` does."""

from __future__ import annotations

import pytest
import torch

pytestmark = [pytest.mark.sim, pytest.mark.slow]

STEPS = 6
N_ACTION_STEPS = 2  # of the tiny policies, out of chunks of four


class ActionSpy:
    """A policy that remembers its actions."""

    def __init__(self, policy) -> None:
        self._policy, self.actions = policy, []

    def __getattr__(self, name):
        return getattr(self._policy, name)

    def act(self, batch):
        action = self._policy.act(batch)
        self.actions.append(action.clone())
        return action


@pytest.mark.parametrize(("name", "guarded"), [("vanilla", False), ("ours", False), ("ours", True)])
def test_same_actions_as_lerobot_eval(checkpoints, source, name, guarded):
    from lerobot.envs.factory import make_env_pre_post_processors
    from lerobot.scripts.lerobot_eval import rollout

    from lerobot_policy_multismolvla.safety.guard import guard_of
    from multismolvla_eval.policies.load import load_policy
    from multismolvla_eval.protocol.schedule import EpisodeSpec
    from multismolvla_eval.rollout.episode import derived_seed, run_episode

    policy = load_policy(str(checkpoints / name), source)
    episode = EpisodeSpec(name, source.suite, 0, "C0", 0)
    if guarded:  # each action but the first one is unsafe
        run_episode(episode, source, free := ActionSpy(policy), run_seed=3)
        first = free.actions[0][0]
        guard_of(policy.postprocessor).learn(first - 1e-4, first + 1e-4)
    spy = ActionSpy(policy)
    row = run_episode(episode, source, spy, run_seed=3)
    assert row.steps == STEPS

    before, after = make_env_pre_post_processors(env_cfg=source.config, policy_cfg=policy.config)
    vector = source.config.create_envs(n_envs=1)[source.suite][0]
    seeded = []

    def seed_noise(_):
        if not seeded:
            torch.manual_seed(derived_seed("policy", 3, episode))
            seeded.append(True)

    result = rollout(
        vector, policy.policy, before, after, policy.preprocessor, policy.postprocessor,
        seeds=[derived_seed("env", 3, episode)], render_callback=seed_noise,
    )  # fmt: skip
    vector.close()
    assert len(spy.actions) == STEPS // N_ACTION_STEPS, "it looks only when it needs a new chunk"
    assert torch.equal(torch.cat(spy.actions), result["action"][0])
    assert not guarded or not torch.equal(torch.cat(spy.actions), torch.cat(free.actions))


def test_what_nobody_looks_at_is_not_rendered_and_changes_nothing(checkpoints, source):
    from multismolvla_eval.policies.load import load_policy
    from multismolvla_eval.protocol.schedule import EpisodeSpec
    from multismolvla_eval.rollout.episode import run_episode

    env = source.make(0)
    policy = load_policy(str(checkpoints / "ours"), source)
    rendered = []
    original = env._render_camera
    env._render_camera = lambda *a, **k: rendered.append(env._step_index) or original(*a, **k)

    def run(condition, spare):
        rendered.clear()
        if not spare:  # an environment that renders whatever it is told
            type(env).render_observations = property(lambda self: True, lambda self, value: None)
            env.__dict__.pop("render_observations")
        try:
            row = run_episode(EpisodeSpec("ours", source.suite, 0, condition, 0), source, policy, 0)
        finally:
            if not spare:
                del type(env).render_observations
                env.render_observations = True
        same = ("actions", "policy_inputs", "encoder_inputs", "start", "steps", "success")
        return {k: getattr(row, k) for k in same}, sorted({*rendered})

    every, needed = list(range(STEPS + 1)), list(range(0, STEPS + 1, N_ACTION_STEPS))
    try:
        for condition in ("C0", "C2:rgb=freeze", "C3:rgb=builtin_noise@3", "C3:thermal=fixed_pattern@3"):
            assert run(condition, spare=False)[1] == every
            assert run(condition, spare=True) == (run(condition, spare=False)[0], needed), condition
        temporal, shown = run("C4:rgb=delay@2", spare=True)
        assert shown == every
        assert temporal == run("C4:rgb=delay@2", spare=False)[0]
    finally:
        del env._render_camera


@pytest.fixture
def policy_server(checkpoints, source):
    """A server in this process with the tiny policies, in batches of three, for one simulator."""
    from multismolvla_eval.policies.lerobot import LeRobotPolicy
    from multismolvla_eval.rollout.batching import ChunkBatcher
    from multismolvla_eval.rollout.server import BatchServer

    def load():
        batchers = {}
        for path in (str(checkpoints / "ours"), str(checkpoints / "vanilla")):
            policy = LeRobotPolicy(path, source)
            policy.keep_shapes()
            batchers[path] = ChunkBatcher(policy, 3)
        return batchers

    server = BatchServer(load, simulators=1)
    server.facts(str(checkpoints / "ours"))  # loading draws from the generator that seeds the episodes here
    return server


def test_alone_in_a_batch_and_in_processes_an_episode_is_the_same(
    checkpoints, source, policy_server, tmp_path
):
    """Rows of two simulator processes with a policy server in batches of three, made again one by one."""
    from multismolvla_eval.config import EnvironmentArguments, EvalConfig
    from multismolvla_eval.evaluate import evaluate
    from multismolvla_eval.policies.load import load_policy
    from multismolvla_eval.protocol.schedule import EpisodeSpec
    from multismolvla_eval.records.store import read_run
    from multismolvla_eval.rollout.episode import run_episode

    names = {"ours": "", "vanilla": "", "blind": "no_vision:"}
    paths = {n: prefix + str(checkpoints / n.replace("blind", "ours")) for n, prefix in names.items()}
    config = EvalConfig(
        policies=[f"{n}={p}" for n, p in paths.items()],
        env=EnvironmentArguments(task_ids=[0], options={"episode_length": STEPS}),
        conditions=["C1:-rgb"], clean_episodes=2, episodes=1, clips=0, workers=2, batch_size=3,
        output=tmp_path / "run",
    )  # fmt: skip
    evaluate(config)
    manifest, rows = read_run(config.output)
    assert manifest.comparable.batch_size == 3
    assert len(rows) == 9
    same = (
        "actions", "policy_inputs", "encoder_inputs", "modality_weight", "start", "success", "cause", "steps",
        "gripper", "checkpoint", "noise_seed",
    )  # fmt: skip
    policies = {n: load_policy(p, source, server=policy_server) for n, p in paths.items()}
    for row in rows:
        episode = EpisodeSpec(row.policy, row.suite, 0, row.condition, row.episode)
        alone = run_episode(episode, source, policies[row.policy], 0)
        for name in same:
            assert getattr(alone, name) == getattr(row, name), (episode.key, name)
    for name in (
        "ours",
        "vanilla",
    ):  # what the policy is given, and its noise, are those of a policy that is here
        here = run_episode(
            EpisodeSpec(name, source.suite, 0, "C0", 0), source, load_policy(paths[name], source), 0
        )
        row = next(r for r in rows if (r.policy, r.condition, r.episode) == (name, "C0", 0))
        # the instruction alone is padded differently
        given, asked = (
            {k: v for k, v in r.policy_inputs.items() if "language" not in k} for r in (here, row)
        )
        assert given == asked
        assert (here.encoder_inputs, here.start) == (row.encoder_inputs, row.start)


@pytest.mark.parametrize("name", ["vanilla", "ours"])
def test_batched_actions_are_those_of_the_policy_but_for_rounding(checkpoints, source, policy_server, name):
    from multismolvla_eval.policies.load import load_policy
    from multismolvla_eval.protocol.schedule import EpisodeSpec
    from multismolvla_eval.rollout.episode import run_episode

    acted = []
    for server in (None, policy_server):
        spy = ActionSpy(load_policy(str(checkpoints / name), source, server=server))
        run_episode(EpisodeSpec(name, source.suite, 0, "C0", 0), source, spy, 0)
        acted.append(spy.actions[0])  # later ones follow from what the simulator made of the first
    assert torch.allclose(*acted, atol=1e-5)


def test_actions_that_are_not_numbers_are_their_episodes_failure_and_nobody_elses(
    checkpoints, source, policy_server
):
    """Over a policy server: a state that is not a number makes them."""
    from multismolvla_eval.policies.load import load_policy
    from multismolvla_eval.protocol.schedule import EpisodeSpec
    from multismolvla_eval.rollout.episode import run_episode

    class Poisoned(ActionSpy):
        def prepare(self, batch):
            prepared = self._policy.prepare(batch)
            return {
                **prepared,
                "observation.state": torch.full_like(prepared["observation.state"], torch.nan),
            }

    def acted(policy):
        row = run_episode(EpisodeSpec("vanilla", source.suite, 0, "C0", 0), source, policy, 0)
        return row.cause, row.steps, row.actions

    path = str(checkpoints / "vanilla")
    healthy, other = (load_policy(path, source, server=policy_server) for _ in range(2))
    before = acted(healthy)
    cause, steps, _ = acted(Poisoned(other))
    assert (cause, steps) == ("nan_action", 0)
    assert acted(healthy) == acted(other) == before
    assert before[:2] == ("time_out", STEPS)


@pytest.mark.parametrize(
    ("batch_size", "option", "estimates"),
    [(1, "--missing_estimator=absent", False), (2, "--estimator_sources={{thermal: {}}}", True)],
)
def test_estimators_may_be_missing_or_elsewhere_in_an_evaluation(
    batch_size, option, estimates, checkpoints, tmp_path
):
    """In a simulator's own process, and in the policy server's."""
    import shutil

    from tiny_policies import save_deriving

    from multismolvla_eval.evaluate import evaluate, parse
    from multismolvla_eval.records.store import read_run

    path = save_deriving(tmp_path, checkpoints)
    moved = shutil.move(tmp_path / "thermalgen", tmp_path / "elsewhere")
    environment = "{episode_length: 2, streams: [rgb, depth, seg]}"
    config = parse(
        [
            f"--policies=[ours={path}]", "--env.task_ids=[0]", f"--env.options={environment}",
            "--conditions=[]", "--clean_episodes=1", "--clean_repeats=1", "--clips=0",
            f"--batch_size={batch_size}", f"--output={tmp_path / 'run'}", option.format(moved),
        ]
    )  # fmt: skip
    config.check()
    evaluate(config)
    (row,) = read_run(config.output)[1]
    assert ("thermal" in row.encoder_inputs) == estimates

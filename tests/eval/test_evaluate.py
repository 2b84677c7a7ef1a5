"""The runner with a toy environment: pairing, resume, crashes, refusals, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from msgspec.structs import replace

from lerobot_policy_multismolvla.safety.stopping import PolicyStopError
from multismolvla.corruption import CLEAN
from multismolvla_eval.environments import load_sources
from multismolvla_eval.evaluate import evaluate, main
from multismolvla_eval.policies.baselines import BuiltinPolicy
from multismolvla_eval.protocol.schedule import Counts, EpisodeSpec
from multismolvla_eval.records.manifest import build_manifest
from multismolvla_eval.records.schema import RunFacts
from multismolvla_eval.records.store import ResultsError, read_manifest, read_run, write_manifest
from multismolvla_eval.rollout.episode import derived_seed, run_episode
from multismolvla_eval.rollout.pool import WorkerError

FIXTURES = Path(__file__).parents[1] / "fixtures"
#: A process of its own finds the toy environment, and whatever this one was told to find.
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{FIXTURES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def rows_of(folder: Path):
    return read_run(folder)[1]


def toy_source(**options):
    from toy_environment import ToySource

    from multismolvla_eval.config import EnvironmentArguments

    return ToySource(EnvironmentArguments("toy_environment:ToySource", "toy", None, options))


def test_run_extend_and_rerun(make_config, capsys):
    config = make_config(workers=2, clips=1)
    evaluate(config, ["first"])
    rows = rows_of(config.output)
    assert len(rows) == 2 * 2 * (2 + 1 + 1)
    assert all(r.success == (r.episode % 2 == 0) for r in rows)
    assert {r.cause for r in rows} == {None, "time_out"}
    assert all(100 < r.peak_memory_mb < 10_000 for r in rows), "a process that has imported torch"
    by_key = {(r.policy, r.task_id, r.condition, r.episode): r for r in rows}
    for (policy, task, condition, episode), r in by_key.items():
        twin, clean = (
            by_key[key, task, c, episode]
            for key, c in (("vanilla" if policy == "ours" else "ours", condition), (policy, "C0"))
        )
        assert r.noise_seed == twin.noise_seed
        assert r.start == twin.start is not None
        assert r.policy_inputs == twin.policy_inputs
        changed = {k for k, value in r.policy_inputs.items() if value != clean.policy_inputs[k]}
        assert changed == ({"observation.images.image"} if condition != "C0" else set())
    clips = sorted(p.name for p in (config.output / "clips").iterdir())
    assert len(clips) == 2 * 4, "of each policy and condition the first, and the second clean one"
    assert (config.output / "modalities.png").stat().st_size > 1000

    shard = config.output / "episodes-0of1.jsonl"
    before = shard.read_bytes()
    config.conditions = ["C1:-rgb", "C2:rgb=zero", "C2:rgb=grey"]
    evaluate(config, ["second"])
    assert shard.read_bytes().startswith(before), "finished episodes are kept as they are"
    assert len(rows_of(config.output)) == len(rows) + 4
    manifest = read_manifest(config.output)
    assert manifest.commands == [["first"], ["second"]]
    assert manifest.conditions == ["C0", "C1:depth+seg+thermal", "C2:rgb=zero", "C2:rgb=grey"]
    assert "episodes" in capsys.readouterr().out


def command(output: Path, **options: object) -> list[str]:
    arguments = {
        "policies": "[ours=builtin:random, vanilla=builtin:zero]",
        "env.type": "toy_environment:ToySource",
        "env.options": "{sleep: 0.06}",
        "conditions": "[C1:-rgb]",
        "clean_episodes": 2,
        "episodes": 1,
        "clips": 0,
        "output": output,
        **options,
    }
    return [sys.executable, "-m", "multismolvla_eval.evaluate", *(f"--{k}={v}" for k, v in arguments.items())]


def test_kill_minus_9_loses_and_repeats_nothing(tmp_path):
    output = tmp_path / "run"
    process = subprocess.Popen(
        command(output), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    shard = output / "episodes-0of1.jsonl"
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and (not shard.exists() or shard.read_bytes().count(b"\n") < 3):
        time.sleep(0.02)
    process.kill()
    process.wait()
    survived = shard.read_bytes()
    assert 3 <= survived.count(b"\n") < 12
    with open(shard, "ab") as handle:  # what a machine that loses power leaves behind
        handle.write(b'{"run": "half a li')

    result = subprocess.run(command(output), env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "half-written line" in result.stderr
    assert shard.read_bytes().startswith(survived)
    counts = Counter((r.policy, r.task_id, r.condition, r.episode) for r in rows_of(output))
    assert len(counts) == 12
    assert set(counts.values()) == {1}


def test_no_simulator_outlives_a_run_that_is_killed(tmp_path):
    """Its worker is in the middle of an episode, which would otherwise go on to its end."""
    options = {"env.options": "{hang: [0, 0]}", "policies": "[a=builtin:zero]", "env.task_ids": "[0]"}
    process = subprocess.Popen(
        command(tmp_path / "run", **options),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and not (tmp_path / "run" / "run.json").exists():
        time.sleep(0.02)
    time.sleep(0.5)  # the episode begins
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert children
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(_runs(pid) for pid in children):
        time.sleep(0.05)
    left = [pid for pid in children if _runs(pid)]
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    assert not left


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_control_c_leaves_a_resumable_state(tmp_path):
    output = tmp_path / "run"
    process = subprocess.Popen(
        # so many that a busy machine cannot finish before the signal
        command(output, clean_episodes=60), env=ENVIRONMENT,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        # a shell that runs pytest in the background has it ignore Ctrl-C, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    shard = output / "episodes-0of1.jsonl"
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and (not shard.exists() or not shard.read_bytes()):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate()
    assert process.returncode == 130
    assert "same command continues" in text
    assert 1 <= len(rows_of(output)) < 244


def test_episodes_that_crash_or_hang_twice_are_recorded_and_the_run_goes_on(make_config):
    config = make_config(
        options={"crash": [0, 1], "hang": [0, 0]}, conditions=[], policies=["ours=builtin:zero"],
        clean_episodes=2,
        episode_timeout=8.0,  # on a busy machine a crash takes a while too
    )  # fmt: skip
    evaluate(config)
    rows = rows_of(config.output)
    causes = {(r.task_id, r.episode): r.cause for r in rows}
    assert len(causes) == len(rows) == 4
    assert causes == {
        (0, 0): "crash: no end after 8 s", (0, 1): "crash: exit code -6", (1, 0): None, (1, 1): "time_out",
    }  # fmt: skip
    assert [r.crashed for r in rows] == [str(r.cause).startswith("crash") for r in rows]
    assert {(r.steps, r.fault_steps, r.first_fault_step) for r in rows if r.crashed} == {(0, None, None)}


def test_a_broken_setup_records_nothing(make_config):
    config = make_config(options={"broken": True})
    with pytest.raises(WorkerError, match="the toy is broken on purpose"):
        evaluate(config)
    assert not list(config.output.glob("episodes-*.jsonl"))


def test_a_policy_that_no_attack_can_reach_is_named_and_left_out(make_config, capsys):
    config = make_config(conditions=["C2:rgb=zero", "C6:rgb=policy@4"])
    evaluate(config)
    assert "ours is left out of C6:rgb=policy@4" in capsys.readouterr().out
    assert {r.condition for r in rows_of(config.output)} == {"C0", "C2:rgb=zero"}
    with pytest.raises(ValueError, match=r"C6:rgb=policy@4 asks the policy.*--batch_size=1"):
        evaluate(make_config(conditions=["C6:rgb=policy@4"], batch_size=2))


def test_dry_run_writes_no_results(make_config, capsys):
    config = make_config(dry_run=True)
    evaluate(config)
    text = capsys.readouterr().out
    assert f"{config.output} holds no run yet: a new one would begin there" in text
    assert "C2:rgb=zero" in text
    assert "16 episodes, 16 of this shard missing" in text
    assert not (config.output / "run.json").exists()


def test_dry_run_says_whether_the_run_would_be_continued_or_refused(make_config, capsys):
    config = make_config(policies=["ours=builtin:zero"], dry_run=True)
    suites = {name: source.facts() for name, source in load_sources(config.env).items()}
    policies = {"ours": BuiltinPolicy("zero", 7).facts()}
    config.output.mkdir()
    manifest = build_manifest(config, RunFacts(suites, ["image"], policies), [CLEAN], Counts(2, 1), [])
    write_manifest(config.output, manifest)
    evaluate(config)
    assert f"holds this run ({manifest.fingerprint}) with 0 episodes" in capsys.readouterr().out
    other = {"ours": replace(policies["ours"], checkpoint="other")}
    write_manifest(config.output, replace(manifest, policies=other))
    with pytest.raises(ResultsError, match="'ours' has changed"):
        evaluate(config)
    other = {"toy": replace(manifest.suites["toy"], assets="other")}
    write_manifest(config.output, replace(manifest, suites=other))
    with pytest.raises(ResultsError, match="'toy' has changed .*assets 'other'"):
        evaluate(config)


def test_a_fault_of_what_no_sensor_delivers_is_refused_by_name_and_left_out_of_a_level(
    make_config, capsys, monkeypatch
):
    from toy_environment import ToySource

    monkeypatch.setattr(ToySource, "cameras", ("image", "image2"))  # those of the levels
    with pytest.raises(ValueError, match=r"'C3:depth=holes@3' changes depth.*delivers rgb alone"):
        evaluate(make_config(conditions=["C3:depth=holes@3"], dry_run=True))
    evaluate(make_config(conditions=None, level="quick", dry_run=True))
    text = capsys.readouterr().out
    assert "Left out, as the environment delivers rgb alone: C3:depth=holes@3." in text
    assert "C3:rgb=gaussian_noise@3" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "No policies to evaluate"),
        (["--policies=[ours]"], "expected name=path"),
        (["--policies=[a=builtin:zero, a=builtin:zero]"], "uses the name 'a' twice"),
        (["--policies=[a=builtin:nonsense]"], "Unknown built-in policy"),
        (["--policies=[a=builtin:replay]"], "builtin:replay:DATASET"),
        (["--policies=[a=builtin:zero:data]"], "Unknown built-in policy"),
        (["--policies=[a=builtin:replay:no/data]"], "no executed actions there (no/data/meta/simulation)"),
        (["--policies=[a=builtin:zero]", "--baseline=b"], "--baseline=b is none of"),
        (["--policies=[a=builtin:zero]", "--shard=4/4"], "--shard=4/4"),
        (["--policies=[a=builtin:zero]", "--workers=0"], "--workers=0"),
        (["--policies=[a=builtin:zero]", "--level=huge"], "Known levels"),
        (["--policies=[a=builtin:zero]", "--conditions=[C9]"], "Known: C0, C1"),
        (["--policies=[a=./no/such/folder]"], "No policy under './no/such/folder'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(arguments, message, tmp_path, capsys):
    assert main([*arguments, f"--output={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_nan_action_is_that_episodes_failure():
    class Broken(BuiltinPolicy):
        def act(self, batch):
            return torch.full((1, 7), torch.nan)

    row = run_episode(EpisodeSpec("p", "toy", 0, "C0", 0), toy_source(), Broken("zero", 7), 0)
    assert (row.success, row.cause, row.steps) == (False, "nan_action", 0)


def test_a_policy_that_refuses_to_act_on_fails_that_episode():
    class Refusing(BuiltinPolicy):
        def act(self, batch):
            raise PolicyStopError("11 unsafe actions in a row")

    row = run_episode(EpisodeSpec("p", "toy", 0, "C0", 0), toy_source(), Refusing("zero", 7), 0)
    assert (row.success, row.cause, row.steps) == (False, "policy_stop", 0)


class Late(gym.Wrapper):
    """A fault that is there in the second and fourth observation of six."""

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        return observation, {**info, "fault_active": False}

    def step(self, action):
        *rest, info = self.env.step(action)
        return (*rest, {**info, "fault_active": self.unwrapped.count in (1, 3)})


@pytest.mark.parametrize(
    ("condition", "start", "wrapper", "met"),
    [
        ("C4:rgb=burst", 1, Late, (2, 1)),
        (
            "C4:rgb=burst",
            0,
            Late,
            (1, 1),
        ),  # succeeds in the third step: nobody acts on the fourth observation
        ("C2:rgb=zero", 1, Late, (5, 1)),  # not in time: it lasts, also where nothing is rendered
        ("C4:rgb=burst", 1, lambda env: env, (None, None)),  # an environment that does not tell
        ("C0", 1, Late, (0, None)),
    ],
)
def test_a_row_says_whether_the_episode_met_its_fault(condition, start, wrapper, met):
    source = toy_source()
    source.with_faults = lambda env, condition, run_seed: wrapper(env) if condition.faults else env
    policy = BuiltinPolicy("zero", 7)
    policy.config = object()  # as of one that looks: for nobody's eyes nothing is rendered, and nothing told
    row = run_episode(EpisodeSpec("p", "toy", 0, condition, start), source, policy, 0)
    assert (row.fault_steps, row.first_fault_step) == met


def test_policy_noise_is_paired_and_independent_of_faults():
    class Spy(BuiltinPolicy):
        def __init__(self):
            super().__init__("random", 7)
            self.seen = []

        def act(self, batch):
            action = super().act(batch)
            self.seen.append(action)
            return action

    seen = []
    for condition in ("C0", "C2:rgb=zero", "C0"):
        torch.manual_seed(np.random.default_rng().integers(2**31))  # whatever ran before must not matter
        spy = Spy()
        run_episode(EpisodeSpec("p", "toy", 1, condition, 3), toy_source(), spy, 5)
        seen.append(torch.cat(spy.seen))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_seeds_depend_on_the_episode_and_not_on_policy_or_condition():
    base = EpisodeSpec("a", "toy", 0, "C0", 0)
    assert derived_seed("env", 0, base) == derived_seed(
        "env", 0, EpisodeSpec("b", "toy", 0, "C2:rgb=zero", 0)
    )
    others = [
        EpisodeSpec("a", "toy", 1, "C0", 0),
        EpisodeSpec("a", "toy", 0, "C0", 1),
        EpisodeSpec("a", "toz", 0, "C0", 0),
    ]
    seeds = {derived_seed("env", 0, e) for e in (base, *others)}
    seeds |= {derived_seed("env", 1, base), derived_seed("policy", 0, base)}
    assert len(seeds) == 6


def test_help_is_quick():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "multismolvla_eval.evaluate", "--help"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0
    assert "--policies" in result.stdout
    assert "round differently" in " ".join(result.stdout.split()), "why --batch_size belongs to a run"
    assert not {"torch", "lerobot", "scipy"} & {
        line.split("|")[-1].strip() for line in result.stderr.splitlines()
    }

"""``lerobot-rollout`` on the simulated arm gives the encoder what ``multismolvla-eval`` gives it."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch
from encoder_looks import watch
from processes import command, environment
from safetensors.torch import load_file
from tiny_policies import save_ours

from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy

pytestmark = [pytest.mark.sim, pytest.mark.slow, pytest.mark.timeout(400)]
STEPS, LOOKS = 8, 4  # the tiny policy looks at every second step


def test_the_encoder_is_given_the_same_tensors_as_in_the_evaluation(tmp_path, monkeypatch):
    from multismolvla_eval.config import EnvironmentArguments
    from multismolvla_eval.environments import load_sources
    from multismolvla_eval.policies.load import load_policy
    from multismolvla_eval.protocol.schedule import EpisodeSpec
    from multismolvla_eval.rollout.episode import run_episode

    checkpoint = save_ours(tmp_path) / "ours"
    monkeypatch.setattr(MultiSmolVLAPolicy, "visual_tokens", MultiSmolVLAPolicy.visual_tokens)  # put back
    arguments = EnvironmentArguments(task_ids=[0], options={"episode_length": STEPS})
    (source,) = load_sources(arguments).values()
    policy = load_policy(str(checkpoint), source)
    evaluated: list[dict[str, torch.Tensor]] = []
    watch(evaluated)
    row = run_episode(EpisodeSpec("ours", source.suite, 0, "C0", 3), source, policy, run_seed=5)
    source.make(0).close()
    assert len(evaluated) == LOOKS

    report, looks = tmp_path / "report.json", tmp_path / "looks.safetensors"
    done = subprocess.run(
        [
            command("lerobot-rollout"), f"--policy.path={checkpoint}", "--policy.device=cpu", "--device=cpu",
            "--robot.discover_packages_path=watched_looks", "--robot.type=multismolvla_sim_arm",
            "--robot.clock=lockstep", "--robot.id=test", f"--robot.calibration_dir={tmp_path}",
            "--robot.init_state_id=3", f"--robot.seed={row.env_seed}", "--robot.episodes=1",
            f"--robot.episode_length={STEPS}", f"--robot.report={report}", f"--task={row.task}",
            "--duration=0", "--play_sounds=false", "--return_to_initial_position=false",
        ],
        env=environment() | {"WATCHED_LOOKS": str(looks), "WATCHED_SEED": str(row.noise_seed)},
        capture_output=True, text=True, timeout=380,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Success 0/1 (95 % interval 0.00 to 0.79)." in done.stderr + done.stdout
    assert json.loads(report.read_text()) == [{"init_state_id": 3, "success": False, "steps": STEPS}]
    rolled_out = load_file(looks)
    assert rolled_out.keys() == evaluated[0].keys()
    for key, values in rolled_out.items():
        assert torch.equal(values, torch.cat([look[key] for look in evaluated])), key
    assert not torch.equal(*(look["rgb.image"] for look in evaluated[:2])), "the arm moved"

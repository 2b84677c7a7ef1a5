"""``lerobot-rollout`` as a real process, with an arm that goes blind (it holds: robots/test_fault_table)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from processes import command, environment

from lerobot_policy_multismolvla.processor_multismolvla import make_multismolvla_pre_post_processors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
WIDE = torch.full((7,), 100.0)
STATS = {
    "action": {"mean": torch.zeros(7), "std": torch.ones(7), "min": -WIDE, "max": WIDE},
    "observation.state": {"mean": torch.zeros(8), "std": torch.ones(8)},
}


@pytest.fixture
def checkpoint(make_policy, tmp_path) -> Path:
    policy = make_policy(chunk_size=16, n_action_steps=8, num_steps=1)
    policy.save_pretrained(tmp_path / "policy")
    names = ("policy_preprocessor", "policy_postprocessor")
    for name, pipeline in zip(
        names, make_multismolvla_pre_post_processors(policy.config, STATS), strict=True
    ):
        pipeline.save_pretrained(tmp_path / "policy", config_filename=f"{name}.json")
    return tmp_path / "policy"


def roll_out(checkpoint: Path, *options: str) -> tuple[int, str, list[dict[str, float]], list[bool]]:
    """Exit code, log, what the arm was told, and whether it was blind then."""
    report = checkpoint.parent / "report.json"
    words = [
        f"--policy.path={checkpoint}", "--policy.device=cpu", "--device=cpu",
        "--robot.discover_packages_path=fake_arm", "--robot.type=fake_arm", "--robot.id=test",
        f"--robot.report={report}", "--task=push", "--fps=10", "--duration=10", "--play_sounds=false",
        *options,
    ]  # fmt: skip
    done = subprocess.run(
        [command("lerobot-rollout"), *words], env=environment(), capture_output=True, text=True, timeout=300
    )
    told = json.loads(report.read_text())
    return done.returncode, done.stdout + done.stderr, told["actions"], told["blind"]


def test_a_stop_drives_home_and_disconnects(checkpoint):
    code, log, actions, blind = roll_out(checkpoint, "--robot.blind_from=12", "--policy.on_blind=stop")
    assert code == 1
    assert "PolicyStopError: No sensor is left, and --policy.on_blind=stop." in log
    first = blind.index(True)
    assert all("a0.pos" in action for action in actions[:first])
    home = actions[first:]
    assert len(home) > 100
    assert all(action.keys() == {f"s{i}.pos" for i in range(8)} for action in home)
    assert home[-1]["s0.pos"] == pytest.approx(0.01)  # where the arm was at the start


def test_blind_at_the_start_no_arm_moves(checkpoint):
    code, log, actions, _ = roll_out(checkpoint, "--robot.blind_from=1", "--return_to_initial_position=false")
    assert code == 1
    assert "commanded nothing yet" in log
    assert actions == []

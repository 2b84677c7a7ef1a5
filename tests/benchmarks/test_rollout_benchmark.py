"""The benchmark of roll-outs with a camera that is killed: real processes, a policy that knows nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import rollout
from rollout import RolloutBenchmark, Row
from tiny_policies import save_ours

from multismolvla.system.command import CommandError


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_killed_camera_ends_the_roll_out_unless_it_is_guarded(tmp_path: Path, capsys):
    policy = Path(save_ours(tmp_path) / "ours")
    cfg = RolloutBenchmark(
        policy=policy, tasks=[1], starts=1, lost_at=3, episode_length=6, output=tmp_path / "rows"
    )
    rows = {row.case: row for row in rollout.run(cfg)}
    assert rows["no fault"] == Row("no fault", 1, 0, False, 6, 0, losses=0)
    assert rows["guarded"] == Row("guarded", 1, 0, False, 6, 0, losses=2)  # RGB and depth
    assert rows["unguarded"].steps is None
    assert rows["unguarded"].exit_code != 0
    assert "ConnectionError" in (cfg.output / "unguarded_1_0.log").read_text()
    assert "guarded    0/1 (0.00 to 0.79); exit codes: 1 with 0" in capsys.readouterr().out
    assert list(rows.values()) == rollout.run(cfg), "nothing is rolled out twice"
    with pytest.raises(CommandError, match="is of other options"):
        rollout.run(replace(cfg, lost_at=4))
    with pytest.raises(CommandError, match="--camera=top is none of the policy's pictures"):
        rollout.run(replace(cfg, camera="top"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"starts": 0}, "expected at least one of each"),
        ({"lost_at": 0}, "--lost_at=0: expected at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RolloutBenchmark(**options)

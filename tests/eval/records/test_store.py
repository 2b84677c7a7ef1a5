"""Result files: durable, repairable at the end, and refused when doubtful."""

from __future__ import annotations

import json

import pytest

from multismolvla.system.files import write_json
from multismolvla_eval.protocol.levels import resolve
from multismolvla_eval.protocol.schedule import CLIP_CANDIDATES, Counts, Episode, episodes, remaining
from multismolvla_eval.records.store import (
    ResultsError,
    ShardWriter,
    completed,
    episode_key,
    read_manifest,
    read_rows,
    run_lock,
)


def row(episode: int = 0, **changes):
    base = {
        "run": "abc", "policy": "ours", "checkpoint": "c", "suite": "toy", "task_id": 0, "condition": "C0",
        "episode": episode, "seed": 0, "init_state": episode, "success": True, "steps": 3,
    }  # fmt: skip
    return {**base, **changes}


def write(folder, *rows, name="episodes-0of1.jsonl"):
    writer = ShardWriter(folder / name)
    for r in rows:
        writer.append(r)
    writer.close()
    return folder / name


def test_round_trip_over_shards(tmp_path):
    write(tmp_path, row(0), row(1))
    write(tmp_path, row(2), name="episodes-1of2.jsonl")
    rows = read_rows(tmp_path, "abc")
    assert [r["episode"] for r in rows] == [0, 1, 2]
    assert completed(rows) == {episode_key(row(i)) for i in range(3)}


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_half_written_last_line_is_cut_and_nothing_else_is_lost(tmp_path, cut):
    path = write(tmp_path, row(0), row(1))
    path.write_bytes(path.read_bytes()[:-cut])
    assert [r["episode"] for r in read_rows(tmp_path, "abc")] == [0]
    writer = ShardWriter(path)
    assert writer.repaired > 0
    writer.append(row(1))
    writer.close()
    assert [r["episode"] for r in read_rows(tmp_path, "abc")] == [0, 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"run": "abc", \n', r"episodes-0of1.jsonl:2 is not valid JSON"),
        (b"\x00\xff\n", r"episodes-0of1.jsonl:2 is not valid JSON"),
        (b"[1, 2]\n", r"jsonl:2 is \[1, 2\], expected an object"),
        (json.dumps(row(1, run="zzz")).encode() + b"\n", "belongs to the run 'zzz'"),
        (json.dumps(row(1, success=1)).encode() + b"\n", r"jsonl:2.success is 1, expected true or false"),
        (json.dumps(row(1, steps=True)).encode() + b"\n", r"jsonl:2.steps is True, expected a whole number"),
        (
            json.dumps({k: v for k, v in row(1).items() if k != "seed"}).encode() + b"\n",
            r"jsonl:2.seed is None",
        ),
        (
            json.dumps(row(1, cause="time_out")).encode() + b"\n",
            r"jsonl:2 contradicts itself: success is True.*'time_out'",
        ),
        (json.dumps(row(1, success=False)).encode() + b"\n", r"jsonl:2 contradicts itself: success is False"),
        (
            json.dumps(row(1, steps=-5)).encode() + b"\n",
            r"jsonl:2.steps is -5, expected a whole number from 0.*delete the line",
        ),
        (json.dumps(row(0)).encode() + b"\n", "repeats the episode"),
    ],
)
def test_doubtful_rows_are_named_and_refused(tmp_path, line, message):
    path = write(tmp_path, row(0))
    with open(path, "ab") as handle:
        handle.write(line)
    with pytest.raises(ResultsError, match=message):
        read_rows(tmp_path, "abc")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_id": 7}, r"episodes-0of1.jsonl:2 has the task_id 7, .* plans one of \[0, 2\]"),
        ({"policy": "stranger"}, r"episodes-0of1.jsonl:2 is of the policy 'stranger'"),
        ({"checkpoint": "other"}, r"jsonl:2 is of the policy 'ours' with checkpoint other"),
        ({"condition": "C2:rgb=zero"}, "has the condition 'C2:rgb=zero'"),
        ({"episode": 3}, r"has the episode 3, .* plans 0 to 2 \(C0\)"),
        ({"episode": -1}, "episode is -1"),
        ({"seed": 2}, "has the seed 2"),
        ({"condition": "C1:rgb", "episode": 1}, r"has the episode 1, .* plans 0 to 0 \(C1:rgb\)"),
        ({"condition": "C1:rgb", "seed": 1}, "has the seed 1"),
    ],
)
def test_rows_that_the_run_never_planned_are_refused(tmp_path, changes, message):
    manifest = {
        "suites": {"toy": {"world": "w", "tasks": {"0": "a", "2": "b"}}}, "conditions": ["C0", "C1:rgb"],
        "clean_episodes": 3, "clean_seeds": 2, "episodes": 1, "policies": {"ours": {"checkpoint": "c"}},
    }  # fmt: skip
    planned = [row(2, seed=1, world="w"), row(0, task_id=2, condition="C1:rgb", world="w")]
    write(tmp_path, planned[0])
    write(tmp_path, planned[1], name="episodes-1of2.jsonl")
    assert read_rows(tmp_path, "abc", manifest) == planned
    write(tmp_path, row(**changes, world="w"))
    with pytest.raises(ResultsError, match=message):
        read_rows(tmp_path, "abc", manifest)


def test_nan_never_reaches_a_file(tmp_path):
    writer = ShardWriter(tmp_path / "episodes-0of1.jsonl")
    with pytest.raises(ValueError, match="JSON"):
        writer.append(row(0, seconds={"total": float("nan")}))
    writer.append(row(1))
    assert [r["episode"] for r in read_rows(tmp_path, "abc")] == [1]


def test_manifest_errors(tmp_path):
    with pytest.raises(ResultsError, match="holds no run.json"):
        read_manifest(tmp_path)
    (tmp_path / "run.json").write_text("{half")
    with pytest.raises(ResultsError, match=r"not valid JSON.*Restore it.*another --output"):
        read_manifest(tmp_path)
    write_json(tmp_path / "run.json", [1])
    with pytest.raises(ResultsError, match="holds a list, expected an object"):
        read_manifest(tmp_path)
    write_json(tmp_path / "run.json", {"schema": 99})
    with pytest.raises(ResultsError, match="version 99"):
        read_manifest(tmp_path)
    assert list(tmp_path.glob("*.tmp")) == []


def test_lock_refuses_a_second_writer(tmp_path):
    with (
        run_lock(tmp_path / "x.lock"),
        pytest.raises(ResultsError, match="locked"),
        run_lock(tmp_path / "x.lock"),
    ):
        pass
    with run_lock(tmp_path / "x.lock"):
        pass


def test_plan_order_and_shards():
    conditions = resolve(["C1:-rgb", "C2:rgb=zero"], ("image",))
    plan = episodes(["ours", "vanilla"], {"toy": [0, 1]}, conditions, Counts(10, 5), clips=1)
    assert len(plan) == 2 * 2 * (10 + 5 + 5)
    assert [(e.policy, e.task_id, e.condition) for e in plan[:4]] == [
        ("ours", 0, "C0"), ("vanilla", 0, "C0"), ("ours", 1, "C0"), ("vanilla", 1, "C0"),
    ]  # fmt: skip
    half = plan[: len(plan) // 2]
    assert sum(e.condition == "C0" for e in half) == pytest.approx(20, abs=2)
    assert len({e.key for e in plan}) == len(plan)
    assert sum(e.clip for e in plan) == 2 * 3 * CLIP_CANDIDATES
    parts = [remaining(plan, set(), i, 3) for i in range(3)]
    assert sorted(e.key for p in parts for e in p) == sorted(e.key for e in plan)
    more = episodes(["ours", "vanilla"], {"toy": [0, 1]}, conditions[:2], Counts(10, 5))
    for i in range(3):
        assert {e.key for e in remaining(more, set(), i, 3)} <= {e.key for e in parts[i]}, "shards are stable"
    done = {plan[0].key}
    assert plan[0] not in remaining(plan, done)
    assert isinstance(plan[0], Episode)

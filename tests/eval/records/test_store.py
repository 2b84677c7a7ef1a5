"""Result files: durable, repairable at the end, and refused when doubtful."""

from __future__ import annotations

import json

import msgspec
import pytest

from multismolvla.system.files import write_json
from multismolvla_eval.protocol.levels import resolve
from multismolvla_eval.protocol.schedule import CLIP_CANDIDATES, Counts, EpisodeSpec, episodes, remaining
from multismolvla_eval.records.schema import (
    SCHEMA,
    Comparable,
    Durations,
    EpisodeRow,
    PolicyFacts,
    RunManifest,
    SuiteRecord,
)
from multismolvla_eval.records.store import (
    ResultsError,
    ShardWriter,
    completed,
    iterate_rows,
    read_manifest,
    read_run,
    read_struct,
    run_lock,
    write_manifest,
)


def row(episode: int = 0, **changes) -> EpisodeRow:
    base = {
        "run": "abc", "policy": "ours", "checkpoint": "c", "suite": "toy", "suite_hash": "w", "task_id": 0,
        "condition": "C0", "episode": episode, "repeat": 0, "init_state": episode, "success": True,
        "steps": 3,
    }  # fmt: skip
    return EpisodeRow(**{**base, **changes})


def line_of(episode: int, **changes) -> bytes:
    """A line as no writer makes it: fields are changed after the row was made, ``None`` takes one out."""
    fields = msgspec.to_builtins(row(episode)) | changes
    return json.dumps({k: v for k, v in fields.items() if k not in changes or v is not None}).encode() + b"\n"


def manifest(**changes) -> RunManifest:
    suite = SuiteRecord(type="toy", tasks={0: "a", 2: "b"}, max_steps=5, suite_hash="w")
    facts = {
        "schema": SCHEMA, "fingerprint": "abc", "comparable": Comparable(SCHEMA, "toy", {}, 0, "1"),
        "created": "2020-01-01", "level": "quick", "suites": {"toy": suite}, "cameras": ["image"],
        "policies": {"ours": PolicyFacts(path="p", type="toy", checkpoint="c")}, "baseline": "ours",
        "conditions": ["C0", "C1:rgb"], "clean_episodes": 3, "clean_repeats": 2, "episodes": 1,
    }  # fmt: skip
    return RunManifest(**{**facts, **changes})


def write(folder, *rows, name="episodes-0of1.jsonl"):
    writer = ShardWriter(folder / name)
    for r in rows:
        writer.append(r)
    writer.close()
    return folder / name


def rows_in(folder) -> list[EpisodeRow]:
    return list(iterate_rows(folder, manifest()))


def test_round_trip_over_shards(tmp_path):
    write_manifest(tmp_path, manifest())
    write(tmp_path, row(0), row(1))
    write(tmp_path, row(2, seconds=Durations(total=1.5)), name="episodes-1of2.jsonl")
    told, rows = read_run(tmp_path)
    assert told == manifest()
    assert rows == [row(0), row(1), row(2, seconds=Durations(total=1.5))]
    assert completed(rows) == {row(i).key for i in range(3)}


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_half_written_last_line_is_cut_and_nothing_else_is_lost(tmp_path, cut):
    path = write(tmp_path, row(0), row(1))
    path.write_bytes(path.read_bytes()[:-cut])
    assert rows_in(tmp_path) == [row(0)]
    writer = ShardWriter(path)
    assert writer.repaired > 0
    writer.append(row(1))
    writer.close()
    assert rows_in(tmp_path) == [row(0), row(1)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"run": "abc", \n', "truncated"),
        (b"\x00\xff\n", "malformed"),
        (b"[1, 2]\n", "Expected `object`, got `array`"),
        (b"[" * 200_000 + b"\n", "Expected `object`"),
        (line_of(1, success=1), r"got `int`.*\.success"),
        (line_of(1, steps=True), r"got `bool`.*\.steps"),
        (line_of(1, repeat=None), "missing required field `repeat`"),
        (line_of(1, gate={}), "unknown field `gate`"),
        (line_of(1, cause="time_out"), "success is True.*'time_out'"),
        (line_of(1, success=False), "success is False.*None"),
        (line_of(1, steps=-5), r">= 0.*\.steps"),
        (line_of(1, init_state=2**40), r"2147483647.*\.init_state"),
        (line_of(1, modality_weight={"rgb": 7}), r"<= 1\.0.*\.modality_weight"),
        (line_of(1, seconds={"total": float("nan")}), "malformed"),
        (line_of(1, seconds={"total": 1e39}), r"\.seconds\.total"),
        (line_of(1, gripper={"closed": "x", "switches": 0}), r"\.gripper\.closed"),
        (line_of(1, policy_inputs={"rgb": 1}), r"\.policy_inputs"),
        (line_of(1, clip="/etc/hostname"), r"\.clip"),
        (line_of(1, clip="clips/../../../etc/hostname.webp"), r"\.clip"),
        (line_of(1, clip="report.html"), r"\.clip"),
    ],
)  # fmt: skip
def test_a_damaged_row_is_refused_with_its_place_and_a_remedy(tmp_path, line, message):
    path = write(tmp_path, row(0))
    with open(path, "ab") as handle:
        handle.write(line)
    with pytest.raises(ResultsError, match=rf"episodes-0of1.jsonl:2 .*{message}"):
        rows_in(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "zzz"}, "run 'zzz'"),
        ({"suite": "other"}, "suite 'other'"),
        ({"suite_hash": "x"}, "another version of the suite 'toy'"),
        ({"task_id": 7}, r"task_id 7, .*\[0, 2\]"),
        ({"policy": "stranger"}, "policy 'stranger'"),
        ({"checkpoint": "other"}, "'ours' with checkpoint other"),
        ({"condition": "C2:rgb=zero"}, "condition 'C2:rgb=zero'"),
        ({"episode": 3}, r"episode 3, .* 0 to 2 \(C0\)"),
        ({"repeat": 2}, "repeat 2"),
        ({"condition": "C1:rgb", "episode": 1}, r"episode 1, .* 0 to 0 \(C1:rgb\)"),
        ({"condition": "C1:rgb", "repeat": 1}, "repeat 1"),
        ({"episode": 2, "repeat": 1}, "repeats the episode"),
    ],
)
def test_rows_that_the_run_never_planned_are_refused(tmp_path, changes, message):
    planned = [row(2, repeat=1), row(0, task_id=2, condition="C1:rgb")]
    write(tmp_path, planned[0])
    write(tmp_path, planned[1], name="episodes-1of2.jsonl")
    assert rows_in(tmp_path) == planned
    write(tmp_path, row(**changes), name="episodes-2of3.jsonl")
    with pytest.raises(ResultsError, match=rf"episodes-2of3.jsonl:1 .*{message}"):
        rows_in(tmp_path)


def test_a_row_that_could_not_be_read_again_is_not_written(tmp_path):
    writer = ShardWriter(tmp_path / "episodes-0of1.jsonl")
    with pytest.raises(msgspec.ValidationError, match=r"seconds\.total"):
        writer.append(row(0, seconds=Durations(total=float("nan"))))
    writer.append(row(1))
    assert rows_in(tmp_path) == [row(1)]


def test_manifest_errors(tmp_path):
    with pytest.raises(ResultsError, match=r"no run\.json"):
        read_manifest(tmp_path)
    (tmp_path / "run.json").write_text("{half")
    with pytest.raises(ResultsError, match=r"malformed.*another --output"):
        read_manifest(tmp_path)
    write_json(tmp_path / "run.json", [1])
    with pytest.raises(ResultsError, match="Expected `object`"):
        read_manifest(tmp_path)
    write_json(tmp_path / "run.json", {"schema": 3, "fingerprint": "0123456789ab"})
    with pytest.raises(ResultsError, match=f"version 3, expected {SCHEMA}"):
        read_manifest(tmp_path)
    write_json(tmp_path / "run.json", msgspec.to_builtins(manifest()) | {"episodes": "x"})
    with pytest.raises(ResultsError, match=r"\.episodes"):
        read_manifest(tmp_path)
    assert list(tmp_path.glob("*.tmp")) == []


@pytest.mark.parametrize(
    "text", ['{"total": NaN}', '{"total": [-Infinity]}', "[" * 200_000, "\xff", '{"n": 1}']
)
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, text):
    path = tmp_path / "diagnosis.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ResultsError, match=r"diagnosis\.json .*Delete it"):
        read_struct(path, Durations, "Delete it.")


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
    assert isinstance(plan[0], EpisodeSpec)

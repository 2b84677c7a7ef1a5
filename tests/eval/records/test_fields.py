"""Fields of result files: every value that a figure or a page would show is checked, and named with its place."""

from __future__ import annotations

import pytest
from synthetic import synthetic_run

from multismolvla_eval.records.fields import parse_json
from multismolvla_eval.records.store import ResultsError, read_json
from multismolvla_eval.report.command import main


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("gate", '{"rgb": 7}', ".gate.rgb is 7, expected a number from 0 to 1"),
        ("gate", '{"rgb": -3}', ".gate.rgb is -3"),
        ("gate", '{"rgb": "x"}', ".gate.rgb is 'x'"),
        ("gate", "[1]", ".gate is [1], expected an object"),
        ("gate", '{"rgb": NaN}', "NaN is no number"),
        ("seconds", '{"total": Infinity}', "Infinity is no number"),
        ("seconds", '{"total": 1e400}', ".seconds.total is inf, expected a number"),
        ("seconds", '{"total": 1e39}', ".seconds.total is 1e+39"),
        ("gripper", '{"closed": "x"}', ".gripper.closed is 'x', expected a number"),
        ("fault_steps", '"x"', ".fault_steps is 'x', expected a whole number"),
        ("steps_to_success", '"x"', ".steps_to_success is 'x'"),
        ("peak_memory_mb", '"x"', ".peak_memory_mb is 'x'"),
        ("door", "[1]", ".door is [1], expected texts by name"),
        ("encoder", '{"rgb": 1}', ".encoder is {'rgb': 1}"),
        ("time", "5", ".time is 5, expected a text"),
        ("start", "5", ".start is 5"),
        ("cause", '["x"]', ".cause is ['x']"),
        ("init_state", "1099511627776", ".init_state is 1099511627776, expected a whole number from 0 to 2147483647"),
        ("clip", "5", ".clip is 5, expected a file in the run's folder clips/"),
        ("clip", '"/etc/hostname"', ".clip is '/etc/hostname'"),
        ("clip", '"clips/../../../etc/hostname"', ".clip is 'clips/../../../etc/hostname'"),
        ("clip", '"report.html"', ".clip is 'report.html'"),
        ("deep", "[" * 200_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_a_damaged_field_is_refused_by_name_before_anything_is_written(
    tmp_path, capsys, field, value, message
):
    run = synthetic_run(tmp_path, texts=["C2:rgb=zero"])
    path = run / "episodes-0of1.jsonl"
    first, *others = path.read_text().splitlines(keepends=True)
    # The last of several fields of one name counts.
    path.write_text("".join([others[0], first.rstrip()[:-1] + f', "{field}": {value}}}\n', *others[1:]]))
    assert main([str(run)]) == 2
    said = capsys.readouterr().err
    assert "episodes-0of1.jsonl:2" in said
    assert message in said
    assert "delete the line and run the evaluation again" in said
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": [-Infinity]}', "[" * 200_000, "\xff"])
def test_files_without_a_figure_in_them_are_no_json(tmp_path, text):
    path = tmp_path / "diagnosis.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ResultsError, match=r"diagnosis.json is not valid JSON.*Delete it"):
        read_json(path, "Delete it.")


def test_sound_json_is_read_as_it_is():
    assert parse_json(b'{"a": [1, 2.5, -1e-3, null, true, "\\u00e9"]}') == {
        "a": [1, 2.5, -1e-3, None, True, "é"]
    }


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ('"error": NaN', "is not valid JSON (NaN is no number)"),
        ('"error": "nan"', "policies.ours.arms.true.error is 'nan', expected a number"),
        ('"n": 1.5', "policies.ours.arms.true.n is 1.5"),
        ('"relative": "x"', "policies.ours.arms.true.relative is 'x'"),
    ],
)
def test_a_damaged_diagnosis_is_refused_by_name(tmp_path, capsys, arm, message):
    run = synthetic_run(tmp_path, texts=["C2:rgb=zero"])
    arms = f'{{"true": {{"error": 1, "low": 0.5, "high": 2, "n": 3, {arm}}}}}'
    (run / "diagnosis.json").write_text(
        f'{{"schema": 1, "remark": "r", "dataset": "d", "held_out": true, "policies": {{"ours": {{"arms": {arms}}}}}}}'
    )
    assert main([str(run)]) == 2
    said = capsys.readouterr().err
    assert f"{run / 'diagnosis.json'} is not " in said
    assert message in said
    assert "Delete it, and run with --diagnose again" in said


def test_a_diagnosis_may_say_that_it_has_nothing(tmp_path):
    run = synthetic_run(tmp_path, texts=["C2:rgb=zero"])
    ours = '{"arms": null, "left_out": null}'
    (run / "diagnosis.json").write_text(
        f'{{"schema": 1, "remark": "r", "dataset": "d", "held_out": true, "policies": {{"ours": {ours}}}}}'
    )
    assert main([str(run)]) == 0
    assert "left out: None" not in (run / "report.html").read_text()

"""Proofs that cells are paired and that faults arrive, from made-up hashes."""

from __future__ import annotations

import re

from synthetic import RGB, facts, manifest_of, row_of, synthetic_run, write_rows

from multismolvla.corruption import parse_condition
from multismolvla_eval.analysis.cells import Cells
from multismolvla_eval.analysis.fairness import fairness_checks
from multismolvla_eval.analysis.table import episode_table
from multismolvla_eval.protocol.schedule import EpisodeSpec
from multismolvla_eval.records.store import read_run
from multismolvla_eval.report.command import main

STREAMS = [f"observation.images.image{suffix}" for suffix in ("", "_depth", "_seg", "_thermal")]


def checks_of(cells, cameras=("image",), derives=(), **reads):
    """Fairness checks of one episode per cell: ``{(policy, condition): (encoder's, input's hashes)}``."""
    names = tuple(dict.fromkeys(policy for policy, _ in cells))
    conditions = [parse_condition(c) for c in dict.fromkeys(c for _, c in cells)]
    policies = {name: facts(name, reads=reads.get(name, STREAMS), derives=list(derives)) for name in names}
    manifest = manifest_of(("toy",), conditions, names, policies, cameras=list(cameras))
    rows = []
    for (policy, condition), (encoder, inputs) in cells.items():
        row = row_of(EpisodeSpec(policy, "toy", 0, condition, 0), manifest, True)
        row.encoder_inputs, row.policy_inputs = encoder, inputs
        rows.append(row)
    ids = [c.id for c in conditions]
    return fairness_checks(list(policies), ids, Cells(episode_table(rows, manifest)), manifest).faults


def test_fairness_checks_prefer_the_encoder_and_skip_what_cannot_show():
    clean = {"rgb": "1", "depth": "2"}
    inputs = {
        "observation.images.image": "a",
        "observation.images.image_depth": "b",
        "observation.images.image_padding_mask": "m",
    }
    cells = {
        ("ours", "C0"): (clean, inputs),
        ("ours", "C1:depth+seg+thermal"): ({"depth": "2"}, inputs),
        ("ours", "C2:rgb=freeze"): (clean, inputs),
        ("ours", "C4:rgb=delay@2"): (clean, inputs),
        ("ours", "C2:rgb=zero"): ({"rgb": "9", "depth": "8"}, inputs),
        ("rgb", "C0"): (None, inputs),
        ("rgb", "C2:rgb=zero"): (None, inputs),
        ("rgb", "C3:depth=holes@3"): (None, inputs),
    }
    faults = checks_of(cells, rgb=STREAMS[:1])
    assert [(f.policy, f.condition, f.where, f.reached, f.rest_equal) for f in faults] == [
        ("ours", "C1:depth+seg+thermal", "encoder", 1, 1),
        ("ours", "C2:rgb=zero", "encoder", 1, 0),
        ("rgb", "C2:rgb=zero", "input", 0, 1),
    ]
    assert [f.doubtful for f in faults] == [False, True, True]


def test_a_fault_that_arrives_in_part_is_not_taken_for_one_that_arrived():
    """C1:rgb loses depth, seg and thermal; here only depth is gone, the two others stay as they were."""
    streams = STREAMS[1:]
    clean_inputs = dict.fromkeys(STREAMS, "clean")
    clean = {"rgb": "1", "depth": "2", "seg": "3", "thermal": "4"}
    for condition, encoder, inputs, reached in (
        ("C1:rgb", {"rgb": "1", "seg": "3", "thermal": "4"}, clean_inputs, 0),
        ("C1:rgb", {"rgb": "1"}, clean_inputs, 1),
        ("C1:rgb", None, {**clean_inputs, streams[0]: "black"}, 0),
        ("C1:rgb", None, {**clean_inputs, **dict.fromkeys(streams, "black")}, 1),
    ):
        cells = {
            ("ours", "C0"): (clean if encoder else None, clean_inputs),
            ("ours", condition): (encoder, inputs),
        }
        (fault,) = checks_of(cells)
        assert (fault.reached, fault.rest_equal) == (reached, 1), (encoder, inputs)

    both = dict.fromkeys(RGB, "clean")
    one = {**both, "observation.images.image": "other"}
    for condition, reached in (("C2:rgb=zero", 0), ("C3:rgb=builtin_noise@1", 1)):
        cells = {("ours", "C0"): (None, both), ("ours", condition): (None, one)}
        (fault,) = checks_of(cells, ("image", "image2"), ours=RGB)
        assert fault.reached == reached, "a soft fault may find nothing to change in one of the cameras"


def test_faults_that_do_not_arrive_or_leak_are_named_everywhere(tmp_path, capsys):
    folder = synthetic_run(tmp_path / "run")
    rows = read_run(folder)[1]
    for row in rows:
        if (row.policy, row.condition, row.task_id, row.episode) == ("ours", "C2:rgb=zero", 0, 0):
            row.policy_inputs["observation.images.image"] = "clean"
        if (row.policy, row.condition, row.task_id) == ("vanilla", "C1:camera=image2", 1):
            row.policy_inputs["observation.images.image"] = "leak"
    write_rows(folder, rows)
    assert main([str(folder)]) == 0
    lost = "not every faulted stream changed"
    leak = "something besides the faulted streams differs"
    texts = (
        capsys.readouterr().out,
        (folder / "report.md").read_text(),
        (folder / "report.html").read_text(),
    )
    for text in texts:
        assert text.count(lost) == text.count(leak) == 1
        assert re.search(rf"ours: {lost}.*C2:rgb=zero \(1 of 10\)", text)
        assert re.search(rf"vanilla: {leak}.*C1:camera=image2 \(5 of 10\)", text)
    assert "in the others it did not arrive in full" in texts[2]
    assert "more than the fault differs" in texts[2]


def test_what_a_policy_computes_of_rgb_changes_with_it_and_with_nothing_else():
    """Thermal is the policy's estimate: no sensor of this environment delivers it."""
    clean = {"rgb": "1", "depth": "2", "thermal": "4"}
    for condition, encoder, reached, rest_equal in (
        ("C3:rgb=fog@3", clean | {"rgb": "9", "thermal": "8"}, 1, 1),
        ("C3:rgb=fog@3", clean | {"rgb": "9"}, 1, 1),  # the estimate may be the same
        ("C3:rgb=fog@3", clean | {"thermal": "8"}, 0, 1),
        ("C3:rgb=fog@3", clean | {"rgb": "9", "depth": "8"}, 1, 0),
        ("C1:depth+seg+thermal", {"depth": "2"}, 1, 1),
        ("C1:depth+seg+thermal", {"depth": "2", "thermal": "4"}, 0, 1),  # clean RGB shows through
        ("C2:rgb=zero", clean | {"rgb": "9"}, 0, 1),
        ("C3:depth=holes@3", clean | {"depth": "9", "thermal": "8"}, 1, 0),
        ("C1:rgb+depth+seg", {"rgb": "1", "depth": "2"}, 1, 1),
        ("C1:rgb+depth+seg", clean, 0, 1),
    ):
        inputs = dict.fromkeys(STREAMS[:2], "clean")
        cells = {("ours", "C0"): (clean, inputs), ("ours", condition): (encoder, inputs)}
        (fault,) = checks_of(cells, derives=STREAMS[3:])
        assert (fault.reached, fault.rest_equal) == (reached, rest_equal), (condition, encoder)

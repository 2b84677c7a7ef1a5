"""Proofs that arms are paired and that faults arrive, from made-up hashes."""

from __future__ import annotations

import json
import re

from synthetic import synthetic_run

from multismolvla_eval.analysis.fairness import fairness_checks
from multismolvla_eval.analysis.table import Cells, collect
from multismolvla_eval.report.command import main


def checks_of(arms, manifest):
    """Fairness checks of one episode per arm: ``{(policy, condition): (hashes at the encoder, hashes at the door)}``."""
    policies = {
        name: {"checkpoint": "c", "reads": [], **facts} for name, facts in manifest["policies"].items()
    }
    rows = [
        {"policy": p, "checkpoint": "c", "suite": "toy", "task_id": 0, "condition": c, "episode": 0, "seed": 0,
         "init_state": 0, "success": True, "steps": 1, "start": "s", "encoder": encoder, "door": door}
        for (p, c), (encoder, door) in arms.items()
    ]  # fmt: skip
    conditions = list(dict.fromkeys(c for _, c in arms))
    manifest = {**manifest, "policies": policies}
    return fairness_checks(list(policies), conditions, Cells(collect(rows, policies)), manifest)["faults"]


def test_fairness_checks_prefer_the_encoder_and_skip_what_cannot_show():
    clean = {"rgb": "1", "depth": "2"}
    door = {
        "observation.images.image": "a",
        "observation.images.image_depth": "b",
        "observation.images.image_padding_mask": "m",
    }
    arms = {
        ("ours", "C0"): (clean, door),
        ("ours", "C1:depth+seg+thermal"): ({"depth": "2"}, door),
        ("ours", "C2:rgb=freeze"): (clean, door),
        ("ours", "C4:rgb=delay@2"): (clean, door),
        ("ours", "C2:rgb=zero"): ({"rgb": "9", "depth": "8"}, door),
        ("rgb", "C0"): (None, door),
        ("rgb", "C2:rgb=zero"): (None, door),
        ("rgb", "C3:depth=holes@3"): (None, door),
    }
    policies = {"ours": {"reads": []}, "rgb": {"reads": ["observation.images.image"]}}
    faults = checks_of(arms, {"cameras": ["image"], "policies": policies})
    assert [(f["policy"], f["condition"], f["where"], f["reached"], f["rest_equal"]) for f in faults] == [
        ("ours", "C1:depth+seg+thermal", "encoder", 1, 1),
        ("ours", "C2:rgb=zero", "encoder", 1, 0),
        ("rgb", "C2:rgb=zero", "input", 0, 1),
    ]
    assert [f["doubtful"] for f in faults] == [False, True, True]


def test_a_fault_that_arrives_in_part_is_not_taken_for_one_that_arrived():
    """C1:rgb loses depth, seg and thermal; here only depth is really gone, and the two others stay as they were."""
    streams = (
        "observation.images.image_depth",
        "observation.images.image_seg",
        "observation.images.image_thermal",
    )
    clean_door = dict.fromkeys(("observation.images.image", *streams), "clean")
    clean = {"rgb": "1", "depth": "2", "seg": "3", "thermal": "4"}
    manifest = {"cameras": ["image"], "policies": {"ours": {}}}
    for condition, encoder, door, reached in (
        ("C1:rgb", {"rgb": "1", "seg": "3", "thermal": "4"}, clean_door, 0),
        ("C1:rgb", {"rgb": "1"}, clean_door, 1),
        ("C1:rgb", None, {**clean_door, streams[0]: "black"}, 0),
        ("C1:rgb", None, {**clean_door, **dict.fromkeys(streams, "black")}, 1),
    ):
        arms = {
            ("ours", "C0"): (clean if encoder else None, clean_door),
            ("ours", condition): (encoder, door),
        }
        (fault,) = checks_of(arms, manifest)
        assert (fault["reached"], fault["rest_equal"]) == (reached, 1), (encoder, door)

    manifest["cameras"] = ["image", "image2"]
    both = {f"observation.images.{c}": "clean" for c in ("image", "image2")}
    one = {**both, "observation.images.image": "other"}
    for condition, reached in (("C2:rgb=zero", 0), ("C3:rgb=builtin_noise@1", 1)):
        (fault,) = checks_of({("ours", "C0"): (None, both), ("ours", condition): (None, one)}, manifest)
        assert fault["reached"] == reached, "a soft fault may find nothing to change in one of the cameras"


def test_faults_that_do_not_arrive_or_leak_are_named_everywhere(tmp_path, capsys):
    folder = synthetic_run(tmp_path / "run")
    shard = folder / "episodes-0of1.jsonl"
    rows = [json.loads(line) for line in shard.read_text().splitlines()]
    for r in rows:
        if (r["policy"], r["condition"], r["task_id"], r["episode"]) == ("ours", "C2:rgb=zero", 0, 0):
            r["door"]["observation.images.image"] = "clean"
        if (r["policy"], r["condition"], r["task_id"]) == ("vanilla", "C1:camera=image2", 1):
            r["door"]["observation.images.image"] = "leak"
    shard.write_text("".join(json.dumps(r) + "\n" for r in rows))
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
